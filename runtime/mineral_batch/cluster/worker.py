"""A worker of a cluster: keeps one engine open and works on the pieces it is given, two at a time.

The worker knows nothing of the engine that schedules it; `mineral_batch.cluster.on_ray` makes it an actor. Errors come
back as values, because an exception on another machine cannot always be rebuilt on this one.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mineral_batch.cluster.identity import Identity, identify
from mineral_batch.cluster.place import open_place
from mineral_batch.cluster.plan import Piece, read_plan
from mineral_batch.cluster.work import PieceReport, PieceWorker
from mineral_batch.errors import BackendError, DataError, MineralError, one_line
from mineral_batch.predictor import Predictor
from mineral_batch.results.manifest import describe_engine, describe_software
from mineral_batch.storage.urls import is_url

#: Pieces that a worker has in hand. The second one keeps the engine busy while the first is being listed or written.
IN_HAND = 2

_log = logging.getLogger("mineral_batch")
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker needs to open its engine.

    Attributes:
        output: the place of the run, as it was named; every machine must see it.
        folder: that relative paths start from.
        inputs: files and folders that every machine must see.
        model: path, which every machine must have, or URL. None for the starter model.
        engine: options of `Predictor`.
        mixed: see `PieceWorker`.
    """

    output: str
    folder: str
    inputs: Sequence[str] = ()
    model: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    mixed: bool = False


@dataclass(frozen=True)
class Opened:
    """A worker whose engine is open.

    Attributes:
        identity: what its results depend on.
        engine: the engine's part of run.json.
        versions: of the software.
        is_calibrated: whether the model's probabilities are.
        host: the machine's name.
        node: the machine's identifier in the cluster; empty if it has none.
    """

    identity: Identity
    engine: Mapping[str, Any]
    versions: Mapping[str, str]
    is_calibrated: bool
    host: str
    node: str = ""


@dataclass(frozen=True)
class Refusal:
    """An error of a worker.

    Attributes:
        message: one line, with the machine's name.
        is_machine: whether it may be this machine's fault, so that another can do better.
    """

    message: str
    is_machine: bool


def _guarded(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | Refusal:
    """Call a function; return its errors as values."""
    try:
        return function(*args, **kwargs)
    except MineralError as error:
        return Refusal(f"{platform.node()}: {error}", isinstance(error, BackendError))
    except Exception as error:  # of a package that is missing or broken there; the log of the worker has the rest
        _log.exception("a worker failed")
        return Refusal(f"{platform.node()}: {one_line(error)}", is_machine=True)


class Worker:
    """Works on pieces; several threads may call it.

    Args:
        options: of the run.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._predictor: Predictor | None = None
        self._worker: PieceWorker | None = None

    def open(self) -> Opened | Refusal:
        """Open the engine."""
        return _guarded(self._open)

    def work(self, piece: Piece) -> PieceReport | Refusal:
        """Do one piece."""
        return _guarded(lambda: self._piece_worker().work(piece, stop=self._stopped.is_set))

    def stop(self) -> None:
        """Leave what is in hand."""
        self._stopped.set()

    def node(self) -> str:
        """Return this machine's identifier in the cluster; empty if it has none."""
        return ""

    def _open(self) -> Opened:
        options = self._options
        self._check_paths()
        self._predictor = predictor = Predictor(options.model, **options.engine)
        identity, _ = identify(predictor, iter(()))
        engine, versions = describe_engine(predictor), describe_software()
        return Opened(identity, engine, versions, predictor.calibrated, platform.node(), self.node())

    def _check_paths(self) -> None:
        folder = Path(self._options.folder)
        if folder.is_dir():
            os.chdir(folder)
        model = self._options.model
        if model is not None and not is_url(model) and not Path(model).exists():
            raise _absent(model, folder, "have the model under the same path, or name it by URL")
        for name in self._options.inputs:
            if not Path(name).exists():
                raise _absent(name, folder, "see the inputs under the same path, or name them by URL")

    def _piece_worker(self) -> PieceWorker:
        """The plan is read with the first piece, because the first worker is open before there is a plan."""
        with self._lock:
            if self._worker is None:
                place = open_place(self._options.output)
                plan = read_plan(place)
                if plan is None or self._predictor is None:
                    raise DataError(
                        f"{place.name} has no plan on this machine: every machine of a cluster must see the output "
                        f"under the same path, or name it by URL"
                    )
                self._worker = PieceWorker(self._predictor, place, plan, mixed=self._options.mixed)
            return self._worker


def _absent(name: str, folder: Path, must: str) -> DataError:
    start = "" if Path(name).is_absolute() else f" (relative paths start from {folder})"
    return DataError(f"{name} is not there{start}: every machine of a cluster must {must}")
