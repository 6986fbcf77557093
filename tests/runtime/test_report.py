"""The report: what it says, that it holds together without a network, and that nothing in it can be run."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_curve

from mineral_batch.cli import main
from mineral_batch.evaluation import curves as accuracy
from mineral_batch.report import figures
from mineral_batch.report.charts import world
from mineral_batch.report.markup import Markup, script_json, tag
from mineral_batch.results.read import read_results

if TYPE_CHECKING:
    from collections.abc import Iterator

LABELS = ("agate", "gold", "pyrite", "quartz")
THRESHOLDS = (0.5, 0.3, 0.5, 0.6)
EVIL = "<img src=x onerror=document.title='owned'>.jpg"
WORSE = "x</script><script>document.title='owned'</script><!--.jpg"
WORSE_SHOWN = Path(WORSE).name
ROWS: list[tuple[str, tuple[float, ...], str]] = [
    # path, probabilities, labels
    ("photos/a.jpg", (0.9, 0.1, 0.05, 0.2), "agate"),
    ("photos/b.jpg", (0.1, 0.8, 0.2, 0.7), "gold;quartz"),
    ("photos/c.jpg", (0.1, 0.7, 0.4, 0.1), "pyrite"),
    ("photos/d.jpg", (0.1, 0.2, 0.1, 0.1), "quartz"),
    ("photos/missing.jpg", (0.1, 0.1, 0.95, 0.1), "pyrite"),
    (EVIL, (0.6, 0.1, 0.1, 0.1), ""),
    (WORSE, (0.55, 0.1, 0.1, 0.1), "agate"),
]
PLACES = {"photos/a.jpg": ("46.5", "7.9"), "photos/b.jpg": ("46.6", "8.1")}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder of a run over photographs of which one has vanished, one was never a picture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, colour in (("a", "red"), ("b", "gold"), ("c", "khaki"), ("d", "white")):
        Image.new("RGB", (400, 300), colour).save(tmp_path / "photos" / f"{name}.jpg")
    results = tmp_path / "results"
    results.mkdir()
    write_predictions(results / "predictions.csv", ROWS)
    write_csv(results / "failures.csv", [["path", "stage", "reason"], ["photos/<b>bad.jpg", "decode", "<i>torn</i>"]])
    write_csv(tmp_path / "labels.csv", [["path", "labels", "split"], *([p, t, "test"] for p, _, t in ROWS)])
    certificate = {
        "finished": "2026-01-02T03:04:05+00:00",
        "model": {"name": "tiny </script>", "labels": list(LABELS), "thresholds": list(THRESHOLDS)},
        "pictures": {"predicted": len(ROWS), "failed": 1},
    }
    (results / "run.json").write_text(json.dumps(certificate))
    return results


def write_predictions(path: Path, rows: list[tuple[str, tuple[float, ...], str]]) -> None:
    table = [["path", "minerals", "captured", "latitude", "longitude", *LABELS]]
    for name, scores, _ in rows:
        called = [label for label, p, cut in zip(LABELS, scores, THRESHOLDS, strict=True) if p >= cut]
        table.append([name, ";".join(called), "", *PLACES.get(name, ("", "")), *map(str, scores)])
    write_csv(path, table)


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows(rows)


def report(*words: str) -> Result:
    done = CliRunner().invoke(main, ["report", "results", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


MAPPED = [("photos/a.jpg", "agate", 0.9), ("photos/b.jpg", "gold", 0.8), ("photos/b.jpg", "quartz", 0.7)]
COLOURS = {"agate": "purple", "gold": "orange", "quartz": "yellow"}


def explain(folder: Path, maps: list[tuple[str, str, float]] = MAPPED) -> None:
    """What `mineral-batch explain` leaves in a folder, each overlay in its mineral's colour."""
    table = [["path", "mineral", "probability", "present", "peak_x", "peak_y", "overlay"]]
    for path, mineral, probability in maps:
        overlay = Path("overlays", path, f"{mineral}.png")
        (folder / overlay).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400, 300), COLOURS.get(mineral, "white")).save(folder / overlay)
        table.append([path, mineral, str(probability), "1", "200.0", "150.0", overlay.as_posix()])
    folder.mkdir(exist_ok=True)
    write_csv(folder / "maps.csv", table)


