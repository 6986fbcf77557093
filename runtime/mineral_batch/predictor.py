"""The Python interface: a model, opened once, that answers for photographs."""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import numpy as np
from PIL import Image as PILImage

from mineral_batch import pipeline
from mineral_batch.decoder_choice import choose_decoder, peek
from mineral_batch.engines.registry import AUTO, choose_backend
from mineral_batch.errors import BackendError, DataError
from mineral_batch.images.decoder import AUTO as AUTO_DECODER
from mineral_batch.images.decoder import CPU, DecodeOptions, Decoder, check_decoder_name
from mineral_batch.images.decoders import open_decoder
from mineral_batch.images.discover import find_sources
from mineral_batch.images.processes import DecodeProcesses, is_supported
from mineral_batch.model.starter import starter_path
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure, Pixels, Source

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from types import TracebackType

    from mineral_batch.engines.base import Backend
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.pipeline import StageTimes
    from mineral_batch.types import Result

_log = logging.getLogger("mineral_batch")

# With fewer, the engine's thread and the tables take so much of the machine that processes gain nothing.
_CPUS_FOR_PROCESSES = 4

#: What can be predicted: names of folders and files, sources, failures (passed on), and pictures in memory.
Input = str | Path | Source | Failure | PILImage.Image | Pixels


