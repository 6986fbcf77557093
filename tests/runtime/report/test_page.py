"""The page: what it says, and that nothing in it can run."""

from __future__ import annotations

import base64
import csv
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mineral_batch.cli import main
from mineral_batch.report.about_run import of_run
from mineral_batch.report.data import script_json

from .runs import LABELS, ROWS, THRESHOLDS, Page, report, write_csv, write_predictions


def test_page_has_the_data_of_the_run(run: Path) -> None:
    report("-o", "page.html")
    page = Page(Path("page.html"))
    (frame,), (rows,) = page.data["frame"], page.data["rows"]
    assert frame["labels"] == list(LABELS)
    assert frame["thresholds"] == list(THRESHOLDS)
    assert frame["failures"] == [["photos/<b>bad.jpg", "decode", "<i>torn</i>"]]
    assert rows["paths"] == [path for path, _, _ in ROWS]
    scores = np.frombuffer(base64.b64decode(rows["scores"]), "<u2").reshape(-1, len(LABELS)) / 65535
    assert np.abs(scores - [scores for _, scores, _ in ROWS]).max() < 1e-5
    assert rows["found"][:4] == [[0], [1, 3], [1], []]
    assert "1 could not be read" in page.text
    assert "tiny </script>" in page.text


def test_unsure_means_odds_within_a_factor_of_two_of_the_threshold(run: Path) -> None:
    report("-o", "page.html")
    frame = Page(Path("page.html")).data["frame"][0]
    for cut, low, high in zip(THRESHOLDS, frame["low"], frame["high"], strict=True):
        odds = cut / (1 - cut)
        assert low / (1 - low) == pytest.approx(odds / 2)
        assert high / (1 - high) == pytest.approx(odds * 2)


def test_stopped_run_without_run_json(run: Path) -> None:
    (run / "predictions.csv").rename(run / "predictions.partial.csv")
    (run / "run.json").unlink()
    report("-o", "page.html")
    page = Page(Path("page.html"))
    assert page.data["frame"][0]["thresholds"] == [0.5] * len(LABELS)
    assert "does not say the thresholds" in page.text
    assert "stopped" in page.text


def test_page_says_how_accurate_the_predictions_are(run: Path) -> None:
    done = CliRunner().invoke(main, ["evaluate", "results/predictions.csv", "labels.csv", "--json", "all.json"])
    assert done.exit_code == 0, done.output
    expected = json.loads(Path("all.json").read_text())["mean_ap"]["equation-6"]
    report("-o", "page.html", "--labels", "labels.csv", "--split", "test")
    page = Page(Path("page.html"))
    assert f"mAP {expected:.3f}" in page.text
    assert "pyrite → gold1 of 2" in page.text.replace("\n", "")
    assert page.data["frame"][0]["alarms"] == [[2, 1], [5, 0]]


def test_map_is_shown_only_with_places(run: Path) -> None:
    report("-o", "page.html")
    assert "2 photographs say where" in Page(Path("page.html")).text
    write_predictions(run / "predictions.csv", ROWS[2:4])
    report("-o", "page.html")
    assert "say where" not in Page(Path("page.html")).text


def test_names_never_become_markup(run: Path) -> None:
    report("-o", "page.html", "--labels", "labels.csv")
    page = Page(Path("page.html"))
    content = Path("page.html").read_text("utf-8")
    assert "<img" not in re.sub(r"<script>.*?</script>", "", content, flags=re.DOTALL)
    assert [attributes for name, attributes in page.elements if name == "script" and "type" not in attributes] == [{}]
    assert not [name for name, _ in page.elements if name in ("img", "i", "iframe", "link", "object")]
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on") or key == "style"]
    assert "<i>torn</i>" in page.text  # as text


def test_page_loads_nothing(run: Path) -> None:
    report("-o", "page.html", "--labels", "labels.csv")
    content = Path("page.html").read_text("utf-8")
    assert not re.search(r"https?:|//[a-z]+\.", content.replace("file://", "").replace("http-equiv", ""))
    assert "default-src 'none'" in html.unescape(content)


@settings(deadline=None, max_examples=50)
@given(st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=5))
def test_data_cannot_end_its_script_element(value: object) -> None:
    text = script_json(value)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"name": "mineral-batch starter"}, "This is the small starter model: for a first look, not for decisions."),
        ({"measured": {"mean_ap": 0.4567, "images": 1234}}, "precision 0.46 (1 is perfect) on 1,234 photographs."),
        ({"measured": {"mean_ap": 1, "images": 2, "dataset": "my.csv"}}, "(1 is perfect) on 2 photographs of my.csv."),
        ({"measured": None}, "The accuracy of this model was never measured."),
        ({"calibration": None}, "The probabilities are not calibrated"),
        ({"calibration": {"dataset": "val"}}, None),
    ],
)
def test_page_opens_with_the_warning_of_its_model(run: Path, model: dict[str, object], expected: str | None) -> None:
    manifest = json.loads((run / "run.json").read_text())
    manifest["model"] |= model
    (run / "run.json").write_text(json.dumps(manifest))
    report("-o", "page.html", "--thumbnails", "0")
    content = Path("page.html").read_text("utf-8")
    warnings = re.findall(r'<p class="warning"[^>]*>([^<]*)</p>', content)
    assert len(warnings) == (expected is not None)
    if expected:
        assert expected in warnings[0]
        assert content.index('class="warning"') < content.index('id="gallery"')


