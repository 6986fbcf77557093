"""Memory is bounded: limits before decoding, large images wait for each other, conversions go by bands of rows."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch import Failure, InputSpec
from mineral_batch.errors import ImageError
from mineral_batch.images import budget as budget_module
from mineral_batch.images import color, formats, limits
from mineral_batch.images.budget import MemoryBudget, decode_budget, decoded_size
from mineral_batch.images.decode import decode_image, open_rgb
from mineral_batch.images.jpeg import damage

from ..conftest import encode, scene

SPEC = InputSpec(height=24, width=32)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises its size and has next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((1, 255_000_000), "over the limit of 500000 pixels a side"),
        ((255_000_000, 1), "over the limit of 500000 pixels a side"),
        ((20_000, 20_000), r"over the limit of 256000000 pixels \(--max-pixels; in Python: max_pixels\)"),
        ((16_000, 15_999), "bytes cannot hold 16000 x 15999 pixels"),
    ],
)
def test_what_cannot_be_right_is_refused_before_memory_is_set_aside(size: tuple[int, int], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        open_rgb(png_header(*size))


def test_a_lack_of_memory_is_no_verdict_on_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(PILImage.Image, "resize", no_memory)
    found = decode_image("a", lambda: encode(scene(), "PNG"), SPEC)
    assert isinstance(found, Failure)
    assert found.stage == "read", "it is tried again in the next run"


def test_large_images_wait_for_each_other_and_small_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "_ALWAYS", 10)
    budget = MemoryBudget(100)
    entered, release = threading.Event(), threading.Event()
    order: list[str] = []

    def hold() -> None:
        with budget.reserve(80):
            entered.set()
            release.wait(120)
            order.append("first")

    def wait() -> None:
        with budget.reserve(5000):  # more than there is: alone
            order.append("second")

    threads = [threading.Thread(target=hold), threading.Thread(target=wait)]
    threads[0].start()
    assert entered.wait(120)
    threads[1].start()
    with budget.reserve(9):
        order.append("small")
    release.set()
    for thread in threads:
        thread.join(120)
    assert order == ["small", "first", "second"]
    with budget.reserve(100):
        pass


def test_the_budget_is_given_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "_ALWAYS", 0)
    content = encode(scene(), "PNG")
    for _ in range(20):
        assert isinstance(decode_image("a", lambda: content[: len(content) // 2], SPEC), Failure)
    budget = decode_budget()
    with budget.reserve(budget.total):
        pass


def test_the_budget_knows_what_decoding_takes() -> None:
    with PILImage.open(io_of(encode(scene(64, 48), "JPEG"))) as image:
        assert decoded_size(image, image.size) == 64 * 48 * 8
    with PILImage.open(io_of(encode(scene(64, 48), "JPEG", progressive=True))) as image:
        assert decoded_size(image, image.size) > 64 * 48 * 8


def io_of(content: bytes) -> Any:
    import io

    return io.BytesIO(content)


def test_bands_give_the_same_pixels(monkeypatch: pytest.MonkeyPatch, photos: dict[str, Any]) -> None:
    whole = {name: np.asarray(open_rgb(photo.content)) for name, photo in photos.items()}
    monkeypatch.setattr(color, "_BAND", 200)
    for name, photo in photos.items():
        np.testing.assert_array_equal(np.asarray(open_rgb(photo.content)), whole[name], name)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF"])
def test_the_limit_of_pixels_is_the_callers(kind: str) -> None:
    content = encode(scene(64, 48), kind)
    assert open_rgb(content, max_pixels=64 * 48).size == (64, 48)
    with pytest.raises(
        ImageError, match=r"64 x 48 is over the limit of 3071 pixels \(--max-pixels; in Python: max_pixels\)"
    ):
        open_rgb(content, max_pixels=64 * 48 - 1)


def test_a_higher_limit_is_not_refused_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns from here on and refuses twice that
    assert open_rgb(encode(scene(64, 48), "PNG"), max_pixels=64 * 48).size == (64, 48)


def test_an_image_that_needs_more_memory_than_there_is_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "_ALWAYS", 0)
    monkeypatch.setattr(budget_module, "_own", [MemoryBudget(1000, most=64 * 48 * 8 - 1)])
    found = decode_image("a", lambda: encode(scene(64, 48), "PNG"), SPEC)
    assert isinstance(found, Failure)
    assert (found.stage, "not enough memory" in found.reason) == ("read", True)


def with_many_pieces(kind: str, count: int) -> bytes:
    """An image in whose header something is repeated."""
    jpeg, png = encode(scene(), "JPEG"), encode(scene(), "PNG")
    chunk = bytes(4) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    return {
        "comment": b"P6\n#" + b"x" * count + b"\n4 4\n255\n" + bytes(48),
        "fill": jpeg[:2] + b"\xff" * count + jpeg[2:],
        "junk": jpeg[:2] + b"\xff\xe9\x00\x02" + b"x" * count + jpeg[2:],
        "segments": jpeg[:2] + b"\xff\xe9\x00\x02" * count + jpeg[2:],
        "chunks": png[:33] + chunk * count + png[33:],
        "pixels": b"qoif" + struct.pack(">IIBB", count, 1, 3, 0) + bytes(count) + b"\0\0\0\0\0\0\0\1",
    }[kind]


@pytest.mark.parametrize("kind", ["comment", "fill", "junk", "segments", "chunks", "pixels"])
def test_what_is_read_byte_by_byte_is_bounded(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(limits, "_MAX_READS", 1000)
    if kind != "junk":  # which is damage
        open_rgb(with_many_pieces(kind, 20))
    with pytest.raises(ImageError, match="more than the limit of 1000 pieces to read"):
        open_rgb(with_many_pieces(kind, 2000))


def test_numbers_as_text_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    image = b"P3\n4 4\n255\n" + b"7 " * 48
    assert open_rgb(image).size == (4, 4)
    monkeypatch.setattr(formats, "_MAX_PLAIN_NUMBERS", len(image) - 1)
    with pytest.raises(ImageError, match="bytes of numbers as text are over the limit"):
        open_rgb(image)


def test_scans_are_bounded_by_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(scene(64, 48), "JPEG", progressive=True)
    last = content.rfind(b"\xff\xda")
    many = content[:-2] + content[last:-2] * 30 + content[-2:]
    open_rgb(many)
    monkeypatch.setattr(damage, "_MAX_SCANNED_PIXELS", 64 * 48 * 25)
    open_rgb(content)
    with pytest.raises(ImageError, match="more than the limit of 25 scans for an image of 3072 pixels"):
        open_rgb(many)


THREADS = """
import sys, threading
from pathlib import Path
from mineral_batch.images.decode import open_rgb

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if "RssAnon" in line)

content, stop, held = Path(sys.argv[1]).read_bytes(), threading.Event(), []
for _ in range(8):
    done = threading.Event()
    def work(done=done):
        open_rgb(content)
        done.set()
        stop.wait()
    threading.Thread(target=work).start()
    done.wait()
    held.append(anonymous())
stop.set()
print(held[0], held[-1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_one_thread_has_freed_is_there_for_the_next(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(PILImage.new("RGBA", (4000, 3000)), "PNG"))
    program: list[Any] = [sys.executable, "-c", THREADS, tmp_path / "a.png"]
    first, last = map(int, subprocess.run(program, capture_output=True, text=True, check=True).stdout.split())
    assert last - first < 200_000, "kB: two images at most"
