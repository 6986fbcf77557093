"""Deliveries for labeling tools: read back as labels, and by what each format's documentation says."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from mineral_batch.cli import main
from mineral_batch.evaluation.labels import match_paths, read_labels
from mineral_batch.results.csv import write_csv
from mineral_batch.review.decisions import Decisions

LABELS = ("agate", "galena", "malachite")
NAMES = ("a b.jpg", "deep/ü&;=1.png", "deep/c.jpg", "c.jpg", "c.png", 'new\nline".jpg')
ROWS = ((0.1, 0.9, 0.0), (0.0, 0.1, 0.95), (0.8, 0.7, 0.1), (0.1, 0.2, 0.3), (0.5, 0.0, 0.6), (0.9, 0.0, 0.0))
#: What people said.
DECIDED = {1: ("agate", "own <name>"), 3: (), 4: ("galena",)}
FILES = {
    "label-studio": "tasks.json",
    "cvat": "annotations.xml",
    "coco": "annotations/labels_default.json",
    "fiftyone": "labels.json",
}


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(params=["/data/photos/", "photos/"], ids=["absolute", "relative"])
def results(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Six images: three that a person labeled, one that a person was unsure of, two that nobody saw."""
    folder = tmp_path / "results"
    folder.mkdir()
    paths = [request.param + name for name in NAMES]
    calls = [";".join(label for label, value in zip(LABELS, row, strict=True) if value >= 0.5) for row in ROWS]
    rows = [(path, called, *row) for path, called, row in zip(paths, calls, ROWS, strict=True)]
    write_csv(folder / "predictions.csv", ("path", "minerals", *LABELS), rows)
    model = {"name": "tiny", "sha256": "abc123" * 9, "labels": list(LABELS), "thresholds": [0.5] * 3}
    (folder / "run.json").write_text(json.dumps({"model": model}))
    with Decisions(folder) as decisions:
        for row, names in DECIDED.items():
            decisions.decide(paths[row], "labeled", names, machine=[], reviewer="Änne")
        decisions.decide(paths[2], "unsure", [], machine=[], reviewer="Änne")
    return folder


def paths(results: Path) -> list[str]:
    """As the run's table has them."""
    start = "/data/photos/" if "/data/photos/" in (results / "predictions.csv").read_text() else "photos/"
    return [start + name for name in NAMES]


def labels(file: Path, images: list[str]) -> dict[int, tuple[str, ...]]:
    rows = read_labels(file)
    matches = match_paths(images, [row.path for row in rows])
    assert not matches.by_name
    return {matches.index[row.path]: row.labels for row in rows}


@pytest.mark.parametrize("form", FILES)
def test_what_people_said_comes_back_and_the_models_answers_do_not(results: Path, form: str) -> None:
    assert "6 images: 4 with an answer, 3 decided by people, 1 unsure\n" in run("deliver", results, "--as", form)
    assert labels(results / form / FILES[form], paths(results)) == DECIDED


@pytest.mark.parametrize("form", FILES)
def test_only_files_of_a_delivery_are_replaced(results: Path, form: str) -> None:
    run("deliver", results, "--as", form)
    run("deliver", results, "--as", form)
    edited = results / form / FILES[form]
    edited.write_bytes(edited.read_bytes() + b" ")
    assert "has been edited since deliver wrote it" in run("deliver", results, "--as", form, code=1)
    assert "--undo is for xmp and folders" in run("deliver", results, "--as", form, "--undo", code=2)


def test_label_studio_gets_predictions_annotations_and_a_setup(results: Path) -> None:
    run("deliver", results, "--as", "label-studio")
    tasks = json.loads((results / "label-studio" / "tasks.json").read_bytes())
    assert [task["data"]["path"] for task in tasks] == paths(results)
    assert tasks[1]["data"]["image"].endswith("photos/deep/%C3%BC%26%3B%3D1.png")
    assert tasks[2]["predictions"] == [
        {
            "model_version": "tiny (abc123abc123)",
            "score": 0.8,
            "result": [
                {
                    "from_name": "mineral",
                    "to_name": "image",
                    "type": "choices",
                    "value": {"choices": ["agate", "galena"]},
                }
            ],
        }
    ]
    assert tasks[2]["data"]["probabilities"] == {"agate": 0.8, "galena": 0.7}
    assert [one["was_cancelled"] for task in tasks for one in task.get("annotations", [])] == [
        False,
        True,
        False,
        False,
    ]
    setup = ElementTree.parse(results / "label-studio" / "config.xml")
    assert [choice.get("value") for choice in setup.iter("Choice")] == [*LABELS, "own <name>"]


