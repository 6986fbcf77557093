"""Rates: of one way to run a model by batch, and of `predict` from files to probabilities."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from common import line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from common import Record, Settings, Sizes

    #: (settings, batch) -> what computes it, while the block lasts.
    Maker = Callable[[Settings, int], AbstractContextManager["Way"]]

# The same picture at another place of another batch: FP16 products of another shape sum in another order.
_SAME = 0.005


@dataclass(frozen=True)
class Way:
    """One way to run a model, ready.

    Attributes:
        run: computes, or starts to.
        pictures: of one run; 0 for one batch.
        says: what is known of it, in words.
    """

    run: Callable[[], Any]
    pictures: int = 0
    says: str = ""


def has_events(sizes: Sizes) -> bool:
    """Whether there are CUDA events to time by: without them everything is waited for, by the host's clock."""
    if sizes.dry:
        return False
    with suppress(ImportError, OSError):
        import torch

        return torch.cuda.is_available()
    return False


def measured(work: Callable[[], Any], sizes: Sizes) -> float:
    """Seconds of one call: median of five stretches after a warm-up as long as one of them."""
    stretch = _stretch_on_gpu if has_events(sizes) else _stretch_on_host
    for _ in range(3):
        work()
    once = max(stretch(work, 1), 1e-6)
    rounds = max(1, int(sizes.seconds / 5 / once))
    return sorted([stretch(work, rounds) / rounds for _ in range(6)][1:])[2]


def _stretch_on_gpu(work: Callable[[], Any], rounds: int) -> float:
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(rounds):
        work()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def _stretch_on_host(work: Callable[[], Any], rounds: int) -> float:
    start = time.perf_counter()
    for _ in range(rounds):
        work()
    return time.perf_counter() - start


def by_batch(
    settings: Settings, record: Record, kinds: Mapping[str, Maker], batches: tuple[int, ...] | None = None
) -> None:
    """Pictures a second of each way to run a model, the pictures already on the device; goes on where it stopped.

    After a batch that fails the larger ones are left out, after two failures all.
    """
    failed: dict[str, list[int]] = {name: [] for name in kinds}
    for name in kinds:
        record.values.pop(f"{name} ended", None)
    for batch in batches or settings.sizes.batches:
        for name, make in kinds.items():
            is_known = str(batch) in record.values.get(name, {})
            if is_known or len(failed[name]) > 1 or any(batch > other for other in failed[name]):
                continue
            try:
                _add_rate(settings, record, name, make, batch)
            except Exception as error:  # a larger batch may not fit, the other ways are still to be measured
                failed[name].append(batch)
                record.count_failure(f"{name}, batch {batch}", error)
                ended = [record.values.get(f"{name} ended"), f"batch {batch}: {line(error)}"]
                record.save(**{f"{name} ended": "; ".join(filter(None, ended))})


def _add_rate(settings: Settings, record: Record, name: str, make: Maker, batch: int) -> None:
    with make(settings, batch) as way:
        rate = (way.pictures or batch) / measured(way.run, settings.sizes)
        record.save(**{name: {**record.values.get(name, {}), str(batch): rate}})
        if way.says:
            record.save(**{f"{name} says": {**record.values.get(f"{name} says", {}), str(batch): way.says}})


def end_to_end(
    settings: Settings, record: Record, name: str, folders: Iterable[str], *, beside: str = "", **options: Any
) -> None:
    """`predict` over folders: files to probabilities a second, after a warm-up on the first 64.

    Args:
        settings: of the run.
        record: of the stage.
        name: of the rows, before that of the folder.
        folders: keys of `Sizes.photos`.
        beside: name of the row of the engine alone.
        **options: of `Predictor`.
    """
    from mineral_batch.predictor import Predictor

    left = {f"{name}, {folder}": folder for folder in folders if not record.has(f"{name}, {folder}")}
    if not left:
        return
    try:
        predictor = Predictor(**options)
    except Exception as error:  # the other engines are still to be measured
        for row in left:
            record.failed(row, error)
        return
    with predictor:
        for row, folder in left.items():
            try:
                record.save(**{row: {**_over(settings, predictor, folder, options), "beside": beside}})
            except Exception as error:  # the other folder is still to be measured
                record.failed(row, error)


def _over(settings: Settings, predictor: Any, folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """The rate over one folder.

    Raises:
        ValueError: if a picture got no answer, or not the one that the same picture got elsewhere in the folder.
    """
    from mineral_batch.pipeline import StageTimes

    files, times = sorted(settings.folder(folder).iterdir()), StageTimes()
    sum(1 for _ in predictor.predict(files[:64]))
    start = time.perf_counter()
    results = list(predictor.predict(files, times=times))
    seconds = time.perf_counter() - start
    differs = _differs(results, settings.sizes.different)
    # Pictures decoded on the GPU are mixed with others, which the processor decodes a little otherwise.
    if not differs <= _SAME and options.get("decode", "cpu") == "cpu":
        raise ValueError(f"the same picture got answers that differ by {differs:.2g} at different places of the folder")
    return {
        "pictures_per_s": len(results) / seconds,
        "pictures": len(results),
        "batch_size": predictor.batch_size,
        "device": predictor.device,
        "decoding": getattr(predictor, "decoder_choice", ""),
        "same_picture_differs_by": differs,
        "seconds": times.rounded(),
    }


def _differs(results: list[Any], different: int) -> float:
    """Largest difference between the probabilities of the same picture, every so many files.

    Raises:
        ValueError: if a picture failed, or a probability is not a number.
    """
    from mineral_batch.types import Failure

    failures = [result for result in results if isinstance(result, Failure)]
    if failures or not results:
        why = f", the first: {failures[0].path}: {failures[0].reason}" if failures else ""
        raise ValueError(f"{len(failures)} of {len(results)} pictures got no answer{why}")
    answers = np.stack([result.probabilities for result in results])
    if not np.isfinite(answers).all():
        raise ValueError("a probability is not a number")
    largest = float(np.abs(answers - answers[np.arange(len(answers)) % different]).max())
    return largest if math.isfinite(largest) else math.inf
