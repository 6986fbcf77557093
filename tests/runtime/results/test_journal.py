"""What survives: kills while the journal is made, full disks, other releases, two runs at once."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch import DataError, Failure, Prediction
from mineral_batch.results import journal as journal_module
from mineral_batch.results.journal import JOURNAL, Journal
from mineral_batch.types import ExifInfo, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MADE_WITH = {"model": "abc", "engine": "onnx-cpu 1.0"}


def source(name: str, size: int = 1, modified: int = 2) -> Source:
    return Source(name, size, modified, bytes)


def answer(item: Source | Failure, value: float = 0.5, exif: ExifInfo | None = None) -> Prediction | Failure:
    if isinstance(item, Failure):
        return item
    return Prediction(item.name, np.array([value, 1 - value], np.float32), 40, 30, exif)


def work(journal: Journal, items: Iterable[Source | Failure], value: float = 0.5) -> list[str]:
    """Answer what the journal does not have; gives the names."""
    names = []
    for item in journal.unfinished(iter(list(items))):
        journal.add(answer(item, value))
        names.append(item.path if isinstance(item, Failure) else item.name)
    return names


def test_what_is_done_is_not_asked_again(tmp_path: Path) -> None:
    items = [source("b"), source("a"), Failure("folder", "read", "Permission denied"), source("c")]
    reused: list[None] = []
    with Journal(tmp_path, MADE_WITH) as journal:
        assert work(journal, items[:2]) == ["b", "a"]
        assert journal.counts() == (2, 0)
    with Journal(tmp_path, MADE_WITH) as journal:
        left = list(journal.unfinished(iter(items), reused.append))
        assert left == items[2:]
        assert len(reused) == 2
        for item in left:
            journal.add(answer(item))
        assert [result.path for result in journal.results()] == ["b", "a", "folder", "c"]
        assert journal.counts() == (3, 1)


def test_a_run_with_nothing_to_do_knows_what_one_that_did_it_counted(tmp_path: Path) -> None:
    """The counts and the digest, which it does not read from the file again, and each change of the digest."""
    broken = Failure("z", "decode", "truncated")
    items: list[Source | Failure] = [source("b"), source("a"), source("c"), source("z")]

    def state(listed: list[Source | Failure]) -> tuple[tuple[int, int], int, str]:
        with Journal(tmp_path, MADE_WITH) as journal:
            for item in journal.unfinished(iter(listed)):
                assert isinstance(item, Source)
                journal.add(broken if item.name == "z" else answer(item, 0.1 * item.size))
            return journal.counts(), journal.kept(), journal.digest()

    done = state(items)
    assert done[:2] == ((3, 1), 0)
    assert state(items) == done, "nothing to do"
    assert state([*items, items[0]]) == done, "a name that comes twice"
    digests = {done[2]}
    for listed, counts, kept in (
        (items[:2], (2, 0), 2),
        (items[::-1], (3, 1), 0),
        ([*items[:3], source("z", size=2)], (3, 1), 0),
        ([source("b", size=3), *items[1:]], (3, 1), 0),
    ):
        changed = state(listed)
        assert changed[:2] == (counts, kept)
        assert state(listed) == changed, "and again, with nothing to do"
        digests.add(changed[2])
    assert len(digests) == 5


def test_results_come_back_bit_for_bit(tmp_path: Path) -> None:
    name = os.fsdecode(b"odd \n \xff.jpg")
    values = np.array([1e-7, 0.1, 1.0], np.float32)
    taken = ExifInfo("2024-05-17T14:03:22", -12.51, 7.25)
    results = [Prediction(name, values, 4000, 3000, taken), Failure("é", "decode", "no 'picture'")]
    with Journal(tmp_path, MADE_WITH) as journal:
        list(journal.unfinished(iter([source(name), source("é")])))
        for result in results:
            journal.add(result)
    with Journal(tmp_path, MADE_WITH) as journal:
        list(journal.unfinished(iter([source("é"), source(name)])))
        second, first = journal.results()
    assert second == results[1]
    assert isinstance(first, Prediction)
    np.testing.assert_array_equal(first.probabilities, values)
    assert (first.path, first.width, first.height, first.exif) == (name, 4000, 3000, taken)


def test_new_changed_and_removed_pictures(tmp_path: Path) -> None:
    with Journal(tmp_path, MADE_WITH) as journal:
        work(journal, [source("same"), source("grown"), source("touched"), source("removed")])
    with Journal(tmp_path, MADE_WITH) as journal:
        now = [source("new"), source("same"), source("grown", size=9), source("touched", modified=9)]
        assert work(journal, now, value=0.75) == ["new", "grown", "touched"]
        found = {result.path: float(result.probabilities[0]) for result in journal.results()}
        assert journal.kept() == 1
    assert found == {"removed": 0.5, "new": 0.75, "same": 0.5, "grown": 0.75, "touched": 0.75}


def test_a_changed_picture_has_no_result_until_it_is_done_again(tmp_path: Path) -> None:
    with Journal(tmp_path, MADE_WITH) as journal:
        work(journal, [source("a"), source("b")])
    with Journal(tmp_path, MADE_WITH) as journal:
        list(journal.unfinished(iter([source("a", size=7), source("b")])))
        assert [result.path for result in journal.results()] == ["b"]
        assert journal.counts() == (1, 0)


def test_what_could_not_be_read_is_tried_again_and_what_is_damaged_is_not(tmp_path: Path) -> None:
    with Journal(tmp_path, MADE_WITH) as journal:
        list(journal.unfinished(iter([source("away"), source("damaged")])))
        journal.add(Failure("away", "read", "Input/output error"))
        journal.add(Failure("damaged", "decode", "no picture"))
    with Journal(tmp_path, MADE_WITH) as journal:
        assert work(journal, [source("away"), source("damaged")]) == ["away"]
        assert [type(result) for result in journal.results()] == [Prediction, Failure]


def test_when_and_where_asked_for_later_is_read_later(tmp_path: Path) -> None:
    with Journal(tmp_path, MADE_WITH) as journal:
        list(journal.unfinished(iter([source("a"), source("bad")])))
        journal.add(answer(source("a")))
        journal.add(Failure("bad", "decode", "no picture"))
    with Journal(tmp_path, MADE_WITH, with_exif=True) as journal:
        assert [item.name for item in journal.unfinished(iter([source("a"), source("bad")]))] == ["a"]
        journal.add(answer(source("a"), exif=ExifInfo()))
    for with_exif in (True, False):
        with Journal(tmp_path, MADE_WITH, with_exif=with_exif) as journal:
            assert list(journal.unfinished(iter([source("a"), source("bad")]))) == []


def test_a_name_that_comes_twice_counts_once(tmp_path: Path) -> None:
    with Journal(tmp_path, MADE_WITH) as journal:
        assert work(journal, [source("a"), source("a", size=5), source("b")]) == ["a", "b"]
        assert journal.counts() == (2, 0)


def test_another_fingerprint_is_refused_and_says_what_changed(tmp_path: Path) -> None:
    with Journal(tmp_path, MADE_WITH) as journal:
        work(journal, [source("a")])
    with pytest.raises(DataError, match=r"made with another model.*--restart") as caught:
        Journal(tmp_path, MADE_WITH | {"model": "xyz"})
    assert "engine" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(DataError, match="decoder was unknown, is Pillow"):
        Journal(tmp_path, MADE_WITH | {"decoder": "Pillow"})
    with Journal(tmp_path, MADE_WITH) as journal:
        assert work(journal, [source("a")]) == []


def test_a_note_stays_and_no_later_run_is_refused_for_it(tmp_path: Path) -> None:
    with Journal(tmp_path, MADE_WITH) as journal:
        journal.note("engine later", "smaller batches")
    with Journal(tmp_path, MADE_WITH) as journal:
        assert journal.facts() == MADE_WITH | {"engine later": "smaller batches"}
    with Journal(tmp_path, MADE_WITH, restart=True) as journal:
        assert journal.facts() == MADE_WITH


def test_restart_forgets(tmp_path: Path) -> None:
    with Journal(tmp_path, MADE_WITH) as journal:
        work(journal, [source("a")])
    with Journal(tmp_path, {"model": "xyz"}, restart=True) as journal:
        assert work(journal, [source("a")]) == ["a"]
    with pytest.raises(DataError, match="made with another model"):
        Journal(tmp_path, MADE_WITH)


def test_two_at_once_are_refused_in_one_process_and_from_another(tmp_path: Path) -> None:
    with Journal(tmp_path, MADE_WITH) as journal:
        with pytest.raises(DataError, match="another run is writing"):
            Journal(tmp_path, MADE_WITH, restart=True)
        program = (
            "import sys; from mineral_batch import DataError; from mineral_batch.results.journal import Journal\n"
            "try: Journal(sys.argv[1], {})\n"
            "except DataError as error: sys.exit(str(error))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith("another run is writing into")
        assert work(journal, [source("a")]) == ["a"]
    with Journal(tmp_path, MADE_WITH) as journal:
        assert work(journal, [source("a")]) == []


# ---- what goes wrong -------------------------------------------------------------------------------------------------


class Dying(sqlite3.Connection):
    """Ends the process, as a kill does, before its nth statement."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        if next(Dying.counter) == Dying.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        if next(Dying.counter) == Dying.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().executemany(*arguments)

    counter: Iterator[int]
    last: int


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("restart", [False, True])
def test_killed_before_any_statement_the_journal_is_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    """From its first creation on: afterwards it holds all that was there before, or nothing after a restart."""
    connect = sqlite3.connect
    for last in itertools.count():
        folder = tmp_path / str(last)
        if restart:
            with Journal(folder, MADE_WITH) as journal:
                work(journal, [source("a")])
        child = os.fork()
        if child == 0:
            Dying.counter, Dying.last = itertools.count(), last
            monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Dying, **k))
            with Journal(folder, {"model": "other"} if restart else MADE_WITH, restart=restart) as journal:
                work(journal, [source("a")])
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if not restart:
            with Journal(folder, MADE_WITH) as journal:
                assert work(journal, [source("a")]) in (["a"], [])
                assert journal.counts() == (1, 0)
        else:
            both = [attempt(folder, made_with) for made_with in (MADE_WITH, {"model": "other"})]
            assert sorted(both, key=str) in (["fine", "refused"],)
        if status == 0:
            break
    assert last > 10


