"""The generator of synthetic specimens: repeatable, truthful about what it shows and about being synthetic."""

from __future__ import annotations

import csv
import errno
import hashlib
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mineral_batch.errors import DataError
from mineral_batch.minerals import MINERALS
from mineral_train.cli import main
from mineral_train.synth import (
    LEAST_VISIBLE,
    LOOKS,
    Specimen,
    SynthConfig,
    generate,
    read_mask,
    split_of,
    write_dataset,
)
from mineral_train.synth.solids import FACES, solid_of

if TYPE_CHECKING:
    from pathlib import Path

SMALL = SynthConfig(seed=7, size=64, split=(7, 1, 2))


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def shares(specimen: Specimen) -> dict[str, float]:
    counts = np.bincount(specimen.mask.ravel(), minlength=len(MINERALS) + 1)[1:] / specimen.mask.size
    return {m: float(c) for m, c in zip(MINERALS, counts, strict=True) if c}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("synth") / "twelve", 12, SMALL).parent


# --- One image


@pytest.mark.parametrize("mineral", MINERALS)
def test_every_mineral_can_be_seen_alone(mineral: str) -> None:
    specimen = generate(0, seed=1, size=96, max_minerals=1, minerals=[mineral])
    assert specimen.labels == (mineral,)
    assert 0.02 < shares(specimen)[mineral] < 0.6
    assert specimen.pixels.shape == (96, 96, 3)
    assert specimen.pixels.dtype == specimen.mask.dtype == np.uint8


@settings(deadline=None, max_examples=40)
@given(index=st.integers(0, 10_000), seed=st.integers(0, 2**40), most=st.integers(1, 6), off_center=st.booleans())
def test_labels_are_what_the_mask_shows(index: int, seed: int, most: int, off_center: bool) -> None:
    specimen = generate(index, seed, 64, max_minerals=most, off_center=off_center)
    visible = shares(specimen)
    assert specimen.labels == tuple(m for m in MINERALS if m in visible)
    assert 1 <= len(specimen.labels) <= most
    assert min(visible.values()) >= LEAST_VISIBLE


def test_an_image_depends_on_its_seed_and_index_alone() -> None:
    wanted = generate(5, seed=3, size=64)
    for index in range(5):
        generate(index, seed=3, size=64)
    again = generate(5, seed=3, size=64)
    assert np.array_equal(wanted.pixels, again.pixels)
    assert np.array_equal(wanted.mask, again.mask)
    for other in (generate(6, seed=3, size=64), generate(5, seed=4, size=64)):
        assert not np.array_equal(wanted.pixels, other.pixels)


@pytest.mark.parametrize("mineral", MINERALS)
def test_every_mineral_can_be_anywhere(mineral: str) -> None:
    """Also cut by the edge of the image, where a surface must not be drawn outside it."""
    for index in range(8):
        specimen = generate(index, seed=2, size=64, max_minerals=1, minerals=[mineral], off_center=True)
        assert specimen.labels == (mineral,)


def test_off_center_the_middle_is_no_better_than_another_place() -> None:
    """Of 150 images: where the minerals lie, how often the middle is on one, and how much of an image they cover."""
    images = [generate(i, seed=4, size=48, off_center=True) for i in range(150)]
    masks = np.stack([image.mask > 0 for image in images])
    anywhere = masks.mean()
    assert masks[:, 24, 24].mean() < 2.5 * anywhere < 0.5
    quarters = [masks[:, y : y + 24, x : x + 24].mean() for y in (0, 24) for x in (0, 24)]
    assert min(quarters) > 0.6 * max(quarters)
    in_the_middle = np.mean([generate(i, seed=4, size=48).mask[24, 24] > 0 for i in range(150)])
    assert in_the_middle > 0.6


def test_several_minerals_off_center_lie_apart() -> None:
    places = []
    for index in range(200):
        specimen = generate(index, seed=1, size=48, max_minerals=2, off_center=True)
        if len(specimen.labels) == 2:
            values = np.unique(specimen.mask[specimen.mask > 0])
            middles = [np.argwhere(specimen.mask == value).mean(axis=0) for value in values]
            places.append(np.linalg.norm(middles[0] - middles[1]) / 48)
    assert len(places) > 20
    assert min(places) > 0.2
    assert max(places) > 0.6


def test_the_mask_lies_on_the_crystals() -> None:
    """The masked pixels have the mineral's color and the others do not."""
    for index in range(5):
        specimen = generate(index, size=96, max_minerals=1, minerals=["sulfur"])
        red, green, blue = specimen.pixels.transpose(2, 0, 1).astype(int)
        yellow = np.minimum(red, green) - blue
        assert np.median(yellow[specimen.mask > 0]) > 60 > 45 > np.percentile(yellow[specimen.mask == 0], 95)


