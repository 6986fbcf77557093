"""benchmarks/gpu/run.py: its dry run on the CPU, what it does again and what not, and how it outlives a bad stage."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image as PILImage

from ..fakes.cuda import Cuda

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run.py"
STAGES = [
    "install",
    "chip",
    "photographs",
    "models",
    "attention",
    "verify",
    "engines",
    "end_to_end",
    "peers",
    "compiled",
    "kernels",
]
STAGES += ["starter", "decoding", "rtx", "quantised", "pycuda"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups")

#: Put at the start of every Python process: packages that a bare machine lacks, a stage that never ends, one that dies.
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
if os.environ.get("CRASHES", "-") in sys.orig_argv[-1:]:
    print("the last words", flush=True)
    os.abort()
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
    assert [path.name for path in out.iterdir()] == ["dry-run"]
    return out


@pytest.fixture
def out(dry: Path, tmp_path: Path) -> Path:
    """What a whole dry run leaves, to be spoilt."""
    return shutil.copytree(dry, tmp_path / "out")


def page(out: Path) -> str:
    return (out / "dry-run" / "results.md").read_text("utf-8")


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "dry-run" / "results.json").read_text("utf-8"))
    return found


def stage_file(out: Path, stage: str) -> Path:
    return out / "dry-run" / "stages" / f"{stage}.json"


def ages(out: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (out / "dry-run" / "stages").iterdir()}


def done_again(before: dict[str, int], out: Path) -> list[str]:
    return [name for name in STAGES if ages(out)[name] != before[name]]


def kept(out: Path, stage: str) -> list[dict[str, Any]]:
    """What was measured of a stage by other software, on another GPU or of other files."""
    return [json.loads(path.read_text()) for path in stage_file(out, stage).parent.glob(f"{stage}.*.json")]


def belongs(out: Path, stage: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(stage_file(out, stage).read_text())["where"]
    return found


def edit(out: Path, stage: str, **changes: Any) -> None:
    path = stage_file(out, stage)
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
    kinds = ("float16", "bfloat16", "float32", "float8_sums_in_float32", "float8_sums_in_fewer_bits", "float8")
    assert {f"matrix_{kind}_tflops" for kind in kinds} <= found["chip"].keys()
    assert {f"copy_{way}_gb_per_s" for way in ("to_gpu", "from_gpu", "on_gpu_read_and_written")} <= found["chip"].keys()
    for graph in ("", ", Attention nodes"):
        assert found["verify"][f"onnx-cpu{graph}"]["within_budget"]
        assert found["engines"][f"ONNX Runtime CUDA FP16{graph}"]["1"] > 0
        assert {found["end_to_end"][f"onnx-cpu{graph}, {name}"]["pictures"] for name in ("384", "12MP")} == {6, 3}
    assert found["attention"]["attention_nodes"] > 0
    assert found["engines"]["ONNX Runtime CUDA FP16 says"]["1"] == "no CUDA graph"
    assert found["engines"][found["engines"]["better"]].keys() == {"1", "2"}
    assert found["engines"][f"onnx-cpu, pictures in memory{found['engines']['better_graph']}"].keys() == {"1"}
    assert found["starter"]["starter, ONNX Runtime CUDA FP16"]["1"] > 0
    assert found["starter"]["starter on onnx-cpu"]["within_budget"]
    for row in ("torch eager, half, 384", "torch eager, AMP, 384", "torch eager, half, 12MP"):
        assert found["peers"][f"DataLoader + {row}"]["pictures_per_s"] > 0
    assert found["peers"].keys() >= {"torch eager, AMP", "torch eager, half", "ONNX Runtime as it comes, FP16"}
    assert found["compiled"].keys() >= {"torch.compile, half", "torch.compile, AMP"}
    assert found["compiled"]["DataLoader + torch.compile, half, 384"]["pictures"] == 6
    for row in ("| ONNX Runtime CUDA FP16 |", "| torch eager, AMP |", "| onnx-cpu, 12MP |", "| starter on onnx-cpu |"):
        assert row in text
    assert f"- the better FP16 graph: {found['engines']['better']}" in text
    assert "| matrix products in float16 |" in text


@pytest.mark.slow
def test_the_operations_of_both_graphs_are_those_that_torch_counts(dry: Path, script: Any) -> None:
    counted = results(dry)["models"]["gflop_counted_by_torch"]
    assert counted > 0
    for name in ("paper-float32", "paper-float16", "paper-attention-float32", "paper-attention-float16"):
        assert script.subjects.gflop(dry / "dry-run" / "models" / f"{name}.onnx") == pytest.approx(counted, rel=1e-9)


@pytest.mark.slow
def test_what_is_not_there_is_said(dry: Path) -> None:
    found, text = results(dry), page(dry)
    assert "FP16, INT8 and FP8" in found["install"]["left_out"]["tensorrt"]
    assert found["quantised"]["int8_graph"].startswith("not there: ")
    assert found["quantised"]["float8_graph"].startswith("not there: ")
    assert "TensorRT FP16 ended: left_out: TensorRT is not installed" in text
    assert found["chip"]["native_backend_through_driver"] == {"left_out": "there is no GPU in a dry run"}
    assert "| onnx-cpu, decode gpu, 384 | - |  | - | - | there is no GPU with nvImageCodec |" in text


@pytest.mark.slow
def test_the_attempt_with_tensorrt_for_rtx_says_that_it_is_not_installed_or_builds_an_engine(dry: Path) -> None:
    found = results(dry)["rtx"]
    if importlib.util.find_spec("tensorrt_rtx") is None:
        assert found["said"].startswith("tensorrt-rtx is not installed")
        pytest.skip("tensorrt-rtx is not installed")
    assert "said" not in found
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
    stage_file(out, "decoding").unlink()
    edit(out, "install", measured_before=1)
    done = run(out, "--redo", "install")
    assert done.returncode == 0, page(out)
    assert done_again(before, out) == ["install", "decoding"]
    assert results(out)["decoding"]["status"] == "done"
    assert "measured_before" not in results(out)["install"], "from its beginning"


@pytest.mark.slow
def test_a_stage_goes_on_where_it_was_stopped(run: Any, out: Path) -> None:
    """Killed with the script in the middle of a stage: what it had measured stands."""
    edit(out, "engines", **{"status": "cut off", "ONNX Runtime CUDA FP16": {"1": 1e9}})
    assert run(out).returncode == 0, page(out)
    rates = results(out)["engines"]["ONNX Runtime CUDA FP16"]
    assert rates["1"] == 1e9
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
def test_a_stage_that_crashes_is_told_with_its_last_words(run: Any, out: Path) -> None:
    stage_file(out, "rtx").unlink()
    assert run(out, CRASHES="rtx").returncode == 1
    found = results(out)["rtx"]
    assert (found["status"], found["error"]) == ("failed", "ended by signal 6: the last words")
    assert "the last words" in found["log"]


@pytest.mark.slow
def test_figures_of_other_software_are_kept_apart_and_made_again(run: Any, out: Path) -> None:
    before = ages(out)
    others = {"chip": "torch", "pycuda": "project", "rtx": "onnxruntime", "quantised": "pictures", "decoding": "uuid"}
    for stage, what in others.items():
        edit(out, stage, where=belongs(out, stage) | {what: "another"}, status="failed", measured_elsewhere=1)
    assert run(out).returncode == 0, page(out)
    assert set(done_again(before, out)) == others.keys()
    for stage, what in others.items():
        assert "measured_elsewhere" not in results(out)[stage]
        assert [(old["where"][what], old["measured_elsewhere"]) for old in kept(out, stage)] == [("another", 1)]
    assert {*belongs(out, "chip")} == {"gpu", "uuid", "torch", "project", "onnxruntime"}
    assert belongs(out, "chip")["onnxruntime"].endswith(" the CUDA provider")


@pytest.mark.slow
def test_figures_on_synthetic_pictures_and_on_photographs_are_not_mixed(run: Any, out: Path, tmp_path: Path) -> None:
    before = ages(out)
    assert belongs(out, "verify")["pictures"] == "synthetic"
    photographs(tmp_path / "given")
    done = run(out, "--photos", tmp_path / "given")
    assert done_again(before, out) == ["verify", "starter", "rtx", "quantised"], done.stdout
    assert belongs(out, "verify")["pictures"].startswith("4 files, ")
    assert [old["where"]["pictures"] for old in kept(out, "verify")] == ["synthetic"]
    before = ages(out)
    (tmp_path / "given").rename(tmp_path / "elsewhere")
    run(out, "--photos", tmp_path / "elsewhere")
    assert "verify" not in done_again(before, out), "the same photographs"


@pytest.mark.slow
def test_what_was_measured_with_files_that_were_made_anew_is_measured_anew(run: Any, out: Path) -> None:
    before = ages(out)
    (out / "dry-run" / "models" / "paper-attention-float16.onnx").unlink()
    edit(out, "engines", measured_with_the_old_one=1)
    assert run(out).returncode == 0, page(out)
    assert done_again(before, out) == ["attention", "verify", "engines", "end_to_end", "kernels"]
    assert "measured_with_the_old_one" not in results(out)["engines"]
    assert [old["measured_with_the_old_one"] for old in kept(out, "engines")] == [1]
    before = ages(out)
    assert run(out).returncode == 0
    assert done_again(before, out) == []


@pytest.mark.slow
def test_a_stage_from_its_beginning_finds_no_file_of_before(run: Any, out: Path) -> None:
    old = out / "dry-run" / "models" / "paper-int8.onnx"
    old.write_bytes(b"of another model")
    assert run(out, "--redo", "quantised", ABSENT="nncf,modelopt").returncode == 0, page(out)
    assert results(out)["quantised"]["int8_graph"].startswith("not there: ")
    assert not old.exists()


@pytest.mark.slow
def test_what_is_brought_along_later_is_unpacked_beside_the_rest(run: Any, out: Path, tmp_path: Path) -> None:
    before = ages(out)
    for name in ("one", "two"):
        write_wheel(tmp_path / "wheels" / f"{name}-1-py3-none-any.whl", {f"{name}.py": "HERE = True"})
        assert run(out, "--wheels", tmp_path / "wheels").returncode == 0, page(out)
        (out / "dry-run" / "site" / "one.py").unlink(missing_ok=name == "two")
    assert done_again(before, out) == ["install"]
    assert [path.name for path in (out / "dry-run" / "site").iterdir()] == ["two.py"], "one was not unpacked again"


@pytest.mark.slow
def test_the_page_counts_no_rate_of_wrong_answers(run: Any, out: Path) -> None:
    wrong = "ONNX Runtime CUDA FP16, Attention nodes"
    edit(out, "verify", **{"onnx-cpu, Attention nodes": {"within_budget": False, "failed": "beyond the budget"}})
    edit(out, "engines", **{wrong: {"1": 1e9, "2": 1e9}, "better": wrong})
    edit(out, "end_to_end", **{"onnx-cpu, Attention nodes, 384": {"pictures_per_s": 1e9, "batch_size": 1}})
    assert run(out).returncode == 0
    text = page(out)
    short = text.split("## In short")[1].split("## Stages")[0]
    assert "1e+09" not in short
    assert "- on the device: ONNX Runtime CUDA FP16, " in short
    assert f"- the better FP16 graph: {wrong}, answers WRONG" in short
    assert "- files to probabilities, 384: " in short
    told = short.split("- not counted here, since their answers are WRONG: ")[1]
    assert wrong in told
    assert "onnx-cpu, Attention nodes, 384" in told
    rows = {line.split(" | ")[0]: line.removesuffix(" |").split(" | ")[-1] for line in text.splitlines()}
    assert (rows[f"| {wrong}"], rows["| onnx-cpu, Attention nodes, 384"]) == ("WRONG", "WRONG")
    assert (rows["| ONNX Runtime CUDA FP16"], rows["| onnx-cpu, 384"], rows["| starter, onnx-cpu, 12MP"]) == (
        "right",
    ) * 3
    assert rows["| torch eager, AMP"] == "not compared"


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
        stage_file(out, stage).unlink()
    done = run(out, ABSENT="mineral_export.onnx.export")
    assert done.returncode == 1
    found = results(out)
    assert (found["models"]["status"], found["verify"]["status"]) == ("failed", "skipped")
    assert found["verify"]["error"] == "needs models"
    assert found["peers"]["status"] == "done"
    assert "No module named 'mineral_export.onnx.export'" in found["models"]["error"]


def test_without_time_nothing_begins(run: Any, tmp_path: Path) -> None:
    real = tmp_path / "stages" / "chip.json"
    real.parent.mkdir()
    real.write_text('{"status": "done"}')
    done = run(tmp_path, "--minutes", 0)
    assert done.returncode == 1
    assert real.read_text() == '{"status": "done"}', "of a real run into the same folder"
    assert {stage["status"] for stage in results(tmp_path).values()} == {"skipped"}
    assert "give the same command again" in page(tmp_path)


# Its parts.


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Its modules, which are no package."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    names = ("common", "subjects", "clock", "machine", "packages", "ceilings", "report", "stages", "run")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


def settings(script: Any, tmp_path: Path, **changes: Any) -> Any:
    given = {"out": tmp_path / "out", "wheels": None, "photos": None, "sizes": script.common.TINY}
    return script.common.Settings(**(given | changes))


def test_all_stages_fit_ten_minutes_and_are_in_the_table(script: Any) -> None:
    limits = script.run.STAGES
    assert sum(limit.seconds for limit in limits.values()) <= 600
    assert list(limits) == STAGES
    table = (SCRIPT.parent / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| (\w+) \| (\d+) \|", table, re.MULTILINE)
    assert rows == [(name, str(limit.seconds)) for name, limit in limits.items()]


def test_the_record_keeps_why_a_library_did_not_load_and_the_last_lines(script: Any) -> None:
    why = "\x1b[1;31m2026-11-26 [E:onnxruntime:Default, x.cc:1] libcublasLt.so.13: cannot open\x1b[m"
    log = "\n".join([why, *(f"line {index}" for index in range(40))])
    kept = script.run._told(log)
    assert kept[0] == "2026-11-26 [E:onnxruntime:Default, x.cc:1] libcublasLt.so.13: cannot open"
    assert kept[1:] == [f"line {index}" for index in range(25, 40)]


def test_a_stage_finds_what_was_brought_along_and_cudas_libraries(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime in OUT/site, CUDA and cuDNN where PyTorch's packages are."""
    given = settings(script, tmp_path)
    for folder in ("nvidia/cudnn/lib", "nvidia/cu13/lib", "torch/lib", "other/lib"):
        (tmp_path / "installed" / folder).mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/the/driver")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    found = script.run._environment(given)
    libraries = found["LD_LIBRARY_PATH"].split(os.pathsep)
    folders = ("nvidia/cu13/lib", "nvidia/cudnn/lib", "torch/lib")
    assert libraries[:4] == ["/the/driver", *(str(tmp_path / "installed" / folder) for folder in folders)]
    paths = found["PYTHONPATH"].split(os.pathsep)
    assert (paths[0], paths[-1]) == (str(given.site), "/mine")
    assert str(SCRIPT.parents[2] / "runtime") in paths


