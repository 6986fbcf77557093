"""Labels from the files that labeling tools export, and what is wrong with some."""

from __future__ import annotations

import json

import pytest

from mineral_batch.errors import DataError
from mineral_batch.evaluation import labeling_tools
from mineral_batch.evaluation.labels import match_paths, read_labels, require_known

ROWS = {"a.jpg": ("quartz", "gold"), "b.jpg": (), "c.jpg": ("pyrite",)}


def choices(*names):
    return {"from_name": "x", "to_name": "image", "type": "choices", "value": {"choices": list(names)}}


def task(image, *names, **annotation):
    return {"data": {"image": image}, "annotations": [{"result": [choices(*names)] if names else [], **annotation}]}


LABEL_STUDIO = [
    task("/data/local-files/?d=photos/a%20b.jpg", "quartz", "gold"),
    task("/data/upload/3/0a1b2c3d-b.jpg"),
    {
        "data": {"image": "s3://bucket/c.jpg"},
        "annotations": [
            {"result": [choices("gold")]},
            {"result": [choices("pyrite")], "ground_truth": True},
            {"result": [choices("quartz")]},
        ],
    },
    task("skipped.jpg", "gold", was_cancelled=True),
    {"data": {"image": "predicted.jpg"}, "predictions": [{"result": [choices("gold")], "score": 0.9}]},
    {"data": {"image": "box.jpg"}, "annotations": [{"result": [
        {"type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["gold"]}},
        {"type": "taxonomy", "value": {"taxonomy": [["Silicates", "quartz"]]}},
    ]}]},
]  # fmt: skip
JSON_MIN = [
    {"image": "/data/upload/a.jpg", "id": 1, "mineral": {"choices": ["quartz", "gold"]}, "annotator": 1},
    {"image": "b.jpg", "id": 2, "choice": []},
    {"image": "c.jpg", "id": 3, "choice": "pyrite"},
    {"image": "d.jpg", "id": 4, "annotator": 1},
]
COCO = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 4, "height": 3},
        {"id": "8", "file_name": "b.jpg"},
        {"id": 9, "file_name": "c.jpg"},
    ],
    "categories": [{"id": 0, "name": "quartz"}, {"id": 5, "name": "gold"}, {"id": 2, "name": "pyrite"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 0, "bbox": [0, 0, 1, 1]},
        {"id": 2, "image_id": 7, "category_id": 5},
        {"id": 3, "image_id": 7, "category_id": 0},
        {"id": 4, "image_id": 9, "category_id": 2},
    ],
}
FIFTYONE = {
    "classes": ["gold", "quartz", "pyrite"],
    "labels": {"a.jpg": [1, {"label": "gold", "confidence": 0.3}], "b.jpg": [], "c.jpg": "pyrite", "d.jpg": None},
}


def classifications(*names):
    return {"_cls": "Classifications", "classifications": [{"_cls": "Classification", "label": n} for n in names]}


