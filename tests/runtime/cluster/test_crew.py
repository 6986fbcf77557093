"""Who works on which piece, and what follows when workers are lost: with workers that follow a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mineral_batch.cluster.connection import Head, HeadLostError
from mineral_batch.cluster.crew import Crew, WorkerLostError
from mineral_batch.cluster.identity import Identity
from mineral_batch.cluster.place import Folder
from mineral_batch.cluster.plan import Piece
from mineral_batch.cluster.work import PieceReport
from mineral_batch.cluster.worker import Opened, Refusal
from mineral_batch.errors import BackendError, DataError

PIECES = [Piece(f"{index:06d}-00", 10) for index in range(12)]


class Scripted:
    """A workforce in this process: calls are answered one by one, those of the worker that began first come first.

    Args:
        work: (worker, piece) -> answer, or raises.
        open_: worker -> answer, or raises.
    """

    def __init__(
        self,
        work: Callable[[int, Piece], Any] = lambda worker, piece: PieceReport(piece.id, piece.images),
        open_: Callable[[int], Any] = lambda worker: Opened(Identity({}, {}, ""), {}, {}, True, f"host {worker}"),
    ) -> None:
        self._work, self._open = work, open_
        self._calls: dict[int, tuple[int, str, tuple[Any, ...]]] = {}
        self._number = 0
        self.alive: set[int] = set()
        self.started = 0
        self.together: list[tuple[int, frozenset[str]]] = []
        self.stopped: set[int] = set()

    def start(self) -> int:
        self.started += 1
        self.alive.add(self.started)
        return self.started

    def call(self, worker: Any, method: str, *arguments: Any) -> int:
        assert worker in self.alive
        if method == "stop":
            self.stopped.add(worker)
            return -1
        self._number += 1
        self._calls[self._number] = (worker, method, arguments)
        in_hand = frozenset(args[0].id for who, what, args in self._calls.values() if who == worker and what == "work")
        self.together.append((worker, in_hand))
        assert len(in_hand) <= 2
        return self._number

    def wait(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        return [min(calls)]

    def result(self, call: Any) -> Any:
        worker, method, arguments = self._calls.pop(call)
        if worker in self.stopped and method == "work":
            return PieceReport(arguments[0].id, 10, left="stopped")
        return self._open(worker) if method == "open" else self._work(worker, *arguments)

    def end(self, worker: Any) -> None:
        self.alive.discard(worker)
        self._calls = {call: value for call, value in self._calls.items() if value[0] != worker}

    def room(self) -> str:
        return "the cluster has nothing"


def run(
    tmp_path: Path, workforce: Scripted, most: int = 3, reports: list[PieceReport] | None = None, **options: Any
) -> list[PieceReport]:
    """The reports on `PIECES`; whatever happens, no worker is left."""
    reports = [] if reports is None else reports
    try:
        with Crew(workforce, most, **options) as crew:
            crew.open()
            crew.work(Folder(tmp_path), PIECES, reports.append)
    finally:
        assert not workforce.alive
    return reports


def test_every_piece_is_done_once_by_all_workers(tmp_path: Path) -> None:
    workers: Counter[int] = Counter()

    def work(worker: int, piece: Piece) -> PieceReport:
        workers[worker] += 1
        return PieceReport(piece.id, piece.images)

    reports = run(tmp_path, Scripted(work))
    assert sorted(report.piece for report in reports) == [piece.id for piece in PIECES]
    assert len(workers) == 3


def test_no_worker_has_two_pieces_while_another_has_none(tmp_path: Path) -> None:
    workforce = Scripted()
    with Crew(workforce, 8) as crew:
        crew.open(8)
        crew.work(Folder(tmp_path), PIECES[:8], lambda report: None)
    assert all(len(in_hand) <= 1 for _, in_hand in workforce.together)
    assert workforce.started == 8


def test_no_more_workers_than_pieces_and_none_for_nothing(tmp_path: Path) -> None:
    workforce = Scripted()
    with Crew(workforce, 100) as crew:
        crew.open()
        crew.work(Folder(tmp_path), PIECES, lambda report: None)
    assert workforce.started == len(PIECES)
    workforce = Scripted()
    with Crew(workforce, 100) as crew:
        crew.open()
        crew.work(Folder(tmp_path), [], lambda report: None)
    assert workforce.started == 1


def test_lost_workers_are_replaced_and_their_pieces_done_alone(tmp_path: Path) -> None:
    deaths: Counter[str] = Counter()

    def work(worker: int, piece: Piece) -> PieceReport:
        if piece == PIECES[4] and deaths[piece.id] < 5:
            deaths[piece.id] += 1
            raise WorkerLostError("it died")
        return PieceReport(piece.id, piece.images)

    workforce = Scripted(work)
    reports = run(tmp_path, workforce, most=1)
    assert sorted(report.piece for report in reports) == [piece.id for piece in PIECES]
    assert workforce.started == 6
    after_first = [in_hand for worker, in_hand in workforce.together if worker > 1 and PIECES[4].id in in_hand]
    assert after_first == [frozenset({PIECES[4].id})] * 5


def test_a_machine_that_was_taken_away_leaves_no_mark_of_a_death(tmp_path: Path) -> None:
    place, lost = Folder(tmp_path), []

    def work(worker: int, piece: Piece) -> PieceReport:
        if piece in PIECES[:2] and piece not in lost:
            lost.append(piece)
            place.put(f"attempts/{piece.id}/0-10.aa", b"")
            raise WorkerLostError("its machine is gone", is_blameless=piece == PIECES[0])
        return PieceReport(piece.id, piece.images)

    run(tmp_path, Scripted(work))
    assert list(place.keys(f"attempts/{PIECES[0].id}/")) == []
    assert len(list(place.keys(f"attempts/{PIECES[1].id}/"))) == 1


def test_pieces_that_cannot_be_read_now_are_tried_again_then_left(tmp_path: Path) -> None:
    tries: Counter[str] = Counter()

    def work(worker: int, piece: Piece) -> PieceReport:
        tries[piece.id] += 1
        is_away = piece == PIECES[1] or (piece == PIECES[2] and tries[piece.id] < 2)
        return PieceReport(piece.id, piece.images, left="timed out" if is_away else "")

    reports = run(tmp_path, Scripted(work), waits=(0.0, 0.01))
    assert sorted(report.piece for report in reports if not report.left) == sorted(
        piece.id for piece in PIECES if piece != PIECES[1]
    )
    assert tries[PIECES[1].id] == 3
    assert tries[PIECES[2].id] == 2


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (lambda: Refusal("there: no such bucket", is_machine=False), "no such bucket"),
        (lambda: Refusal("there: the GPU fell off", is_machine=True), "the GPU fell off; what is done is safe"),
        (lambda: (_ for _ in ()).throw(WorkerLostError("full", is_memory=True)), "full; let fewer share a machine"),
        (lambda: (_ for _ in ()).throw(WorkerLostError("killed")), "die one after the other: killed"),
    ],
)
def test_what_no_other_try_mends_ends_the_run_in_one_line(
    tmp_path: Path, raised: Callable[[], Any], message: str
) -> None:
    with pytest.raises((DataError, BackendError), match=message):
        run(tmp_path, Scripted(lambda worker, piece: raised()))


def test_an_engine_that_fails_on_one_machine_is_replaced(tmp_path: Path) -> None:
    told: list[str] = []

    def work(worker: int, piece: Piece) -> Any:
        return Refusal("vm1: out of memory", is_machine=True) if worker == 1 else PieceReport(piece.id, piece.images)

    reports = run(tmp_path, Scripted(work), tell=told.append)
    assert len(reports) == len(PIECES)
    assert told == ["a worker was replaced: vm1: out of memory"]


def test_workers_that_die_while_they_open_their_engines_end_the_run(tmp_path: Path) -> None:
    def dying(worker: int) -> Any:
        raise WorkerLostError("a library crashed")

    def starving(worker: int) -> Any:
        raise WorkerLostError("full", is_memory=True)

    with pytest.raises(BackendError, match="while they open the engine: a library crashed"):
        run(tmp_path, Scripted(open_=dying))
    with pytest.raises(BackendError, match="full; let fewer share a machine, by more --worker-cpus"):
        run(tmp_path, Scripted(open_=starving))
    with pytest.raises(DataError, match="no such model"):
        run(tmp_path, Scripted(open_=lambda worker: Refusal("vm: no such model", is_machine=False)))


def test_a_machine_short_of_memory_gets_fewer_workers_and_no_photograph_is_blamed(tmp_path: Path) -> None:
    place, lost, told = Folder(tmp_path), list[int](), list[str]()

    def work(worker: int, piece: Piece) -> PieceReport:
        if len(workforce.alive) > 2:
            lost.append(worker)
            place.put(f"attempts/{piece.id}/0-10.aa", b"")
            raise WorkerLostError("vm1 is short of memory", is_memory=True)
        return PieceReport(piece.id, piece.images)

    workforce = Scripted(work)
    reports = run(tmp_path, workforce, most=4, tell=told.append)
    assert sorted(report.piece for report in reports) == [piece.id for piece in PIECES]
    assert len(lost) == 2
    assert told == [
        "vm1 is short of memory; going on with 3 at a time",
        "vm1 is short of memory; going on with 2 at a time",
    ]
    assert not [key for piece in PIECES for key in place.keys(f"attempts/{piece.id}/")]


def test_a_machine_that_cannot_open_ends_no_run_that_others_do(tmp_path: Path) -> None:
    told: list[str] = []

    def open_(worker: int) -> Any:
        if worker == 2:
            return Refusal("vm2 lacks the model", is_machine=False)
        return Opened(Identity({}, {}, ""), {}, {}, True, f"host {worker}")

    workforce = Scripted(open_=open_)
    reports = run(tmp_path, workforce, tell=told.append)
    assert len(reports) == len(PIECES)
    assert told == ["a worker could not start, going on with 2 at a time: vm2 lacks the model"]
    assert workforce.started == 3
    with pytest.raises(DataError, match="vm2 lacks the model"), Crew(Scripted(open_=open_), 3) as crew:
        crew.open(2)


def test_a_lost_cluster_ends_the_run_and_nobody_waits_for_its_workers(tmp_path: Path) -> None:
    class Lost(Scripted):
        def wait(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
            if len(reports) == 4:
                raise HeadLostError("the head is gone")
            return super().wait(calls, seconds)

    reports: list[PieceReport] = []
    workforce = Lost()
    with pytest.raises(BackendError, match="the head is gone"):
        run(tmp_path, workforce, reports=reports)
    assert len(reports) == 4


def test_a_head_may_come_back_but_not_too_late() -> None:
    answers = iter([True, False, True, False, False])
    asked: list[bool] = []

    def probe() -> None:
        asked.append(next(answers))
        if not asked[-1]:
            raise BackendError("connection refused")

    head = Head(probe, "the head is gone", patience=0.0, every=0.0)
    head.check()
    patient = Head(probe, "the head is gone", patience=60.0, every=0.0)
    patient.check()
    patient.check()
    with pytest.raises(HeadLostError, match="the head is gone"):
        head.check()
    assert asked == [True, False, True, False]
    with pytest.raises(HeadLostError):
        head.check()
    assert len(asked) == 4


def test_a_head_is_not_asked_at_every_turn() -> None:
    def probe() -> None:
        raise AssertionError("asked too soon")

    head = Head(probe, "the head is gone")
    head.check()
    assert str(head.give_up()) == "the head is gone"
    with pytest.raises(HeadLostError):
        head.check()


def test_workers_that_do_not_come_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mineral_batch.cluster.crew._TELL_AFTER", -1.0)
    told: list[str] = []
    run(tmp_path, Scripted(), tell=told.append)
    assert not told

    class Slow(Scripted):
        turns = 0

        def wait(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
            self.turns += 1
            return [] if self.turns == 1 else super().wait(calls, seconds)

    run(tmp_path, Slow(), tell=told.append)
    assert told == ["waiting for a worker: the cluster has nothing"]


def test_a_stop_leaves_what_is_in_hand(tmp_path: Path) -> None:
    done: list[str] = []

    def work(worker: int, piece: Piece) -> PieceReport:
        done.append(piece.id)
        return PieceReport(piece.id, piece.images)

    reports = run(tmp_path, Scripted(work), stop=lambda: len(done) >= 4)
    finished = [report.piece for report in reports if not report.left]
    assert finished == done
    assert 4 <= len(done) < len(PIECES)
    assert {report.left for report in reports if report.left} == {"stopped"}
