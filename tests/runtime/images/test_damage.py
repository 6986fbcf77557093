"""Damage inside compressed data is a failure; harmless oddities are decoded to the bit."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch.errors import ImageError
from mineral_batch.images import webp
from mineral_batch.images.decode import open_rgb
from mineral_batch.images.jpeg import damage
from mineral_batch.images.jpeg.segments import read_structure

from ..conftest import can_write, encode

if TYPE_CHECKING:
    from collections.abc import Callable


def textured(width: int = 320, height: int = 240, seed: int = 0) -> PILImage.Image:
    """An image with as much detail as a photo: noise of several sizes."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            PILImage.fromarray(rng.integers(0, 256, (height // s, width // s, 3)).astype(np.uint8)).resize(
                (width, height), PILImage.Resampling.BICUBIC
            ),
            float,
        )
        for s in (2, 8, 40)
    ]
    return PILImage.fromarray((0.2 * layers[0] + 0.3 * layers[1] + 0.5 * layers[2]).astype(np.uint8))


JPEGS = {
    "baseline": encode(textured(), "JPEG", quality=85),
    "optimized": encode(textured(), "JPEG", quality=85, optimize=True),
    "progressive": encode(textured(), "JPEG", quality=85, progressive=True),
    "restarts": encode(textured(), "JPEG", quality=85, restart_marker_blocks=8),
    "gray": encode(textured().convert("L"), "JPEG", quality=85),
    "4:4:4": encode(textured(), "JPEG", quality=90, subsampling=0),
    "CMYK": encode(textured().convert("CMYK"), "JPEG", quality=85),
}


def holed(content: bytes, start: float, end: float) -> bytes:
    a, b = int(start * len(content)), int(end * len(content))
    return content[:a] + bytes(b - a) + content[b:]


