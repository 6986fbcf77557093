"""Several images of one specimen: what tells it, how its answer is made, and the table that has it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mineral_batch import Predictor
from mineral_batch.cli import main
from mineral_batch.errors import DataError
from mineral_batch.evaluation.evaluate import join
from mineral_batch.evaluation.specimens import by_specimen, thresholds_of_run
from mineral_batch.results.check import check
from mineral_batch.results.csv import write_csv
from mineral_batch.results.run import run
from mineral_batch.results.specimens import combined, specimen_rule
from mineral_batch.results.write import Tables

pytest.importorskip("onnxruntime")


CAMERA_NAMES = ("IMG_4711", "_MG_4711", "DSC_0001", "_DSC0001", "DSCF0001a", "P1010001", "PXL_20240517", "IMG 4711 (2)")


@pytest.mark.parametrize(
    ("rule", "path", "specimen"),
    [
        ("folder", "a/b/1.jpg", "a/b"),
        ("folder", "1.jpg", None),
        ("catalog", "drawer/X-90175_1.jpg", "X-90175"),
        ("catalogue", "X-90175.jpg", "X-90175"),
        ("catalog", "X-90175_front.JPG", "X-90175"),
        ("catalog", "NHM 1905,123 (2).jpg", "NHM 1905,123"),
        ("catalog", "1905.12a.jpg", "1905.12"),
        ("catalog", "IMG_20240517_140322.jpg", None),
        ("catalog", "M-1235 front.jpg", "M-1235"),
        ("catalog", "M-1235-back2.jpg", "M-1235"),
        ("catalog", "MIN 2001.17 a.jpg", "MIN 2001.17"),
        ("catalog", "2024-05-17 beach.jpg", None),
        ("catalog", "2024-05-17.jpg", None),
        ("catalog", "malachite.jpg", None),
        *(("catalog", f"{name}.jpg", None) for name in CAMERA_NAMES),
        ("catalog", "P-1010001.jpg", "P-1010001"),
        ("catalog", "MG 4711.jpg", "MG 4711"),
        ("regex=no(\\d+)", "a/no17-2.jpg", "17"),
        ("regex=(a)/(?P<specimen>\\w+)", "a/no17-2.jpg", "no17"),
        ("regex=no\\d+", "a/no17-2.jpg", "no17"),
        ("regex=no(\\d+)", "a/yes.jpg", None),
    ],
)
def test_the_specimen_of_a_path(rule: str, path: str, specimen: str | None) -> None:
    assert specimen_rule(rule)(path) == specimen


def test_a_table_names_specimens_by_the_end_of_the_path(tmp_path: Path) -> None:
    table = tmp_path / "s.csv"
    table.write_text("File;Catalog number\na/1.jpg;X\n1.jpg;Y\nb\\2.jpg;Z\n3.jpg;\n", encoding="utf-8")
    rule = specimen_rule(str(table))
    found = [rule(path) for path in ("/photos/a/1.jpg", "/photos/c/1.jpg", "b/2.jpg", "3.jpg", "xb/2.jpg")]
    assert found == ["X", "Y", "Z", None, None]


def test_bad_rules_are_one_line(tmp_path: Path) -> None:
    twice = tmp_path / "twice.csv"
    twice.write_text("path,specimen\na.jpg,1\n./a.jpg,2\n", encoding="utf-8")
    for rule, says in (
        ("regex=(", "is not a regular expression"),
        (str(tmp_path / "none.csv"), "folder, catalog, regex=PATTERN"),
        (str(twice), "is there twice"),
    ):
        with pytest.raises(DataError, match=says) as caught:
            specimen_rule(rule)
        assert len(str(caught.value).splitlines()) == 1


probabilities = arrays(np.float64, st.tuples(st.integers(1, 6), st.just(4)), elements=st.floats(0, 1))


@given(probabilities)
def test_an_answer_is_between_the_least_and_the_largest(values: np.ndarray) -> None:
    answer = combined(values)
    assert np.all(answer >= values.min(axis=0) - 1e-9)
    assert np.all(answer <= values.max(axis=0) + 1e-9)
    np.testing.assert_allclose(combined(values[::-1]), answer, atol=1e-9)
    np.testing.assert_array_equal(combined(values[:1]), values[0])


def test_a_photograph_that_is_there_several_times_changes_nothing() -> None:
    one = np.array([[0.5, 0.9], [0.2, 0.9]])
    np.testing.assert_allclose(combined(np.concatenate([one] * 3)), combined(one))
    np.testing.assert_allclose(combined(one), [1 - 0.4**0.5, 0.9])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def named(album: Path, folder: Path) -> Path:
    """Three specimens of 3, 2 and 1 images whose names are not adjacent, and a file that is no image."""
    folder.mkdir()
    names = ("B-22_1", "A-11_1", "a-view", "B-22_2", "A-11_2", "A-11_3")
    for index, name in enumerate(names):
        shutil.copy(album / f"{index:02}.png", folder / f"{name}.png")
    (folder / "B-22_3.png").write_bytes(b"no image")
    return folder


def test_specimens_beside_the_images(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    photos, out = named(album, tmp_path / "photos"), tmp_path / "out"
    run(predictor, [photos], out, Tables(specimen="catalog"))
    found = {row["specimen"]: row for row in rows(out / "specimens.csv")}
    assert {name: row["images"] for name, row in found.items()} == {
        "A-11": "3", "B-22": "2", str(photos / "a-view.png"): "1",
    }  # fmt: skip
    labels = list(found["A-11"])[3:]
    images = [row for row in rows(out / "predictions.csv") if "A-11" in row["path"]]
    expected = combined(np.array([[float(row[label]) for label in labels] for row in images]))
    np.testing.assert_allclose([float(found["A-11"][label]) for label in labels], expected, rtol=1e-5)
    record = json.loads((out / "run.json").read_text())
    assert "specimens.csv" in record["sha256"]
    assert record["specimen"] == "catalog"
    assert list(check(out)) == []


def test_a_resumed_run_has_the_same_specimens(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    photos = named(album, tmp_path / "photos")
    wanted = Tables(specimen="catalog")
    run(predictor, [photos], tmp_path / "whole", wanted)
    left = iter([False, False, False])
    stopped = run(predictor, [photos], tmp_path / "parts", wanted, stop=lambda: next(left, True))
    assert not stopped.complete
    assert not (tmp_path / "parts" / "specimens.csv").exists()
    run(predictor, [photos], tmp_path / "parts", wanted)
    both = [(tmp_path / name / "specimens.csv").read_bytes() for name in ("whole", "parts")]
    assert both[0] == both[1]


def test_another_rule_or_none_changes_the_table(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    photos, out = named(album, tmp_path / "photos"), tmp_path / "out"
    listed = tmp_path / "s.csv"
    listed.write_text("path,specimen\nA-11_1.png,one\n", encoding="utf-8")
    run(predictor, [photos], out, Tables(specimen=str(listed)))
    assert "one" in {row["specimen"] for row in rows(out / "specimens.csv")}
    listed.write_text("path,specimen\nA-11_1.png,two\n", encoding="utf-8")
    run(predictor, [photos], out, Tables(specimen=str(listed)))
    assert "two" in {row["specimen"] for row in rows(out / "specimens.csv")}
    run(predictor, [photos], out)
    assert not (out / "specimens.csv").exists()
    assert list(check(out)) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("A-11,3,", "A-11,4,", "specimens of 7 images, run.json says 6"),
        ("A-11,3,", "A-11,none,", "is not a number of images"),
        ("B-22,", "A-11,", "duplicate specimen 'A-11'"),
    ],
)
def test_check_finds_what_is_wrong(
    album: Path, tmp_path: Path, predictor: Predictor, old: str, new: str, problem: str
) -> None:
    photos, out = named(album, tmp_path / "photos"), tmp_path / "out"
    run(predictor, [photos], out, Tables(specimen="catalog"))
    path = out / "specimens.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    assert problem in "\n".join(check(path))


def test_evaluate_counts_specimens(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "path,minerals,gold,quartz\nX-10_1.jpg,gold,0.9,0.1\nX-10_2.jpg,,0.2,0.1\nX-11_1.jpg,quartz,0.1,0.8\n"
    )
    (tmp_path / "l.csv").write_text("path,labels\nX-10_1.jpg,gold\nX-10_2.jpg,\nX-11_1.jpg,quartz\n")
    tables = [str(tmp_path / "p.csv"), str(tmp_path / "l.csv"), "--bootstrap", "0"]
    result = CliRunner().invoke(
        main, ["evaluate", *tables, "--specimen", "catalog", "--json", str(tmp_path / "out.json")]
    )
    assert result.exit_code == 0, result.output
    assert result.output.startswith("2 specimens are in both")
    assert "The figures are of 2 specimens, each judged by all its images (3)." in result.output
    assert "photographs" not in result.output
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["images"], record["specimens"]) == (3, 2)
    assert {row["mineral"]: row["support"] for row in record["minerals"]} == {"gold": 1, "quartz": 1}
    refused = CliRunner().invoke(main, ["evaluate", *tables, "--specimen", "folder", "--record", "x.onnx"])
    assert refused.exit_code == 2


def test_a_specimen_is_judged_by_its_photographs_without_labels_too(tmp_path: Path) -> None:
    """As specimens.csv says it, not by the labeled ones alone; but not by those of another split."""
    (tmp_path / "p.csv").write_text(
        "path,minerals,gold,quartz\nX-10_1.jpg,,0.3,0.1\nX-10_2.jpg,gold,0.8,0.2\nX-10_3.jpg,quartz,0.1,0.9\n"
        "X-11_1.jpg,quartz,0.1,0.8\nX-12_1.jpg,gold,0.9,0.1\n"
    )
    (tmp_path / "l.csv").write_text(
        "path,labels,split\nX-10_1.jpg,gold,val\nX-10_3.jpg,quartz,train\nX-11_1.jpg,quartz,val\n"
    )
    joined = join(tmp_path / "p.csv", tmp_path / "l.csv", "val", keep_unlabeled=True)
    found = by_specimen(joined, "catalog", {})
    assert found.predictions.paths == ("X-10", "X-11"), "X-12 has no label"
    np.testing.assert_allclose(found.predictions.scores[0], combined(np.array([[0.3, 0.1], [0.8, 0.2]])))
    assert (found.images, found.noun) == (3, "specimen")
    assert "judged by all its images (3, 1 of them without labels)" in found.notes[-1]


def test_specimens_have_the_answer_and_the_most_probable_labels_of_the_images(
    album: Path, tmp_path: Path, predictor: Predictor
) -> None:
    photos, out = named(album, tmp_path / "photos"), tmp_path / "out"
    run(predictor, [photos], out, Tables(specimen="catalog", columns=("best", "size"), level="class"))
    table = rows(out / "specimens.csv")
    labels = predictor.contract.labels
    extra = ["answer", "best", "second", "margin", "calibrated"]
    assert list(table[0]) == ["specimen", "images", "minerals", *extra, *labels]
    for row in table:
        values = {label: float(row[label]) for label in labels}
        assert values[row["best"]] == max(values.values())
        assert row["answer"].startswith(row["minerals"])
    assert list(check(out)) == []
    path = out / "specimens.csv"
    table[0]["best"] = min(labels, key=lambda label: float(table[0][label]))
    write_csv(path, list(table[0]), (row.values() for row in table))
    assert "not the most probable label" in "\n".join(check(path))


def test_the_thresholds_of_a_run_are_found_from_its_folder_and_from_its_table(
    album: Path, tmp_path: Path, predictor: Predictor
) -> None:
    out = tmp_path / "out"
    run(predictor, [named(album, tmp_path / "photos")], out, Tables())
    expected = dict(zip(predictor.contract.labels, predictor.contract.thresholds, strict=True))
    assert thresholds_of_run(out) == thresholds_of_run(out / "predictions.csv") == expected
    assert thresholds_of_run(tmp_path / "nothing") == {}