def write_wheel(path: Path, files: dict[str, str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)


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
    (wheels / "broken.whl").write_bytes(b"no zip")
    (wheels / "paper-int8.onnx.part00").write_bytes(b"a gr")
    (wheels / "paper-int8.onnx.part01").write_bytes(b"aph")
    given = settings(script, tmp_path, wheels=wheels)
    given.out.mkdir()
    assert script.stages.run("install", given) == 1
    found = script.common.read(out, "install")
    assert found["installed"] == ["brought.tar.xz", "paper-int8.onnx"]
    assert found["failed"].keys() == {"broken.tar.xz", "broken.whl"}
    assert found["error"].startswith("2 did not work: broken.whl: File is not a zip file; broken.tar.xz: ")
    assert "HERE = True" in (out / "site" / "brought_along.py").read_text()
    target = given.model("int8")
    target.parent.mkdir(parents=True)
    assert script.stages._int8(given, target).startswith("brought along")
    assert target.read_bytes() == b"a graph"


def test_what_was_unpacked_is_unpacked_again_where_it_is_gone(script: Any, tmp_path: Path) -> None:
    """Also by a stage that was not done before: what was broken keeps it so."""
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    wheels.mkdir()
    write_wheel(wheels / "one-1-py3-none-any.whl", {"one.py": "ONE = 1"})
    (wheels / "two-1-py3-none-any.whl").write_bytes(b"no zip")
    given = settings(script, tmp_path, wheels=wheels)
    given.out.mkdir()
    for _ in range(2):
        assert script.stages.run("install", given) == 1
        assert (given.site / "one.py").is_file()
        shutil.rmtree(given.site)
    write_wheel(wheels / "two-1-py3-none-any.whl", {"two.py": "TWO = 2"})
    assert script.stages.run("install", given) == 0
    assert {path.name for path in given.site.iterdir()} == {"one.py", "two.py"}
    assert script.common.read(out, "install")["installed"] == ["one-1-py3-none-any.whl", "two-1-py3-none-any.whl"]


def test_a_newer_wheel_leaves_nothing_of_the_older_one(script: Any, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    shared = {"nvidia/other/kept.py": "", "other-1.dist-info/RECORD": "nvidia/other/kept.py,,\n"}
    write_wheel(wheels / "a_other-1-py3-none-any.whl", shared)
    old = ("nvidia/x/gone.py", "nvidia/x/stays.py", "x_libs/lib.so", "X_y-1.data/purelib/moved.py", "../../bin/x")
    record = "".join(f'"{name}",sha256=0,1\n' for name in old)
    contents = dict.fromkeys(old[:-1], "old") | {
        "X_y-1.dist-info/RECORD": f"\n{record}",
        "X_y-1.dist-info/METADATA": "",
    }
    write_wheel(wheels / "x_y-1-py3-none-any.whl", contents)
    given = settings(script, tmp_path, wheels=wheels)
    given.out.mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "x").write_text("of the machine")
    (given.out / "unpacking").mkdir()
    (given.out / "unpacking" / "half.so").write_text("of an attempt that was killed")
    assert script.stages.run("install", given) == 0
    assert {path.name for path in given.out.iterdir()} == {"site", "stages"}
    assert (given.site / "moved.py").read_text() == "old"
    compiled = given.site / "x_libs" / "__pycache__" / "lib.cpython-312.pyc"
    compiled.parent.mkdir()
    compiled.touch()
    (wheels / "x_y-1-py3-none-any.whl").unlink()
    with tarfile.open(wheels / "newer.tar.xz", "w:xz") as archive:
        for name, text in {"./nvidia/x/stays.py": "new", "./x.y-2.dist-info/RECORD": "nvidia/x/stays.py,,\n"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    assert script.stages.run("install", given) == 0
    found = sorted(str(path.relative_to(given.site)) for path in given.site.rglob("*") if path.is_file())
    others = ["nvidia/other/kept.py", "nvidia/x/stays.py", "other-1.dist-info/RECORD", "x.y-2.dist-info/RECORD"]
    assert found == others
    assert not (given.site / "x_libs").exists(), "an empty folder is a package still"
    assert (given.site / "nvidia" / "x" / "stays.py").read_text() == "new"
    assert (tmp_path / "bin" / "x").read_text() == "of the machine"


def test_wheels_are_merged_folder_by_folder(script: Any, tmp_path: Path) -> None:
    """Many of NVIDIA's have their modules in the same one; `pip install --target` drops it with each new wheel."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    contents = {
        "one": {"nvidia/one/lib/libone.so": "1", "one.dist-info/METADATA": "Name: one"},
        "two": {"nvidia/two/lib/libtwo.so": "2", "two.data/platlib/two.py": "IS = 2", "two.data/scripts/run": "#!"},
    }
    for name, files in contents.items():
        write_wheel(wheels / f"{name}-1-py3-none-any.whl", files)
    given = settings(script, tmp_path, wheels=wheels)
    given.out.mkdir()
    assert script.stages.run("install", given) == 0
    found = sorted(str(path.relative_to(given.site)) for path in given.site.rglob("*") if path.is_file())
    assert found == ["nvidia/one/lib/libone.so", "nvidia/two/lib/libtwo.so", "one.dist-info/METADATA", "two.py"]
    libraries = [str(given.site / "nvidia" / name / "lib") for name in ("one", "two")]
    assert script.packages.library_folders([str(given.site), "", str(given.site)]) == libraries


def test_a_package_brought_along_as_source_is_built_and_merged(script: Any, tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="what builds it")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    files = {
        "pyproject.toml": '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "of-source"\nversion = "1"\n'
        '[tool.hatch.build.targets.wheel]\nonly-include = ["nvidia"]\n',
        "nvidia/of_source.py": "HERE = True",
        "PKG-INFO": "Metadata-Version: 2.1\nName: of-source\nVersion: 1\n",
    }
    for name, text in files.items():
        path = tmp_path / "of_source-1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with tarfile.open(wheels / "of_source-1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "of_source-1", "of_source-1")
    given = settings(script, tmp_path, wheels=wheels)
    (given.site / "nvidia").mkdir(parents=True)
    (given.site / "nvidia" / "other.py").write_text("")
    assert script.stages.run("pycuda", given) == 0, script.common.read(given.out, "pycuda")
    assert {path.name for path in (given.site / "nvidia").glob("*.py")} == {"of_source.py", "other.py"}
    assert given.has_files_of("pycuda")
    shutil.rmtree(given.site)
    assert not given.has_files_of("pycuda")
    assert script.stages.run("pycuda", given) == 0
    assert (given.site / "nvidia" / "of_source.py").is_file(), "compiled again"


def test_an_onnx_runtime_for_the_processor_is_not_enough(script: Any, tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("torch", "torchvision", "timm", "safetensors", "onnx", "onnxscript", "numpy", "PIL", "tqdm"):
        script.packages.NEEDED.pop(name)
    package = tmp_path / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert script.packages.missing(is_dry=True) == []
    assert script.packages.missing(is_dry=False) == ["onnxruntime-gpu"]
    assert script.packages.imported_onnxruntime() == f"{package}, without the CUDA provider"
    (package / "capi" / "libonnxruntime_providers_cuda.so").touch()
    assert script.packages.missing(is_dry=False) == []
    assert script.packages.imported_onnxruntime() == f"{package}, with the CUDA provider"


NVIDIA_SMI = """#!/bin/sh
case "$*" in
*clocks_event_reasons*) echo 'Field "clocks_event_reasons.active" is not a valid field to query.'; exit 2;;
*name,uuid*) echo 'NVIDIA H200, GPU-1';;
*clocks.sm,*) echo "$*" >> "$0.asked"; echo '1980, 2619, 690.5, 55, 99, 0x4';;
*) echo 700.00;;
esac
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin" / "nvidia-smi"
    path.parent.mkdir()
    path.write_text(NVIDIA_SMI)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