def noised(content: bytes, start: float, end: float) -> bytes:
    a, b = int(start * len(content)), int(end * len(content))
    return content[:a] + random.Random(a).randbytes(b - a) + content[b:]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "an early end": lambda d: d[: len(d) * 3 // 10] + b"\xff\xd9",
    "zeros in the middle third": lambda d: holed(d, 1 / 3, 2 / 3),
    "zeros up to the end": lambda d: holed(d[:-2], 2 / 3, 1) + d[-2:],
    "a sector of zeros": lambda d: d[: len(d) // 2] + bytes(512) + d[len(d) // 2 + 512 :],
    "noise in the middle third": lambda d: noised(d, 1 / 3, 2 / 3),
    "a missing part": lambda d: d[: len(d) // 2] + d[len(d) // 2 + 2000 :],
    "a part twice": lambda d: d[: len(d) // 2] + d[len(d) // 2 - 2000 :],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("target", [None, (40, 40)])
def test_damage_inside_a_jpeg_is_a_failure(kind: str, damage: str, target: tuple[int, int] | None) -> None:
    with pytest.raises(ImageError) as caught:
        open_rgb(DAMAGE[damage](JPEGS[kind]), target=target)
    assert re.search(r"damaged: |broken data stream|truncated|not an image", str(caught.value))


ODDITIES: dict[str, Callable[[bytes], bytes]] = {
    "stray bytes before the end": lambda d: d[:-2] + b"stray" + d[-2:],
    "a byte before the end": lambda d: d[:-2] + b"x" + d[-2:],
    "zeros before the end": lambda d: d[:-2] + bytes(100) + d[-2:],
    "fill bytes before the end": lambda d: d[:-2] + b"\xff" * 9 + d[-2:],
    "zeros behind the end": lambda d: d + bytes(5000),
    "text behind the end": lambda d: d + b"stray" * 100,
    "two ends": lambda d: d + b"\xff\xd9",
    "zeros in a comment": lambda d: d[:2] + b"\xff\xfe\x10\x02" + bytes(4096) + d[2:],
}


@pytest.mark.parametrize("oddity", ODDITIES)
@pytest.mark.parametrize("kind", JPEGS)
def test_harmless_oddities_of_a_jpeg_are_decoded_to_the_bit(kind: str, oddity: str) -> None:
    odd = ODDITIES[oddity](JPEGS[kind])
    np.testing.assert_array_equal(np.asarray(open_rgb(odd)), np.asarray(open_rgb(JPEGS[kind])))


@pytest.mark.parametrize(("kind", "most"), [("baseline", 200), ("restarts", 60)])
def test_any_short_stray_bytes_in_a_baseline_jpeg_are_harmless(kind: str, most: int) -> None:
    whole, dice = JPEGS[kind], random.Random(5)
    expected = np.asarray(open_rgb(whole))
    accepted = 0
    for _ in range(60):
        stray = dice.randbytes(dice.randrange(1, most)).replace(b"\xff", b"\xfe")
        try:
            image = open_rgb(whole[:-2] + stray + whole[-2:])
        except ImageError:
            continue
        np.testing.assert_array_equal(np.asarray(image), expected)
        accepted += 1
    assert accepted >= 54


def test_a_missing_second_image_of_an_mpo_is_harmless() -> None:
    if not can_write("MPO"):
        pytest.skip("this build of Pillow cannot write MPO")
    whole = encode(textured(), "MPO", save_all=True, append_images=[textured(seed=1)])
    second = whole.index(b"\xff\xd8\xff", 2)
    first_only = whole[:second]
    np.testing.assert_array_equal(np.asarray(open_rgb(first_only)), np.asarray(open_rgb(whole)))


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_plain_background_is_no_hole(quality: int, progressive: bool) -> None:
    """Optimized tables may code flat blocks as zeros."""
    image = PILImage.new("RGB", (900, 900), "white")
    image.paste(textured(200, 200), (350, 350))
    open_rgb(encode(image, "JPEG", quality=quality, optimize=True, progressive=progressive))
    open_rgb(encode(PILImage.new("RGB", (900, 900), "black"), "JPEG", optimize=True, progressive=progressive))


@pytest.mark.parametrize("kind", ["RGB", "gray", "CMYK", "RGB as such"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_the_pixels_are_pillows(kind: str, subsampling: str, scale: int) -> None:
    mode = {"gray": "L", "CMYK": "CMYK"}.get(kind, "RGB")
    options: dict[str, Any] = {"keep_rgb": True} if kind == "RGB as such" else {"subsampling": subsampling}
    content = encode(textured(331, 243).convert(mode), "JPEG", **({} if mode != "RGB" else options))
    with PILImage.open(io_of(content)) as image:
        image.draft(None, (331 // scale, 243 // scale))
        expected = np.asarray(image.convert("RGB"))
    small = (331 // scale // 2, 243 // scale // 2)
    found = open_rgb(content) if scale == 1 else open_rgb(content, target=small)
    if found.size == expected.shape[1::-1]:
        np.testing.assert_array_equal(np.asarray(found), expected)
    else:
        assert scale > 1, "the smallest scale that is at least twice the target"


def io_of(content: bytes) -> Any:
    import io

    return io.BytesIO(content)


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    content = JPEGS["progressive"]
    last = read_structure(content, 100).scans[-1]
    start = content.rindex(b"\xff\xda", 0, last.start)
    bomb = content[:-2] + content[start : last.end] * 300 + content[-2:]
    with pytest.raises(ImageError, match="more than the limit of 200 scans"):
        open_rgb(bomb)


def test_what_is_left_over_is_read_as_blocks() -> None:
    """Damage in the middle shifts the blocks: what is left over at the end is then image data."""
    content = JPEGS["baseline"]
    scan = read_structure(content, 10).scans[0]
    tail = content[scan.start : scan.end][-300:].replace(b"\xff\x00", b"\xff")
    assert damage._are_whole_blocks(tail, scan)
    assert not damage._are_whole_blocks(tail + b"stray", scan)


ARITHMETIC = {
    "WEBP": {"quality": 85},
    "HEIF": {"quality": 85},
    "AVIF": {"quality": 85},
    "JPEG2000": {},
}


@pytest.mark.parametrize("kind", ARITHMETIC)
def test_a_hole_in_arithmetic_coding_is_a_failure_and_a_plain_image_is_not(kind: str) -> None:
    if not can_write(kind):
        pytest.skip(f"this machine cannot write {kind}")
    whole = encode(textured(), kind, **ARITHMETIC[kind])
    assert open_rgb(whole).size == (320, 240)
    for start in (0.3, 0.5, 0.7):
        with pytest.raises(ImageError, match="damaged: zeros instead of image data at byte"):
            open_rgb(whole[: int(start * len(whole))] + bytes(512) + whole[int(start * len(whole)) + 512 :])
    for color in ("black", "white", (30, 90, 160)):
        open_rgb(encode(PILImage.new("RGB", (1200, 900), color), kind, **ARITHMETIC[kind]))


def with_alpha(image: PILImage.Image) -> PILImage.Image:
    image = image.convert("RGBA")
    image.putalpha(textured(*image.size, seed=3).convert("L"))
    return image


WEBPS = {
    "lossy": encode(textured(), "WEBP", quality=85),
    "lossless": encode(textured(), "WEBP", lossless=True),
    "transparent": encode(with_alpha(textured()), "WEBP", quality=85),
    "plain": encode(PILImage.new("RGB", (900, 700), (30, 90, 160)), "WEBP", quality=75),
    "one pixel": encode(textured().resize((1, 1)), "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", ["lossy", "lossless"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_inside_a_webp_is_a_failure(kind: str, damage: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_rgb(DAMAGE[damage](WEBPS[kind]))
    assert re.search(r"damaged: |truncated", str(caught.value))


@pytest.mark.parametrize("kind", WEBPS)
def test_the_pixels_of_a_webp_are_pillows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by_libwebp = np.asarray(open_rgb(WEBPS[kind]))
    monkeypatch.setattr(webp, "_libwebp", lambda: None)  # as where it cannot be called
    np.testing.assert_array_equal(by_libwebp, np.asarray(open_rgb(WEBPS[kind])))


@pytest.mark.parametrize("kind", WEBPS)
@pytest.mark.parametrize("behind", [bytes(5000), b"stray" * 100])
def test_what_is_behind_a_webp_is_harmless(kind: str, behind: bytes) -> None:
    np.testing.assert_array_equal(np.asarray(open_rgb(WEBPS[kind] + behind)), np.asarray(open_rgb(WEBPS[kind])))


@pytest.mark.parametrize("kind", ["lossy", "lossless"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_webp_that_was_not_downloaded_to_its_end_is_a_failure(kind: str, share: float) -> None:
    whole = WEBPS[kind]
    with pytest.raises(ImageError, match=r"^damaged: "):
        open_rgb(whole[: int(share * len(whole))].ljust(len(whole), b"\0"))


TRUNCATED = {"JPEG": {}, "PNG": {}, "TIFF": {"compression": "tiff_lzw"}, "GIF": {}, "WEBP": {}} | ARITHMETIC


@pytest.mark.parametrize("kind", TRUNCATED)
def test_a_file_that_ends_early_is_called_truncated(kind: str) -> None:
    if not can_write(kind):
        pytest.skip(f"this machine cannot write {kind}")
    whole = encode(textured(), kind, **TRUNCATED[kind])
    for share in (0.1, 0.5, 0.95):
        with pytest.raises(ImageError, match=r"^damaged: the file ends early"):
            open_rgb(whole[: int(share * len(whole))])


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_inside_a_png_is_a_failure(damage: str) -> None:
    with pytest.raises(ImageError):
        open_rgb(DAMAGE[damage](encode(textured(), "PNG")))


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000", "HEIF"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_photo_on_a_plain_background_is_not_damaged(kind: str, share: float) -> None:
    """Arithmetic coders write zeros for long where nothing changes."""
    if not can_write(kind):
        pytest.skip(f"this machine cannot write {kind}")
    image = PILImage.new("RGB", (1600, 1120), "white")
    image.paste(textured(1600, int(1120 * (1 - share))), (0, int(1120 * share)))
    assert open_rgb(encode(image, kind, **({} if kind == "JPEG2000" else {"quality": 80}))).size == image.size
