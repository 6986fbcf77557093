"""The Python interface: a model, opened once, that recognizes minerals in images."""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast, overload

from mineral_batch import pipeline
from mineral_batch.arguments import require_bool, require_choice, require_int, require_path, require_several
from mineral_batch.decoder_choice import choose_decoder, peek
from mineral_batch.engines.base import PRECISIONS
from mineral_batch.engines.registry import AUTO, choose_backend, engine_names
from mineral_batch.errors import BackendError, DataError
from mineral_batch.images.decoder import AUTO as AUTO_DECODER
from mineral_batch.images.decoder import CPU, DAMAGED, DECODERS, PREDICT, REFUSE, DecodeOptions, Decoder
from mineral_batch.images.decoders import open_decoder
from mineral_batch.images.given import Input, sources_given
from mineral_batch.images.limits import MAX_PIXELS
from mineral_batch.images.processes.pool import DecodeProcesses, is_supported
from mineral_batch.images.remote import read_ahead
from mineral_batch.model.starter import starter_path
from mineral_batch.storage.models import fetch
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure, Pixels, Probabilities, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from types import TracebackType

    from mineral_batch.engines.base import Backend
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.pipeline import StageTimes
    from mineral_batch.types import Result

_log = logging.getLogger("mineral_batch")

# With fewer, the engine's thread and the tables take so much of the machine that processes gain nothing.
_CPUS_FOR_PROCESSES = 4

_CLOSED = "this Predictor is closed: open a new one"