def test_every_mineral_is_equally_frequent() -> None:
    first = Counter(generate(i, size=32, max_minerals=1, minerals=MINERALS[:6]).labels[0] for i in range(24))
    assert first == dict.fromkeys(MINERALS[:6], 4)


def test_the_number_of_labels_follows_the_paper() -> None:
    """142,508 of 183,688 images have one label: 77.6%; three standard deviations of 200 draws are 8.9%."""
    counts = Counter(len(generate(i, size=32, max_minerals=6).labels) for i in range(200))
    assert abs(counts[1] / 200 - 0.776) < 0.089
    assert counts[2] > counts[3]


def test_the_table_is_of_the_36_minerals_and_known_forms() -> None:
    assert tuple(LOOKS) == MINERALS
    assert {look.form for look in LOOKS.values()} <= {*FACES, "botryoidal", "nugget", "dendrite", "nodule"}
    assert len({look.note for look in LOOKS.values()}) == len(MINERALS)


@pytest.mark.parametrize(
    ("form", "vertices", "faces"),
    [("cube", 8, 6), ("octahedron", 6, 8), ("dodecahedron", 14, 12), ("trapezohedron", 26, 24), ("rhombohedron", 8, 6)],
)
def test_crystal_forms_have_their_vertices_and_faces(form: str, vertices: int, faces: int) -> None:
    solid = solid_of(form, np.random.default_rng(0), unevenness=0.0)
    assert (len(solid.vertices), len(solid.faces)) == (vertices, faces)


@settings(deadline=None, max_examples=60)
@given(form=st.sampled_from(sorted(FACES)), seed=st.integers(0, 2**32), elongation=st.floats(0.1, 8.0))
@example(form="square-pointed", seed=0, elongation=1.0)  # an edge of a few hundred-thousandths
def test_crystals_are_closed_convex_bodies(form: str, seed: int, elongation: float) -> None:
    """Euler's formula, every edge shared by two faces that run along it in opposite directions."""
    solid = solid_of(form, np.random.default_rng(seed))
    edges = [(int(a), int(b)) for face in solid.faces for a, b in zip(face, np.roll(face, -1), strict=True)]
    assert sorted(edges) == sorted((b, a) for a, b in edges)
    assert len(solid.vertices) - len(edges) // 2 + len(solid.faces) == 2
    points = solid.stretched(elongation)
    for face in solid.faces:
        normal = np.cross(points[face[1]] - points[face[0]], points[face[-1]] - points[face[0]])
        assert ((points - points[face[0]]) @ normal <= 1e-4).all()


# --- A folder of them


def test_the_manifest_and_the_files_agree(folder: Path) -> None:
    rows = rows_of(folder / "manifest.csv")
    assert list(rows[0]) == ["path", "labels", "split", "specimen", "source"]
    assert [r["path"] for r in rows] == [f"images/{i:06d}.jpg" for i in range(12)]
    assert len({r["specimen"] for r in rows}) == 12
    for index, row in enumerate(rows):
        expected = generate(index, SMALL.seed, SMALL.size)
        assert row["labels"].split(";") == list(expected.labels)
        assert row["split"] == split_of(index, SMALL)
        assert row["source"] == "synthetic"
        assert np.array_equal(read_mask(folder / "masks" / f"{index:06d}.png"), expected.mask)
    assert sorted(p.name for p in folder.iterdir()) == ["SYNTHETIC.txt", "images", "manifest.csv", "masks"]


def test_a_jpeg_shows_what_was_generated(folder: Path) -> None:
    with Image.open(folder / "images" / "000003.jpg") as image:
        written = np.asarray(image, np.float64)
    assert np.abs(written - generate(3, SMALL.seed, SMALL.size).pixels).mean() < 6


def test_every_file_says_that_it_is_synthetic(folder: Path) -> None:
    for row in rows_of(folder / "manifest.csv"):
        with Image.open(folder / row["path"]) as image:
            exif = image.getexif()
        assert exif[0x010E].startswith("Synthetic picture, not a photograph")
        assert all(mineral in exif[0x010E] for mineral in row["labels"].split(";"))
        assert "synth" in exif[0x0131]
        with Image.open(folder / row["path"].replace("images", "masks").replace(".jpg", ".png")) as mask:
            assert mask.info["Description"] == exif[0x010E]
            assert "36=wulfenite" in mask.info["Values"]


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "two", 12, SMALL, workers=2)
    assert digests(tmp_path / "two") == digests(folder)


