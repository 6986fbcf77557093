"""The stages: what is recorded, what fails, what is left out."""

from __future__ import annotations

import importlib
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image as PILImage

from mineral_bench.gpu.clock import Workload, by_batch
from mineral_bench.gpu.end_to_end import measure_folders
from mineral_bench.gpu.record import FailuresError, Record, read_record, record_path, write_record
from mineral_bench.gpu.stage import run_stage
from mineral_bench.gpu.stages import engines, tensorrt

from .helpers import make_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_what_the_attempt_with_tensorrt_for_rtx_cannot_do_is_told_and_a_mistake_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mineral_batch.errors import BackendError

    given, made = make_settings(tmp_path), importlib.import_module("mineral_export.tensorrt")

    def export(error: Exception) -> int:
        def refused(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(made, "export_engine", refused)
        ended: int = run_stage("rtx", given)
        return ended

    assert export(BackendError("no target for this chip")) == 0
    assert read_record(given.out, "rtx")["said"] == "no target for this chip"
    assert export(TypeError("export_engine() got an unexpected keyword argument")) == 1
    assert read_record(given.out, "rtx")["error"].startswith("export_engine() got")


def test_a_quantizer_that_is_not_installed_is_told_and_a_mistake_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mineral_batch.errors import BackendError

    given = make_settings(tmp_path)

    def refused(error: Exception) -> Any:
        def make(*_: object) -> str:
            raise error

        return make

    monkeypatch.setattr(tensorrt, "_int8", refused(BackendError("INT8 needs nncf")))
    monkeypatch.setattr(tensorrt, "_float8", refused(TypeError("a mistake")))
    assert run_stage("quantized", given) == 1
    found = read_record(given.out, "quantized")
    assert (found["int8_graph"], found["float8_graph"]) == ("not there: INT8 needs nncf", {"failed": "a mistake"})


def test_a_batch_that_fails_leaves_out_the_larger_ones_and_fails_the_stage(tmp_path: Path) -> None:
    given = make_settings(tmp_path)
    tried: list[tuple[str, int]] = []

    @contextmanager
    def small(settings: Any, batch: int) -> Iterator[Any]:
        tried.append(("small", batch))
        if batch > 2:
            raise MemoryError("too much")
        yield Workload(lambda: None, notes="words")

    @contextmanager
    def broken(settings: Any, batch: int) -> Iterator[Any]:
        tried.append(("broken", batch))
        raise RuntimeError("no such thing")
        yield

    record = Record(given, "engines")
    by_batch(given, record, {"small": small, "broken": broken}, (4, 8, 2, 1))
    assert tried == [("small", 4), ("broken", 4), ("small", 2), ("broken", 2), ("small", 1)]
    assert record.values["small"].keys() == {"2", "1"}
    assert record.values["small says"] == {"2": "words", "1": "words"}
    assert record.values["small ended"] == "batch 4: too much"
    assert record.values["broken ended"] == "batch 4: no such thing; batch 2: no such thing"
    with pytest.raises(FailuresError, match=r"^3 failed: small, batch 4: too much; broken"):
        record.require_success()


def photographs(folder: Path) -> list[Path]:
    """Two different pictures, then both again."""
    folder.mkdir(parents=True)
    for index in range(4):
        pixels = np.full((32, 32, 3), (40, 200)[index % 2], np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{index}.jpg")
    return sorted(folder.iterdir())


def measured_over(given: Any, model: Path) -> dict[str, Any]:
    record = Record(given, "end_to_end")
    measure_folders(given, record, "ours", ["384"], model=model, backend="onnx-cpu", beside="the engine")
    row: dict[str, Any] = record.values["ours, 384"]
    return row


def test_a_folder_counts_only_if_every_picture_was_answered(tmp_path: Path, model_path: Path) -> None:
    given = make_settings(tmp_path)
    files = photographs(given.folder("384"))
    row = measured_over(given, model_path)
    assert (row["pictures"], row["batch_size"], row["beside"]) == (4, 1, "the engine")
    files[3].write_bytes(b"no picture")
    row = measured_over(given, model_path)
    assert row["pictures"] == 4, "measured before, so not again"
    record_path(given.out, "end_to_end").unlink()
    assert measured_over(given, model_path)["failed"].startswith("1 of 4 images failed, the first: ")


def test_answers_that_went_to_another_picture_do_not_pass(tmp_path: Path, model_path: Path) -> None:
    given = make_settings(tmp_path)
    files = photographs(given.folder("384"))
    files[2].write_bytes(files[1].read_bytes())
    assert "at different places" in measured_over(given, model_path)["failed"]


def test_wrong_answers_fail_the_stage_and_are_looked_at_again(tmp_path: Path, model_path: Path) -> None:
    given = make_settings(tmp_path)
    given.models.mkdir(parents=True)
    shutil.copyfile(model_path, given.model("float32"))
    other = onnx.load(model_path)
    weights = next(weight for weight in other.graph.initializer if weight.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), "weights"))
    onnx.save(other, given.model("float16"))
    for _ in range(2):
        assert run_stage("verify", given) == 1
        found = read_record(given.out, "verify")
        assert found["onnx-cpu"]["within_budget"] is False
        assert found["onnx-cpu"]["failed"].startswith("output beyond the budget: largest difference")
        assert found["error"].startswith("1 failed: onnx-cpu: output beyond the budget")
    shutil.copyfile(model_path, given.model("float16"))
    assert run_stage("verify", given) == 0


def test_the_better_graph_is_the_faster_one_whose_answers_are_right(tmp_path: Path) -> None:
    given = make_settings(tmp_path)
    record = Record(given, "engines")
    record.save(**{"ONNX Runtime CUDA FP16": {"1": 5.0, "64": 9.0}})
    record.save(**{"ONNX Runtime CUDA FP16, Attention nodes": {"64": 12.0}})
    graphs = ["", ", Attention nodes"]
    assert engines._better(given, record, graphs) == ", Attention nodes"
    write_record(given.out, "verify", {"onnx-cpu, Attention nodes": {"failed": "beyond the budget"}})
    assert engines._better(given, record, graphs) == ""
    assert engines._better(given, record, [""]) == ""


def test_a_graph_that_is_there_already_is_a_row_all_the_same(tmp_path: Path) -> None:
    given = make_settings(tmp_path)
    given.models.mkdir(parents=True)
    for precision in ("int8", "float8"):
        given.model(precision).write_bytes(bytes(3_000_000))
    assert run_stage("quantized", given) == 0
    found = read_record(given.out, "quantized")
    assert found["int8_engine"] == {"left_out": "there is no GPU in a dry run"}
    assert (found["int8_graph"], found["float8_graph"]) == ("there already, 3 MB", "there already, 3 MB")