class Page(HTMLParser):
    """The elements of a page, its visible text, and the data that its script reads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: dict[str, list[Any]] = {}
        self._kind: str | None = None
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._kind = (dict(attrs).get("class") or "code") if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._kind = None

    def handle_data(self, data: str) -> None:
        if self._kind is None:
            self.text += data
        elif self._kind != "code":
            self.data.setdefault(self._kind, []).append(json.loads(data))


# What it says


def test_the_data_of_the_page_are_those_of_the_run(run: Path) -> None:
    report("-o", "page.html")
    page = Page(Path("page.html"))
    (frame,), (rows,) = page.data["frame"], page.data["rows"]
    assert frame["labels"] == list(LABELS)
    assert frame["thresholds"] == list(THRESHOLDS)
    assert frame["failures"] == [["photos/<b>bad.jpg", "decode", "<i>torn</i>"]]
    assert rows["paths"] == [path for path, _, _ in ROWS]
    scores = np.frombuffer(base64.b64decode(rows["scores"]), "<u2").reshape(-1, len(LABELS)) / 65535
    assert np.abs(scores - [scores for _, scores, _ in ROWS]).max() < 1e-5
    assert rows["called"][:4] == [[0], [1, 3], [1], []]
    assert "1 could not be read" in page.text
    assert "tiny </script>" in page.text


def test_unsure_is_what_lies_within_twice_the_odds_of_the_threshold(run: Path) -> None:
    report("-o", "page.html")
    frame = Page(Path("page.html")).data["frame"][0]
    for cut, low, high in zip(THRESHOLDS, frame["low"], frame["high"], strict=True):
        odds = cut / (1 - cut)
        assert low / (1 - low) == pytest.approx(odds / 2)
        assert high / (1 - high) == pytest.approx(odds * 2)


def test_thumbnails_are_of_the_photographs_and_missing_ones_do_no_harm(run: Path) -> None:
    done = report("-o", "page.html", "--thumbnails", "64")
    (block,) = Page(Path("page.html")).data["thumbnails"]
    assert set(block) == {"0", "1", "2", "3"}
    picture = tmp_picture(base64.b64decode(block["0"]))
    assert picture.size == (64, 48)
    red, green, blue = picture.getpixel((30, 20))
    assert (red > 240, green < 15, blue < 15) == (True, True, True)
    assert f"3 of {len(ROWS)} photographs are not there" in done.output


def tmp_picture(content: bytes) -> Any:
    import io

    return Image.open(io.BytesIO(content))


def test_photographs_are_found_from_elsewhere_and_in_archives(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.make_archive("box", "zip", root_dir=".", base_dir="photos")
    write_predictions(run / "predictions.csv", [("box.zip/photos/b.jpg", ROWS[1][1], ""), ROWS[0]])
    elsewhere = run.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    done = CliRunner().invoke(main, ["report", "../results", "-o", "page.html"])
    assert done.exit_code == 0, done.output
    (block,) = Page(Path("page.html")).data["thumbnails"]
    assert set(block) == {"0", "1"}
    red, green, blue = tmp_picture(base64.b64decode(block["0"])).getpixel((5, 5))
    assert red > 240
    assert 200 < green < 230
    assert blue < 20


def test_a_folder_has_its_thumbnails_and_data_beside_the_page(run: Path) -> None:
    for _ in range(2):  # the second time it replaces its own
        report("--folder", "-o", "page", "--labels", "labels.csv")
    assert [p.name for p in sorted(Path("page/thumbs/00000").iterdir())] == [f"{i:08}.jpg" for i in range(4)]
    data = Path("page/data/00000.js").read_text()
    rows = json.loads(data.split(".push(", 1)[1].removesuffix(");\n"))
    assert rows["thumbnails"] == [1, 1, 1, 1, 0, 0, 0]
    assert rows["truth"][:2] == [[0], [1, 3]]
    assert not list(run.parent.glob(".page*"))


def test_a_folder_that_is_no_report_is_left_alone(run: Path) -> None:
    done = CliRunner().invoke(main, ["report", "results", "--folder", "-o", "photos"])
    assert done.exit_code == 1
    assert "photos exists and is no report" in done.output
    assert Path("photos/a.jpg").exists()


def test_too_many_pictures_for_one_file_are_refused_with_the_way_out(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mineral_batch.report.build.LARGEST_FILE", 3)
    done = CliRunner().invoke(main, ["report", "results", "-o", "page.html"])
    assert done.exit_code == 1
    assert "--folder" in done.output
    assert not Path("page.html").exists()
    report("-o", "page.html", "--thumbnails", "0")
    report("-o", "folder", "--folder")


def test_a_run_that_was_stopped_and_an_older_certificate_are_enough(run: Path) -> None:
    (run / "predictions.csv").rename(run / "predictions.partial.csv")
    (run / "run.json").unlink()
    report("-o", "page.html")
    page = Page(Path("page.html"))
    assert page.data["frame"][0]["thresholds"] == [0.5] * len(LABELS)
    assert "does not say the thresholds" in page.text
    assert "stopped" in page.text


def test_maps_are_small_copies_that_fit_their_photographs(run: Path) -> None:
    explain(Path("maps"), [*MAPPED, ("elsewhere/x.jpg", "gold", 0.8)])
    done = report("-o", "page.html", "--thumbnails", "64", "--explained", "maps")
    page = Page(Path("page.html"))
    (block,) = page.data["maps"]
    assert set(block) == {"0-0", "1-1", "1-3"}
    picture = tmp_picture(base64.b64decode(block["1-1"]))
    assert picture.size == tmp_picture(base64.b64decode(page.data["thumbnails"][0]["1"])).size
    assert np.abs(np.subtract(picture.getpixel((30, 20)), (255, 165, 0))).max() < 8
    assert "3 maps of 2 photographs" in page.text
    assert "1 maps are of photographs that are not in this run" in done.output


def test_maps_that_have_gone_are_left_out_and_said(run: Path) -> None:
    explain(Path("maps"))
    Path("maps/overlays/photos/b.jpg/gold.png").unlink()
    done = report("-o", "page.html", "--explained", "maps")
    assert set(Page(Path("page.html")).data["maps"][0]) == {"0-0", "1-3"}
    assert "1 of 3 maps are not there" in done.output


def test_a_folder_has_its_maps_beside_the_page(run: Path) -> None:
    explain(Path("maps"))
    report("--folder", "-o", "page", "--explained", "maps")
    assert [p.name for p in sorted(Path("page/maps/00000").iterdir())] == [
        "00000000-0.jpg", "00000001-1.jpg", "00000001-3.jpg",
    ]  # fmt: skip
    rows = json.loads(Path("page/data/00000.js").read_text().split(".push(", 1)[1].removesuffix(");\n"))
    assert rows["maps"] == {"0": [0], "1": [1, 3]}


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (None, "no maps.csv in maps: name the output folder of mineral-batch explain"),
        ([("else/x.jpg", "gold", 0.8)], "none of the 1 maps in maps is of a photograph of"),
        ([("photos/b.jpg", "gold", 0.2)], "maps are of another model than"),
        ([("photos/b.jpg", "topaz", 0.8)], "the run says nothing; give both commands the same --model"),
        ([("photos/b.jpg", "gold", float("nan"))], "maps are of another model than"),
    ],
)
def test_maps_that_are_not_of_this_run_are_refused(
    run: Path, maps: list[tuple[str, str, float]] | None, message: str
) -> None:
    if maps:
        explain(Path("maps"), maps)
    done = CliRunner().invoke(main, ["report", "results", "-o", "page.html", "--explained", "maps"])
    assert done.exit_code == 1
    assert message in done.output
    assert len(done.output.splitlines()) == 1
    assert not Path("page.html").exists()


def test_a_table_of_maps_that_is_damaged_is_refused(run: Path) -> None:
    explain(Path("maps"))
    for old, new, message in (
        ("overlay\n", "\n", "has no column overlay"),
        ("0.9", "high", "has the probability 'high'"),
    ):
        content = Path("maps/maps.csv").read_text()
        Path("maps/maps.csv").write_text(content.replace(old, new))
        done = CliRunner().invoke(main, ["report", "results", "-o", "page.html", "--explained", "maps"])
        assert (done.exit_code, message in done.output) == (1, True), done.output
        Path("maps/maps.csv").write_text(content)


def test_maps_count_where_one_file_becomes_too_large(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explain(Path("maps"))
    monkeypatch.setattr("mineral_batch.report.build.LARGEST_FILE", len(ROWS) + 2)
    report("-o", "page.html")
    done = CliRunner().invoke(main, ["report", "results", "-o", "page.html", "--explained", "maps"])
    assert done.exit_code == 1
    assert f"{len(ROWS)} pictures and 3 maps are too many for one file" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no predictions.csv in nowhere"),
        (["results", "-o", "no/such/folder/page.html"], "cannot write"),
        (["results", "--labels", "absent.csv"], "there is no file absent.csv"),
        (["results", "--labels", "labels.csv", "--split", "val"], "no rows of split 'val'"),
        (["results", "--split", "val"], "--split needs --labels"),
        (["results", "--explained", "maps", "--thumbnails", "0"], "--explained is shown as thumbnails"),
    ],
)
def test_mistakes_are_one_line(run: Path, words: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["report", *words])
    assert done.exit_code in (1, 2)
    assert message in done.output


# That nothing in it can be run


def test_names_never_become_markup(run: Path) -> None:
    report("-o", "page.html", "--labels", "labels.csv")
    page = Page(Path("page.html"))
    content = Path("page.html").read_text("utf-8")
    assert "<img" not in re.sub(r"<script>.*?</script>", "", content, flags=re.DOTALL)
    assert [attributes for name, attributes in page.elements if name == "script" and "type" not in attributes] == [{}]
    assert not [name for name, _ in page.elements if name in ("img", "i", "iframe", "link", "object")]
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on") or key == "style"]
    assert "<i>torn</i>" in page.text  # as text


def test_nothing_is_loaded_from_anywhere(run: Path) -> None:
    report("-o", "page.html", "--labels", "labels.csv")
    content = Path("page.html").read_text("utf-8")
    assert not re.search(r"https?:|//[a-z]+\.", content.replace("file://", "").replace("http-equiv", ""))
    assert "default-src 'none'" in content.replace("&#x27;", "'")


@settings(deadline=None)
@given(st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=5))
def test_data_in_a_script_element_can_neither_end_it_nor_change(value: object) -> None:
    text = script_json(value)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == value


@settings(deadline=None)
@given(st.text(), st.text())
def test_text_and_attributes_come_back_as_they_were(text: str, attribute: str) -> None:
    seen: list[tuple[str, str | None]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append((tag, dict(attrs).get("title")))

    reader = Reader()
    element = tag("p", text, tag("b", Markup("&amp;")), title=attribute, x=0.0)
    assert ' x="0"' in element
    reader.feed(element)
    assert [name for name, _ in seen] == ["p", "b"]
    expected = attribute.encode("utf-8", "replace").decode()
    assert (seen[0][1] or "").replace("\r", "\n") == expected.replace("\r", "\n")


# Accuracy


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_the_precision_recall_curve_is_that_of_scikit_learn(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, 8, count) / 8, rng.random(count) < 0.4
    truth[0] = True
    curve = accuracy.precision_recall_curve(scores, truth)
    precision, recall, _ = precision_recall_curve(truth, scores)
    np.testing.assert_allclose(curve.precision, precision[:-1][::-1])
    np.testing.assert_allclose(curve.recall, recall[:-1][::-1])
    x, y = figures.steps(curve)
    assert float(np.sum(np.diff(x) * y[1:])) == pytest.approx(average_precision_score(truth, scores))


def test_threshold_curves_call_at_or_above() -> None:
    found = accuracy.threshold_curves(np.array([0.2, 0.5, 0.9]), np.array([False, True, True]))
    at = {round(t, 2): i for i, t in enumerate(found.threshold.tolist())}
    assert found.precision[at[0.5]] == 1.0
    assert found.recall[at[0.5]] == 1.0
    assert found.recall[at[0.51]] == 0.5
    assert found.precision[at[0.2]] == pytest.approx(2 / 3)
    assert np.isnan(found.precision[at[1.0]])


def test_look_alikes_are_what_is_called_in_the_place_of_what_is_missed(run: Path) -> None:
    judged = accuracy.judge(read_results(run), Path("labels.csv"), "test")
    agate, gold, pyrite, quartz = range(4)
    table = judged.confusion
    assert table[pyrite].tolist() == [0, 1, 1, 0, 0]  # c.jpg: gold instead; missing.jpg: right
    assert table[quartz].tolist() == [0, 0, 0, 1, 1]  # d.jpg: nothing
    assert table[gold, gold] == 1
    assert table[agate, agate] == 2
    assert figures.look_alikes(judged) == [figures.LookAlike("pyrite", "gold", 1, 2)]
    assert [(int(judged.rows[m.picture]), m.label) for m in judged.false_alarms] == [(2, gold), (5, agate)]
    assert [(int(judged.rows[m.picture]), m.label) for m in judged.missed] == [(3, quartz), (2, pyrite)]


def test_the_page_says_how_right_the_predictions_are(run: Path) -> None:
    done = CliRunner().invoke(main, ["evaluate", "results/predictions.csv", "labels.csv", "--json", "all.json"])
    assert done.exit_code == 0, done.output
    expected = json.loads(Path("all.json").read_text())["mean_ap"]["equation-6"]
    report("-o", "page.html", "--labels", "labels.csv", "--split", "test")
    page = Page(Path("page.html"))
    assert f"mAP {expected:.3f}" in page.text
    assert "pyrite → gold1 of 2" in page.text.replace("\n", "")
    assert page.data["frame"][0]["alarms"] == [[2, 1], [5, 0]]


# Figures


def test_co_occurrence_counts_pairs(run: Path) -> None:
    found = figures.co_occurrence(read_results(run))
    at = {name: i for i, name in enumerate(found.rows)}
    assert found.counts[at["gold"], at["quartz"]] == 1
    assert found.counts[at["gold"], at["gold"]] == 2
    assert found.scale[at["gold"], at["quartz"]] == pytest.approx(1 / 2)
    assert figures.pairs(found) == [("gold", "quartz", 1)]


@pytest.mark.parametrize(
    "places",
    [
        [[46.5, 7.9]],
        [[46.5, 7.9], [46.6, 8.1]],
        [[-89.9, -180.0], [89.9, 180.0]],
        [[10.0, 20.0], [60.0, 20.0]],
        [[0.0, -170.0], [0.0, 170.0]],
    ],
)
def test_every_place_is_inside_the_map(places: list[list[float]]) -> None:
    drawn = world(np.array(places))
    width, height = (float(v) for v in re.search(r'<rect width="([\d.]+)" height="([\d.]+)"', drawn).groups())  # type: ignore[union-attr]
    spots = [(float(x), float(y)) for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', drawn)]
    assert len(spots) == len(places)
    assert all(0 <= x <= width and 0 <= y <= height for x, y in spots)
    assert re.search(r">\d+ k?m<", drawn)
    assert height < 4 * width


def test_places_that_lie_together_are_one_point() -> None:
    drawn = world(np.array([[46.5, 7.9], [46.5, 7.9], [46.50001, 7.90001], [47.5, 9.9]]))
    assert sorted(re.findall(r"<title>([^<]+)</title>", drawn)) == ["1 picture", "3 pictures"]


def test_the_map_is_there_only_with_places(run: Path) -> None:
    report("-o", "page.html")
    assert "2 photographs say where" in Page(Path("page.html")).text
    write_predictions(run / "predictions.csv", ROWS[2:4])
    report("-o", "page.html")
    assert "say where" not in Page(Path("page.html")).text


def test_plots_come_as_png_and_svg(run: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    report("-o", "page.html", "--labels", "labels.csv", "--plots", "plots", "--thumbnails", "0")
    names = {"counts", "co-occurrence", "places", "average-precision", "precision-recall", "thresholds"}
    names |= {"confusion", "calibration"}
    assert {path.name for path in Path("plots").iterdir()} == {f"{n}.{s}" for n in names for s in ("png", "svg")}
    assert "pyrite (2)" in Path("plots/average-precision.svg").read_text("utf-8")
    with Image.open("plots/counts.png") as picture:
        picture.load()
        assert picture.width > 400


# In a real browser


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None or os.name == "nt", reason="needs chromium on the PATH")


class Browser:
    """A page in headless Chromium, driven over a pipe by the DevTools protocol: https://chromedevtools.github.io."""

    def __init__(self, to: int, answers: int) -> None:
        self._to = to
        self._from = os.fdopen(answers, "rb")
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and give its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        content = b""
        while not content.endswith(b"\0"):
            byte = self._from.read(1)
            assert byte, "the browser ended"
            content += byte
        answer: dict[str, Any] = json.loads(content[:-1])
        return answer

    def open(self, path: Path) -> None:
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; it is run by the debugger, which the page's policy does not bind."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        end = time.monotonic() + 20
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        text = {"Enter": "\r", "Tab": ""}.get(key, "")
        code = {
            "Enter": 13,
            "Escape": 27,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
            "Tab": 9,
            "m": 77,
        }
        both = {"key": key, "code": key, "windowsVirtualKeyCode": code[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **both)
        self.send("Input.dispatchKeyEvent", type="keyUp", **both)

    def choose(self, name: str, value: str) -> None:
        self.redrawn(
            f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
            f"(document.getElementById({json.dumps(name)}))"
        )

    def redrawn(self, action: str) -> None:
        """Do something and wait until the gallery has been made anew."""
        found = "document.getElementById('found').textContent"
        self.evaluate(f"{found} = 'waiting'; {action}; 0")
        self.wait(f"{found} !== 'waiting'")

    def names(self) -> list[str]:
        """Of the cards in the gallery."""
        found: list[str] = self.evaluate("[...document.querySelectorAll('#cards .name')].map(e => e.textContent)")
        return found

    def troubles(self) -> list[Any]:
        """Errors, broken rules of the policy, and anything that was asked of the network."""
        kinds = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}
        found = [event["params"] for event in self.events if event.get("method") in kinds]
        for event in self.events:
            if event.get("method") == "Network.requestWillBeSent":
                url = event["params"]["request"]["url"]
                found += [] if url.startswith(("file:", "data:", "about:")) else [url]
        return found


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    switches += " --disable-component-update --disable-sync --remote-debugging-pipe --window-size=1200,900"
    # The protocol is spoken on the descriptors 3 and 4.
    command = f'exec "$0" {switches} --user-data-dir="$1" 3<&{their_in} 4>&{their_out} 2>/dev/null'
    process = subprocess.Popen(
        ["bash", "-c", command, str(CHROMIUM), str(folder / "profile")], pass_fds=(their_in, their_out)
    )
    os.close(their_in)
    os.close(their_out)
    driver = Browser(our_out, our_in)
    try:
        yield driver
    finally:
        os.close(our_out)
        process.terminate()
        process.wait(20)
        driver._from.close()


