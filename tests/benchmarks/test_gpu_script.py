"""benchmarks/gpu/run.py: its dry run on the CPU, what it does again and what not, and how it outlives a bad stage."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run.py"
STAGES = ["install", "chip", "models", "verify", "engines", "end_to_end", "starter", "decoding", "rtx", "peers"]
STAGES += ["quantised"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups")

#: Put at the start of every Python process: packages that a bare machine lacks, and a stage that never ends.
CUSTOMISE = """
import os, sys, time
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = os.environ.get("ABSENT", "").split(",")
        return None if name in absent else super().find_spec(name, path, target)
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
if os.environ.get("HANGS", "-") in sys.orig_argv[-1:]:
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def customised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("customised")
    (folder / "sitecustomize.py").write_text(CUSTOMISE)
    return folder


@pytest.fixture(scope="module")
def run(customised: Path) -> Any:
    def command(out: Path, *options: object, **environment: str) -> subprocess.CompletedProcess[str]:
        paths = [str(customised), os.environ.get("PYTHONPATH", "")]
        words = [sys.executable, SCRIPT, "--dry-run", "--minutes", 60, "--out", out, *options]
        return subprocess.run(
            [str(word) for word in words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return command


@pytest.fixture(scope="module")
def dry(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole dry run, without packages that the bare machine may lack."""
    out: Path = tmp_path_factory.mktemp("dry")
    done = run(out, ABSENT="click,tensorrt,nncf,modelopt")
    assert done.returncode == 0, done.stdout + done.stderr + page(out)
    assert done.stdout.splitlines() == [f"{stage}: done" for stage in STAGES]
    return out


@pytest.fixture
def out(dry: Path, tmp_path: Path) -> Path:
    """What a whole dry run leaves, to be spoilt."""
    return shutil.copytree(dry, tmp_path / "out")


def page(out: Path) -> str:
    return (out / "results.md").read_text("utf-8")


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text("utf-8"))
    return found


def ages(out: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (out / "stages").iterdir()}


def done_again(before: dict[str, int], out: Path) -> list[str]:
    return [name for name in STAGES if ages(out)[name] != before[name]]


def edit(out: Path, stage: str, **changes: Any) -> None:
    path = out / "stages" / f"{stage}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.slow
def test_a_dry_run_goes_through_every_stage_and_says_that_it_is_one(dry: Path) -> None:
    found = results(dry)
    assert list(found) == STAGES
    assert {(stage["status"], stage["dry_run"]) for stage in found.values()} == {("done", True)}
    assert page(dry).startswith("# GPU run - DRY RUN ON THE CPU: no figure here means anything\n")


@pytest.mark.slow
def test_a_dry_run_measures_what_the_real_one_does(dry: Path) -> None:
    found, text = results(dry), page(dry)
    assert {f"matrix_{kind}_tflops" for kind in ("float16", "bfloat16", "float32")} <= found["chip"].keys()
    assert {f"copy_{way}_gb_per_s" for way in ("to_gpu", "from_gpu", "on_gpu_read_and_written")} <= found["chip"].keys()
    assert found["engines"]["ONNX Runtime FP16"].keys() == {"1", "2"}
    assert found["starter"]["starter, ONNX Runtime FP16"]["1"] > 0
    assert {found["end_to_end"][f"onnx-cpu, {name}"]["pictures"] for name in ("384", "12MP")} == {6, 2}
    assert found["peers"]["DataLoader + torch eager, 384"]["pictures"] == 6
    assert found["peers"].keys() >= {"torch eager, AMP", "torch.compile, AMP"}
    assert found["verify"]["onnx-cpu"]["parity"]
    for row in (
        "| ONNX Runtime FP16 |",
        "| torch eager, AMP |",
        "| starter, ONNX Runtime FP16 |",
        "| onnx-cpu, 12MP |",
    ):
        assert row in text
    assert "| matrix products in float16 |" in text
    assert found["models"]["gflop_per_picture"] > 0


@pytest.mark.slow
def test_what_is_not_there_is_said(dry: Path) -> None:
    found, text = results(dry), page(dry)
    assert "FP16, INT8 and FP8" in found["install"]["left_out"]["tensorrt"]
    assert found["quantised"]["int8_graph"].startswith("not there: ")
    assert found["quantised"]["float8_graph"].startswith("not there: ")
    assert "TensorRT FP16 ended: batch 1: No module named 'tensorrt'" in text
    assert found["chip"]["native_backend"] == "not run: there is no GPU in a dry run"


@pytest.mark.slow
def test_the_attempt_with_tensorrt_for_rtx_builds_an_engine_or_says_why_not(dry: Path) -> None:
    found = results(dry)["rtx"]
    if "said" in found:
        pytest.skip(found["said"])
    assert found["products"].keys() == {"float16"}
    assert found["built"].endswith("MB for 8.9")


@pytest.mark.slow
def test_the_same_command_again_does_nothing_again(run: Any, out: Path) -> None:
    before = ages(out)
    assert run(out).returncode == 0
    assert done_again(before, out) == []


@pytest.mark.slow
def test_only_what_is_missing_or_asked_for_is_done_again(run: Any, out: Path) -> None:
    before = ages(out)
    (out / "stages" / "decoding.json").unlink()
    edit(out, "install", measured_before=1)
    done = run(out, "--redo", "install")
    assert done.returncode == 0, page(out)
    assert done_again(before, out) == ["install", "decoding"]
    assert results(out)["decoding"]["status"] == "done"
    assert "measured_before" not in results(out)["install"], "from its beginning"


@pytest.mark.slow
def test_a_stage_goes_on_where_it_was_stopped(run: Any, out: Path) -> None:
    """Killed with the script in the middle of a stage: what it had measured stands."""
    edit(out, "engines", **{"status": "cut off", "ONNX Runtime FP16": {"1": 123.0}})
    assert run(out).returncode == 0, page(out)
    rates = results(out)["engines"]["ONNX Runtime FP16"]
    assert rates["1"] == 123.0
    assert rates.keys() == {"1", "2"}


@pytest.mark.slow
def test_a_stage_that_runs_out_of_time_is_stopped_and_leaves_the_others(run: Any, out: Path) -> None:
    before = ages(out)
    edit(out, "rtx", status="cut off", built="3 MB")
    done = run(out, "--minutes", 0.2, HANGS="rtx")
    assert done.returncode == 1
    found = results(out)["rtx"]
    assert found["status"] == "out of time"
    assert found["built"] == "3 MB", "what it had measured"
    assert "| rtx | out of time |" in page(out)
    assert done_again(before, out) == ["rtx"]


@pytest.mark.slow
def test_a_stage_that_fails_says_why_and_leaves_the_others(run: Any, out: Path) -> None:
    before = ages(out)
    done = run(out, "--redo", "install", ABSENT="onnxruntime,tqdm")
    assert done.returncode == 1
    assert done_again(before, out) == ["install"]
    assert results(out)["install"]["missing"] == ["tqdm", "onnxruntime-gpu"]
    assert "| install | failed |" in page(out)
    assert "bring these along in --wheels (README.md says how): tqdm, onnxruntime-gpu" in page(out)


@pytest.mark.slow
def test_what_needs_a_stage_that_failed_is_skipped(run: Any, out: Path) -> None:
    for stage in ("models", "verify"):
        (out / "stages" / f"{stage}.json").unlink()
    done = run(out, ABSENT="mineral_export.onnx")
    assert done.returncode == 1
    found = results(out)
    assert (found["models"]["status"], found["verify"]["status"]) == ("failed", "skipped")
    assert found["verify"]["error"] == "needs models"
    assert found["peers"]["status"] == "done"
    assert "No module named 'mineral_export.onnx'" in found["models"]["error"]


def test_without_time_nothing_begins(run: Any, tmp_path: Path) -> None:
    done = run(tmp_path, "--minutes", 0)
    assert done.returncode == 1
    assert {stage["status"] for stage in results(tmp_path).values()} == {"skipped"}
    assert "give the same command again" in page(tmp_path)


# Its parts.


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Its modules, which are no package."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    names = ("common", "ceilings", "report", "stages", "run")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


def settings(script: Any, tmp_path: Path, **changes: Any) -> Any:
    given = {"out": tmp_path / "out", "wheels": None, "photos": None, "sizes": script.common.TINY}
    return script.common.Settings(**(given | changes))


def test_all_stages_fit_ten_minutes(script: Any) -> None:
    assert sum(limits.seconds for limits in script.run.STAGES.values()) <= 600


def test_pieces_are_put_together_and_what_is_broken_is_named(script: Any, tmp_path: Path) -> None:
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    (tmp_path / "brought").mkdir()
    (tmp_path / "brought" / "brought_along.py").write_text("HERE = True\n" + "# " + os.urandom(2000).hex())
    wheels.mkdir()
    with tarfile.open(tmp_path / "brought.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "brought" / "brought_along.py", "brought_along.py")
    whole = (tmp_path / "brought.tar.xz").read_bytes()
    for index, start in enumerate(range(0, len(whole), 800)):
        (wheels / f"brought.tar.xz.part{index:02}").write_bytes(whole[start : start + 800])
    (wheels / "broken.tar.xz").write_bytes(b"nothing of the kind")
    (wheels / "paper-int8.onnx.part00").write_bytes(b"a gr")
    (wheels / "paper-int8.onnx.part01").write_bytes(b"aph")
    given = settings(script, tmp_path, wheels=wheels)
    script.stages.run("install", given)
    found = script.common.read(out, "install")
    assert found["installed"] == ["brought.tar.xz", "paper-int8.onnx"]
    assert list(found["failed"]) == ["broken.tar.xz"]
    assert "HERE = True" in (out / "site" / "brought_along.py").read_text()
    target = given.model("int8")
    target.parent.mkdir(parents=True)
    assert script.stages._int8(given, target).startswith("brought along")
    assert target.read_bytes() == b"a graph"


def test_a_dry_runs_tiny_models_are_never_taken_for_real(script: Any, tmp_path: Path) -> None:
    dry, real = (settings(script, tmp_path, sizes=sizes) for sizes in (script.common.TINY, script.common.FULL))
    assert dry.model("float16") != real.model("float16")
    assert dry.folder("384") != real.folder("384")


def test_the_operations_of_a_graph_are_counted(script: Any, tmp_path: Path) -> None:
    weights = {"kernel": np.zeros((8, 3, 3, 3), np.float32), "matrix": np.zeros((8, 5), np.float32)}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=1),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["maps"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "counted",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 16, 16, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "counted.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    products = 16 * 16 * 8 * (3 * 3 * 3) + 8 * 5
    assert script.common.gflop(path) == pytest.approx(2 * products / 1e9)


def test_every_rate_stands_beside_its_share_of_the_measured_ceiling(script: Any) -> None:
    found: dict[str, Any] = {name: {"status": "done"} for name in STAGES}
    found["chip"] |= {"matrix_float16_tflops": 100.0, "matrix_float8_tflops": 200.0, "copy_to_gpu_gb_per_s": 50.0}
    found["models"] |= {"gflop_per_picture": 100.0, "input": [1000, 1000, 3]}
    found["engines"] |= {"ONNX Runtime FP16": {"1": 100.0, "64": 600.0}}
    found["quantised"] |= {"TensorRT FP8": {"1": 100.0, "64": 1500.0}}
    found["starter"] |= {"gflop_per_picture": 1.0, "starter, ONNX Runtime FP16": {"1": 50000.0}}
    found["end_to_end"] |= {"onnx-cuda, 384": {"pictures_per_s": 570.0}, "tensorrt, 384": {"failed": "no TensorRT"}}
    text = script.report.markdown(found)
    assert "| ONNX Runtime FP16 | 100 | 600 | 60% |" in text
    assert "| TensorRT FP8 | 100 | 1500 | 75% |" in text, "of the rate in its own type"
    assert "| starter, ONNX Runtime FP16 | 5e+04 | - | 50% |" in text, "by its own operations"
    assert "| onnx-cuda, 384 | 570 | 95% |  |" in text
    assert "| tensorrt, 384 | - | - | no TensorRT |" in text
    assert "| matrix products in float16 | 1000 |" in text
    assert "| copies to the GPU, 3.00 MB a picture | 1.667e+04 |" in text
    assert "DRY RUN" not in text


def test_the_stand_in_for_an_engine_answers_with_the_first_bytes_of_each_picture(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a driver that copies in ordinary memory at once."""
    from mineral_batch.backends import cuda_driver

    class Copy(ctypes.Structure):
        """CUDA_MEMCPY2D as the CUDA Driver API's reference lays it out, on 64 bits."""

        _fields_ = [
            ("srcXInBytes", ctypes.c_uint64),
            ("srcY", ctypes.c_uint64),
            ("srcMemoryType", ctypes.c_uint32),
            ("padding", ctypes.c_uint32),
            ("srcHost", ctypes.c_uint64),
            ("srcDevice", ctypes.c_uint64),
            ("srcArray", ctypes.c_uint64),
            ("srcPitch", ctypes.c_uint64),
            ("dstXInBytes", ctypes.c_uint64),
            ("dstY", ctypes.c_uint64),
            ("dstMemoryType", ctypes.c_uint32),
            ("padding2", ctypes.c_uint32),
            ("dstHost", ctypes.c_uint64),
            ("dstDevice", ctypes.c_uint64),
            ("dstArray", ctypes.c_uint64),
            ("dstPitch", ctypes.c_uint64),
            ("WidthInBytes", ctypes.c_uint64),
            ("Height", ctypes.c_uint64),
        ]

    def copy(pointer: Any, stream: Any) -> int:
        asked = ctypes.cast(pointer, ctypes.POINTER(Copy)).contents
        assert (asked.srcMemoryType, asked.dstMemoryType, stream.value) == (2, 2, 7)
        for row in range(asked.Height):
            to, at = asked.dstDevice + row * asked.dstPitch, asked.srcDevice + row * asked.srcPitch
            ctypes.memmove(to, at, asked.WidthInBytes)
        return 0

    monkeypatch.setattr(cuda_driver, "_driver", lambda: SimpleNamespace(cuMemcpy2DAsync_v2=copy))
    record = script.ceilings.copying_record(3)
    library = script.ceilings.copying_library(record)
    context = library.Runtime(None).deserialize_cuda_engine(b"no engine").create_execution_context()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 384, 384, 3), dtype=np.uint8)
    answers = np.zeros((3, len(record.contract.labels)), np.float32)
    context.set_input_shape("pixels", pixels.shape)
    context.set_tensor_address("pixels", pixels.ctypes.data)
    context.set_tensor_address("probabilities", answers.ctypes.data)
    assert context.execute_async_v3(7)
    assert np.array_equal(answers.view(np.uint8), pixels.reshape(3, -1)[:, : answers.shape[1] * 4])
