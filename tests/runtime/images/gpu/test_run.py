"""Runs with a decoder on a GPU: order, resuming, losing the GPU, what run.json says."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch import BackendError, DataError, Failure, Predictor, doctor
from mineral_batch.images.gpu import decoder as decoder_module
from mineral_batch.images.gpu import jpeg as jpeg_module
from mineral_batch.results import run as runs
from mineral_batch.results.attempt import RunSummary

from .conftest import jpeg

if TYPE_CHECKING:
    from pathlib import Path

    from ....fakes.nvimgcodec import Machine


def test_an_error_of_the_caller_ends_a_run_with_pictures_still_on_their_way(
    machine: Machine, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures that are being read then find the decoder closed, and must not wait for it."""
    (tmp_path / "0.jpg").write_bytes(jpeg())
    for index in range(1, 400):
        (tmp_path / f"{index}.jpg").hardlink_to(tmp_path / "0.jpg")
    look = jpeg_module.inspect_jpeg
    monkeypatch.setattr(decoder_module, "inspect_jpeg", lambda *given: (time.sleep(0.02), look(*given))[1])

    def run() -> None:
        with Predictor(model_path, decode="gpu") as predictor:
            results = predictor.predict([tmp_path])
            for _ in results:
                raise ValueError("the caller's")

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="the caller's"):
        pool.submit(run).result(600)


def test_a_run_keeps_its_order_and_tells_what_was_decoded_where(
    machine: Machine, model_path: Path, jpegs: Path, tmp_path: Path
) -> None:
    with Predictor(model_path, backend="onnx-cpu") as alone:
        reference = list(alone.predict([jpegs]))
    with Predictor(model_path, backend="onnx-cpu", decode="gpu", batch_size=4) as predictor:
        results = list(predictor.predict([jpegs]))
        runs.run(predictor, [jpegs], tmp_path / "out")
    assert [result.path for result in results] == [result.path for result in reference]
    for one, other in zip(results, reference, strict=True):
        if isinstance(one, Failure) or isinstance(other, Failure):
            assert one == other
        else:
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=0.02)
    message = json.loads((tmp_path / "out" / "run.json").read_text())["decoder"]
    assert (message["name"], message["chosen"]) == ("gpu", "")
    assert message["version"].startswith("nvImageCodec 0.9.0 for JPEGs from 0.001 megapixel on, else Pillow ")
    assert message["pictures"] == {
        "on the GPU": 9,
        "on the CPU: colors other than YCbCr and gray": 1,
        "on the CPU: not a JPEG": 2,
    }, "of this run alone"


def test_a_run_that_loses_its_gpu_keeps_what_is_done(
    machine: Machine, model_path: Path, jpegs: Path, tmp_path: Path
) -> None:
    def run(folder: str, lists_left: int | None = None) -> RunSummary:
        options: dict[str, Any] = {"decode": "gpu", "decode_threads": 1, "batch_size": 1}
        with Predictor(model_path, backend="onnx-cpu", **options) as predictor:
            machine.lists_left = lists_left
            return runs.run(predictor, [jpegs], tmp_path / folder)

    run("whole")
    with pytest.raises(BackendError, match="no GPU decodes any more"):
        run("lost", lists_left=4)
    machine.lists_left = None
    assert run("lost").reused >= 4
    whole, lost = ((tmp_path / folder / "predictions.csv").read_bytes() for folder in ("whole", "lost"))
    assert whole == lost


def test_a_run_is_made_with_one_decoder(machine: Machine, model_path: Path, jpegs: Path, tmp_path: Path) -> None:
    with Predictor(model_path, backend="onnx-cpu") as cpu:
        runs.run(cpu, [jpegs], tmp_path / "out")
    with (
        Predictor(model_path, backend="onnx-cpu", decode="gpu") as gpu,
        pytest.raises(DataError, match=r"decoder was Pillow .*, is nvImageCodec 0\.9\.0 "),
    ):
        runs.run(gpu, [jpegs], tmp_path / "out")


def test_doctor_tries_it_and_says_how_it_went(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.decoding_trial()
    message = json.loads(capsys.readouterr().out)
    assert message["works"]
    assert message["version"].startswith("nvImageCodec 0.9.0 ")
    machine.fails = "Internal error"
    doctor.decoding_trial()
    assert "does not start on NVIDIA L4" in json.loads(capsys.readouterr().out)["reason"]


def test_doctor_tries_it_in_a_process_of_its_own() -> None:
    report = doctor.examine(None)
    assert report.gpu_decoding.works or "--decode gpu" in report.gpu_decoding.reason
    assert report.gpu_decoding.works <= bool(report.machine.gpus)