@needs_browser
def test_in_a_browser(run: Path) -> None:
    """One browser for all of it: it takes seconds to start."""
    explain(Path("maps"))
    report("-o", "page.html", "--labels", "labels.csv", "--explained", "maps")
    report("-o", "folder", "--folder", "--explained", "maps")
    write_predictions(
        run / "predictions.csv", [(f"photos/{i:04}.jpg", (0.9 - i / 1000, 0, 0, 0), "") for i in range(150)]
    )
    report("-o", "many.html", "--thumbnails", "0")
    with browser(run.parent) as page:
        page.open(Path("page.html"))
        nothing_is_run(page)
        filters_choose(page)
        keys_are_enough(page)
        figures_lead_to_the_gallery(page)
        dark_is_dark(page)
        maps_are_seen_beside_their_photographs(page)
        assert page.troubles() == []
        page.open(Path("folder/index.html"))
        page.wait("[...document.querySelectorAll('#cards img')].filter(i => i.naturalWidth > 0).length >= 3")
        page.evaluate("document.getElementById('maps').click()")
        page.wait(
            "[...document.querySelectorAll('#cards img[src^=maps]')].filter(i => i.naturalWidth > 0).length === 3"
        )
        assert page.troubles() == []
        page.open(Path("many.html"))
        pages_turn(page)
        # Even without the policy nothing is run: what keeps names harmless is that they are text.
        bare = Path("page.html").read_text("utf-8").replace("Content-Security-Policy", "X-Nothing")
        Path("bare.html").write_text(bare, "utf-8")
        page.open(Path("bare.html"))
        nothing_is_run(page)
        assert page.troubles() == []


