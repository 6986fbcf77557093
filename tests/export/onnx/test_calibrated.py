"""A calibration written into real exported graphs: of every head, with maps, and in FP16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mineral_batch.explain.explainer import open_explainer
from mineral_batch.model.calibration import log_odds
from mineral_batch.model.onnx_calibration import calibrate_graph
from mineral_export.onnx.export import export_onnx
from mineral_export.precision.fp16 import to_fp16
from mineral_export.verify.artifacts import open_artifact
from mineral_export.verify.samples import synthetic_images

if TYPE_CHECKING:
    from pathlib import Path

# Small enough that float32 does not round a probability to 1.
SCALE, BIAS = (0.5, 0.7, 0.9), (-1.0, 0.5, -2.0)


def predict(path: Path, pixels):
    with open_artifact(path) as model:
        return model.predict(pixels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "test_resnet", "method": "pool"},
        {"backbone": "test_vit", "head": "flatten"},
        {"backbone": "test_vit", "head": "group"},
        {"backbone": "test_vit", "explain": "grad-cam"},
        {"backbone": "test_resnet", "method": "pool", "half": True},
    ],
    ids=["pool", "flatten", "group", "maps", "FP16"],
)
def test_every_graph_answers_calibrated(tiny, tmp_path: Path, options) -> None:
    explain, half = options.pop("explain", None), options.pop("half", False)
    model, contract = tiny(**options)
    path, pixels = tmp_path / "model.onnx", synthetic_images(contract.input, 5)
    export_onnx(model, contract, path, explain=explain, top=1)
    if half:
        to_fp16(path, tmp_path / "half.onnx", force=True)
        path = tmp_path / "half.onnx"
    before = log_odds(predict(path, pixels))
    calibrate_graph(path, path, SCALE, BIAS)
    after = log_odds(predict(path, pixels))
    np.testing.assert_allclose(after, np.array(SCALE) * before + BIAS, atol=2e-2 if half else 1e-3)
    if explain:
        with open_explainer(path) as explainer:
            answer = explainer.infer(pixels)
        assert answer.labels[:, 0].tolist() == after.argmax(axis=1).tolist()
