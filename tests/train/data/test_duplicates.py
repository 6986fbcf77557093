"""Near-duplicates: found after what happens to an image on the web, and not between different ones."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from mineral_batch.types import Failure
from mineral_train.data.duplicates import close_pairs, connected, identical_files, near_duplicates, thumbnails


def specimen(seed: int) -> Image.Image:
    """A colored, textured ellipse in the middle of a white ground: the kind whose hashes collide."""
    rng = np.random.default_rng(seed)
    texture = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize(
        (400, 300), Image.Resampling.BICUBIC
    )
    mask = Image.new("L", (400, 300))
    width, height = rng.integers(60, 170), rng.integers(50, 130)
    ImageDraw.Draw(mask).ellipse((200 - width, 150 - height, 200 + width, 150 + height), fill=255)
    return Image.composite(texture, Image.new("RGB", (400, 300), "white"), mask)


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.resize((image.width // 2, image.height // 2)).save(file, "JPEG", quality=50)
    return Image.open(file)


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half size, quality 50": recompressed,
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.1),
    "more contrast": lambda p: ImageEnhance.Contrast(p).enhance(1.2),
    "1% cropped": lambda p: p.crop((4, 3, p.width, p.height)),
}
UNLIKE: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "turned": lambda p: p.rotate(90, expand=True),
    "inverted": ImageOps.invert,
}


def thumbs_of(tmp_path: Path, images: list[Image.Image]) -> np.ndarray:
    paths = [tmp_path / f"{k}.png" for k in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    return np.stack(list(thumbnails(paths, threads=2)))


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_copy_is_found(tmp_path: Path, name: str) -> None:
    originals = [specimen(seed) for seed in range(20)]
    thumbs = thumbs_of(tmp_path, originals + [ALTERED[name](image) for image in originals])

    pairs = {(i, j) for i, j in near_duplicates(thumbs).tolist()}

    assert len(pairs & {(k, k + 20) for k in range(20)}) >= 19
    assert pairs <= {(k, k + 20) for k in range(20)}


@pytest.mark.parametrize("name", UNLIKE)
def test_a_different_view_is_no_duplicate(tmp_path: Path, name: str) -> None:
    originals = [specimen(seed) for seed in range(10)]
    thumbs = thumbs_of(tmp_path, originals + [UNLIKE[name](image) for image in originals])
    assert near_duplicates(thumbs).tolist() == []


def test_the_hash_alone_would_join_specimens_of_another_color(tmp_path: Path) -> None:
    """A red and a blue specimen of one outline: the same gray steps, hence the same hash."""
    images = [
        Image.composite(Image.new("RGB", (400, 300), color), specimen(0), _outline()) for color in ("red", "navy")
    ]
    thumbs = thumbs_of(tmp_path, images)
    assert len(near_duplicates(thumbs, correlation=-1)) == 1
    assert len(near_duplicates(thumbs)) == 0


def _outline() -> Image.Image:
    mask = Image.new("L", (400, 300))
    ImageDraw.Draw(mask).ellipse((80, 60, 320, 240), fill=255)
    return mask


def test_images_of_one_color_are_alike_to_none(tmp_path: Path) -> None:
    thumbs = thumbs_of(tmp_path, [Image.new("RGB", (40, 30), color) for color in ("white", "white", "black")])
    assert near_duplicates(thumbs).tolist() == []


def test_thumbnails_come_in_order_with_a_failure_in_its_place(tmp_path: Path, save_photo) -> None:
    paths = [save_photo(tmp_path / f"{k}.jpg", k) for k in range(6)]
    paths[2].write_bytes(paths[2].read_bytes()[:400])
    paths[4].unlink()

    looks = list(thumbnails(paths, threads=3))

    failed = {k: look.stage for k, look in enumerate(looks) if isinstance(look, Failure)}
    assert failed == {2: "decode", 4: "read"}
    alone = [next(iter(thumbnails([paths[k]], threads=1))) for k in (0, 5)]
    np.testing.assert_array_equal([looks[0], looks[5]], alone)


def test_identical_files_are_linked_and_files_of_one_size_are_not(tmp_path: Path) -> None:
    contents = [b"aa", b"ab", b"aa", b"abc", b"ab", b"aa"]
    paths = [tmp_path / str(k) for k in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    paths += [tmp_path / "missing 1", tmp_path / "missing 2"]

    assert sorted(map(tuple, identical_files(paths).tolist())) == [(0, 2), (0, 5), (1, 4)]


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_close_pairs_are_those_of_comparing_all(seed: int, count: int, distance: int) -> None:
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 2**64, 5, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 8), replace=False)) for _ in range(count)]
    hashes = few[rng.integers(0, 5, count)] ^ np.array(flips, np.uint64)

    found = close_pairs(hashes, distance)

    bits = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    expected = np.argwhere(np.triu(bits <= distance, k=1))
    np.testing.assert_array_equal(found, expected.reshape(-1, 2))


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=15))
def test_groups_are_what_links_reach(count: int, pairs: list[tuple[int, int]]) -> None:
    pairs = [(i % count, j % count) for i, j in pairs]
    reach = np.eye(count, dtype=bool)
    for i, j in pairs:
        reach[i, j] = reach[j, i] = True
    for _ in range(count):
        reach = (reach.astype(int) @ reach.astype(int)) > 0

    groups = connected(count, np.array(pairs, np.int64).reshape(-1, 2))

    np.testing.assert_array_equal(groups[:, None] == groups[None, :], reach)
    np.testing.assert_array_equal(groups, reach.argmax(axis=1))