def test_the_clocks_are_read_while_a_stage_runs(script: Any, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.machine, "_SECONDS", 0.01)
    with script.machine.Watch(is_dry=False) as watch:
        deadline = time.monotonic() + 30
        while len(watch.readings) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    found = script.machine.summary(watch.readings)
    assert (found["sm_mhz_median"], found["watts_least"], found["held_back_by"]) == (1980.0, 690.5, ["power limit"])
    asked = nvidia_smi.with_name("nvidia-smi.asked").read_text()
    assert "--id=0 --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu,clocks_throttle" in asked
    assert script.machine.where(is_dry=False).items() >= {"gpu": "NVIDIA H200", "uuid": "GPU-1"}.items()
    assert script.machine.where(is_dry=True)["gpu"] == "none"
    assert script.machine.described()["nvidia-smi power.limit"] == "700.00"


def test_clocks_count_while_the_gpu_is_busy(script: Any) -> None:
    fields = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu", "reasons")
    rows = [
        ("345", "2619", "70.1", "30", "0", "0x1"),
        ("1980", "2619", "[N/A]", "55", "99", "0x0"),
        ("1755", "2619", "699.0", "61", "100", "0x44"),
    ]
    found = script.machine.summary([dict(zip(fields, row, strict=True)) for row in rows])
    clocks = {"sm_mhz_least": 1755.0, "sm_mhz_median": 1867.5, "memory_mhz_least": 2619.0, "memory_mhz_median": 2619.0}
    power = {"watts_least": 699.0, "watts_median": 699.0, "celsius_most": 61.0}
    held = ["power limit", "temperature, by hardware"]
    assert found == {"readings": 2, **clocks, **power, "held_back_by": held}
    assert script.machine.summary([]) == {}


