"""The charts as files for papers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from .runs import report, write_csv, write_predictions

pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")


def test_plots_are_png_and_svg(run: Path) -> None:
    report("-o", "page.html", "--labels", "labels.csv", "--plots", "plots", "--thumbnails", "0")
    names = {"counts", "co-occurrence", "places", "average-precision", "precision-recall", "thresholds"}
    names |= {"confusion", "calibration"}
    assert {path.name for path in Path("plots").iterdir()} == {f"{n}.{s}" for n in names for s in ("png", "svg")}
    svg = Path("plots/average-precision.svg").read_text("utf-8")
    assert "pyrite" in svg
    assert "labeled photographs" in svg
    with Image.open("plots/counts.png") as image:
        image.load()
        assert image.width > 400
    report("-o", "page.html", "--labels", "labels.csv", "--plots", "again", "--thumbnails", "0")
    for path in sorted(Path("plots").iterdir()):
        assert path.read_bytes() == Path("again", path.name).read_bytes(), f"{path.name} is not reproducible"


def test_names_are_text_and_not_formulas(run: Path) -> None:
    """A dollar sign starts a formula in matplotlib, which this name would break."""
    write_predictions(run / "predictions.csv", [("a.jpg", (0.9, 0.1, 0.1, 0.1), "")])
    name = r"agate $\frac{"
    table = (run / "predictions.csv").read_text().replace("agate", name)
    (run / "predictions.csv").write_text(table)
    manifest = json.loads((run / "run.json").read_text())
    manifest["model"]["labels"][0] = name
    (run / "run.json").write_text(json.dumps(manifest))
    write_csv(Path("labels.csv"), [["path", "labels"], ["a.jpg", name]])
    report("-o", "page.html", "--labels", "labels.csv", "--plots", "plots", "--thumbnails", "0")
    assert name in Path("plots/counts.svg").read_text("utf-8")
