"""The workers of a cluster run: who works on which piece, what follows when one of them is lost.

What carries the calls is a `Workforce`, such as Ray. It knows identifiers of pieces and counts; images and results
never pass through it. So this process needs the memory of the plan alone, and if it dies the same command goes on with
the pieces that have no part yet.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from mineral_batch.cluster.place import Place
from mineral_batch.cluster.plan import Piece
from mineral_batch.cluster.work import PieceReport, forget_deaths
from mineral_batch.cluster.worker import IN_HAND, Opened, Refusal
from mineral_batch.errors import BackendError, DataError, MineralError
from mineral_batch.words import counted

#: A piece that could not be read now is tried again, after so many seconds.
WAITS = (1.0, 5.0, 15.0)
# Workers lost one after the other, without a finished piece between them, before the run gives up: while they open
# their engines or for want of memory, which no other try mends; and at work, where a picture that kills workers is
# found by halving its piece some 15 times.
_LOSSES_OPENING, _LOSSES_AT_WORK = 3, 100
_TICK = 0.5
# Seconds for workers to leave what they have in hand, before they are ended.
_PATIENCE = 15.0
# Seconds without a worker before the user is told, and between two such lines.
_TELL_AFTER, _TELL_EVERY = 10.0, 60.0


class WorkerLostError(Exception):
    """A worker is gone.

    Attributes:
        is_blameless: it was not what it worked on that ended it, but its machine or a person.
        is_memory: its machine was short of memory, whoever used it.
    """

    def __init__(self, reason: str, *, is_blameless: bool = False, is_memory: bool = False) -> None:
        super().__init__(reason)
        self.is_blameless, self.is_memory = is_blameless, is_memory


class Workforce(Protocol):
    """Starts workers and carries calls to them.

    Its methods raise `mineral_batch.errors.BackendError` if the cluster itself is gone.
    """

    def start(self) -> Hashable:
        """Ask for a worker; it may take its time to appear."""
        ...

    def call(self, worker: Any, method: str, *arguments: Any) -> Hashable:
        """Begin to call a method of `mineral_batch.cluster.worker.Worker`; return a handle of the call."""
        ...

    def wait(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Return the calls that are done, after so many seconds at most."""
        ...

    def result(self, call: Any) -> Any:
        """Return what the method returned.

        Raises:
            WorkerLostError: if the worker is gone.
        """
        ...

    def end(self, worker: Any) -> None:
        """End a worker at once; one that is gone is no error."""
        ...

    def room(self) -> str:
        """Return what a worker needs and what the cluster has, in words."""
        ...


