"""A tiny real model, and photographs in every form that users have them in."""

from __future__ import annotations

import importlib
import io
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch import InputSpec, ModelContract
from mineral_batch.model.calibration import Calibration, ProbabilityScores
from mineral_batch.model.onnx_file import write_contract

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# A comma, a space and letters outside ASCII: what a table must survive.
LABELS = ("agate", "beryl, blue", "Größe °", "gold", "квarц")
THRESHOLDS = (0.5, 0.25, 0.6, 0.4, 0.5)
# Not square, so that rows and columns cannot be exchanged unnoticed.
SPEC = InputSpec(height=24, width=32, interpolation="bilinear")


@pytest.fixture(scope="session")
def contract() -> ModelContract:
    """Five labels, an input of 24 rows and 32 columns, calibrated."""
    scores = ProbabilityScores(0.01, 0.1, 0.02)
    count = len(LABELS)
    calibration = Calibration(
        "Platt", "twenty images", 20, "2026-01-02", (1.0,) * count, (0.0,) * count, (4,) * count, scores, scores
    )
    known = {"name": "tiny", "license": "CC0-1.0", "calibration": calibration}
    return ModelContract(labels=LABELS, thresholds=THRESHOLDS, input=SPEC, **known)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory, contract: ModelContract) -> Path:
    """A real ONNX model: normalize, mean color over a 3 x 4 grid, one linear layer, sigmoid."""
    onnx = pytest.importorskip("onnx", reason="the tiny model is built with the onnx package")
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    onnx.save(tiny_model(onnx, SPEC, len(LABELS)), str(path))
    write_contract(path, contract)
    return path