def nothing_is_run(page: Browser) -> None:
    assert page.evaluate("document.title") == f"Minerals in {len(ROWS)} photographs"
    shown = page.names()
    assert {EVIL, WORSE_SHOWN} <= set(shown)
    assert page.evaluate("document.querySelectorAll('img:not([src^=\"data:image/jpeg\"])').length") == 0
    assert page.evaluate("document.querySelectorAll('script:not([type]):not(:empty)').length") == 1


def filters_choose(page: Browser) -> None:
    page.choose("order", "file")
    assert len(page.names()) == len(ROWS) + 1
    expected = {
        "several": ["b.jpg"],
        "nothing": ["d.jpg"],
        "failed": ["<b>bad.jpg"],
        "unsure": ["b.jpg", "c.jpg", "d.jpg", EVIL, WORSE_SHOWN],
        "missed": ["c.jpg", "d.jpg"],
        "wrong": ["c.jpg", EVIL],
    }
    for kind, names in expected.items():
        page.choose("kind", kind)
        assert page.names() == names, kind
    page.choose("kind", "all")
    page.choose("mineral", "gold")
    assert page.names() == ["b.jpg", "c.jpg"]
    page.choose("least", "0.2")
    assert page.names() == ["b.jpg", "c.jpg", "d.jpg"]
    page.choose("query", "C.JP")
    assert page.names() == ["c.jpg"]
    assert "1 of 8" in page.evaluate("document.getElementById('found').textContent")
    page.redrawn("document.querySelector('#controls button').click()")
    assert page.evaluate("[...document.querySelectorAll('#cards h3')].map(e => e.textContent)") == [
        "agate (3)", "gold (2)", "pyrite (1)", "quartz (1)", "Without a mineral (1)", "Could not be read (1)",
    ]  # fmt: skip
    page.choose("order", "name")
    assert page.names()[0] == EVIL
    page.choose("order", "file")