def test_coco_and_cvat_name_images_by_the_rest_of_their_paths(results: Path) -> None:
    for form in ("coco", "cvat"):
        run("deliver", results, "--as", form)
    coco = json.loads((results / "coco" / "annotations" / "labels_default.json").read_bytes())
    assert [image["file_name"] for image in coco["images"]] == [*NAMES]
    category = {one["id"]: one["name"] for one in coco["categories"]}
    found = [(one["image_id"], category[one["category_id"]], one.get("score")) for one in coco["annotations"]]
    assert found == [
        (1, "galena", 0.9),
        (2, "agate", None),
        (2, "own <name>", None),
        (5, "galena", None),
        (6, "agate", 0.9),
    ]
    assert coco["images"][4]["model_says"] == {"malachite": 0.6, "agate": 0.5}
    cvat = ElementTree.parse(results / "cvat" / "annotations.xml")
    assert [image.get("name") for image in cvat.iter("image")] == [*NAMES]
    assert [(tag.get("label"), tag.get("source")) for tag in cvat.iter("tag")] == [
        ("galena", "auto"), ("agate", "manual"), ("own <name>", "manual"), ("galena", "manual"), ("agate", "auto"),
    ]  # fmt: skip
    setup = json.loads((results / "cvat" / "labels.json").read_bytes())
    assert {one["name"] for one in setup} == {*LABELS, "own <name>"} == {one.text for one in cvat.iter("name")}


def test_a_tool_that_keeps_only_its_own_keys_gives_every_image_a_label(results: Path) -> None:
    run("deliver", results, "--as", "coco")
    coco = json.loads((results / "coco" / "annotations" / "labels_default.json").read_bytes())
    coco["images"] = [{key: image[key] for key in ("id", "file_name")} for image in coco["images"]]
    file = results / "edited.json"
    file.write_text(json.dumps(coco))
    assert labels(file, paths(results)) == {**DECIDED, 0: ("galena",), 2: (), 5: ("agate",)}


def test_fiftyone_finds_the_images_of_labels_and_predictions(results: Path) -> None:
    run("deliver", results, "--as", "fiftyone")
    folder = results / "fiftyone"
    predictions = json.loads((folder / "predictions.json").read_bytes())
    data = json.loads((folder / "data.json").read_bytes())
    assert list(predictions["labels"]) == paths(results)
    assert predictions["labels"][paths(results)[0]][0]["confidence"] == 0.9
    assert predictions["classes"] == [*LABELS, "own <name>"]
    files = {name.rpartition(".")[0]: file for name, file in data.items()}  # as FiftyOne reads it
    assert [*files] == paths(results)
    assert "no labels that a person gave" in run(
        "evaluate", results / "predictions.csv", folder / "predictions.json", code=1
    )
    assert all(
        Path(file).is_absolute() and file.endswith(name) for file, name in zip(files.values(), NAMES, strict=True)
    )


def test_specimens_give_every_image_a_task(results: Path) -> None:
    run("deliver", results, "--as", "label-studio", "--specimen", "folder")
    assert len(json.loads((results / "label-studio" / "tasks.json").read_bytes())) == 6


def test_evaluate_and_review_read_a_tools_file(results: Path) -> None:
    with Decisions(results) as decisions:
        decisions.decide(paths(results)[1], "labeled", ["agate"], machine=[], reviewer="Änne")
    run("deliver", results, "--as", "cvat", "-o", results.parent / "cvat")
    file = results.parent / "cvat" / "annotations.xml"
    assert "3 images are in both" in run("evaluate", results / "predictions.csv", file)
    (results / "review.sqlite").unlink()
    run("review", results, "--labels", file, "--export", results / "labels.csv")
    expected = {paths(results)[row]: names for row, names in {**DECIDED, 1: ("agate",)}.items()}
    assert {row.path: row.labels for row in read_labels(results / "labels.csv")} == expected
