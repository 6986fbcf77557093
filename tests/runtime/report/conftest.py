"""The output folder of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from .runs import LABELS, ROWS, THRESHOLDS, write_csv, write_predictions


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder of a run over photographs of which one has vanished, one was never a picture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, color in (("a", "red"), ("b", "gold"), ("c", "khaki"), ("d", "white")):
        Image.new("RGB", (400, 300), color).save(tmp_path / "photos" / f"{name}.jpg")
    results = tmp_path / "results"
    results.mkdir()
    write_predictions(results / "predictions.csv", ROWS)
    write_csv(results / "failures.csv", [["path", "stage", "reason"], ["photos/<b>bad.jpg", "decode", "<i>torn</i>"]])
    write_csv(tmp_path / "labels.csv", [["path", "labels", "split"], *([p, t, "test"] for p, _, t in ROWS)])
    manifest = {
        "finished": "2026-01-02T03:04:05+00:00",
        "model": {"name": "tiny </script>", "labels": list(LABELS), "thresholds": list(THRESHOLDS)},
        "pictures": {"predicted": len(ROWS), "failed": 1},
    }
    (results / "run.json").write_text(json.dumps(manifest))
    return results