SAMPLES = {
    "samples": [
        {"filepath": "a.jpg", "ground_truth": classifications("quartz", "gold"), "predictions": classifications("x")},
        {"filepath": "b.jpg", "ground_truth": classifications()},
        {"filepath": "c.jpg", "tags": ["x", "val"], "ground_truth": {"_cls": "Classification", "label": "pyrite"}},
        {"filepath": "d.jpg", "ground_truth": None, "predictions": classifications("x")},
    ]
}
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels><label><name>gold</name></label></labels></task></meta>
<image id="0" name="a.jpg" subset="default" width="4" height="3"><tag label="quartz" source="auto"></tag>
<box label="gold" xtl="0" ytl="0" xbr="1" ybr="1"><attribute name="x">1</attribute></box></image>
<image id="1" name="b.jpg"/><image id="2" name="c.jpg" subset="Val"><tag label="pyrite"/></image></annotations>"""


def written(tmp_path, content):
    path = tmp_path / "labels.any"
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("content", [JSON_MIN, COCO, FIFTYONE, SAMPLES, CVAT], ids=["min", "coco", "51", "51d", "cvat"])
def test_a_tools_file_is_known_by_its_content_and_reads_as_a_table(tmp_path, content):
    assert {row.path: row.labels for row in read_labels(written(tmp_path, content))} == ROWS


def test_label_studio_gives_what_people_said_with_the_paths_behind_its_addresses(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(labeling_tools._log, "warning", lambda text, *values: said.append(text % values))
    rows = read_labels(written(tmp_path, json.dumps(LABEL_STUDIO).encode("utf-16")))
    assert {row.path: row.labels for row in rows} == {
        "photos/a b.jpg": ("quartz", "gold"),
        "b.jpg": (),
        "s3://bucket/c.jpg": ("pyrite",),
        "box.jpg": ("gold", "quartz"),
    }
    assert [line.partition(" (")[2] for line in said] == [
        "Label Studio): 4 of 6 images are labeled; nobody has labeled the others, which are left out"
    ]


def test_label_studios_csv_has_json_in_its_cells(tmp_path):
    text = (
        "annotation_id,annotator,image,lead_time,mineral\n"
        '1,1,/data/local-files/?d=photos/a%20b.jpg,7.5,"{""choices"": [""quartz"", ""gold""]}"\n'
        "2,1,/data/upload/3/0a1b2c3d-b.jpg,1.2,pyrite\n"
        "3,1,c.jpg,1.2,\n"
        '4,1,/data/upload/d.jpg,1.2,"[""pyrite"", ""gold""]"\n'
        '5,1,e.jpg,1.2,"{""choices"": 3}"\n'
    )
    assert [(row.path, row.labels) for row in read_labels(written(tmp_path, text))] == [
        ("photos/a b.jpg", ("quartz", "gold")),
        ("b.jpg", ("pyrite",)),
        ("c.jpg", ()),
        ("/data/upload/d.jpg", ("pyrite", "gold")),
        ("e.jpg", ('{"choices": 3}',)),
    ]


def test_splits_of_cvat_and_fiftyone_are_kept(tmp_path):
    for content in (CVAT, SAMPLES):
        assert [row.split for row in read_labels(written(tmp_path, content))] == ["", "", "val"]


def test_names_without_a_suffix_find_their_images(tmp_path):
    images = ["/x/a.jpg", "/x/b.tif", "/x/b.png", "/x/c.1.jpg"]
    matches = match_paths(images, ["a", "b", "c.1", "deep/c"])
    assert matches.index == {"a": 0, "c.1": 3}
    (tmp_path / "data.json").write_text(json.dumps({"x.y.jpg": "photos/a.jpg"}))
    assert read_labels(written(tmp_path, {"labels": {"x.y": "gold"}}))[0].path == "photos/a.jpg"


def test_an_image_twice_is_refused_where_its_labels_differ(tmp_path):
    same = written(tmp_path, [task("a.jpg", "gold", "quartz"), task("a.jpg", "quartz", "gold")])
    assert [row.path for row in read_labels(same)] == ["a.jpg"]
    with pytest.raises(DataError, match=r"names a\.jpg twice, with different labels: keep one of them"):
        read_labels(written(tmp_path, [task("a.jpg", "gold"), task("a.jpg", "quartz")]))


def test_an_unknown_label_is_named_with_its_image(tmp_path):
    path = written(tmp_path, COCO)
    with pytest.raises(DataError, match=r"'gold' \(a.jpg, did you mean 'golf'\?\); correct them"):
        require_known(read_labels(path), ["quartz", "golf", "pyrite"], path, "are unknown")


HOSTILE = [
    ({}, "none of the formats that are read: a CSV .*Label Studio's JSON, COCO .*FiftyOne.*CVAT"),
    ([], "has 0 images, and no labels that a person gave"),
    ([3], "entry 1 of the list is not a task"),
    ([{"data": [1]}], "entry 1 has no image"),
    ([{"data": {"image": 3}}], "entry 1 has no image"),
    ([{"data": {"image": "a"}, "annotations": 3}], "annotations must be a list of objects"),
    ([{"data": {"image": "a"}, "annotations": [{"result": [3]}]}], "result must be a list of objects"),
    ([{"data": {"image": "a"}, "annotations": [{"result": [{"value": []}]}]}], "no type or no value"),
    ([task("a", {"x": 1})], "holds {'x': 1} in place of a label"),
    ([{"data": {"image": "a"}, "predictions": []}], "1 images, and no labels that a person gave: label them there"),
    ([{"image": "a", "choice": [["x"]]}], "a choice must be a text"),
    ({"images": 3}, "images must be a list of objects"),
    ({"images": [{"id": 1}, {"id": 1}]}, "two images have the id 1"),
    ({"images": [{"id": [1]}]}, r"images\[0\] has no id"),
    ({"images": [{"id": 1}]}, r"images\[0\] has no file_name"),
    ({"images": [], "categories": [{"id": 1}]}, "a category has no name"),
    ({"images": [], "categories": [{"id": [], "name": "x"}]}, "cannot read the labels"),
    ({"images": [], "annotations": [{"image_id": 4}]}, r"annotations\[0\] has image_id 4"),
    ({"labels": [1]}, "labels must be an object"),
    ({"labels": {"a": 7}, "classes": ["x"]}, "the label of a is 7, neither a text nor a place in classes"),
    ({"labels": {"a": 0}, "classes": 3}, "cannot read the labels"),
    ({"samples": [{"filepath": "a"}]}, "the field with the labels must be ground_truth"),
    ({"samples": [{"filepath": "a", "x": classifications(), "y": classifications()}]}, "the only one; there are x, y"),
    ({"samples": [{"ground_truth": classifications("x")}]}, r"samples\[0\] has no filepath"),
    ('[{"image": "\\ud800", "choice": "x"}]', "is not Unicode text"),
    ('{"labels": {"\\ud800": 7}}', "the label of "),
    ("[" * 100_000, "nested too deeply"),
    ('[{"data": ', "cannot read the labels"),
    ("[" + "9" * 5000 + "]", "cannot read the labels"),
    (b'{"labels": "\xff\xfe"}', "cannot read the labels"),
    ("<html/>", "the XML begins with <html>"),
    ("<annotations><track/></annotations>", "CVAT for video: export the task as CVAT for images"),
    ("<annotations><image/></annotations>", "an image has no name"),
    ('<annotations><image name="a"><tag/></image></annotations>', "a tag of a has no label"),
    ("<annotations>", "no element found"),
    ('<!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><annotations/>', "it has a DOCTYPE"),
]


@pytest.mark.parametrize(("content", "message"), HOSTILE)
def test_what_is_wrong_with_a_tools_file_is_one_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_labels(written(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_json_is_read_up_to_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(labeling_tools, "LARGEST_JSON", 10 << 20)
    path = written(tmp_path, COCO)
    with path.open("r+b") as file:
        file.truncate(11 << 20)
    with pytest.raises(DataError, match="it has 11 MiB, and JSON is read up to 10 MiB: export it in parts"):
        read_labels(path)
