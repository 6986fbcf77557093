"""What stops a run loses nothing: inputs that vanish, full disks, a second run, kills."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from mineral_batch import DataError, Predictor
from mineral_batch.images.processes.pool import is_supported
from mineral_batch.results import attempt
from mineral_batch.results.check import check
from mineral_batch.results.journal import Journal
from mineral_batch.results.run import run
from mineral_batch.results.write import Tables

onnxruntime = pytest.importorskip("onnxruntime")

ALL = Tables(("csv", "jsonl"), per_image=True, columns=("size",))


def outcome(folder: Path) -> dict[str, bytes]:
    """Everything a run leaves that must not depend on how it came about."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("journal.") and path.name != "run.json"
    }


def table(folder: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_an_input_that_vanishes_ends_the_run_and_loses_nothing(
    album: Path, tmp_path: Path, predictor: Predictor
) -> None:
    for index in range(200):
        shutil.copy(album / "00.png", album / f"more {index:03}.png")
    run(predictor, [album], tmp_path / "reference")
    away, out = tmp_path / "away", tmp_path / "out"
    count = itertools.count(1)

    def unplug(_result: object) -> None:
        if next(count) == 2:
            album.rename(away)

    with pytest.raises(DataError, match="album is no longer there; the results so far are saved") as caught:
        run(predictor, [album], out, seen=unplug)
    assert len(str(caught.value).splitlines()) == 1
    done = len(table(out, "predictions.partial.csv"))
    assert 2 <= done < 211
    away.rename(album)
    assert run(predictor, [album], out).reused == done
    assert outcome(out) == outcome(tmp_path / "reference")


@pytest.mark.parametrize("as_list", [False, True])
def test_one_file_that_vanishes_is_only_a_failure(
    album: Path, tmp_path: Path, predictor: Predictor, as_list: bool
) -> None:
    def remove(_result: object) -> None:
        (album / "last.png").unlink(missing_ok=True)

    for index in range(200):
        shutil.copy(album / "00.png", album / f"{index:03}.png")
    shutil.copy(album / "00.png", album / "last.png")
    inputs = sorted(album.iterdir()) if as_list else [album]
    report = run(predictor, inputs, tmp_path / "out", seen=remove)
    assert (report.predicted, report.failed) == (211, 1)
    assert table(tmp_path / "out", "failures.csv")[0]["stage"] == "read"


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="makes a pipe")
@pytest.mark.parametrize(
    "change", [_pipe, _folder, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\x89PNG")]
)
def test_what_a_file_becomes_during_a_run_is_one_row(
    album: Path, tmp_path: Path, predictor: Predictor, change: Callable[[Path], object]
) -> None:
    changed: list[int] = []

    def once(_result: object) -> None:
        if not changed:
            changed.append(1)
            change(album / "last.png")
            shutil.copy(album / "00.png", album / "zz-new.png")

    for index in range(200):
        shutil.copy(album / "00.png", album / f"{index:03}.png")
    shutil.copy(album / "00.png", album / "last.png")
    report = run(predictor, [album], tmp_path / "out", seen=once)
    assert report.failed == 1
    (album / "last.png").rmdir() if (album / "last.png").is_dir() else (album / "last.png").unlink()
    shutil.copy(album / "00.png", album / "last.png")
    run(predictor, [album], tmp_path / "out")
    run(predictor, [album], tmp_path / "reference")
    assert outcome(tmp_path / "out") == outcome(tmp_path / "reference")


def test_a_clock_that_goes_back_leaves_a_run_json_that_is_right(
    album: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=1)

    monkeypatch.setattr(attempt, "datetime", Ahead)  # for the start; the clock is put right before the end
    run(predictor, [album], tmp_path / "out")
    assert list(check(tmp_path / "out")) == []


def test_a_heic_is_predicted_by_the_next_run_once_its_package_is_there(
    album: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    with PILImage.open(album / "03.png") as picture:
        picture.save(album / "telephone.heic")
    run(predictor, [album], tmp_path / "reference", ALL)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        patch.delitem(PILImage.OPEN, "HEIF")
        patch.setattr(PILImage, "ID", [name for name in PILImage.ID if name != "HEIF"])
        run(predictor, [album], tmp_path / "out", ALL)
    (failure,) = table(tmp_path / "out", "failures.csv")
    assert failure["path"].endswith("telephone.heic")
    assert "[heif]'" in failure["reason"]
    report = run(predictor, [album], tmp_path / "out", ALL)
    assert (report.reused, report.predicted, report.failed) == (11, 12, 0)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "reference")


def test_a_full_disk_while_the_tables_are_written_leaves_them_for_the_next_run(
    album: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(predictor, [album], tmp_path / "reference", ALL)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"No space left on device; the results so far are saved: free some space"):
            run(predictor, [album], tmp_path / "out", ALL)
    assert not (tmp_path / "out/run.json").exists()
    assert run(predictor, [album], tmp_path / "out", ALL).reused == 11
    assert outcome(tmp_path / "out") == outcome(tmp_path / "reference")


@pytest.mark.parametrize("where", ["seen", "journal"])
def test_an_error_amid_the_results_ends_the_threads_at_once(
    album: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_: object) -> None:
        raise DataError("the disk is full")

    if where == "journal":
        monkeypatch.setattr(Journal, "add", fail)
    before = set(threading.enumerate())
    with pytest.raises(DataError, match="the disk is full") as caught:
        run(predictor, [album], tmp_path / "out", seen=fail if where == "seen" else lambda _: None)
    assert set(threading.enumerate()) <= before, "though the error is kept"
    assert caught.value.__traceback__ is not None


def test_a_second_run_into_the_same_folder_is_refused(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    refused: list[str] = []

    def start_another(_result: object) -> None:
        if not refused:
            with pytest.raises(DataError, match="another run is writing") as caught:
                run(predictor, [album], tmp_path / "out")
            refused.append(str(caught.value))

    assert run(predictor, [album], tmp_path / "out", seen=start_another).complete
    assert refused
    assert list(check(tmp_path / "out")) == []


def test_an_output_inside_the_input_is_no_input(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    out = album / "results"
    run(predictor, [album], out, ALL)
    before = outcome(out)
    assert run(predictor, [album], out, ALL).predicted == 11
    assert outcome(out) == before


@pytest.mark.slow
@pytest.mark.skipif(not is_supported(), reason="decode processes need POSIX")
def test_decode_processes_that_are_killed_at_random_cost_no_image_and_change_no_byte(
    album: Path, tmp_path: Path, model_path: Path
) -> None:
    folder, dice, kills = tmp_path / "many", random.Random(13), 0
    tables = Tables(("csv", "jsonl"), columns=("size",))
    folder.mkdir()
    for index in range(2000):
        (folder / f"{index:04}.png").symlink_to(album / f"{index % 11:02}.png")
    with Predictor(model_path, backend="onnx-cpu", decode_processes=0) as predictor:
        run(predictor, [folder], tmp_path / "threads", tables)
    with Predictor(model_path, backend="onnx-cpu", decode_processes=2) as predictor:

        def kill_one(_: object) -> None:
            nonlocal kills
            if dice.random() < 0.01 and predictor._processes is not None:
                with suppress(ProcessLookupError):  # that one has ended and is being replaced
                    os.kill(dice.choice(predictor._processes._workers)._process.pid, signal.SIGKILL)
                    kills += 1

        killed = run(predictor, [folder], tmp_path / "processes", tables, seen=kill_one)
        # An image whose process was killed twice over it is a failure, and tried again.
        again = run(predictor, [folder], tmp_path / "processes", tables)
    assert kills >= 10
    assert killed.predicted + killed.failed == again.predicted == 2000
    assert killed.failed <= kills // 2
    assert outcome(tmp_path / "processes") == outcome(tmp_path / "threads")


def killing(tmp_path: Path, album: Path, model_path: Path, kills: int, pictures: int) -> int:
    """Run killing.py over many links to a few pictures and two that are damaged."""
    folder = tmp_path / "many"
    for index in range(pictures):
        place = folder / f"{index % 7}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:05}.png").symlink_to(album / f"{index % 11:02}.png")
    (folder / "bad.png").write_bytes(b"damaged")
    (folder / "empty.png").write_bytes(b"")
    options = ["-m", str(model_path), "--backend", "onnx-cpu", "--batch-size", "2", "-q", "--layout", "per-image"]
    if kills and importlib.util.find_spec("pyarrow"):
        options += ["--format", "parquet"]
    program = [sys.executable, str(Path(__file__).with_name("killing.py")), str(kills), "1", str(tmp_path / "out")]
    arguments = [*options, "--format", "jsonl", "--columns", "size,captured", str(folder)]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@needs_fork
@pytest.mark.parametrize(
    ("kills", "pictures"), [(12, 300), pytest.param(50, 5000, marks=pytest.mark.soak)], ids=["12", "50"]
)
def test_killed_again_and_again_it_ends_with_the_same_bytes(
    album: Path, tmp_path: Path, model_path: Path, kills: int, pictures: int
) -> None:
    assert killing(tmp_path, album, model_path, kills, pictures) == kills
    reference = outcome(tmp_path / "out/reference")
    assert len(reference) >= pictures + 3
    assert outcome(tmp_path / "out/killed") == reference
    assert list(check(tmp_path / "out/killed")) == []


@needs_fork
def test_killed_before_any_operation_on_files_it_ends_with_the_same_bytes(
    album: Path, tmp_path: Path, model_path: Path
) -> None:
    operations = killing(tmp_path, album, model_path, 0, 2)
    assert operations > 10
    reference = outcome(tmp_path / "out/reference")
    for last in range(operations):
        assert outcome(tmp_path / "out" / str(last)) == reference, last
