"""A thread that decodes batches of JPEGs on one GPU, and what happens when that GPU fails."""

from __future__ import annotations

import logging
import re
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from mineral_batch.cuda.capture_lock import capture_lock
from mineral_batch.cuda.core import CoreContext
from mineral_batch.errors import BackendError, MineralError, one_line
from mineral_batch.images.gpu.batch import BatchDecoder, install_command
from mineral_batch.images.gpu.selftest import check_pixels, require_alive, warm_up_jpeg

if TYPE_CHECKING:
    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.images.gpu.jpeg import GpuJpeg
    from mineral_batch.images.gpu.queue import JpegQueue
    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels

# A worker ends after this many failures in a row that no single image caused, with a pause after each that grows by
# this many seconds; and at once after an error that CUDA does not recover from: 7xx, in the driver's words or in
# nvImageCodec's.
_MAX_FAILURES = 3
_PAUSE = 1.0
_FATAL = re.compile(r"(CUDA error |#)7\d\d\b")

_log = logging.getLogger("mineral_batch")


class GpuWorker:
    """A thread with a CUDA stream, a decoder and its buffers on one GPU.

    Raises:
        BackendError: if it does not start, or gives wrong pixels.
    """

    def __init__(self, codec: Any, gpu: Gpu, spec: InputSpec, queue: JpegQueue, codec_threads: int) -> None:
        self._codec = codec
        self._gpu = gpu
        self._spec = spec
        self._queue = queue
        self._codec_threads = codec_threads
        self._warned: set[str] = set()
        is_open: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(is_open,), name=f"gpu-decode-{gpu.index}", daemon=True)
        self._thread.start()
        is_open.result()

    def join(self) -> None:
        """Wait until the closed queue is empty and everything is released."""
        self._thread.join()

    def _run(self, is_open: Future[None]) -> None:
        """Open, serve and close in the worker's own thread, where its context is current."""
        try:
            with ExitStack() as held:
                context = CoreContext(self._gpu)
                held.callback(context.close)
                held.enter_context(context.current())
                self._serve_until_closed(context, is_open)
        # nvImageCodec raises RuntimeError, the driver DriverError.
        except Exception as error:
            self._report(is_open, error)

    def _report(self, is_open: Future[None], error: Exception) -> None:
        if is_open.done():
            # A GPU that failed fails again when it is closed.
            _log.warning("closing the decoder on GPU %d: %s", self._gpu.index, one_line(error))
            return
        if not isinstance(error, MineralError):
            where = f"{self._gpu.name} ({one_line(error)})"
            error = BackendError(
                f"nvImageCodec {self._codec.__version__} does not start on {where}: {install_command()}"
            )
        is_open.set_exception(error)

    def _serve_until_closed(self, context: CoreContext, is_open: Future[None]) -> None:
        with capture_lock.shared():
            decoder = BatchDecoder(self._codec, self._gpu, self._spec, context, self._codec_threads)
        try:
            with capture_lock.shared():
                decoder.warm_up(warm_up_jpeg())
            check_pixels(decoder, self._gpu, self._spec, self._codec.__version__)
            self._queue.register_worker()
            is_open.set_result(None)
            self._serve(decoder)
        finally:
            with capture_lock.shared():
                decoder.close()

    def _serve(self, decoder: BatchDecoder) -> None:
        """Give every JPEG a result, whatever happens, because its thread waits; until the queue or the GPU ends."""
        failures = 0
        while jpegs := self._queue.take(decoder.max_pixels):
            try:
                results = self._decode(decoder, jpegs)
            except Exception as error:  # nvImageCodec raises RuntimeError, the driver DriverError
                failures += 1
                reason = one_line(error)
                if failures == _MAX_FAILURES or _FATAL.search(reason):
                    self._give_up(jpegs, reason)
                    return
                self._queue.put_back(jpegs)
                self._warn_once(f"{reason}; trying again")
                time.sleep(_PAUSE * failures)
                continue
            failures = 0
            for jpeg, result in zip(jpegs, results, strict=True):
                jpeg.result.set_result(result)

    def _decode(self, decoder: BatchDecoder, jpegs: list[GpuJpeg]) -> list[Pixels | str]:
        """Decode a batch; if it fails on a healthy GPU, one JPEG at a time, so that one costs no other.

        Raises:
            Exception: if the GPU is not healthy.
        """
        try:
            with capture_lock.shared():
                results = decoder.run(jpegs)
        except Exception as error:
            reason = one_line(error)
            if _FATAL.search(reason):
                raise
            require_alive(decoder, reason)
            if len(jpegs) == 1:
                return [f"it failed: {reason}"]
            return [result for jpeg in jpegs for result in self._decode(decoder, [jpeg])]
        if all(isinstance(result, str) for result in results):
            require_alive(decoder, "it decodes no JPEG any more")
        return results

    def _give_up(self, jpegs: list[GpuJpeg], reason: str) -> None:
        if self._queue.unregister_worker(jpegs, f"GPU {self._gpu.index}: {reason}"):
            self._warn_once(f"{reason}; this decoder stops, the others continue")

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _log.warning("decoding on GPU %d: %s", self._gpu.index, message)
