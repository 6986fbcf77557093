"""Color profiles: converted to sRGB in every mode, left alone where they are sRGB, never a reason to fail."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageCms

from mineral_batch import InputSpec, load_image
from mineral_batch.images.decode import decode_image, open_rgb
from mineral_batch.images.geometry import resize
from mineral_batch.types import Image

from ..conftest import can_write, encode, scene

SPEC = InputSpec(height=24, width=32)

# Chromaticities of red, green and blue, adapted to D50, as XYZ; and the exponent of the tone curve.
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407), 2.2)
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457), 2.2)
PRO_PHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491), 1.8)


def profile(colors: tuple[Any, ...], space: bytes = b"RGB ") -> bytes:
    """An ICC profile (version 2.1) of three primaries, or of a gray tone curve."""
    red, green, blue, gamma = colors

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"text\0\0\0\0none\0\0\0\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79)
    description += bytes(-len(description) % 4)
    tags = {b"desc": description, b"cprt": text, b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue)}
        tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(body), b"lcms", 0x02100000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


def managed(image: PILImage.Image, icc: bytes) -> PILImage.Image:
    converted = ImageCms.profileToProfile(image, io.BytesIO(icc), ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    return converted


def difference(first: PILImage.Image, second: PILImage.Image) -> float:
    return float(np.abs(np.asarray(first).astype(int) - np.asarray(second)).mean())


@pytest.mark.parametrize("colors", [DISPLAY_P3, ADOBE_RGB, PRO_PHOTO], ids=["Display P3", "Adobe RGB", "ProPhoto"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "HEIF"])
def test_a_wide_profile_is_converted(colors: tuple[Any, ...], kind: str) -> None:
    if not can_write(kind):
        pytest.skip(f"this machine cannot write {kind}")
    icc = profile(colors)
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "PNG": {}, "TIFF": {}}.get(kind, {"quality": 98})
    found = open_rgb(encode(scene(), kind, icc_profile=icc, **options))
    expected = managed(scene(), icc)
    assert difference(expected, scene()) > 3
    assert difference(found, expected) < (0.01 if options != {"quality": 98} else 3)


def test_training_and_deployment_see_the_converted_pixels(tmp_path: Any) -> None:
    icc = profile(DISPLAY_P3)
    (tmp_path / "a.png").write_bytes(encode(scene(300, 200), "PNG", icc_profile=icc))
    image = load_image(tmp_path / "a.png", SPEC)
    assert isinstance(image, Image)
    # Resized first, where there are fewer pixels to convert.
    expected = managed(PILImage.fromarray(resize(scene(300, 200), SPEC)), icc)
    np.testing.assert_array_equal(image.pixels, np.asarray(expected))
    other_order = resize(open_rgb(tmp_path / "a.png"), SPEC)
    assert np.abs(image.pixels.astype(int) - other_order).mean() < 0.5


def test_gray_transparent_and_palette_images_have_profiles_too() -> None:
    gray_icc = profile((0, 0, 0, 1.0), b"GRAY")
    gray = scene().convert("L")
    assert difference(open_rgb(encode(gray, "PNG", icc_profile=gray_icc)), managed(gray, gray_icc)) < 0.01
    icc = profile(ADOBE_RGB)
    transparent = scene().convert("RGBA")
    transparent.putalpha(PILImage.linear_gradient("L").resize(transparent.size))
    white = PILImage.new("RGBA", transparent.size, "white")
    expected = managed(PILImage.alpha_composite(white, transparent).convert("RGB"), icc)
    assert difference(open_rgb(encode(transparent, "PNG", icc_profile=icc)), expected) < 0.01
    palette = scene().quantize(64)
    expected = managed(palette.convert("RGB"), icc)
    assert difference(open_rgb(encode(palette, "PNG", icc_profile=icc)), expected) < 0.01


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_srgb_in_its_versions_changes_no_bit(kind: str) -> None:
    plain = np.asarray(open_rgb(encode(scene(), kind)))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(np.asarray(open_rgb(encode(scene(), kind, icc_profile=srgb))), plain)


@pytest.mark.parametrize(
    "icc", [b"", b"x", bytes(200), profile(DISPLAY_P3)[:200], profile((0, 0, 0, 1.0), b"GRAY"), b"junk" * 5000]
)
def test_a_profile_that_does_not_work_or_fit_costs_nothing(icc: bytes) -> None:
    content = encode(scene(), "TIFF", icc_profile=icc)
    np.testing.assert_array_equal(np.asarray(open_rgb(content)), np.asarray(scene()))


def test_an_image_in_memory_has_a_profile_too() -> None:
    icc = profile(DISPLAY_P3)
    image = PILImage.open(io.BytesIO(encode(scene(), "PNG", icc_profile=icc)))
    found = decode_image("a", lambda: image, InputSpec(36, 48))
    assert isinstance(found, Image)
    assert np.abs(found.pixels.astype(int) - np.asarray(managed(scene(), icc))).mean() < 0.01