def keys_are_enough(page: Browser) -> None:
    page.evaluate("document.querySelector('#controls button').focus()")
    page.press("Tab")
    at = "[...document.querySelectorAll('#cards .card')].indexOf(document.activeElement)"
    assert page.evaluate(at) == 0
    page.press("ArrowRight")
    page.press("ArrowRight")
    page.press("ArrowLeft")
    assert page.evaluate(at) == 1
    page.press("ArrowDown")
    assert page.evaluate(at) > 3
    page.press("ArrowUp")
    assert page.evaluate(at) == 1
    page.press("Enter")
    page.wait("document.getElementById('detail').open")
    name = "document.getElementById('detail-name').textContent"
    assert page.evaluate(name) == "photos/b.jpg"
    assert page.evaluate("document.querySelector('#detail a').getAttribute('href')") == "./photos/b.jpg"
    page.press("ArrowRight")
    assert page.evaluate(name) == "photos/c.jpg"
    page.press("Escape")
    page.wait("!document.getElementById('detail').open")
    page.wait(f"{at} === 2")
    assert page.evaluate("[...document.querySelectorAll('#cards .card')].filter(e => e.tabIndex === 0).length") == 1


def figures_lead_to_the_gallery(page: Browser) -> None:
    page.evaluate("document.querySelector('#minerals button[data-mineral=gold]').click()")
    assert page.names() == ["b.jpg", "c.jpg"]
    page.evaluate("document.querySelector('#alarms .card').click()")
    assert page.evaluate("document.getElementById('detail-name').textContent") == "photos/c.jpg"
    page.press("Escape")
    page.wait("!document.getElementById('detail').open")


