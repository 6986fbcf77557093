"""TIFFs: the photo and not its thumbnail, and right pixels for every number format."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch import Failure, InputSpec, load_image
from mineral_batch.errors import ImageError
from mineral_batch.images.decode import open_rgb
from mineral_batch.images.tiff.pages import main_page, read_pages

from ..conftest import encode, scene
from .test_damage import holed, noised, textured
from .tiffs import page, tiff

SPEC = InputSpec(height=24, width=32)
RGB = np.asarray(scene())
GRAY = np.asarray(scene().convert("L"))
SMALL = np.asarray(scene(16, 12))


def pixels(content: bytes) -> Any:
    return np.asarray(open_rgb(content))


def gray(values: Any) -> Any:
    return np.repeat(np.asarray(values)[..., None], 3, axis=-1)


def assert_close(found: Any, expected: Any, most: int = 1) -> None:
    assert found.shape == np.asarray(expected).shape
    assert np.abs(found.astype(int) - expected).max() <= most


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize(
    ("bits", "kind", "dtype"),
    [
        *((8, 1, "u1"), (10, 1, "u2"), (12, 1, "u2"), (14, 1, "u2"), (16, 1, "u2"), (32, 1, "u4")),
        *((16, 2, "i2"), (32, 2, "i4"), (16, 3, "f2"), (32, 3, "f4"), (64, 3, "f8")),
    ],
)
def test_every_number_format_is_scaled_to_what_it_looks_like(
    bits: int, kind: int, dtype: str, photometric: int, order: str
) -> None:
    top = 1.0 if kind == 3 else 2 ** (bits - (kind == 2)) - 1
    shades = GRAY.astype(float) / 255
    stored = (1 - shades if photometric == 0 else shades) * top
    values = (stored if kind == 3 else stored.round()).astype(dtype)
    found = pixels(tiff(page(values, bits=bits, kind=kind, photometric=photometric, order=order, rows=7), order=order))
    assert_close(found, gray(GRAY))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("layout", [{}, {"rows": 5}, {"tile": 16}])
@pytest.mark.parametrize(("bits", "top", "dtype"), [(8, 255, "u1"), (12, 4095, "u2"), (16, 65535, "u2")])
def test_color_in_planes_strips_and_tiles(
    bits: int, top: int, dtype: str, layout: dict[str, int], compression: int, planar: bool, order: str
) -> None:
    if compression == 8 and bits == 12:
        pytest.skip("not written by anyone")
    values = (RGB.astype(float) * (top / 255)).round().astype(dtype)
    options: dict[str, Any] = {"predictor": 2} if compression == 8 else {}
    content = tiff(
        page(
            values, bits=bits, photometric=2, planar=planar, compression=compression, order=order, **layout, **options
        ),
        order=order,
    )
    assert_close(pixels(content), RGB)


def test_32_bits_that_hold_16_are_on_the_16_bit_scale() -> None:
    assert_close(pixels(tiff(page(GRAY.astype("u4") * 257, bits=32))), gray(GRAY))


def test_alpha_is_laid_on_white_and_other_extra_samples_are_dropped() -> None:
    alpha = np.full((*GRAY.shape, 1), 32768, np.uint16)
    values = np.concatenate([RGB.astype(np.uint16) * 257, alpha], axis=2)
    half = (RGB.astype(int) + 255) / 2
    assert_close(pixels(tiff(page(values, bits=16, photometric=2, t338=2))), half.round(), 2)
    assert_close(pixels(tiff(page(values, bits=16, photometric=2, t338=0))), RGB)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_every_reader_turns_a_tiff_upright(orientation: int, bits: int, tmp_path: Any) -> None:
    top = 2**bits - 1
    values = (GRAY.astype(float) * top / 255).round().astype("u1" if bits == 8 else "u2")
    content = tiff(page(values, bits=bits, t274=orientation))
    turns = {1: 0, 3: 2, 6: 3, 8: 1}
    expected = np.rot90(gray(GRAY), turns[orientation])
    assert_close(pixels(content), expected)
    (tmp_path / "a.tif").write_bytes(content)
    image = load_image(tmp_path / "a.tif", SPEC)
    assert not isinstance(image, Failure)
    assert (image.height, image.width) == expected.shape[:2]


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_thumbnail_on_the_first_page_does_not_stand_in_for_the_photo(order: str, big: bool) -> None:
    thumbnail = page(SMALL, bits=8, photometric=2, order=order, t254=1)
    photo = page(RGB, bits=8, photometric=2, order=order, t254=0)
    for content in (
        tiff(thumbnail, photo, order=order, big=big),
        tiff(thumbnail, subifds=(photo,), order=order, big=big),
        tiff(page(SMALL, bits=8, photometric=2, order=order, t255=2), photo, order=order, big=big),
    ):
        np.testing.assert_array_equal(pixels(content), RGB)
    np.testing.assert_array_equal(pixels(tiff(photo, thumbnail, order=order, big=big)), RGB)
    other = page(255 - RGB, bits=8, photometric=2, order=order)
    np.testing.assert_array_equal(pixels(tiff(photo, other, order=order, big=big)), RGB)


def test_a_file_of_nothing_but_thumbnails_is_its_first_one() -> None:
    content = tiff(page(SMALL, bits=8, photometric=2, t254=1))
    np.testing.assert_array_equal(pixels(content), SMALL)


def test_a_loop_of_pages_ends() -> None:
    content = bytearray(tiff(page(SMALL, bits=8, photometric=2, t254=1)))
    directory = int.from_bytes(content[4:8], "little")
    content[-4:] = directory.to_bytes(4, "little")
    assert len(read_pages(bytes(content))) == 1
    assert main_page([]) is None


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(320, 240), (317, 233)])
def test_jpegs_in_a_tiff_are_decoded_as_pillow_does(mode: str, size: tuple[int, int]) -> None:
    image = textured(*size).convert(mode)
    content = encode(image, "TIFF", compression="jpeg", quality=85)
    with PILImage.open(io.BytesIO(content)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    assert_close(pixels(content), expected, 0)


DAMAGES = {"zeros": holed, "noise": noised}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("compression", ["jpeg", "tiff_adobe_deflate", "tiff_lzw"])
def test_damage_inside_a_compressed_tiff_is_a_failure(compression: str, damage: str) -> None:
    content = encode(textured(), "TIFF", compression=compression)
    assert pixels(content).shape == (240, 320, 3)
    for start in (0.3, 0.5, 0.7):
        with pytest.raises(ImageError):
            open_rgb(DAMAGES[damage](content, start, start + 0.04))


def test_planes_of_16_bits_that_pillow_would_mix_up_are_refused() -> None:
    content = tiff(page(RGB.astype(np.uint16), bits=16, photometric=2, planar=True, compression=5))
    with pytest.raises(ImageError, match="not supported"):
        open_rgb(content)


def test_a_description_in_xmp_of_another_type_costs_nothing() -> None:
    np.testing.assert_array_equal(pixels(tiff(page(RGB, bits=8, photometric=2, t700="<x/>"))), RGB)


def test_a_tga_without_alpha_bits_is_not_white() -> None:
    picture = scene().convert("RGBA")
    picture.putalpha(0)
    content = bytearray(encode(picture, "TGA"))
    content[17] &= 0xF0  # no attribute bits
    np.testing.assert_array_equal(pixels(bytes(content)), RGB)