@pytest.fixture(scope="session")
def bare_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without a contract."""
    onnx = pytest.importorskip("onnx", reason="the tiny model is built with the onnx package")
    path = tmp_path_factory.mktemp("model") / "bare.onnx"
    onnx.save(tiny_model(onnx, SPEC, len(LABELS)), str(path))
    return path


def tiny_model(onnx: Any, spec: InputSpec, labels: int) -> Any:
    """ModelProto: `pixels` uint8 (N, H, W, 3) -> `probabilities` float32 (N, labels); place and color matter."""
    helper, numpy_helper, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    cell = 8
    cells = (spec.height // cell) * (spec.width // cell) * 3
    weights = np.random.default_rng(7).normal(0, 0.7, (cells, labels))
    constants = {
        "scale": np.float32(255),
        "mean": np.array(spec.mean, np.float32),
        "std": np.array(spec.std, np.float32),
        "weights": weights.astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=kind.FLOAT),
        helper.make_node("Div", ["cast", "scale"], ["unit"]),
        helper.make_node("Sub", ["unit", "mean"], ["centered"]),
        helper.make_node("Div", ["centered", "std"], ["normal"]),
        helper.make_node("Transpose", ["normal"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["grid"], kernel_shape=[cell, cell], strides=[cell, cell]),
        helper.make_node("Flatten", ["grid"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", kind.UINT8, ["N", spec.height, spec.width, 3])],
        [helper.make_tensor_value_info("probabilities", kind.FLOAT, ["N", labels])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@dataclass(frozen=True)
class Encoded:
    """A photograph as bytes, and the upright RGB pixels (H, W, 3) uint8 that a right decoder makes of it."""

    content: bytes
    expected: NDArray[np.uint8]
    #: largest mean absolute difference per pixel that the codec's loss explains, of 255.
    tolerance: float = 0.0


def scene(width: int = 48, height: int = 36, seed: int = 0) -> PILImage.Image:
    """A smooth picture that no flip or turn maps to itself, with a red corner at the top left."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    phases = rng.uniform(0.2, 1.0, (3, 2))
    planes = [127 + 80 * np.sin(3 * a * x + 2 * b * y + c) for c, (a, b) in enumerate(phases)]
    pixels = np.stack(planes, axis=-1)
    pixels[: height // 4, : width // 4] = (220, 40, 30)
    return PILImage.fromarray(pixels.round().astype(np.uint8))


def encode(picture: PILImage.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a picture in one of Pillow's formats."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def can_write(kind: str) -> bool:
    """Whether this build of Pillow has the codec, or, for HEIF, whether the extra package is there."""
    PILImage.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    try:
        encode(scene(), kind)
    except (KeyError, OSError, ValueError):
        return False
    return True


def awkward_photos() -> dict[str, Encoded]:
    """File name -> a photograph that must be read, in every mode and container that is met in collections."""
    color = scene()
    rgb = np.asarray(color)
    optional = {
        "lossless.webp": ("WEBP", {"lossless": True}, 0.0),
        "lossy.webp": ("WEBP", {"quality": 95}, 4.0),
        "lossy.avif": ("AVIF", {"quality": 95, "subsampling": "4:4:4"}, 4.0),
        "telephone.heic": ("HEIF", {"quality": 95, "chroma": 444}, 4.0),
        "a HEIC called.jpg": ("HEIF", {"quality": 95, "chroma": 444}, 4.0),
        "lossless.jp2": ("JPEG2000", {}, 0.0),
        "multi.mpo": ("MPO", {"quality": 98, "save_all": True, "append_images": [_black(color)]}, 4.0),
        "animated.webp": ("WEBP", {"lossless": True, "save_all": True, "append_images": [_black(color)]}, 0.0),
    }
    photos = {
        name: Encoded(encode(color, kind, **options), rgb, tolerance)
        for name, (kind, options, tolerance) in optional.items()
        if can_write(kind)
    }
    return photos | _plain(color) | _gray(color) | _transparent(color) | _unusual(color)


def _plain(color: PILImage.Image) -> dict[str, Encoded]:
    rgb = np.asarray(color)
    options = {"quality": 98, "subsampling": 0}
    return {
        "plain.png": Encoded(encode(color, "PNG"), rgb),
        "baseline.jpg": Encoded(encode(color, "JPEG", **options), rgb, 2.0),
        "progressive.jpeg": Encoded(encode(color, "JPEG", progressive=True, **options), rgb, 2.0),
        "bitmap.bmp": Encoded(encode(color, "BMP"), rgb),
        "truevision.tga": Encoded(encode(color, "TGA"), rgb),
        "portable.ppm": Encoded(encode(color, "PPM"), rgb),
        "raw.tif": Encoded(encode(color, "TIFF"), rgb),
        "lzw.tiff": Encoded(encode(color, "TIFF", compression="tiff_lzw"), rgb),
        "animated.png": Encoded(encode(color, "PNG", save_all=True, append_images=[_black(color)]), rgb),
        "a PNG called.jpg": Encoded(encode(color, "PNG"), rgb),
        "a JPEG called.png": Encoded(encode(color, "JPEG", **options), rgb, 2.0),
        "CAPITALS.JPG": Encoded(encode(color, "JPEG", **options), rgb, 2.0),
    }


def _gray(color: PILImage.Image) -> dict[str, Encoded]:
    gray = color.convert("L")
    values = np.asarray(gray)
    expected = np.repeat(values[..., None], 3, axis=-1)
    sixteen = PILImage.fromarray(values.astype(np.uint16) * 257)
    integers = PILImage.fromarray(values.astype(np.int32) * 257)
    unit = PILImage.fromarray((values / 255).astype(np.float32))
    reflectance = PILImage.fromarray(values.astype(np.float32) * 40)
    highest = np.repeat((values / values.max() * 255).round().astype(np.uint8)[..., None], 3, axis=-1)
    bits = gray.point(lambda value: 255 * (value > 127)).convert("1")
    black_white = np.repeat((values > 127)[..., None] * np.uint8(255), 3, axis=-1)
    return {
        "gray.jpg": Encoded(encode(gray, "JPEG", quality=98), expected, 2.0),
        "gray.png": Encoded(encode(gray, "PNG"), expected),
        "16 bits.png": Encoded(encode(sixteen, "PNG"), expected),
        "16 bits.tif": Encoded(encode(sixteen, "TIFF"), expected),
        "16 bits.pgm": Encoded(encode(integers, "PPM"), expected),
        "32 bits.tif": Encoded(encode(integers, "TIFF"), expected),
        "float 0 to 1.tif": Encoded(encode(unit, "TIFF"), expected),
        "float above 1.tif": Encoded(encode(reflectance, "TIFF"), highest, 0.51),
        "1 bit.png": Encoded(encode(bits, "PNG"), black_white),
        "fax.tif": Encoded(encode(bits, "TIFF", compression="group4"), black_white),
    }


def _transparent(color: PILImage.Image) -> dict[str, Encoded]:
    alpha = PILImage.linear_gradient("L").resize(color.size)
    rgba = color.copy()
    rgba.putalpha(alpha)
    gray_alpha = color.convert("L")
    gray_alpha.putalpha(alpha)
    gray = np.asarray(color.convert("L").convert("RGB"))
    on_white = _over_white(np.asarray(color), np.asarray(alpha))
    palette = color.quantize(32)
    see_through = np.asarray(palette) == 3
    holes = np.asarray(palette.convert("RGB")).copy()
    holes[see_through] = 255
    corner = np.asarray(color).copy()
    corner[:9, :12] = 255  # the corner's own color is declared transparent
    return {
        "rgba.png": Encoded(encode(rgba, "PNG"), on_white, 1.0),
        "rgba.tif": Encoded(encode(rgba, "TIFF"), on_white, 1.0),
        "gray and alpha.png": Encoded(encode(gray_alpha, "PNG"), _over_white(gray, np.asarray(alpha)), 1.0),
        "palette hole.png": Encoded(encode(palette, "PNG", transparency=3), holes),
        "palette hole.gif": Encoded(encode(palette, "GIF", transparency=3), holes),
        "color key.png": Encoded(encode(color, "PNG", transparency=(220, 40, 30)), corner),
    }


def _unusual(color: PILImage.Image) -> dict[str, Encoded]:
    palette = color.quantize(64)
    flat = np.asarray(palette.convert("RGB"))
    cmyk = color.convert("CMYK")
    inked = np.asarray(cmyk.convert("RGB"))
    return {
        "cmyk.jpg": Encoded(encode(cmyk, "JPEG", quality=98, subsampling=0), inked, 3.0),  # inverted, as Adobe does
        "cmyk.tif": Encoded(encode(cmyk, "TIFF"), inked),
        "palette.png": Encoded(encode(palette, "PNG"), flat),
        "animated.gif": Encoded(encode(palette, "GIF", save_all=True, append_images=[_black(color)]), flat),
    }


def _black(picture: PILImage.Image) -> PILImage.Image:
    return PILImage.new("RGB", picture.size)


def _over_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    share = alpha[..., None] / 255.0
    blended: NDArray[np.uint8] = (rgb * share + 255 * (1 - share)).round().astype(np.uint8)
    return blended


def damaged_files() -> dict[str, bytes]:
    """File name -> content of which no picture can be made."""
    large = PILImage.fromarray(np.random.default_rng(1).integers(0, 256, (90, 120, 3)).astype(np.uint8))
    png = encode(scene(), "PNG")
    width_and_height = (1_000_000).to_bytes(4, "big") * 2
    kinds = {"JPEG": "jpg", "PNG": "png", "TIFF": "tif", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "AVIF": "avif"}
    kinds["HEIF"] = "heic"
    cut = {
        f"truncated at {share:.0%}.{suffix}": (whole := encode(large, kind))[: int(len(whole) * share)]
        for kind, suffix in kinds.items()
        if can_write(kind)
        for share in (0.1, 0.5, 0.9)
    }
    return cut | {
        "empty.jpg": b"",
        "one byte.png": b"\x89",
        "text.jpg": b"404 Not Found\n",
        "noise.jpg": np.random.default_rng(2).bytes(5000),
        "html.webp": b"<!DOCTYPE html><title>Moved</title>",
        # The header promises a square of a million pixels a side.
        "bomb.png": png[:16] + width_and_height + png[24:29] + _crc(b"IHDR" + width_and_height + png[24:29]) + png[33:],
        # Would start Ghostscript on whatever the file says.
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n",
    }


def _crc(chunk: bytes) -> bytes:
    import zlib

    return zlib.crc32(chunk).to_bytes(4, "big")


#: Names that break naive tables, shells and logs; all are legal on Linux.
ODD_NAMES = (
    b"new\nline.jpg",
    b"carriage\rreturn.jpg",
    b"comma, semicolon; tab\t.jpg",
    b"\"quoted\" and 'single'.jpg",
    b"=cmd()|' C calc'!A0.jpg",
    b"-o.jpg",
    b"--help.jpg",
    "émeraude 翡翠 💎.jpg".encode(),
    b"not utf-8 \xff\xfe\xe9.jpg",
    b"percent %s {brace}.jpg",
    b" leading and trailing .jpg",
    b"n" * 251 + b".jpg",
)


@pytest.fixture(scope="session")
def photos() -> dict[str, Encoded]:
    """See `awkward_photos`."""
    return awkward_photos()


@pytest.fixture(scope="session")
def damaged() -> dict[str, bytes]:
    """See `damaged_files`."""
    return damaged_files()


@pytest.fixture
def odd_names() -> tuple[bytes, ...]:
    """See `ODD_NAMES`."""
    return ODD_NAMES


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A folder of eleven different photographs."""
    folder = tmp_path / "album"
    folder.mkdir()
    for index in range(11):
        width, height = 40 + 7 * index, 90 - 5 * index
        (folder / f"{index:02}.png").write_bytes(encode(scene(width, height, seed=index), "PNG"))
    return folder
