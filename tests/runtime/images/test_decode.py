"""Every way in which a photograph can be right, odd or broken, through the public functions of `images`."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from mineral_batch import Failure, Image, InputSpec, load_image
from mineral_batch.errors import ImageError
from mineral_batch.images import limits as images
from mineral_batch.images.decode import decode_image, open_rgb
from mineral_batch.images.geometry import resize

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SPEC = InputSpec(height=24, width=32, interpolation="bilinear")
T = PILImage.Transpose
# How an upright picture is stored under each EXIF orientation: the inverse of what a viewer must do.
STORED: dict[int, PILImage.Transpose | None] = {
    1: None,
    2: T.FLIP_LEFT_RIGHT,
    3: T.ROTATE_180,
    4: T.FLIP_TOP_BOTTOM,
    5: T.TRANSPOSE,
    6: T.ROTATE_90,
    7: T.TRANSVERSE,
    8: T.ROTATE_270,
}


def scene(width: int = 48, height: int = 36) -> PILImage.Image:
    """Smooth, with no symmetry, red at the top left."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pixels = np.stack([127 + 80 * np.sin(3 * x), 60 + 150 * y, 90 + 70 * np.cos(2 * x + 4 * y)], axis=-1)
    pixels[: height // 4, : width // 4] = (220, 40, 30)
    return PILImage.fromarray(pixels.round().astype(np.uint8))


def encode(picture: PILImage.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(first: Any, second: Any) -> float:
    """Mean absolute difference of two pictures, of 255; infinite when their shapes differ."""
    a, b = np.asarray(first).astype(int), np.asarray(second).astype(int)
    return float(np.abs(a - b).mean()) if a.shape == b.shape else float("inf")


def psnr(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Peak signal to noise ratio, dB."""
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def loaded(path: Path | str, spec: InputSpec = SPEC, *, exact: bool = False) -> Image:
    found = load_image(path, spec, exact=exact)
    assert isinstance(found, Image), found
    return found


# ---- what a right decoder makes of each kind of file ----------------------------------------------------------------


def test_every_awkward_photograph_is_read_as_it_looks(photos: dict[str, Any]) -> None:
    wrong = {
        name: found
        for name, photo in photos.items()
        if (found := difference(open_rgb(photo.content), photo.expected)) > photo.tolerance
    }
    assert not wrong


def test_a_file_and_its_bytes_give_the_same_picture(tmp_path: Path, photos: dict[str, Any]) -> None:
    for name, photo in photos.items():
        (tmp_path / name).write_bytes(photo.content)
        assert difference(open_rgb(tmp_path / name), open_rgb(photo.content)) == 0, name
        image = loaded(tmp_path / name)
        assert image.pixels.shape == (24, 32, 3)
        assert image.pixels.dtype == np.uint8
        assert (image.path, image.width, image.height) == (str(tmp_path / name), 48, 36)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", STORED)
def test_all_eight_orientations_come_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    if kind not in PILImage.SAVE:
        PILImage.init()
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if kind not in PILImage.SAVE:
        pytest.skip(f"this build of Pillow cannot write {kind}")
    upright, turn = scene(), STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = PILImage.Exif()
    exif[274] = orientation
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 98, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 95},
        "HEIF": {"quality": 95, "chroma": 444},
    }
    path = tmp_path / "turned"
    path.write_bytes(encode(stored, kind, exif=exif.tobytes(), **options.get(kind, {})))
    picture = open_rgb(path)
    assert difference(picture, upright) < {"JPEG": 2, "AVIF": 4, "HEIF": 2}.get(kind, 0.01)
    image = loaded(path)
    assert (image.width, image.height) == upright.size
    assert difference(image.pixels, resize(upright, SPEC)) < {"JPEG": 2, "AVIF": 4, "HEIF": 2}.get(kind, 0.01)


@pytest.mark.parametrize("orientation", STORED)
def test_a_large_turned_jpeg_is_scaled_by_the_decoder_and_upright(tmp_path: Path, orientation: int) -> None:
    upright, turn = scene(640, 400), STORED[orientation]
    exif = PILImage.Exif()
    exif[274] = orientation
    stored = upright if turn is None else upright.transpose(turn)
    path = tmp_path / "large.jpg"
    path.write_bytes(encode(stored, "JPEG", quality=95, exif=exif))
    image = loaded(path)
    assert (image.width, image.height) == (640, 400)
    assert difference(image.pixels, resize(upright, SPEC)) < 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF::PIL")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03", b"\0" * 40]
)
def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(scene(), "JPEG", quality=98, subsampling=0, exif=exif))
    assert difference(loaded(path).pixels, resize(scene(), SPEC)) < 2


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(value: int) -> None:
    exif = PILImage.Exif()
    exif[274] = value
    assert difference(open_rgb(encode(scene(), "PNG", exif=exif)), scene()) == 0


def test_a_dark_16_bit_picture_stays_dark_and_a_full_one_is_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, axis=0)
    gray = np.asarray(open_rgb(encode(PILImage.fromarray(ramp), "PNG")))[0, :, 0]
    assert gray.tolist() == list(range(256))
    assert np.asarray(open_rgb(encode(PILImage.fromarray(ramp // 16), "PNG"))).max() == 16


def test_transparent_means_white_and_half_transparent_half_white() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = (0, 128, 255)
    assert np.asarray(open_rgb(encode(PILImage.fromarray(pixels), "PNG")))[0, :, 0].tolist() == [255, 127, 0]


def test_a_float_picture_with_a_hole_is_refused() -> None:
    values = np.array([[0.5, np.nan]], np.float32)
    with pytest.raises(ImageError, match="not numbers"):
        open_rgb(encode(PILImage.fromarray(values), "TIFF"))


# ---- geometry --------------------------------------------------------------------------------------------------------


def test_squash_keeps_the_edges_and_crop_the_proportions() -> None:
    bars = np.zeros((100, 300, 3), np.uint8)
    bars[:, :100], bars[:, 100:200], bars[:, 200:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    picture = PILImage.fromarray(bars)
    squashed = resize(picture, InputSpec(60, 60, resize="squash"))
    cropped = resize(picture, InputSpec(60, 60, resize="crop"))
    assert [squashed[30, column].argmax() for column in (5, 30, 55)] == [0, 1, 2]
    assert (cropped[:, 2:-2] == (0, 255, 0)).all()  # bicubic rings at the cut


def test_a_disc_stays_round_under_crop() -> None:
    y, x = np.mgrid[:120, :300]
    disc = ((x - 150) ** 2 + (y - 60) ** 2 < 40**2).astype(np.uint8) * 255
    picture = PILImage.fromarray(disc).convert("RGB")
    inside = resize(picture, InputSpec(60, 60, resize="crop"))[..., 0] > 127
    assert inside.any(axis=0).sum() == inside.any(axis=1).sum() == 40


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (33, 31)])
@pytest.mark.parametrize("rule", ["squash", "crop"])
def test_any_size_fits(tmp_path: Path, size: tuple[int, int], rule: Any) -> None:
    path = tmp_path / "any.png"
    path.write_bytes(encode(PILImage.new("RGB", size, (10, 20, 30)), "PNG"))
    spec = InputSpec(24, 32, resize=rule)
    assert (loaded(path, spec).pixels == (10, 20, 30)).all()


def test_resizing_is_antialiased() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(resize(PILImage.fromarray(stripes), InputSpec(32, 32))) < 16


def test_a_large_jpeg_decoded_at_a_scale_is_nearly_the_exact_one(tmp_path: Path) -> None:
    path = tmp_path / "camera.jpg"
    path.write_bytes(encode(scene(1600, 1200), "JPEG", quality=92))
    spec = InputSpec(96, 96)
    fast, exact = loaded(path, spec), loaded(path, spec, exact=True)
    assert psnr(fast.pixels, exact.pixels) > 45
    assert (fast.width, fast.height) == (exact.width, exact.height) == (1600, 1200)
    assert open_rgb(path, target=(96, 96)).size == (200, 150) or open_rgb(path, target=(96, 96)).size == (400, 300)
    assert open_rgb(path).size == (1600, 1200)


def test_a_jpeg_below_twice_the_input_is_decoded_in_full(tmp_path: Path) -> None:
    path = tmp_path / "small.jpg"
    path.write_bytes(encode(scene(180, 150), "JPEG"))
    spec = InputSpec(96, 96)
    np.testing.assert_array_equal(loaded(path, spec).pixels, loaded(path, spec, exact=True).pixels)


# ---- HEIC ------------------------------------------------------------------------------------------------------------

# Enough to tell what it is: the first box of a file, without any other.
HEIC_HEADER = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def heic(picture: PILImage.Image, **options: Any) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return encode(picture, "HEIF", **{"quality": 95, "chroma": 444, **options})


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where pillow-heif is not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(PILImage.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(PILImage, "ID", [name for name in PILImage.ID if name != "HEIF"])


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic", b"msf1\0\0\0\0hevcmsf1"])
def test_without_its_package_a_heic_says_what_to_install_and_is_no_bad_file(tmp_path: Path, brands: bytes) -> None:
    path = tmp_path / "telephone.jpg"
    path.write_bytes(HEIC_HEADER.replace(b"heic\0\0\0\0mif1heic", brands))
    found = load_image(path, SPEC)
    assert isinstance(found, Failure)
    assert (found.stage, "[heif]'" in found.reason) == ("read", True)
    assert_one_line(found.reason)


@pytest.mark.usefixtures("without_heif")
def test_without_that_package_all_else_is_read(photos: dict[str, Any]) -> None:
    for name, photo in photos.items():
        if b"ftyphe" not in photo.content[:12]:
            assert difference(open_rgb(photo.content), photo.expected) <= photo.tolerance, name


def test_the_exif_orientation_of_a_heic_is_only_information() -> None:
    """Its own boxes turn it; ISO/IEC 23008-12 gives the tag no effect, and telephones' editors leave stale ones."""
    exif = PILImage.Exif()
    exif[274] = 6
    content = heic(scene(), exif=exif)  # from this type of argument pillow-heif writes no boxes
    assert b"irot" not in content
    assert difference(open_rgb(content), scene()) < 2


def test_a_heic_is_known_by_any_of_its_brands() -> None:
    content = heic(scene())
    general = content[:8] + b"mif1" + content[12:]
    assert difference(open_rgb(general), open_rgb(content)) == 0


def test_the_thumbnail_in_a_heic_does_not_stand_in_for_it() -> None:
    content = heic(scene(400, 300), thumbnails=[200])
    assert open_rgb(content, target=(48, 48)).size == (400, 300)


def test_the_package_for_heic_is_imported_when_one_comes(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(heic(scene()))
    (tmp_path / "b.png").write_bytes(encode(scene(), "PNG"))
    code = (
        "import sys; from mineral_batch import InputSpec, load_image\n"
        "for name in ('b.png', 'a.heic'):\n"
        "    print(type(load_image(name, InputSpec(8, 8))).__name__, 'pillow_heif' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["Image False", "Image True"]


# ---- damage ----------------------------------------------------------------------------------------------------------

SOURCES = [
    encode(scene(), kind, **options)
    for kind, options in (
        ("JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TGA", {}),
        ("PPM", {}),
    )
]


try:
    SOURCES.append(heic(scene()))
    SOURCES.append(encode(scene(), "AVIF"))
except (KeyError, OSError, pytest.skip.Exception):  # optional here
    pass


def assert_one_line(reason: str) -> None:
    assert reason.strip()
    assert len(reason.splitlines()) == 1
    assert " at 0x" not in reason


@pytest.mark.filterwarnings("ignore:::PIL")
def test_every_damaged_file_is_a_failure_with_a_reason(tmp_path: Path, damaged: dict[str, bytes]) -> None:
    for name, content in damaged.items():
        path = tmp_path / name
        path.write_bytes(content)
        for exact in (False, True):
            found = load_image(path, SPEC, exact=exact)
            assert isinstance(found, Failure), name
            assert found.path == str(path)
            assert found.stage == ("decode" if content else "read")
            assert_one_line(found.reason)


@pytest.mark.filterwarnings("ignore:::PIL")
def test_open_rgb_raises_only_picture_errors(damaged: dict[str, bytes]) -> None:
    for name, content in damaged.items():
        with pytest.raises(ImageError) as caught:
            open_rgb(content)
        assert str(caught.value), name


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("content", SOURCES)
def test_a_file_cut_short_is_never_a_picture_with_a_hole(content: bytes) -> None:
    """Only what lies behind the last pixel may be missing; half a picture would be a confident wrong answer."""
    whole = np.asarray(open_rgb(content))
    read = 0
    for length in {*range(0, len(content), max(1, len(content) // 60)), *range(len(content) - 30, len(content))}:
        try:
            picture = open_rgb(content[:length])
        except ImageError:
            continue
        np.testing.assert_array_equal(picture, whole)
        read += 1
    assert read <= 30


def test_a_damaged_tiff_is_told_in_its_row_and_not_on_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.tif"
    grain = PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8))
    for compression in ("tiff_lzw", "tiff_adobe_deflate"):
        content = encode(grain, "TIFF", compression=compression)
        path.write_bytes(content[:200] + bytes(200) + content[400:])
        assert isinstance(load_image(path, SPEC), Failure)
    assert capfd.readouterr() == ("", "")


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageError, match="48 x 36"):
        open_rgb(encode(scene(), "PNG"), max_pixels=48 * 36 - 1)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(encode(scene(), "PNG"))
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    found = load_image(path, SPEC)
    assert isinstance(found, Failure)
    assert (found.stage, "100" in found.reason) == ("read", True)


def _missing(folder: Path) -> Path:
    return folder / "missing.jpg"


def _folder(folder: Path) -> Path:
    (folder / "folder.jpg").mkdir()
    return folder / "folder.jpg"


def _dangling(folder: Path) -> Path:
    (folder / "dangling.jpg").symlink_to("nowhere")
    return folder / "dangling.jpg"


def _loop(folder: Path) -> Path:
    (folder / "loop.jpg").symlink_to("loop.jpg")
    return folder / "loop.jpg"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.jpg")
    return folder / "pipe.jpg"


@pytest.mark.parametrize("make", [_missing, _folder, _dangling, _loop, _pipe])
def test_what_is_no_file_is_a_failure_to_read(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    found = load_image(make(tmp_path), SPEC)
    assert isinstance(found, Failure)
    assert found.stage == "read"
    assert_one_line(found.reason)
    assert str(tmp_path) not in found.reason


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid picture with flipped bits, a cut, another file's header, or a field of its header overwritten."""
    content = bytearray(draw(st.sampled_from(SOURCES)))
    kind = draw(st.sampled_from(["flip", "header", "cut", "swap", "insert"]))
    if kind == "flip":
        for _ in range(draw(st.integers(1, 8))):
            content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif kind == "header":
        at = draw(st.integers(0, 60))
        number = draw(st.sampled_from([0, 1, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
        content[at : at + 4] = struct.pack(draw(st.sampled_from(["<I", ">I"])), number)
    elif kind == "cut":
        del content[draw(st.integers(0, len(content))) :]
    elif kind == "swap":
        length = draw(st.integers(1, 32))
        content[:length] = draw(st.sampled_from(SOURCES))[:length]
    else:
        at = draw(st.integers(0, len(content)))
        content[at:at] = draw(st.binary(min_size=1, max_size=64))
    return bytes(content)


# Pillow warns about damaged metadata; that a picture survives it is what is tested.
@pytest.mark.filterwarnings("ignore:::PIL")
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=mutated() | st.binary(max_size=200), exact=st.booleans())
def test_no_bytes_at_all_raise(tmp_path_factory: pytest.TempPathFactory, content: bytes, exact: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.bin"
    path.write_bytes(content)
    # A header may promise gigabytes; the limit is tested above.
    found = decode_image(str(path), path.read_bytes, SPEC, exact=exact, max_pixels=4_000_000)
    if isinstance(found, Failure):
        assert found.stage in {"read", "decode"}
        assert_one_line(found.reason)
    else:
        assert found.pixels.shape == (24, 32, 3)
        assert found.pixels.dtype == np.uint8
        assert found.width * found.height <= 4_000_000