class Predictor:
    """An open model.

    >>> with Predictor() as predictor:                                    # doctest: +SKIP
    ...     for result in predictor.predict(["photos"]):
    ...         print(result.path, result.probabilities.max())

    Args:
        model: an ONNX file from `mineral-export onnx`; None for the starter model that comes with the package.
        backend: a name in `mineral_batch.engines.registry.BACKENDS`, or `auto`.
        devices: indices of the GPUs to use side by side; empty for the first one, or the CPU where there is none.
        precision: `auto`, or one of `mineral_batch.engines.base.PRECISIONS` that the engine must compute in.
        batch_size: pictures per call of the engine; None for what suits the device.
        decode_threads: None for one per CPU.
        decode_processes: decode in so many processes instead of threads (POSIX only); 0 for threads; None for one per
            CPU where the engine is on a GPU and there are at least four CPUs, else threads.
        exact: decode JPEGs in full (see `mineral_batch.images.decode.open_rgb`).
        decode: `cpu`; `gpu`, which decodes large JPEGs on the GPU (`mineral_batch.images.gpu.decoder`); or `auto`,
            which times both on the first images and keeps the faster.

    Raises:
        BackendError: if the engine or the decoder cannot be opened here.
        ContractError: if the file is no model.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        backend: str = AUTO,
        devices: Sequence[int] = (),
        precision: str = AUTO,
        batch_size: int | None = None,
        decode_threads: int | None = None,
        decode_processes: int | None = None,
        exact: bool = False,
        decode: str = CPU,
    ) -> None:
        check_decoder_name(decode)
        self.model = Path(model) if model is not None else starter_path()
        choice = choose_backend(self.model, backend, devices=devices, batch_size=batch_size, precision=precision)
        self._backend = choice.backend
        #: Engines that `auto` tried before the one that is open, and why each was not it.
        self.skipped = choice.skipped
        self.batch_size = batch_size or self._backend.batch_size
        self._decoding = DecodeOptions(self.contract.input, exact, devices, decode_threads)
        self._decoder: Decoder | None = None
        self._process_count = _process_count(decode_processes, self._backend)
        self._processes: DecodeProcesses | None = None
        self._starting = threading.Lock()
        self._unfinished: weakref.WeakSet[Generator[Result, None, None]] = weakref.WeakSet()
        #: Why it decodes with what it does; empty where that was not chosen by measurement.
        self.decoder_choice = ""
        if decode != AUTO_DECODER:
            self._open_decoder(decode)

    def _open_decoder(self, name: str) -> None:
        try:
            self._decoder = open_decoder(name, self._decoding)
        except BaseException:
            self._backend.close()
            raise

    @property
    def contract(self) -> ModelContract:
        """The labels, thresholds and input of the open model."""
        return self._backend.contract

    @property
    def backend(self) -> str:
        """The engine that really answers: a name in `mineral_batch.engines.registry.BACKENDS`."""
        return self._backend.name

    @property
    def device(self) -> str:
        """What the engine really runs on and in which precision, in words."""
        return self._backend.device

    @property
    def engine_version(self) -> str:
        """The engine's software and precision: what changes a probability beside the model."""
        return self._backend.version

    @property
    def engine_identity(self) -> str:
        """The same, but with the batch size that was asked for where memory was too short for it."""
        return self._backend.identity

    @property
    def decoder(self) -> Decoder | None:
        """The decoder; with `decode="auto"` None until the first images are known (see `choose_decoder`)."""
        return self._decoder

    def choose_decoder(
        self, sources: Iterator[Source | Failure], earlier: str | None = None
    ) -> tuple[Decoder, Iterator[Source | Failure]]:
        """Return the decoder and all of the sources; with `decode="auto"` the first of them decide, once.

        Args:
            sources: of the run.
            earlier: `version` of the decoder that an earlier part of the run was made with.
        """
        with self._starting:
            if self._decoder is None:
                first, sources = peek(sources)
                self._decoder, self.decoder_choice = choose_decoder(
                    first, self._decoding, earlier, self._backend, self.batch_size
                )
                _log.warning("%s", self.decoder_choice)
            return self._decoder, sources

    def predict(
        self, inputs: Iterable[Input], *, with_exif: bool = False, times: StageTimes | None = None
    ) -> Generator[Result, None, None]:
        """One `Prediction` or `Failure` per photograph, lazily and in order.

        Args:
            inputs: folders, files, globs, archives (see `mineral_batch.images.discover`); images in memory, as PIL
                images or (H, W, 3) uint8 RGB arrays, whose results are named `picture 0`, `picture 1`, ...
            with_exif: read when and where each picture was taken, too.
            times: where the seconds of each stage are added.

        Raises:
            DataError: if an input does not exist.
            BackendError: if the engine fails.
        """
        results = self._predict(inputs, with_exif=with_exif, times=times)
        self._unfinished.add(results)
        return results

    def _predict(
        self, inputs: Iterable[Input], *, with_exif: bool, times: StageTimes | None
    ) -> Generator[Result, None, None]:
        decoder, sources = self.choose_decoder(_sources(inputs))
        results = pipeline.run(
            sources,
            self._backend,
            batch_size=self.batch_size,
            decode=partial(decoder.decode, with_exif=with_exif),
            decode_threads=self._decoding.threads or decoder.threads,
            processes=self._decode_processes(decoder),
            with_exif=with_exif,
            times=times,
        )
        with closing(results):
            yield from results

    def _decode_processes(self, decoder: Decoder) -> DecodeProcesses | None:
        """The decode processes, started when they are first needed; None where threads or a GPU decode."""
        if self._process_count and self._processes is None and decoder.name == CPU:
            with self._starting:
                if self._processes is None:
                    self._processes = DecodeProcesses(
                        self._decoding.spec, exact=self._decoding.exact, count=self._process_count
                    )
        return self._processes

    def close(self) -> None:
        """End what `predict` has begun, then close the decoder and the engine; each whatever becomes of the others.

        Results that nobody draws any more may still be held, by the traceback of the error that ended the drawing:
        their threads would go on with a decoder and an engine that are closed.
        """
        with ExitStack() as steps:  # in the order from the last one
            steps.callback(self._backend.close)
            if self._decoder is not None:
                steps.callback(self._decoder.close)
            if self._processes is not None:
                steps.callback(self._processes.close)
                self._processes = None
            for results in list(self._unfinished):
                steps.callback(results.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _process_count(wanted: int | None, backend: Backend) -> int:
    if wanted and not is_supported():
        raise BackendError("decode processes need POSIX; leave --decode-processes out to decode in threads")
    if wanted is not None:
        return wanted
    is_worth_it = is_supported() and backend.info.device.kind == "gpu" and cpu_count() >= _CPUS_FOR_PROCESSES
    return cpu_count() if is_worth_it else 0


def _sources(inputs: Iterable[Input]) -> Iterator[Source | Failure]:
    """Pictures in memory one by one, names in the stretches between them, so that each file still comes once."""
    pictures = itertools.count()
    for are_names, stretch in itertools.groupby(inputs, key=lambda given: isinstance(given, (str, Path))):
        if are_names:
            yield from find_sources(cast("Iterator[str | Path]", stretch))
            continue
        for given in stretch:
            yield given if isinstance(given, (Source, Failure)) else _in_memory(f"picture {next(pictures)}", given)


def _in_memory(name: str, picture: object) -> Source:
    image = picture if isinstance(picture, PILImage.Image) else PILImage.fromarray(_checked(picture))
    return Source(name, 0, 0, lambda: image)


def _checked(picture: object) -> Pixels:
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
        return picture
    what = f"an array {picture.shape} of {picture.dtype}" if isinstance(picture, np.ndarray) else f"{type(picture)}"
    raise DataError(f"a picture is a PIL image or an array (H, W, 3) of uint8, RGB; got {what}")
