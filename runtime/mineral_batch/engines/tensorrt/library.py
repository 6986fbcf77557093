"""TensorRT and TensorRT for RTX: two packages with one interface, and what each of them can do."""

from __future__ import annotations

import importlib
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any

from mineral_batch.errors import BackendError
from mineral_batch.system import pip_install

#: Package to install -> the module to import; by default the first one that imports is taken.
RUNTIMES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# Before it, a network could be strongly typed but ONNX Cast and LayerNormalization were not always taken as written.
_OLDEST = (10, 12)
# Error messages that are kept.
_KEPT = 32


@dataclass(frozen=True)
class Library:
    """One of the two packages, imported.

    Attributes:
        name: a key of `RUNTIMES`.
        module: `tensorrt` or `tensorrt_rtx`.
    """

    name: str
    module: Any

    @property
    def version(self) -> str:
        """Such as `10.13.3.9`; an engine is bound to it."""
        return str(self.module.__version__)

    def messages(self) -> Messages:
        """Collect TensorRT's error messages from now on."""
        return Messages(_logger(self.module.ILogger))


class Messages:
    """The errors that a TensorRT logged since this was made, in whatever thread.

    Args:
        logger: that it logs to.

    Attributes:
        logger: for its constructors.
    """

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self._before = logger.count

    def first(self) -> str:
        """The first one, as one line; empty if there is none."""
        return self._line(0)

    def last(self) -> str:
        """The last one, as one line; empty if there is none."""
        return self._line(-1)

    def _line(self, index: int) -> str:
        new = self.logger.count - self._before
        kept = list(self.logger.kept)[-new:] if new else []
        return " ".join(kept[index].split()) if kept else ""


@cache
def _logger(base: Any) -> Any:
    """One that keeps the last errors and prints nothing.

    TensorRT has one logger in a process, the first that is passed to it, and keeps its address for as long as a builder
    or a runtime lives (its documentation of `Logger`): a second one would receive nothing, and a freed one would crash.
    """

    class Errors(base):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            base.__init__(self)
            self.count = 0
            self.kept: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.ERROR, base.INTERNAL_ERROR):
                self.kept.append(message)
                self.count += 1

    return Errors()


def load_library(name: str | None = None) -> Library:
    """Import a TensorRT.

    Args:
        name: a key of `RUNTIMES`; None for whichever is installed.

    Raises:
        BackendError: if none is, or it is too old.
    """
    found = f"{name or 'TensorRT'} is not installed"
    for candidate in [name] if name else RUNTIMES:
        try:
            library = Library(candidate, importlib.import_module(RUNTIMES[candidate]))
        except (ImportError, OSError) as error:
            # Another name: the package is there, and what is missing is a library of its own or CUDA's.
            if getattr(error, "name", None) != RUNTIMES[candidate]:
                found = f"{candidate} is installed and does not load ({' '.join(str(error).split())})"
            continue
        return _recent_enough(library)
    raise BackendError(
        f"{found}: {pip_install('trt-rtx')} (GeForce and RTX cards), or "
        f"{pip_install('trt')} (every card, from NVIDIA's package index)"
    )


def _recent_enough(library: Library) -> Library:
    release = tuple(int(part) for part in library.version.split(".")[:2])
    if library.name == "tensorrt" and release < _OLDEST:
        raise BackendError(f"TensorRT {library.version} is too old for typed half precision: {pip_install('trt')}")
    return library
