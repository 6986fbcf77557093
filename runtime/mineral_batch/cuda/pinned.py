"""Page-locked arrays for batches, freed with their last view."""

from __future__ import annotations

import weakref
from contextlib import suppress
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.cuda.capture_lock import capture_lock
from mineral_batch.cuda.core import CoreContext
from mineral_batch.cuda.probe import DriverError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.cuda.interface import PinnedMemory
    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.types import Pixels


def pinned_array(shape: Sequence[int], gpu: Gpu) -> Pixels:
    """A zeroed uint8 array that the GPU reads without a copy in between; call it while holding `capture_lock`.

    Raises:
        DriverError: if the memory cannot be allocated.
    """
    context = CoreContext(gpu)
    try:
        with context.current():
            memory = context.pinned(prod(shape))
    except DriverError:
        context.close()
        raise
    array = memory.array
    # Not at exit: the process gives all of it back, and the driver may have stopped before.
    free = partial(capture_lock.run_or_postpone, partial(_free, context, memory))
    weakref.finalize(_owner(array), free).atexit = False
    return array.reshape(shape)


def _owner(array: Pixels) -> Pixels:
    """The array that all views of the memory refer to, so that it lives until the last of them is gone."""
    return _owner(array.base) if isinstance(array.base, np.ndarray) else array


def _free(context: CoreContext, memory: PinnedMemory) -> None:
    """Free the memory in whichever thread dropped the last view; without a current context nothing is freed."""
    # A GPU that failed takes its memory along, and a finalizer has nobody to tell.
    with suppress(Exception):
        with context.current():
            memory.close()
        context.close()


def pin(array: Pixels, gpu: Gpu) -> bool:
    """Page-lock an array of ordinary or shared memory until its last view is gone.

    Returns:
        Whether the driver did so; copies from an array that is not page-locked are right, and slower.
    """
    try:
        with capture_lock.shared():
            context = CoreContext(gpu)
            try:
                with context.current():
                    context.register(array)
            except DriverError:
                context.close()
                raise
    except DriverError:
        return False
    free = partial(capture_lock.run_or_postpone, partial(_unpin, context, array.ctypes.data))
    weakref.finalize(_owner(array), free).atexit = False
    return True


def _unpin(context: CoreContext, address: int) -> None:
    with suppress(Exception):  # see `_free`
        with context.current():
            context.unregister(address)
        context.close()


def host_buffer(shape: Sequence[int], gpu: Gpu) -> Pixels:
    """`pinned_array`, or ordinary memory where there is none."""
    try:
        with capture_lock.shared():
            return pinned_array(shape, gpu)
    except DriverError:
        return np.zeros(tuple(shape), np.uint8)