def test_without_nvidia_smi_nothing_is_read(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with script.machine.Watch(is_dry=False) as watch:
        pass
    assert watch.readings == []
    assert script.machine.where(is_dry=False)["uuid"] == "none"


def test_an_nvidia_smi_that_takes_too_long_is_asked_again_and_is_no_other_gpu(
    script: Any, tmp_path: Path, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.machine, "_PATIENCE", 2.0)
    once = f'#!/bin/sh\n[ -e "$0.woken" ] || {{ touch "$0.woken"; exec sleep 60; }}\n{NVIDIA_SMI}'
    nvidia_smi.write_text(once)
    assert script.machine.where(is_dry=False)["uuid"] == "GPU-1"
    assert nvidia_smi.with_name("nvidia-smi.woken").exists()
    monkeypatch.setattr(script.machine, "_PATIENCE", 0.1)
    nvidia_smi.write_text("#!/bin/sh\nexec sleep 60\n")
    kept = tmp_path / "stages" / "chip.json"
    kept.parent.mkdir()
    kept.write_text('{"status": "done", "where": {"uuid": "GPU-1"}}')
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^nvidia-smi did not say which GPU this is, 3 times"):
        script.run.main()
    assert kept.read_text() == '{"status": "done", "where": {"uuid": "GPU-1"}}'
    assert script.machine.described().keys() >= {"python"}, "clocks are not what figures belong to"


def test_figures_belong_to_the_sources_that_they_depend_on(script: Any, tmp_path: Path) -> None:
    sources = {
        "runtime/mineral_batch/a.py": "1",
        "runtime/mineral_batch/b.ptx": "1",
        "benchmarks/gpu/stages.py": "1",
        "benchmarks/gpu/report.py": "1",
        "runtime/mineral_batch/words.md": "1",
        "tests/test_a.py": "1",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def digest() -> str:
        script.run.project.cache_clear()
        found: str = script.run.project(tmp_path)
        return found

    changed = []
    for name in sources:
        before = digest()
        (tmp_path / name).write_text("2")
        changed += [name] if digest() != before else []
    assert changed == list(sources)[:3], "not the page, the words and the tests"


def test_the_onnx_runtime_of_the_stages_is_told_by_version_and_provider(script: Any, tmp_path: Path) -> None:
    for folder in ("brought", "machine"):
        (tmp_path / folder / "onnxruntime" / "capi").mkdir(parents=True)
        (tmp_path / folder / "onnxruntime" / "__init__.py").write_text(f'"""Words."""\n__version__ = "1.{folder[0]}"\n')
    (tmp_path / "brought" / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so").touch()
    paths = [str(tmp_path / "brought"), str(tmp_path / "machine")]
    assert script.packages.onnxruntime_at(paths) == "1.b with the CUDA provider"
    shutil.rmtree(tmp_path / "brought")
    assert script.packages.onnxruntime_at(paths) == "1.m without the CUDA provider"
    assert script.packages.onnxruntime_at(paths[:1]) == "none"


def test_what_the_attempt_with_tensorrt_for_rtx_cannot_do_is_told_and_a_mistake_is_a_failure(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mineral_batch.errors import BackendError

    given, made = settings(script, tmp_path), importlib.import_module("mineral_export.tensorrt")

    def export(error: Exception) -> int:
        def refused(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(made, "export_engine", refused)
        ended: int = script.stages.run("rtx", given)
        return ended

    assert export(BackendError("no target for this chip")) == 0
    assert script.common.read(given.out, "rtx")["said"] == "no target for this chip"
    assert export(TypeError("export_engine() got an unexpected keyword argument")) == 1
    assert script.common.read(given.out, "rtx")["error"].startswith("export_engine() got")


def test_a_quantiser_that_is_not_installed_is_told_and_a_mistake_is_a_failure(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mineral_batch.errors import BackendError

    given = settings(script, tmp_path)

    def refused(error: Exception) -> Any:
        def make(*_: object) -> str:
            raise error

        return make

    monkeypatch.setattr(script.stages, "_int8", refused(BackendError("INT8 needs nncf")))
    monkeypatch.setattr(script.stages, "_float8", refused(TypeError("a mistake")))
    assert script.stages.run("quantised", given) == 1
    found = script.common.read(given.out, "quantised")
    assert (found["int8_graph"], found["float8_graph"]) == ("not there: INT8 needs nncf", {"failed": "a mistake"})


def test_a_loader_has_a_process_per_processor_each_with_several_batches(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runners = importlib.import_module("runners")
    monkeypatch.delitem(sys.modules, "runners")
    monkeypatch.setattr(runners, "_SHARED", tmp_path)
    monkeypatch.setattr("mineral_batch.system.cpu_count", lambda: 16)
    free = 1 << 40
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    given, picture = settings(script, tmp_path, sizes=script.common.FULL), 384 * 384 * 3
    assert runners._workers_and_batch(given, 8192, picture) == (16, 64)
    assert runners._workers_and_batch(given, 1024, picture) == (16, 16)
    assert runners._workers_and_batch(given, 3, picture) == (16, 1)
    free = 64 << 20
    workers, batch = runners._workers_and_batch(given, 8192, picture)
    assert 0 < workers * batch * 2 * picture <= free, "what they hold ready"


def test_a_batch_that_fails_leaves_out_the_larger_ones_and_fails_the_stage(script: Any, tmp_path: Path) -> None:
    given = settings(script, tmp_path)
    tried: list[tuple[str, int]] = []

    @contextmanager
    def small(settings: Any, batch: int) -> Iterator[Any]:
        tried.append(("small", batch))
        if batch > 2:
            raise MemoryError("too much")
        yield script.clock.Way(lambda: None, says="words")

    @contextmanager
    def broken(settings: Any, batch: int) -> Iterator[Any]:
        tried.append(("broken", batch))
        raise RuntimeError("no such thing")
        yield

    record = script.common.Record(given, "engines")
    script.clock.by_batch(given, record, {"small": small, "broken": broken}, (4, 8, 2, 1))
    assert tried == [("small", 4), ("broken", 4), ("small", 2), ("broken", 2), ("small", 1)]
    assert record.values["small"].keys() == {"2", "1"}
    assert record.values["small says"] == {"2": "words", "1": "words"}
    assert record.values["small ended"] == "batch 4: too much"
    assert record.values["broken ended"] == "batch 4: no such thing; batch 2: no such thing"
    with pytest.raises(script.common.FailuresError, match=r"^3 did not work: small, batch 4: too much; broken"):
        record.require_success()


def photographs(folder: Path) -> list[Path]:
    """Two different pictures, then both again."""
    folder.mkdir(parents=True)
    for index in range(4):
        pixels = np.full((32, 32, 3), (40, 200)[index % 2], np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{index}.jpg")
    return sorted(folder.iterdir())


def measured_over(script: Any, given: Any, model: Path) -> dict[str, Any]:
    record = script.common.Record(given, "end_to_end")
    script.clock.end_to_end(given, record, "ours", ["384"], model=model, backend="onnx-cpu", beside="the engine")
    row: dict[str, Any] = record.values["ours, 384"]
    return row


def test_a_folder_counts_only_if_every_picture_was_answered(script: Any, tmp_path: Path, model_path: Path) -> None:
    given = settings(script, tmp_path)
    files = photographs(given.folder("384"))
    row = measured_over(script, given, model_path)
    assert (row["pictures"], row["batch_size"], row["beside"]) == (4, 1, "the engine")
    files[3].write_bytes(b"no picture")
    row = measured_over(script, given, model_path)
    assert row["pictures"] == 4, "measured before, so not again"
    script.common.path(given.out, "end_to_end").unlink()
    assert measured_over(script, given, model_path)["failed"].startswith("1 of 4 pictures got no answer, the first: ")


def test_answers_that_went_to_another_picture_do_not_pass(script: Any, tmp_path: Path, model_path: Path) -> None:
    given = settings(script, tmp_path)
    files = photographs(given.folder("384"))
    files[2].write_bytes(files[1].read_bytes())
    assert "at different places" in measured_over(script, given, model_path)["failed"]


def test_wrong_answers_fail_the_stage_and_are_looked_at_again(script: Any, tmp_path: Path, model_path: Path) -> None:
    given = settings(script, tmp_path)
    given.models.mkdir(parents=True)
    shutil.copyfile(model_path, given.model("float32"))
    other = onnx.load(model_path)
    weights = next(weight for weight in other.graph.initializer if weight.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), "weights"))
    onnx.save(other, given.model("float16"))
    for _ in range(2):
        assert script.stages.run("verify", given) == 1
        found = script.common.read(given.out, "verify")
        assert found["onnx-cpu"]["within_budget"] is False
        assert found["onnx-cpu"]["failed"].startswith("answers beyond the budget: largest difference")
        assert found["error"].startswith("1 did not work: onnx-cpu: answers beyond the budget")
    shutil.copyfile(model_path, given.model("float16"))
    assert script.stages.run("verify", given) == 0


def test_the_better_graph_is_the_faster_one_whose_answers_are_right(script: Any, tmp_path: Path) -> None:
    given = settings(script, tmp_path)
    record = script.common.Record(given, "engines")
    record.save(**{"ONNX Runtime CUDA FP16": {"1": 5.0, "64": 9.0}})
    record.save(**{"ONNX Runtime CUDA FP16, Attention nodes": {"64": 12.0}})
    graphs = ["", ", Attention nodes"]
    assert script.stages._better(given, record, graphs) == ", Attention nodes"
    script.common.write(given.out, "verify", {"onnx-cpu, Attention nodes": {"failed": "beyond the budget"}})
    assert script.stages._better(given, record, graphs) == ""
    assert script.stages._better(given, record, [""]) == ""


def test_a_graph_that_is_there_already_is_a_row_all_the_same(script: Any, tmp_path: Path) -> None:
    given = settings(script, tmp_path)
    given.models.mkdir(parents=True)
    for precision in ("int8", "float8"):
        given.model(precision).write_bytes(bytes(3_000_000))
    assert script.stages.run("quantised", given) == 0
    found = script.common.read(given.out, "quantised")
    assert found["int8_engine"] == {"left_out": "there is no GPU in a dry run"}
    assert (found["int8_graph"], found["float8_graph"]) == ("there already, 3 MB", "there already, 3 MB")


def test_the_folders_hold_links_to_a_few_photographs(script: Any, tmp_path: Path) -> None:
    given = settings(script, tmp_path)
    given.folder("384").mkdir(parents=True)
    (given.folder("384") / "000000.jpg").write_bytes(b"of an attempt that was cut off")
    script.subjects.photographs(given)
    files = sorted(given.folder("384").iterdir())
    assert len(files) == 6
    assert len({file.stat().st_ino for file in files}) == 2
    with PILImage.open(files[0]) as picture:
        assert picture.size == (384, 384)
    before = files[0].stat().st_mtime_ns
    script.subjects.photographs(given)
    assert files[0].stat().st_mtime_ns == before
    assert script.common.FULL.photos["12MP"] >= 1024


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
    assert script.subjects.gflop(path) == pytest.approx(2 * products / 1e9)


def test_an_attention_counts_as_the_two_products_that_it_is(script: Any, tmp_path: Path) -> None:
    batch, heads, queries, keys, wide = 1, 2, 5, 7, 4
    shapes = {"q": queries, "k": keys, "v": keys, "a": queries}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", heads, s, wide]) for n, s in shapes.items()]
    graph = helper.make_graph([helper.make_node("Attention", ["q", "k", "v"], ["a"])], "a", values[:3], values[3:])
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    path = tmp_path / "attention.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    products = heads * queries * keys * wide * 2
    assert script.subjects.gflop(path) == pytest.approx(2 * products / 1e9)


def test_why_a_session_is_no_cuda_graph_is_told(
    script: Any, tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `predict` goes on: with another session, and aloud."""
    from mineral_batch.engines import onnx_cuda

    runners, made = importlib.import_module("runners"), []
    monkeypatch.delitem(sys.modules, "runners")
    fixed_session = onnx_cuda.fixed_session

    def refused(runtime: Any, path: Path, providers: Any, batch: int, has_graph: bool) -> Any:
        made.append(has_graph)
        if has_graph:
            raise RuntimeError("This session cannot use the graph capture feature as requested")
        return fixed_session(runtime, path, providers, batch, has_graph)

    monkeypatch.setattr(onnx_cuda, "fixed_session", refused)
    with runners.onnx_runtime(settings(script, tmp_path), 2, model_path) as way:
        way.run()
    assert way.says == "no CUDA graph (This session cannot use the graph capture feature as requested)"
    assert made == [True, False]


def test_time_is_told_by_kernel_the_longest_first(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runners = importlib.import_module("runners")
    monkeypatch.delitem(sys.modules, "runners")
    spent = {"copy": 1.0, "gemm": 6.0, "softmax": 2.0, "add": 1.0, "launch": 0.0}
    assert list(runners.shares(spent, 2).items()) == [("gemm", "60.0%"), ("softmax", "20.0%"), ("2 others", "20.0%")]
    assert list(runners.shares(spent, 4)) == ["gemm", "softmax", "copy", "add"]
    long = "cutlass" * 20
    assert runners.shares({f"{long}<1>": 1.0, f"{long}<2>": 1.0, "add": 2.0}, 5) == {
        long[:120]: "50.0%",
        "add": "50.0%",
    }
    assert runners.shares({}, 2) == {}


def test_every_rate_stands_beside_its_share_of_the_measured_ceiling(script: Any) -> None:
    found: dict[str, Any] = {name: {"status": "done"} for name in STAGES}
    found["chip"] |= {"matrix_float16_tflops": 100.0, "matrix_float8_tflops": 200.0, "copy_to_gpu_gb_per_s": 50.0}
    found["models"] |= {"gflop_per_picture": 100.0, "input": [1000, 1000, 3]}
    found["engines"] |= {"ONNX Runtime CUDA FP16": {"256": 600.0, "64": 500.0}, "gpu": {"sm_mhz_median": 1755.0}}
    found["engines"] |= {"ONNX Runtime CUDA FP16 says": {"256": "one CUDA graph", "64": "one CUDA graph"}}
    found["engines"] |= {"better": "ONNX Runtime CUDA FP16"}
    found["peers"] |= {"torch eager, AMP": {"64": 300.0}, "DataLoader + torch, 384": {"pictures_per_s": 200.0}}
    found["quantised"] |= {"TensorRT FP8": {"1": 100.0, "64": 1500.0}}
    found["starter"] |= {"gflop_per_picture": 1.0, "starter, ONNX Runtime CUDA FP16": {"1": 50000.0}}
    ours = {"pictures_per_s": 480.0, "batch_size": 64, "beside": "ONNX Runtime CUDA FP16"}
    found["end_to_end"] |= {"onnx-cuda, 384": ours, "tensorrt, 384": {"failed": "no TensorRT"}}
    found["verify"] |= {"onnx-cuda": {"within_budget": True}}
    for stage, row in {"engines": "ONNX Runtime CUDA FP16", "end_to_end": "onnx-cuda, 384"}.items():
        found[stage] |= {"answers": {row: ["verify", "onnx-cuda"]}}
    text = script.report.markdown(found)
    assert "| ONNX Runtime CUDA FP16 | - | 500 | 600 | 60% | one CUDA graph | right |" in text
    assert "| TensorRT FP8 | 100 | 1500 | - | 75% |  |" in text, "of the rate in its own type"
    assert "| starter, ONNX Runtime CUDA FP16 | 5e+04 | - | - | 50% |  |" in text, "by its own operations"
    assert "| onnx-cuda, 384 | 480 | 64 | 96% | 80% |  | right |" in text
    assert "| tensorrt, 384 | - |  | - | - | no TensorRT |  |" in text
    assert "| matrix products in float16 | 1000 |" in text
    assert "| copies to the GPU, 3.00 MB a picture | 1.667e+04 |" in text
    assert "| engines | sm_mhz_median: 1755 |" in text
    assert "- on the device: ONNX Runtime CUDA FP16, 600 pictures/s, 60% of the rate" in text
    assert "- the fastest peer there: torch eager, AMP, 300; ours 2.00 x" in text
    assert "- files to probabilities, 384: 480 pictures/s (onnx-cuda, 384); the fastest peer 200" in text
    assert "DRY RUN" not in text


def test_a_rate_whose_answers_nobody_has_compared_says_so_and_gives_way_to_one_that_is_right(script: Any) -> None:
    found: dict[str, Any] = {name: {"status": "done"} for name in STAGES}
    found["engines"] |= {"of TensorRT": {"64": 900.0}, "ours": {"64": 500.0}, "answers": {"ours": ["verify", "ours"]}}
    found["verify"] |= {"ours": {"failed": "no memory"}}
    assert "- on the device: of TensorRT, 900 pictures/s, answers not compared" in script.report.markdown(found)
    found["verify"] |= {"ours": {"within_budget": True}}
    assert "- on the device: ours, 500 pictures/s\n" in script.report.markdown(found)
    found["verify"] |= {"ours": {"within_budget": False, "failed": "beyond the budget"}}
    found["engines"].pop("of TensorRT")
    assert "- on the device" not in script.report.markdown(found)


def test_a_chip_that_told_little_has_a_page(script: Any) -> None:
    found: dict[str, Any] = {name: {"status": "failed", "error": "1 did not work"} for name in STAGES}
    found["chip"] |= {"matrix_float8_tflops": {"left_out": "not on this chip"}}
    found["chip"] |= {"matrix_float16_tflops": {"failed": "no memory"}, "copy_to_gpu_gb_per_s": {"failed": "no memory"}}
    found["models"] |= {"gflop_per_picture": 100.0, "input": [384, 384, 3]}
    found["engines"] |= {"ONNX Runtime CUDA FP16": {"64": 500.0}, "TensorRT FP16 ended": {"left_out": "not installed"}}
    found["quantised"] |= {"TensorRT FP8": {"64": 1500.0}}
    text = script.report.markdown(found)
    assert "| ONNX Runtime CUDA FP16 | 500 | - |  |" in text
    assert "| matrix_float16_tflops | failed: no memory |" in text
    assert "- TensorRT FP16 ended: left_out: not installed" in text
    assert "100 GFLOP a picture." in text


class RowCopier(Cuda):
    """A GPU that copies rows, too, and adds something to every byte."""

    added = 0

    def copy_rows(self, asked: Any, stream: int) -> tuple[int]:
        assert (asked.srcMemoryType, asked.dstMemoryType) == (2, 2)

        def rows() -> None:
            for row in range(asked.Height):
                source = self.at(asked.srcDevice + row * asked.srcPitch, asked.WidthInBytes)
                self.at(asked.dstDevice + row * asked.dstPitch, asked.WidthInBytes)[:] = source + np.uint8(self.added)

        self.enqueue(stream, rows)
        return (0,)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> RowCopier:
    gpu = RowCopier()
    gpu.install(monkeypatch)
    vars(sys.modules["cuda.bindings.driver"]).update(
        CUDA_MEMCPY2D=SimpleNamespace,
        CUmemorytype=SimpleNamespace(CU_MEMORYTYPE_DEVICE=2),
        cuMemcpy2DAsync=gpu.copy_rows,
    )
    return gpu


def test_the_native_backend_gives_back_what_it_was_given_by_a_copy_in_the_place_of_an_engine(
    script: Any, cuda: RowCopier
) -> None:
    told = script.ceilings.copied_answers(batch=3, rounds=2)
    assert "GPU 0 (NVIDIA L4), copied bytes, CUDA by cuda-core" in told
    assert told.endswith(", answers right")
    assert "launch" in cuda.log, "as a CUDA graph"
    cuda.require_given_back()


def test_a_native_backend_that_answers_wrongly_has_failed(script: Any, cuda: RowCopier) -> None:
    cuda.added = 1
    with pytest.raises(ValueError, match=r"^answers WRONG: 4 of 4 batches"):
        script.ceilings.copied_answers(batch=2, rounds=1)
