"""TensorRT and TensorRT for RTX: two packages with one interface, and what each of them can do."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from mineral_batch.errors import BackendError

#: What to install -> the module to import; the first one that imports is taken unless one is asked for.
RUNTIMES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# Before it, a network could be strongly typed but ONNX Cast and LayerNormalization were not always taken as written.
_OLDEST = (10, 12)


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

    def logger(self) -> Any:
        """One that remembers errors, so that the last one can be told, and prints nothing."""
        base: Any = self.module.ILogger

        class Errors(base):  # type: ignore[misc, unused-ignore]
            def __init__(self) -> None:
                base.__init__(self)
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity in (base.ERROR, base.INTERNAL_ERROR):
                    self.errors.append(message)

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
        f"{found}: pip install tensorrt-rtx (GeForce and RTX cards), or "
        f"pip install 'tensorrt>=10.12' (every card, from NVIDIA's package index)"
    )


def _recent_enough(library: Library) -> Library:
    release = tuple(int(part) for part in library.version.split(".")[:2])
    if library.name == "tensorrt" and release < _OLDEST:
        raise BackendError(
            f"TensorRT {library.version} is too old for typed half precision: pip install --upgrade 'tensorrt>=10.12'"
        )
    return library