def attempt(folder: Path, made_with: dict[str, str]) -> str:
    try:
        with Journal(folder, made_with) as journal:
            work(journal, [source("a")])
            return "fine"
    except DataError:
        return "refused"


def test_a_journal_of_another_release_is_refused_not_spoilt(tmp_path: Path) -> None:
    with Journal(tmp_path, MADE_WITH) as journal:
        work(journal, [source("a")])
    with sqlite3.connect(tmp_path / JOURNAL) as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    before = (tmp_path / JOURNAL).read_bytes()
    with pytest.raises(DataError, match=r"another release.*version 7.*--restart"):
        Journal(tmp_path, MADE_WITH)
    assert (tmp_path / JOURNAL).read_bytes() == before
    with Journal(tmp_path, MADE_WITH, restart=True) as journal:
        assert work(journal, [source("a")]) == ["a"]


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"x" * 5000])
def test_a_damaged_journal_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(DataError, match="damaged or not a journal: remove it"):
        Journal(tmp_path, MADE_WITH)


def test_a_folder_that_cannot_hold_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot write .*-o"):
        Journal(tmp_path / "file/out", MADE_WITH)
    (tmp_path / JOURNAL).mkdir()
    with pytest.raises(DataError, match=r"unable to open.*-o"):
        Journal(tmp_path, MADE_WITH)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_is_read_only_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(DataError, match="choose another folder with -o"):
        Journal(tmp_path, MADE_WITH)


