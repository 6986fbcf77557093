"""Decoding in processes: the same pixels as in threads, and a process that dies costs only the image it died of."""

from __future__ import annotations

import io
import os
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch import BackendError, Failure, InputSpec, Prediction, Predictor
from mineral_batch.images.decode import load_image
from mineral_batch.images.discover import find_sources
from mineral_batch.images.processes import supervisor
from mineral_batch.images.processes.pool import DecodeProcesses, is_supported
from mineral_batch.types import Image, Source

pytestmark = pytest.mark.skipif(not is_supported(), reason="decode processes need POSIX")

SPEC = InputSpec(32, 48)


def photo(seed: int, size: tuple[int, int] = (90, 70)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    PILImage.fromarray(noise).resize(size).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for index in range(21):
        (folder / f"{index:02}.jpg").write_bytes(photo(index))
    (folder / "05.jpg").write_bytes(b"not an image")
    return folder


def decoded(pool: DecodeProcesses, sources: list[Source | Failure]) -> list[Image | Failure]:
    pixels = pool.buffer(len(sources))
    results = [result for future in pool.fill(pixels, sources) for result in future.result(600)]
    for result in results:
        if isinstance(result, Image):
            result.__dict__["pixels"] = result.pixels.copy()
    pool.release(pixels)
    return results


@pytest.fixture
def pool():
    opened = DecodeProcesses(SPEC, count=2, seconds_per_image=30)
    yield opened
    opened.close()


def assert_same(result: Image | Failure, expected: Image | Failure) -> None:
    assert type(result) is type(expected)
    if isinstance(expected, Failure):
        assert result == expected
    else:
        assert isinstance(result, Image)
        assert (result.path, result.width, result.height) == (expected.path, expected.width, expected.height)
        np.testing.assert_array_equal(result.pixels, expected.pixels)


def test_the_pixels_are_those_of_the_other_roads(album: Path, pool: DecodeProcesses, tmp_path: Path) -> None:
    names = sorted(album.iterdir())
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("a.jpg", photo(50))
    sources: list[Source | Failure] = [*find_sources([album, tmp_path / "more.zip"])]
    sources.insert(2, Failure("a folder", "read", "Permission denied"))
    in_memory = PILImage.new("RGBA", (60, 60), (255, 0, 0, 128))
    sources.append(Source("in memory", 0, 0, lambda: in_memory))
    for _ in range(2):  # the second time in a buffer that was used before
        results = decoded(pool, sources)
        assert results.pop(2) is sources[2]
        for result, name in zip(results, names, strict=False):
            assert_same(result, load_image(name, SPEC))
        assert [Path(result.path).name for result in results[-2:]] == ["a.jpg", "in memory"]
        assert all(isinstance(result, Image) for result in results[-2:])
        results.insert(2, sources[2])  # type: ignore[arg-type]


def test_a_process_that_is_killed_loses_no_image(album: Path, pool: DecodeProcesses) -> None:
    sources = list(find_sources([album]))
    expected = [load_image(name, SPEC) for name in sorted(album.iterdir())]
    for _ in range(5):
        pixels = pool.buffer(len(sources))
        futures = pool.fill(pixels, sources)
        for worker in pool._workers:
            os.kill(worker._process.pid, signal.SIGKILL)
        results = [result for future in futures for result in future.result(600)]
        for result, wanted in zip(results, expected, strict=True):
            assert_same(result, wanted)
        pool.release(pixels)


class _Crash:
    """What a hostile file does to a decoder, for files whose content says so; installed in the processes only."""

    START = """
import os, signal, time
from mineral_batch.images.processes import worker
decode = worker.decode_image
def crashing(name, read, *args, **kwargs):
    content = read()
    if content.startswith(b"SIGNAL "):
        os.kill(os.getpid(), int(content[7:]))
    if content.startswith(b"SLEEP"):
        time.sleep(600)
    return decode(name, lambda: content, *args, **kwargs)
worker.decode_image = crashing
worker.main()
"""


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "_START", _Crash.START)
    opened = DecodeProcesses(SPEC, count=2, seconds_per_image=3)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("content", "stage", "reason"),
    [
        (b"SIGNAL 11", "decode", "crashed on it twice (SIGSEGV)"),
        (b"SIGNAL 9", "read", "ended twice (SIGKILL); memory may have run out"),
        (b"SLEEP", "decode", "takes more than 3 seconds"),
    ],
)
def test_an_image_that_ends_its_process_is_a_failure_and_its_neighbors_are_not(
    album: Path, crashing: DecodeProcesses, content: bytes, stage: str, reason: str
) -> None:
    for name in ("03.jpg", "04.jpg", "17.jpg"):
        (album / name).write_bytes(content)
    results = decoded(crashing, list(find_sources([album])))
    for result, name in zip(results, sorted(album.iterdir()), strict=True):
        if name.read_bytes() == content:
            assert isinstance(result, Failure)
            assert result.stage == stage
            assert reason in result.reason
        else:
            assert_same(result, load_image(name, SPEC))