def test_a_folder_off_center_has_other_images_and_says_so(folder: Path, tmp_path: Path) -> None:
    code, _ = run(str(tmp_path / "new"), "-n", "3", "--seed", "7", "--size", "64", "--split", "7:1:2", "--off-center")
    assert code == 0
    expected = generate(2, SMALL.seed, SMALL.size, off_center=True)
    assert np.array_equal(read_mask(tmp_path / "new" / "masks" / "000002.png"), expected.mask)
    assert not np.array_equal(read_mask(folder / "masks" / "000002.png"), expected.mask)
    assert "off_center=True" in (tmp_path / "new" / "SYNTHETIC.txt").read_text("utf-8")


def test_fewer_images_are_the_first_of_more(folder: Path, tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, 5, SMALL)
    fewer, more = digests(tmp_path), digests(folder)
    assert {name: more[name] for name in fewer if name != "manifest.csv"} == {
        name: digest for name, digest in fewer.items() if name != "manifest.csv"
    }
    assert rows_of(manifest) == rows_of(folder / "manifest.csv")[:5]


@pytest.mark.parametrize("split", [(18, 1, 1), (70, 10, 20), (1, 0, 1)])
def test_splits_have_their_sizes_for_every_mineral(split: tuple[int, int, int]) -> None:
    config = SynthConfig(split=split)
    splits = [split_of(i, config) for i in range(36 * 20)]
    for name, part in zip(("train", "val", "test"), split, strict=True):
        assert splits.count(name) == 720 * part / sum(split)
        assert abs(splits[:200].count(name) - 200 * part / sum(split)) <= 12


# --- Mistakes


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["synth", *arguments])
    return result.exit_code, result.output


def test_the_command_says_that_the_images_are_synthetic(tmp_path: Path) -> None:
    code, output = run(str(tmp_path / "new"), "-n", "3", "--size", "48", "--minerals", "quartz, Pyrite")
    assert code == 0
    assert "3 synthetic images, not photographs" in output
    found = {m for row in rows_of(tmp_path / "new" / "manifest.csv") for m in row["labels"].split(";")}
    assert found == {"quartz", "pyrite"}


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["-n", "0"], "above 0"),
        (["-n", "1", "--size", "8"], "32 to 4096"),
        (["-n", "1", "--seed", "-1"], "0 or above"),
        (["-n", "1", "--max-minerals", "7"], "1 to 6"),
        (["-n", "1", "--minerals", "quartz,kryptonite"], "unknown minerals kryptonite; known are agate"),
        (["-n", "1", "--minerals", ","], "no minerals were named"),
        (["-n", "1", "--split", "0:0:0"], "18:1:1"),
        (["-n", "1", "--split", "80:20"], "three whole numbers"),
    ],
)
def test_a_wrong_option_is_one_line_and_writes_nothing(tmp_path: Path, options: list[str], hint: str) -> None:
    code, output = run(str(tmp_path / "new"), *options)
    assert code == 2
    assert hint in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_refused_unless_asked(tmp_path: Path) -> None:
    write_dataset(tmp_path, 4, SMALL)
    (tmp_path / "notes.txt").write_text("mine")
    before = digests(tmp_path)
    with pytest.raises(DataError, match="not empty") as refusal:
        write_dataset(tmp_path, 2, SMALL)
    assert "\n" not in str(refusal.value)
    assert digests(tmp_path) == before
    write_dataset(tmp_path, 2, SMALL, overwrite=True)
    assert len(list((tmp_path / "images").iterdir())) == len(list((tmp_path / "masks").iterdir())) == 2
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwrite_never_deletes_images_of_others(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "000000.jpg").write_bytes(b"a photograph")
    with pytest.raises(DataError, match="not this command's to replace"):
        write_dataset(tmp_path, 1, SMALL, overwrite=True)
    assert (tmp_path / "images" / "000000.jpg").read_bytes() == b"a photograph"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, output = run(str(tmp_path / "file" / "below"), "-n", "1")
    assert (code, len(output.splitlines())) == (1, 1)
    assert "cannot write" in output


def test_a_full_disk_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match="No space left on device"):
        write_dataset(tmp_path, 1, SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["SYNTHETIC.txt", "images", "masks"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        write_dataset(tmp_path / "file", 1, SMALL)


def test_a_file_that_is_no_mask_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for path in (folder / "images" / "000000.jpg", tmp_path / "text.png", tmp_path / "absent.png"):
        with pytest.raises(DataError, match="mask"):
            read_mask(path)
