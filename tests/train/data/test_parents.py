"""Which reading of varieties beside their species a manifest has, and how it gets the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mineral_train.data.manifest import Manifest, Row, read_manifest, write_manifest
from mineral_train.data.parents import imply_parents, reading
from mineral_train.training.data import TrainingManifest

LABELS = ("agate", "quartz", "ruby")


def manifest(*labels: tuple[str, ...]) -> Manifest:
    rows = (Row(Path(f"{i}.png"), names, "train") for i, names in enumerate(labels))
    return Manifest(tuple(rows), LABELS)


def test_the_reading_is_counted() -> None:
    found = manifest(("agate",), ("agate", "quartz"), ("agate",), ("ruby",), ())
    assert reading(LABELS, found.rows) == [
        "2 images are labeled agate but not quartz; they count as not quartz (--imply-parents labels them quartz, too)"
    ]
    assert reading(LABELS, imply_parents(found).rows) == ["Every image labeled agate is labeled quartz, too"]
    one = manifest(("agate",), ("agate", "quartz")).rows
    assert reading(LABELS, one)[0].startswith("1 image is labeled agate but not quartz; it counts as not quartz")
    assert reading(LABELS, manifest(("ruby",), ("quartz",)).rows) == [], "corundum is no label"


def test_parents_are_labeled_in_the_order_of_the_label_set() -> None:
    assert [row.labels for row in imply_parents(manifest(("agate",), ("quartz",), ())).rows] == [
        ("agate", "quartz"),
        ("quartz",),
        (),
    ]


@pytest.mark.parametrize("parents", [False, True])
def test_training_reads_either(parents: bool, tmp_path: Path) -> None:
    rows = []
    for index, split in enumerate(("train", "val")):
        photo = tmp_path / f"{index}.png"
        Image.new("RGB", (8, 8)).save(photo)
        rows.append(Row(photo, ("agate",), split))
    write_manifest(Manifest(tuple(rows), LABELS), tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv", LABELS).rows[0].labels == ("agate",)
    found = TrainingManifest.read(tmp_path / "m.csv", LABELS, parents=parents).manifest
    assert found.rows[0].labels == (("agate", "quartz") if parents else ("agate",))