def test_processes_that_cannot_start_are_an_error_with_the_way_out(
    album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_START", "raise SystemExit(1)")
    pool = DecodeProcesses(SPEC, count=1)
    pixels = pool.buffer(8)
    with pytest.raises(BackendError, match="--decode-processes 0"):
        pool.fill(pixels, list(find_sources([album]))[:8])[0].result(600)
    pool.close()


def test_a_predictor_answers_the_same_with_threads_and_with_processes(album: Path, model_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with Predictor(model_path, backend="onnx-cpu", decode_processes=0) as predictor:
        expected = list(predictor.predict([album]))
    with Predictor(model_path, backend="onnx-cpu", decode_processes=2) as predictor:
        for _ in range(2):
            results = list(predictor.predict([album]))
            assert [type(result) for result in results] == [type(result) for result in expected]
            for result, wanted in zip(results, expected, strict=True):
                if isinstance(wanted, Prediction):
                    np.testing.assert_array_equal(result.probabilities, wanted.probabilities)
                else:
                    assert result == wanted
        unfinished = predictor.predict([album])
        next(unfinished)
        children = [worker._process for worker in predictor._processes._workers]
    assert all(child.poll() is not None for child in children)


def test_processes_end_when_their_parent_is_gone(album: Path) -> None:
    pool = DecodeProcesses(SPEC, count=1)
    child = pool._workers[0]._process
    decoded(pool, list(find_sources([album]))[:2])
    child.stdin.close()
    assert child.wait(300) == 0
    pool.close()


def test_images_larger_than_a_process_s_share_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes the lock, and says so by a file that must not be there yet; waiting is no lack of progress."""
    start = """
import os, time
from mineral_batch.images import budget
from mineral_batch.images.processes import worker
budget._ALWAYS = budget._share_of_memory = lambda processes: 1000
budget._ALWAYS = 1
real = worker._Worker._alone
from contextlib import contextmanager
@contextmanager
def watched(self):
    with real(self):
        mark = os.open(os.environ["MARK"], os.O_CREAT | os.O_EXCL)
        time.sleep(0.5)
        yield
        os.close(mark)
        os.unlink(os.environ["MARK"])
worker._Worker._alone = watched
worker.main()
"""
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setattr(supervisor, "_START", start)
    folder = tmp_path / "large"
    folder.mkdir()
    for index in range(16):
        (folder / f"{index:02}.jpg").write_bytes(photo(index))
    opened = DecodeProcesses(SPEC, count=2, seconds_per_image=2)
    try:
        results = decoded(opened, list(find_sources([folder])))
    finally:
        opened.close()
    for result, name in zip(results, sorted(folder.iterdir()), strict=True):
        assert_same(result, load_image(name, SPEC))