def dark_is_dark(page: Browser) -> None:
    brightness = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    for scheme, is_dark in (("light", False), ("dark", True)):
        page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert (page.evaluate(brightness) < 60) == is_dark
    page.evaluate("document.getElementById('theme').click()")
    assert page.evaluate(brightness) > 200


def maps_are_seen_beside_their_photographs(page: Browser) -> None:
    shown = "[...document.querySelectorAll('#cards .chip')].map(e => e.textContent)"
    looked_for = "(document.querySelector('#detail .two .chip') ?? {textContent: 'photograph'}).textContent"
    page.redrawn("document.querySelector('#controls button').click()")
    page.choose("kind", "explained")
    assert page.names() == ["a.jpg", "b.jpg", "b.jpg"]
    assert page.evaluate(shown) == []
    assert page.evaluate("document.getElementById('legend').hidden")
    page.evaluate("document.getElementById('maps').click()")
    assert page.evaluate(shown) == ["agate", "gold", "quartz"], "each under its own mineral"
    assert not page.evaluate("document.getElementById('legend').hidden")
    assert page.evaluate("[...document.querySelectorAll('#alarms .chip')].length") == 0, "c.jpg has no map of gold"
    page.choose("mineral", "quartz")
    page.evaluate("document.querySelector('#cards .card').click()")
    assert page.evaluate(looked_for) == "quartz"
    for expected in ("photograph", "gold", "quartz"):
        page.press("m")
        assert page.evaluate(looked_for) == expected
    pressed = "document.querySelector('#detail .view[aria-pressed=true]').textContent"
    assert page.evaluate(pressed) == "quartz 70.0 %"
    page.evaluate("document.querySelectorAll('#detail .view')[1].focus()")
    page.press("Enter")
    assert page.evaluate(looked_for) == "gold"
    page.press("Escape")
    page.wait("!document.getElementById('detail').open")
    page.redrawn("document.querySelector('#controls button').click()")
    assert page.evaluate(shown) == []


def pages_turn(page: Browser) -> None:
    assert len(page.names()) == 60
    page.evaluate("document.querySelector('#cards li:last-child .card').focus()")
    page.press("ArrowRight")
    assert page.names()[0] == "0060.jpg"
    page.evaluate("document.querySelector('#pages button:last-child').click()")
    assert page.names()[-2:] == ["0149.jpg", "<b>bad.jpg"]
