"""The Python interface: a model, opened once, that answers for photographs."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Self

from mineral_batch import pipeline
from mineral_batch.backends import AUTO, open_backend
from mineral_batch.images import find_images
from mineral_batch.models import starter_path

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path
    from types import TracebackType

    from mineral_batch.contract import ModelContract
    from mineral_batch.pipeline import Result


class Predictor:
    """An open model.

    >>> with Predictor() as predictor:                                    # doctest: +SKIP
    ...     for result in predictor.predict(["photos"]):
    ...         print(result.path, result.probabilities.max())

    Args:
        model: an ONNX file from `mineral-export onnx`; None for the starter model that comes with the package.
        backend: a name in `mineral_batch.backends.BACKENDS`, or `auto`.
        device: index of the GPU, for engines that use one.
        batch_size: pictures per call of the engine; None for what suits the device.
        decode_threads: None for one per processor.
        exact: decode JPEGs in full (see `mineral_batch.images.open_rgb`).

    Raises:
        BackendError: if the engine cannot be opened here.
        ContractError: if the file is no model.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        backend: str = AUTO,
        device: int = 0,
        batch_size: int | None = None,
        decode_threads: int | None = None,
        exact: bool = False,
    ) -> None:
        self._backend = open_backend(starter_path() if model is None else model, backend, device=device)
        self.batch_size = batch_size or self._backend.batch_size
        self._decode_threads = decode_threads
        self._exact = exact

    @property
    def contract(self) -> ModelContract:
        """The labels, thresholds and input of the open model."""
        return self._backend.contract

    @property
    def backend(self) -> str:
        """The engine and device that really answer."""
        return f"{self._backend.name} on {self._backend.device}"

    def predict(self, inputs: Iterable[str | Path]) -> Generator[Result, None, None]:
        """One `Prediction` or `Failure` per photograph under `inputs` (folders, files), lazily and in order.

        Raises:
            DataError: if an input does not exist.
            BackendError: if the engine fails.
        """
        results = pipeline.run(
            find_images(inputs),
            self._backend,
            batch_size=self.batch_size,
            decode_threads=self._decode_threads,
            exact=self._exact,
        )
        with closing(results):
            yield from results

    def close(self) -> None:
        """Close the engine."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