class Predictor:
    """An open model.

    >>> with Predictor() as predictor:                                    # doctest: +SKIP
    ...     for result in predictor.predict(["photos"]):
    ...         if isinstance(result, Prediction):
    ...             print(result.path, result.minerals, result.best)
    ...         else:
    ...             print(result.path, "failed:", result.reason)

    An image that cannot be read, or a name that does not exist, is a `Failure` in its place and ends nothing. What
    raises:

    | exception | when | exit code of the command |
    |---|---|---|
    | `ContractError` | the file is not a model, or contradicts its contract | 1 |
    | `BackendError` | the engine cannot be opened or fails, or the predictor is closed | 1 |
    | `DataError` | a glob matches nothing, or a bucket cannot be listed | 1 |
    | `OptionError`, a `DataError` | an argument has a wrong type or value; the message names it | 2 |

    The command's other exit codes: 0 all images predicted, 3 some images could not be read, 130 and 143 stopped by
    Ctrl-C and SIGTERM.

    Several threads may use one predictor at the same time. A predictor can be pickled: unpickling opens the same model
    with the same options again. After a fork, open one in the child.

    Args:
        model: an ONNX file from `mineral-export onnx`, or its URL (`mineral_batch.storage.models.fetch`); None for the
            starter model that comes with the package.
        backend: a name in `mineral_batch.engines.registry.BACKENDS`; `auto` takes onnx-cuda on an NVIDIA GPU, else
            onnx-cpu, and neither OpenVINO nor TensorRT.
        devices: indices of the GPUs to use side by side; empty for the first one, or the CPU where there is none.
        precision: `auto`, or one of `mineral_batch.engines.base.PRECISIONS` that the engine must compute in.
        batch_size: images per call of the engine, 1 to 4096; None for what suits the device.
        decode_threads: 1 to 1024; None for one per CPU.
        decode_processes: decode in this many processes instead of threads (POSIX only); 0 for threads; None for one per
            CPU where the engine is on a GPU and there are at least four CPUs, else threads.
        exact: decode JPEGs in full (see `mineral_batch.images.decode.open_rgb`).
        decode: `cpu`; `gpu`, which decodes large JPEGs on the GPU (`mineral_batch.images.gpu.decoder`); or `auto`,
            which times both on the first images and keeps the faster.
        familiarity: also give each image's familiarity, for a model that has one, on an engine that gives it.
        damaged: `refuse` makes a damaged image a `Failure`; `predict` predicts it from what can be decoded, with the
            reason in `Prediction.damage`.
        max_pixels: an image with more is a `Failure` before it is decoded.

    Raises:
        BackendError: if the engine or the decoder cannot be opened here.
        ContractError: if the file is no model.
        OptionError: if an argument has a wrong type or value.
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
        familiarity: bool = False,
        damaged: str = REFUSE,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._options = {
            "backend": backend,
            "devices": devices,
            "precision": precision,
            "batch_size": batch_size,
            "decode_threads": decode_threads,
            "decode_processes": decode_processes,
            "exact": exact,
            "decode": decode,
            "familiarity": familiarity,
            "damaged": damaged,
            "max_pixels": max_pixels,
        }
        _check_options(model, **self._options)
        self._options["devices"] = tuple(devices)
        self.model = fetch(model) if model is not None else starter_path()
        choice = choose_backend(
            self.model,
            backend,
            devices=devices,
            batch_size=batch_size,
            precision=precision,
            familiarity=familiarity,
        )
        self._backend = choice.backend
        self._engine = _SharedEngine(choice.backend)
        self._closed = False
        #: Engines that `auto` tried before the one that is open, and why each was not it.
        self.skipped = choice.skipped
        self.batch_size = batch_size or self._backend.batch_size
        self._decoding = DecodeOptions(
            self.contract.input, exact, devices, decode_threads, damaged == PREDICT, max_pixels
        )
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
    def calibrated(self) -> bool:
        """Whether the probabilities are calibrated: of the answers given at 70%, about seven in ten are right."""
        return self.contract.is_calibrated

    @property
    def backend(self) -> str:
        """The engine actually used: a name in `mineral_batch.engines.registry.BACKENDS`."""
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
        """The same, with the requested batch size even if memory was too short for it."""
        return self._backend.identity

    @property
    def keeps_damaged(self) -> bool:
        """Whether damaged images are predicted from what can be decoded."""
        return self._decoding.keep_damaged

    @property
    def max_pixels(self) -> int:
        """The largest image that is decoded, pixels."""
        return self._decoding.max_pixels

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

    @overload
    def predict(self, inputs: str | bytes, *, with_exif: bool = False, times: StageTimes | None = None) -> NoReturn: ...

    @overload
    def predict(
        self, inputs: Iterable[Input], *, with_exif: bool = False, times: StageTimes | None = None
    ) -> Generator[Result, None, None]: ...

    def predict(
        self, inputs: Iterable[Input] | str | bytes, *, with_exif: bool = False, times: StageTimes | None = None
    ) -> Generator[Result, None, None]:
        """Return one `Prediction` or `Failure` per image, lazily and in order.

        Args:
            inputs: an iterable of `mineral_batch.Input`: names (str or Path) of folders, files, globs and archives, as
                in `mineral_batch.images.discover`; images in memory, as the bytes of a file in any format that is read
                from disk, a binary file object, a PIL image, or an array (H, W, 3) of uint8 in RGB order. Results of
                images in memory are named `picture 0`, `picture 1`, ...
            with_exif: also read when and where each image was taken.
            times: where the seconds of each stage are added.

        Raises:
            OptionError: if `inputs` is a single input, or one of them is of none of these types.
            DataError: if a glob matches nothing, or a bucket does not exist or may not be listed.
            BackendError: if the engine fails, or the predictor is closed.
        """
        require_several("inputs", inputs, ", as in predict(['photos']); for one image use predict_one")
        require_bool("with_exif", with_exif)
        if self._closed:
            raise BackendError(_CLOSED)
        results = self._predict(cast("Iterable[Input]", inputs), with_exif=with_exif, times=times)
        self._unfinished.add(results)
        return results

    def _predict(
        self, inputs: Iterable[Input], *, with_exif: bool, times: StageTimes | None
    ) -> Generator[Result, None, None]:
        if self._closed:
            raise BackendError(_CLOSED)
        decoder, sources = self.choose_decoder(sources_given(inputs, keep_missing=True))
        ahead = read_ahead(sources)
        results = pipeline.run(
            ahead,
            self._engine,
            batch_size=self.batch_size,
            decode=partial(decoder.decode, with_exif=with_exif),
            decode_threads=self._decoding.threads or decoder.threads,
            processes=self._decode_processes(decoder),
            with_exif=with_exif,
            times=times,
        )
        with closing(ahead), closing(results):
            yield from results

    def predict_one(self, image: Input, *, with_exif: bool = False) -> Result:
        """Return the `Prediction` or `Failure` of one image, without the threads that many images need.

        Args:
            image: a file, or an image in memory; see `Input`.
            with_exif: also read when and where it was taken.

        Raises:
            OptionError: if it is of no such type.
            DataError: if it is not one image: a folder, an archive, a glob, or a path that does not exist. A file that
                exists and cannot be read is a `Failure`.
            BackendError: if the engine fails, or the predictor is closed.
        """
        require_bool("with_exif", with_exif)
        if self._closed:
            raise BackendError(_CLOSED)
        sources = list(itertools.islice(sources_given([image]), 2))
        if len(sources) != 1:
            raise DataError(f"{image!s} is {'more than one' if sources else 'no'} image: use predict([...])")
        decoder, remaining = self.choose_decoder(iter(sources))
        source = next(remaining)
        if isinstance(source, Failure):
            return source
        decoded = decoder.decode(source.name, source.read, with_exif=with_exif)
        if isinstance(decoded, Failure):
            return decoded
        return pipeline.infer(self._engine, decoded.pixels[None], [decoded])[0]

    def _decode_processes(self, decoder: Decoder) -> DecodeProcesses | None:
        """The decode processes, started when they are first needed; None where threads or a GPU decode."""
        if self._process_count and self._processes is None and decoder.name == CPU:
            with self._starting:
                if self._processes is None:
                    options = self._decoding
                    self._processes = DecodeProcesses(
                        options.spec,
                        exact=options.exact,
                        keep_damaged=options.keep_damaged,
                        max_pixels=options.max_pixels,
                        count=self._process_count,
                    )
        return self._processes

    def close(self) -> None:
        """End what `predict` has begun, then close the decoder and the engine, even if one of them fails to close.

        Results that are no longer consumed may still be held by the traceback of the error that ended the iteration:
        their threads would go on with a decoder and an engine that are closed.
        """
        self._closed = True
        with ExitStack() as steps:  # in the order from the last one
            steps.callback(self._backend.close)
            if self._decoder is not None:
                steps.callback(self._decoder.close)
            if self._processes is not None:
                steps.callback(self._processes.close)
                self._processes = None
            for results in list(self._unfinished):
                steps.callback(results.close)

    def __reduce__(self) -> tuple[Callable[..., Predictor], tuple[str, dict[str, Any]]]:
        """Pickle the options: unpickling opens the model again.

        Raises:
            BackendError: if the predictor is closed.
        """
        if self._closed:
            raise BackendError(_CLOSED)
        return _open_again, (str(self.model.resolve()), self._options)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.backend} on {self.device}"
        return f"<Predictor {self.model.name}: {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_options(
    model: Any,
    *,
    backend: Any,
    devices: Any,
    precision: Any,
    batch_size: Any,
    decode_threads: Any,
    decode_processes: Any,
    exact: Any,
    decode: Any,
    familiarity: Any,
    damaged: Any,
    max_pixels: Any,
) -> None:
    """Check the arguments of `Predictor`, with the limits of the command's options."""
    require_path("model", model, or_none=True)
    require_choice("backend", backend, [AUTO, *engine_names()])
    require_several("devices", devices, " of GPU indices, as in [0, 1]", Sequence)
    for device in devices:
        require_int("each of devices", device, 0)
    require_choice("precision", precision, PRECISIONS)
    require_int("batch_size", batch_size, 1, 4096, or_none=True)
    require_int("decode_threads", decode_threads, 1, 1024, or_none=True)
    require_int("decode_processes", decode_processes, 0, 1024, or_none=True)
    require_bool("exact", exact)
    require_choice("decode", decode, DECODERS)
    require_bool("familiarity", familiarity)
    require_choice("damaged", damaged, DAMAGED)
    require_int("max_pixels", max_pixels, 1)


def _process_count(wanted: int | None, backend: Backend) -> int:
    if wanted and not is_supported():
        raise BackendError("decode processes need POSIX; leave --decode-processes out to decode in threads")
    if wanted is not None:
        return wanted
    is_worth_it = is_supported() and backend.info.device.kind == "gpu" and cpu_count() >= _CPUS_FOR_PROCESSES
    return cpu_count() if is_worth_it else 0


def _open_again(model: str, options: dict[str, Any]) -> Predictor:
    return Predictor(model, **options)


class _SharedEngine:
    """An engine that any number of threads may call: no more at once than it has workers.

    Args:
        backend: open; it stays the caller's.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._permits = threading.BoundedSemaphore(backend.workers)

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 -> (N, L) float32, which stay the caller's."""
        with self._permits:
            return self._backend.infer(pixels).copy()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)
