"""Peers answer for the same pictures, and the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mineral_batch._onnx_file import read_contract
from mineral_batch.errors import DataError
from mineral_bench import peers
from mineral_bench.comparison import Comparison
from mineral_bench.measure import Plan, Rounds
from mineral_bench.subject import Subject, find_subject

if TYPE_CHECKING:
    from pathlib import Path

SHORT = Plan(least=2, most=2, seconds=0, warm_up=1)


def test_ways_with_the_same_answers_and_those_that_are_not_here(model_path: Path, photos: Path) -> None:
    paths = peers.photographs([photos], read_contract(model_path).input, 5)
    options = peers.Options(backends=("onnx-cpu", "abacus"))
    found = peers.measure(Subject(model_path), paths, options, SHORT)
    assert {peers.ONNX, "mineral-batch, onnx-cpu"} <= set(found.rounds.seconds)
    assert "no engine is called" in found.absent["mineral-batch, abacus"]
    assert found.differences["mineral-batch, onnx-cpu"] < 1e-6
    assert (found.pictures, len(paths)) == (5, 5)
    shown = peers.table(found, "Title").markdown()
    assert "mineral-batch, onnx-cpu" in shown
    assert "Not here: mineral-batch, abacus" in shown


@pytest.mark.slow
def test_torchs_ways_give_the_same_answers(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch's ways need torch")
    pytest.importorskip("onnxscript", reason="the export needs onnxscript")
    subject = find_subject(_checkpoint(tmp_path / "checkpoint"), None, tmp_path)
    paths = peers.photographs([photos], read_contract(subject.model).input, 6)
    options = peers.Options(batch=4, backends=("onnx-cpu",), workers=0)
    found = peers.measure(subject, paths, options, SHORT)
    assert list(found.rounds.seconds)[:3] == [peers.EAGER, peers.TIMM, peers.ONNX]
    assert all(found.differences[name] < 1e-4 for name in (peers.ONNX, "mineral-batch, onnx-cpu"))
    # timm resizes through torchvision or Pillow, whose rounding may differ.
    assert found.differences[peers.TIMM] < 0.02


def _checkpoint(folder: Path) -> Path:
    from mineral_batch.contract import ModelContract
    from mineral_train.checkpoint import save_checkpoint
    from mineral_train.model import ModelConfig, build_model, input_spec

    config = ModelConfig("test_vit", image_size=64, width=32, heads=2, ffn=48, labels=("agate", "gold"))
    contract = ModelContract(("agate", "gold"), (0.5, 0.5), input_spec(config))
    save_checkpoint(folder, build_model(config, seed=1), contract)
    return folder


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no preset; presets are .*vit-b16-384"):
        find_subject(tmp_path / "absent", None, tmp_path)


def test_ratios_are_taken_within_rounds() -> None:
    noise = np.array([1.0, 5.0, 2.0, 3.0, 1.5, 4.0])
    times = {peers.ONNX: 4 * noise, "ours": noise}
    found = Comparison(Rounds(times, times, 1, True), 8, dict.fromkeys(times, 0.0), dict.fromkeys(times))
    rows = {row[0]: row[2] for row in peers.table(found, "Title").rows}
    assert rows == {peers.ONNX: "1", "ours": "4.00 (4.00 to 4.00)"}