FILLING = """
import resource, signal, sys
import numpy as np
from mineral_batch import DataError, Prediction
from mineral_batch.results import journal as module
from mineral_batch.types import Source
module._SECONDS_BETWEEN_COMMITS = 0
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with module.Journal(sys.argv[1], {"model": "abc"}) as journal:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    for index, source in enumerate(journal.unfinished(Source(f"{n:09}", 1, 2, bytes) for n in range(10**6))):
        try:
            journal.add(Prediction(source.name, np.full(36, index, np.float32), 40, 30))
        except DataError as error:
            print(index)
            sys.exit(str(error))
"""


def test_on_a_full_disk_everything_committed_is_safe(tmp_path: Path) -> None:
    """A process that may write no file larger than 2 MB meets a real error from the operating system."""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", FILLING, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert "the results so far are saved" in lines[0]
    written = int(done.stdout)
    assert written > 100
    with Journal(tmp_path, {"model": "abc"}) as journal:
        items = [source(f"{n:09}") for n in range(written + 10)]
        assert len(list(journal.unfinished(iter(items)))) <= 11
        results = list(journal.results())
        assert all(int(result.probabilities[35]) == int(result.path) for result in results)


def test_the_disk_is_given_up_at_each_operation_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(sqlite3.Connection):
        broken = False

        def fail(self) -> None:
            if self.broken:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error

        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            self.fail()
            return super().execute(*arguments)

        def executemany(self, *arguments: Any) -> sqlite3.Cursor:
            self.fail()
            return super().executemany(*arguments)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Full, **k))
    with Journal(tmp_path, MADE_WITH) as journal:
        work(journal, [source("a")])
        monkeypatch.setattr(Full, "broken", True)
        operations = [
            lambda: list(journal.unfinished(iter([source("b")]))),
            lambda: (journal.add(answer(source("a"))), journal.commit()),
            journal.commit,
            journal.counts,
            journal.kept,
            lambda: list(journal.results()),
        ]
        for operation in operations:
            with pytest.raises(DataError, match="database or disk is full"):
                operation()  # type: ignore[operator]
        monkeypatch.setattr(Full, "broken", False)


def test_memory_does_not_grow_with_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own share; the pages that SQLite keeps are bounded by its cache."""
    import tracemalloc

    monkeypatch.setattr(journal_module, "_SECONDS_BETWEEN_COMMITS", 1e9)
    peaks = []
    for count in (500, 5000):
        with Journal(tmp_path / str(count), MADE_WITH) as journal:
            tracemalloc.start()
            try:
                for item in journal.unfinished(source(f"{n}") for n in range(count)):
                    journal.add(answer(item))
                for _ in journal.results():
                    pass
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 20_000
