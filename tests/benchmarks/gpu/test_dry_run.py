"""The dry run on the CPU: what it measures, what it does again and what not, and how it outlives a bad stage."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_bench.gpu import subjects
from mineral_bench.gpu.plan import STAGES as PLANS

from .helpers import write_wheel

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu.py"
STAGES = [*PLANS]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups")

#: Put at the start of every Python process: packages that a bare machine lacks, a stage that never ends, one that dies.
CUSTOMIZE = """
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
def customized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("customized")
    (folder / "sitecustomize.py").write_text(CUSTOMIZE)
    return folder


@pytest.fixture(scope="module")
def run(customized: Path) -> Any:
    def command(out: Path, *options: object, **environment: str) -> subprocess.CompletedProcess[str]:
        paths = [str(customized), os.environ.get("PYTHONPATH", "")]
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
    done = run(out, ABSENT="tensorrt,nncf,modelopt")
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


def photographs(folder: Path) -> list[Path]:
    """Two different pictures, then both again."""
    folder.mkdir(parents=True)
    for index in range(4):
        pixels = np.full((32, 32, 3), (40, 200)[index % 2], np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{index}.jpg")
    return sorted(folder.iterdir())


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
    assert found["engines"][f"onnx-cpu, images in memory{found['engines']['better_graph']}"].keys() == {"1"}
    assert found["starter"]["starter, ONNX Runtime CUDA FP16"]["1"] > 0
    for switch in ("not deterministic", "NHWC"):
        assert found["engines"][f"{found['engines']['better']}, {switch}"]["1"] > 0
        assert found["starter"][f"starter, ONNX Runtime CUDA FP16, {switch}"]["1"] > 0
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
def test_the_operations_of_both_graphs_are_those_that_torch_counts(
    dry: Path,
) -> None:
    counted = results(dry)["models"]["gflop_counted_by_torch"]
    assert counted > 0
    for name in ("paper-float32", "paper-float16", "paper-attention-float32", "paper-attention-float16"):
        assert subjects.gflop(dry / "dry-run" / "models" / f"{name}.onnx") == pytest.approx(counted, rel=1e-9)


@pytest.mark.slow
def test_what_is_not_there_is_said(dry: Path) -> None:
    found, text = results(dry), page(dry)
    assert "FP16, INT8 and FP8" in found["install"]["left_out"]["tensorrt"]
    assert found["quantized"]["int8_graph"].startswith("not there: ")
    assert found["quantized"]["float8_graph"].startswith("not there: ")
    assert "TensorRT FP16 ended: left_out: TensorRT is not installed" in text
    assert found["chip"]["native_backend_through_cuda-core"] == {"left_out": "there is no GPU in a dry run"}
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
    done = run(out, "--minutes", 0.5, HANGS="rtx")
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
    others = {"chip": "torch", "pycuda": "project", "rtx": "onnxruntime", "quantized": "pictures", "decoding": "uuid"}
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
    assert done_again(before, out) == ["verify", "starter", "rtx", "quantized"], done.stdout
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
    assert run(out, "--redo", "quantized", ABSENT="nncf,modelopt").returncode == 0, page(out)
    assert results(out)["quantized"]["int8_graph"].startswith("not there: ")
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
    right, wrong = "ONNX Runtime CUDA FP16", "ONNX Runtime CUDA FP16, Attention nodes"
    edit(out, "verify", **{"onnx-cpu, Attention nodes": {"within_budget": False, "failed": "beyond the budget"}})
    edit(out, "engines", **{right: {"1": 1e8, "2": 1e8}, wrong: {"1": 1e9, "2": 1e9}, "better": wrong})
    edit(out, "end_to_end", **{"onnx-cpu, Attention nodes, 384": {"pictures_per_s": 1e9, "batch_size": 1}})
    assert run(out).returncode == 0
    text = page(out)
    short = text.split("## In short")[1].split("## Stages")[0]
    assert "1e+09" not in short
    assert f"- on the device: {right}, 1e+08 images/s" in short
    assert f"- the better FP16 graph: {wrong}, output WRONG" in short
    assert "- files to probabilities, 384: " in short
    told = short.split("- not counted here, because their output is WRONG: ")[1]
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
    assert "bring these along in --wheels (see benchmarks/GPU.md): tqdm, onnxruntime-gpu" in page(out)


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
    assert "run the same command again" in page(tmp_path)


# Its parts.