class Crew:
    """Up to `most` workers. Use it as a context; leaving it ends them.

    Args:
        workforce: that starts them.
        most: workers at a time.
        tell: called with lines for the user.
        joined: called with each worker that is open.
        stop: once it returns True no more pieces are begun and those in hand are left.
        waits: see `WAITS`.
    """

    def __init__(
        self,
        workforce: Workforce,
        most: int,
        *,
        tell: Callable[[str], object] = lambda line: None,
        joined: Callable[[Opened], object] = lambda opened: None,
        stop: Callable[[], bool] = lambda: False,
        waits: Sequence[float] = WAITS,
    ) -> None:
        self._workforce, self._most, self._waits = workforce, most, waits
        self._tell, self._joined, self._stop = tell, joined, stop
        self._opening: dict[Any, Any] = {}
        self._in_hand: dict[Any, dict[Any, Piece]] = {}
        self._queue: deque[Piece] = deque()
        self._later: list[tuple[float, Piece]] = []
        self._tries: Counter[str] = Counter()
        self._suspects: set[str] = set()
        self._losses: Counter[str] = Counter()
        self._place: Place | None = None
        self._tell_at = time.monotonic() + _TELL_AFTER
        #: The workers that opened, in that order.
        self.opened: list[Opened] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(MineralError, WorkerLostError):
            self._leave_pieces(0.0 if kind is KeyboardInterrupt else _PATIENCE)
        for worker in [*self._opening.values(), *self._in_hand]:
            self._workforce.end(worker)
        # Nobody died over these pieces.
        self._forget(piece for pieces in self._in_hand.values() for piece in pieces.values())
        self._opening, self._in_hand = {}, {}

    def open(self, least: int = 1) -> Opened | None:
        """Start workers and return the first that is open, once so many are; None if it was stopped before.

        Raises:
            DataError: if a machine lacks the model, the inputs or a package.
            BackendError: if workers die while they open their engines.
        """
        while len(self._in_hand) < least:
            if self._stop():
                return None
            self._staff(least)
            self._listen()
        return self.opened[0]

    def work(self, place: Place, pieces: Iterable[Piece], finished: Callable[[PieceReport], object]) -> None:
        """Do pieces, in any order.

        Args:
            place: of the run.
            pieces: to do.
            finished: called with what became of each try of a piece.

        Raises:
            DataError: if the place cannot be read or written, or a worker would give other probabilities.
            BackendError: if no worker can work; what is done is safe.
        """
        self._place = place
        self._queue.extend(pieces)
        while self._unfinished() and not self._stop():
            self._due()
            self._staff(min(self._most, self._unfinished()))
            self._hand_out()
            self._listen(finished)
        self._leave_pieces(_PATIENCE, finished)

    def describe(self) -> str:
        """`3 workers on 2 machines`; those that were lost count too."""
        workers, machines = len(self.opened), len({(opened.host, opened.node) for opened in self.opened})
        return f"{counted(workers, 'worker')} on {counted(machines, 'machine')}"

    def _unfinished(self) -> int:
        return len(self._queue) + len(self._later) + sum(map(len, self._in_hand.values()))

    def _due(self) -> None:
        """Queue the pieces whose time for another try has come."""
        now = time.monotonic()
        self._queue.extend(piece for due, piece in self._later if due <= now)
        self._later = [(due, piece) for due, piece in self._later if due > now]

    def _staff(self, wanted: int) -> None:
        """Start workers that are missing, let go those for whom nothing is left."""
        for _ in range(wanted - len(self._opening) - len(self._in_hand)):
            worker = self._workforce.start()
            self._opening[self._workforce.call(worker, "open")] = worker
        spare = len(self._opening) + len(self._in_hand) - wanted
        for call in list(self._opening)[: max(0, spare)]:
            self._workforce.end(self._opening.pop(call))
            spare -= 1
        idle = [worker for worker, pieces in self._in_hand.items() if not pieces]
        for worker in idle[: max(0, spare)]:
            self._workforce.end(worker)
            del self._in_hand[worker]

    def _hand_out(self) -> None:
        """One piece to each worker, then a second, but not so that one has two while another has none."""
        for load in range(IN_HAND):
            if load and len(self._queue) < len(self._in_hand):
                return
            for worker, pieces in self._in_hand.items():
                if self._queue and len(pieces) == load and self._may_have(pieces):
                    piece = self._queue.popleft()
                    pieces[self._workforce.call(worker, "work", piece)] = piece

    def _may_have(self, pieces: dict[Any, Piece]) -> bool:
        """Whether a worker may have the next piece: one over which a worker died is done alone, to know who did it."""
        if not pieces:
            return True
        return not any(piece.id in self._suspects for piece in [self._queue[0], *pieces.values()])

    def _listen(self, finished: Callable[[PieceReport], object] = lambda report: None) -> None:
        calls = [*self._opening, *(call for pieces in self._in_hand.values() for call in pieces)]
        done = self._workforce.wait(calls, _TICK) if calls else []
        for call in done:
            if call in self._opening:
                self._take_worker(call)
            else:
                self._take_piece(call, finished)
        self._tell_of_waiting()

    def _tell_of_waiting(self) -> None:
        now = time.monotonic()
        if self._in_hand:
            self._tell_at = now + _TELL_AFTER
        elif now > self._tell_at:
            self._tell_at = now + _TELL_EVERY
            self._tell(f"waiting for a worker: {self._workforce.room()}")

    def _take_worker(self, call: Any) -> None:
        worker = self._opening.pop(call)
        try:
            opened = self._workforce.result(call)
        except WorkerLostError as error:
            self._workforce.end(worker)
            if error.is_memory:
                self._lack_memory(error)
            self._count_loss("opening", f"workers end while they open the engine: {error}", _LOSSES_OPENING)
            return
        if isinstance(opened, Refusal):
            self._workforce.end(worker)
            self._do_without(opened)
            return
        self._in_hand[worker] = {}
        self.opened.append(opened)
        self._joined(opened)
        self._losses["opening"] = 0

    def _do_without(self, refusal: Refusal) -> None:
        """Go on with the workers that are open, once the work has begun: one bad machine must not end a run of many."""
        if self._place is None or not self._in_hand:
            raise BackendError(refusal.message) if refusal.is_machine else DataError(refusal.message)
        self._shrink()
        self._tell(f"a worker could not start, going on with {self._most} at a time: {refusal.message}")

    def _shrink(self) -> None:
        """Have no more workers from now on than there are now."""
        self._most = max(1, min(self._most, len(self._opening) + len(self._in_hand)))

    def _take_piece(self, call: Any, finished: Callable[[PieceReport], object]) -> None:
        worker = next((worker for worker, pieces in self._in_hand.items() if call in pieces), None)
        if worker is None:  # of a worker that is lost
            return
        try:
            answer = self._workforce.result(call)
        except WorkerLostError as error:
            self._lose(worker, error)
            return
        piece = self._in_hand[worker].pop(call)
        if isinstance(answer, Refusal):
            self._queue.appendleft(piece)
            self._refused(worker, answer)
            return
        if not answer.left:
            self._losses.clear()
        elif self._tries[piece.id] < len(self._waits) and not self._stop():
            self._later.append((time.monotonic() + self._waits[self._tries[piece.id]], piece))
            self._tries[piece.id] += 1
        finished(answer)

    def _lose(self, worker: Any, error: WorkerLostError) -> None:
        """Put back what a lost worker had in hand; `_staff` replaces it."""
        pieces = [*self._in_hand.pop(worker).values()]
        self._workforce.end(worker)
        self._queue.extendleft(reversed(pieces))
        if error.is_blameless or error.is_memory:
            self._forget(pieces)
            if error.is_memory:
                self._lack_memory(error)
            return
        self._suspects.update(piece.id for piece in pieces)
        self._count_loss("work", f"workers die one after the other: {error}", _LOSSES_AT_WORK)

    def _lack_memory(self, error: WorkerLostError) -> None:
        """Go on with fewer workers: as many as before would fill the same machine again."""
        self._count_loss("memory", f"{error}; let fewer share a machine, by more --worker-cpus", _LOSSES_OPENING)
        self._shrink()
        self._tell(f"{error}; going on with {self._most} at a time")

    def _refused(self, worker: Any, refusal: Refusal) -> None:
        if not refusal.is_machine:
            raise DataError(refusal.message)
        pieces = [*self._in_hand.pop(worker).values()]
        self._workforce.end(worker)
        self._queue.extendleft(reversed(pieces))
        self._forget(pieces)
        self._tell(f"a worker was replaced: {refusal.message}")
        self._count_loss("engine", refusal.message, _LOSSES_OPENING)

    def _count_loss(self, kind: str, reason: str, most: int) -> None:
        self._losses[kind] += 1
        if self._losses[kind] >= most:
            raise BackendError(f"{reason}; what is done is safe: rerun the same command")

    def _forget(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            if self._place is not None:
                with suppress(MineralError):
                    forget_deaths(self._place, piece)

    def _leave_pieces(self, seconds: float, finished: Callable[[PieceReport], object] = lambda report: None) -> None:
        """Ask the workers to leave what they have in hand, and wait for those that do."""
        until = time.monotonic() + seconds
        busy = [worker for worker, pieces in self._in_hand.items() if pieces]
        for worker in busy:
            self._workforce.call(worker, "stop")
        while (calls := [*self._calls_of(busy)]) and time.monotonic() < until:
            for call in self._workforce.wait(calls, _TICK):
                self._take_piece(call, finished)

    def _calls_of(self, workers: Iterable[Any]) -> Iterator[Any]:
        for worker in workers:
            yield from self._in_hand.get(worker, {})