def test_probabilities_are_judged_before_the_mistakes(run: Path) -> None:
    """With counts per bin, and beside the model that always answers with the prevalence."""
    report("-o", "page.html", "--labels", "labels.csv")
    page, content = Page(Path("page.html")), Path("page.html").read_text("utf-8")
    assert content.index("Reliability diagram") < content.index("Worst mistakes")
    counts = re.findall(r"<title>[\d.]+ to [\d.]+: ([\d,]+) decisions", content)
    bars = [int(count.replace(",", "")) for count in counts[-10:]]
    assert sum(bars) == len(ROWS) * len(LABELS)
    truth = np.array([[name in labels.split(";") for name in LABELS] for _, _, labels in ROWS])
    scores = np.array([scores for _, scores, _ in ROWS])
    prevalence = np.broadcast_to(truth.mean(axis=0), truth.shape)
    expected = (f"Brier score{np.square(p - truth).mean():.4f}" for p in (scores, prevalence))
    ours, baseline = expected
    assert ours + baseline.removeprefix("Brier score") in page.text.replace("\n", "")


def test_images_unlike_the_training_images_are_counted_and_can_be_shown(run: Path) -> None:
    report("-o", "page.html", "--thumbnails", "0")
    assert "unlike the training images" not in Page(Path("page.html")).text
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    at = header.index(LABELS[0])
    header.insert(at, "familiarity")
    for row, value in zip(rows, ["0.5", "0.049", "0.05", "", "0.0", "1", "0.9"], strict=True):
        row.insert(at, value)
    write_csv(run / "predictions.csv", [header, *rows])
    report("-o", "page.html", "--thumbnails", "0")
    page = Page(Path("page.html"))
    assert "2 unlike the training images" in page.text
    assert page.data["rows"][0]["unfamiliar"] == [1, 4]
    assert ("option", {"value": "unfamiliar"}) in page.elements


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("f1", "(the mark on its bar), chosen by the highest F1."),
        ("precision=0.9", "chosen by a precision of 0.9."),
        ("highest F1 <per label>", "chosen by highest F1 <per label>."),
        (None, "(the mark on its bar)."),
    ],
)
def test_page_says_how_the_thresholds_were_chosen(run: Path, rule: str | None, expected: str) -> None:
    manifest = json.loads((run / "run.json").read_text())
    manifest["model"]["thresholds_by"] = rule and {"rule": rule, "split": "val"}
    (run / "run.json").write_text(json.dumps(manifest))
    report("-o", "page.html", "--thumbnails", "0")
    assert expected in Page(Path("page.html")).text


@pytest.mark.parametrize("threshold", ["NaN", "1.5", '"high"', "null"])
def test_thresholds_that_are_none_are_one_line(run: Path, threshold: str) -> None:
    """A run.json from elsewhere, or edited by hand."""
    manifest = json.loads((run / "run.json").read_text())
    count = len(manifest["model"]["labels"])
    manifest["model"]["thresholds"] = ["PLACE"] + [0.5] * (count - 1)
    (run / "run.json").write_text(json.dumps(manifest).replace('"PLACE"', threshold))
    done = CliRunner().invoke(main, ["report", "results", "-o", "page.html"])
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert "is not a number from 0 to 1: rerun" in done.stderr


RUN = {
    "started": "2026-11-30T10:01:00+00:00",
    "finished": "2026-11-30T11:32:07+01:00",
    "inputs": ["drawer 1", "drawer 2"],
    "inputs_named": 2,
    "tables": ["predictions.csv", "failures.csv"],
    "model": {
        "name": "mine",
        "labels": ["agate", "quartz"],
        "thresholds": [0.2, 0.6],
        "measured": {"mean_ap": 0.4567, "images": 1234, "dataset": "the test split"},
        "calibration": {"images": 635, "dataset": "val", "date": "2026-11-29"},
    },
    "engine": {"backend": "onnx-cpu", "device": "CPU, float32"},
    "versions": {"mineral-batch": "0.1.0"},
    "pictures": {"predicted": 1587, "failed": 2, "damaged": 1, "of_other_inputs": 3},
}


def test_the_run_is_described_for_a_curator() -> None:
    facts = dict(of_run(RUN, "the highest F1"))
    assert facts["Photographs"] == "1,587 predicted, 1 of them damaged, 2 could not be read, 3 kept from earlier runs"
    assert facts["From"] == "drawer 1, drawer 2"
    assert facts["When"] == "2026-11-30 10:01 to 10:32 UTC"
    assert facts["Model"] == "mine, which knows 2 minerals"
    assert facts["How accurate"].startswith("mean average precision 0.46 (1 is perfect) on 1,234 photographs")
    assert facts["Probabilities"].startswith("calibrated on 635 photographs (val, 2026-11-29)")
    assert facts["Found"].endswith("each mineral has its own (chosen for the highest F1)")
    assert facts["Computed by"] == "mineral-batch 0.1.0 with onnx-cpu on CPU, float32"


@pytest.mark.parametrize("key", RUN)
def test_a_part_of_run_json_that_is_missing_or_odd_costs_its_lines_alone(key: str) -> None:
    whole = of_run(RUN, "")
    for value in (None, 7, "text", [], {}):
        assert len(of_run(RUN | {key: value}, "")) >= len(whole) - 5
    del (without := dict(RUN))[key]
    assert len(of_run(without, "")) >= len(whole) - 5


def test_technical_details_are_folded(run: Path) -> None:
    report("-o", "page.html", "--thumbnails", "0")
    content = Path("page.html").read_text("utf-8")
    assert "tiny &lt;/script&gt;, which knows" in content
    assert '<th scope="row">photographs</th>' in content
    assert not any(f'<th scope="row">{key}</th>' in content for key in ("pictures", "blank", "unnamed example"))
    assert content.index("which knows") < content.index('<details class="technical">') < content.index("The content of")
