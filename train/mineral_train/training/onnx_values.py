"""Values inside an ONNX graph for many images: logits and features, which are not among its outputs. No torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.engines.onnx_session import CPU, LOG_ERRORS, make_session, onnxruntime_with
from mineral_batch.errors import DataError
from mineral_batch.images.decode import load_image
from mineral_batch.model.onnx_file import read_contract, with_outputs
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure, Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Progress = Callable[[Iterable[Image | Failure], int], Iterable[Image | Failure]]


def graph_values(
    path: Path, name: str, images: Sequence[Path], progress: Progress | None = None
) -> tuple[NDArray[np.float32], list[Failure]]:
    """Compute one value of a graph for each image, on ONNX Runtime's CPU engine.

    Args:
        path: an ONNX file with a contract.
        name: of the value, (N, D) in the graph.
        images: N files.
        progress: wraps the decoded images, of which it gets the number.

    Returns:
        (N, D) float32, a row of NaN for an image that cannot be read; and these images.

    Raises:
        BackendError: if onnxruntime is not installed or refuses the graph.
        DataError: if no image can be read.
    """
    runtime = onnxruntime_with(CPU)
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = LOG_ERRORS, 1
    session = make_session(runtime, path, options, [(CPU, {})], with_outputs(path, [name]))
    feed = session.get_inputs()[0].name
    with ThreadPoolExecutor(cpu_count()) as pool:
        decoded: Iterable[Image | Failure] = pool.map(partial(load_image, spec=read_contract(path).input), images)
        if progress is not None:
            decoded = progress(decoded, len(images))
        # One image at a time, as the engine for the CPU does.
        rows = [
            session.run([name], {feed: one.pixels[None]})[0][0] if isinstance(one, Image) else one for one in decoded
        ]
    failures = [row for row in rows if isinstance(row, Failure)]
    if len(failures) == len(rows):
        first = f": the first is {failures[0].path}: {failures[0].reason}" if failures else ""
        raise DataError(f"none of the {len(rows)} images can be read{first}")
    width = next(row for row in rows if not isinstance(row, Failure)).shape
    table = [np.full(width, np.nan, np.float32) if isinstance(row, Failure) else row for row in rows]
    return np.stack(table), failures
