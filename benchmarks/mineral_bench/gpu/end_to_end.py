"""Throughput of `predict`, from files to probabilities."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mineral_bench.gpu.record import Record
    from mineral_bench.gpu.settings import Settings

# Largest difference of the same image in another batch: FP16 products of another shape sum in another order.
_SAME = 0.005


def measure_folders(
    settings: Settings, record: Record, name: str, folders: Iterable[str], *, beside: str = "", **options: Any
) -> None:
    """Measure `predict` over folders, from files to probabilities, after a warm-up on the first 64.

    Args:
        settings: of the run.
        record: of the stage.
        name: of the rows, before the folder's.
        folders: keys of `Sizes.photos`.
        beside: row of the engine alone.
        **options: of `Predictor`.
    """
    from mineral_batch.predictor import Predictor

    left = {f"{name}, {folder}": folder for folder in folders if not record.has(f"{name}, {folder}")}
    if not left:
        return
    try:
        predictor = Predictor(**options)
    except Exception as error:  # the other engines are still measured
        for row in left:
            record.failed(row, error)
        return
    with predictor:
        for row, folder in left.items():
            try:
                record.save(**{row: {**_measure(settings, predictor, folder, options), "beside": beside}})
            except Exception as error:  # the other folder is still measured
                record.failed(row, error)


def _measure(settings: Settings, predictor: Any, folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """Measure one folder.

    Raises:
        ValueError: if an image failed, or the same image got other probabilities elsewhere in the folder.
    """
    from mineral_batch.pipeline import StageTimes

    files, times = sorted(settings.folder(folder).iterdir()), StageTimes()
    sum(1 for _ in predictor.predict(files[:64]))
    start = time.perf_counter()
    results = list(predictor.predict(files, times=times))
    seconds = time.perf_counter() - start
    difference = _difference(results, settings.sizes.different)
    # With decoding on the GPU some images are decoded on the CPU, slightly differently.
    if not difference <= _SAME and options.get("decode", "cpu") == "cpu":
        raise ValueError(
            f"the same image got other probabilities at different places of the folder: by {difference:.2g}"
        )
    return {
        "pictures_per_s": len(results) / seconds,
        "pictures": len(results),
        "batch_size": predictor.batch_size,
        "device": predictor.device,
        "decoding": getattr(predictor, "decoder_choice", ""),
        "same_picture_differs_by": difference,
        "seconds": times.rounded(),
    }


def _difference(results: list[Any], different: int) -> float:
    """Return the largest difference between probabilities of the same image, which comes every `different` files.

    Raises:
        ValueError: if an image failed, or a probability is not a number.
    """
    from mineral_batch.types import Failure

    failures = [result for result in results if isinstance(result, Failure)]
    if failures or not results:
        why = f", the first: {failures[0].path}: {failures[0].reason}" if failures else ""
        raise ValueError(f"{len(failures)} of {len(results)} images failed{why}")
    probabilities = np.stack([result.probabilities for result in results])
    if not np.isfinite(probabilities).all():
        raise ValueError("a probability is not a number")
    largest = float(np.abs(probabilities - probabilities[np.arange(len(probabilities)) % different]).max())
    return largest if math.isfinite(largest) else math.inf
