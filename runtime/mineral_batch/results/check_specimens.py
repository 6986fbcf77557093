"""Checks that specimens.csv follows the schema, and what it has in common with the tables of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from mineral_batch.results.csv import csv_records, describe_fields
from mineral_batch.results.schema import BEST, SEPARATOR, SPECIMEN_COLUMNS, SPECIMEN_EXTRA

# Seven significant digits are written, so a probability may seem to lie on the other side of its threshold.
_ROUNDING = 1e-6


def check_specimens(
    path: Path, labels: tuple[str, ...] | None, thresholds: tuple[float, ...], predicted: int | None
) -> Iterator[str]:
    """Yield what is wrong with a specimens.csv: a line for each problem.

    Args:
        path: the file.
        labels: of run.json, None if it is not known; the same of the others.
        thresholds: of the labels; may be empty.
        predicted: images with a prediction.
    """
    records = csv_records(path)
    header = next(records, (0, []))[1]
    named = len(SPECIMEN_COLUMNS)
    first = next((index for index, name in enumerate(header[named:], named) if name not in SPECIMEN_EXTRA), len(header))
    known = tuple(header[first:])
    if labels is not None and known != labels:
        yield f"the columns after {header[first - 1]} are not the labels of run.json"
        return
    seen: set[str] = set()
    images = 0
    for line, cells in records:
        if len(cells) != len(header):
            yield f"line {line}: {describe_fields(len(cells), len(header))}"
            continue
        name, count, minerals = cells[:named]
        if not name or name in seen:
            yield f"line {line}: {'duplicate specimen ' + repr(name) if name else 'no specimen'}"
        seen.add(name)
        if not (count.isascii() and count.isdigit() and int(count)):
            yield f"line {line}: images {count!r} is not a number of images"
        else:
            images += int(count)
        problem = _wrong(minerals.split(SEPARATOR) if minerals else [], known, cells[first:], thresholds)
        extra = dict(zip(header[named:first], cells[named:first], strict=True))
        if problem or (problem := _wrong_best(extra, known, cells[first:])):
            yield f"line {line}: {problem}"
    if predicted is not None and images != predicted:
        yield f"specimens of {images} images, run.json says {predicted}"


def _wrong_best(extra: Mapping[str, str], labels: Sequence[str], cells: Sequence[str]) -> str:
    """What is wrong with the column `best`; empty if nothing is, or if there is none."""
    probabilities = dict(zip(labels, map(float, cells), strict=True))
    is_wrong = BEST in extra and probabilities.get(extra[BEST]) != max(probabilities.values())
    return f"{extra[BEST]} is not the most probable label" if is_wrong else ""


def _wrong(minerals: Sequence[str], labels: Sequence[str], cells: Sequence[str], thresholds: Sequence[float]) -> str:
    """What is wrong with the probabilities and minerals of a row; empty if nothing is."""
    try:
        values = dict(zip(labels, map(float, cells), strict=True))
    except ValueError:
        return "a probability is not a number"
    if outside := [label for label, value in values.items() if not 0.0 <= value <= 1.0]:
        return f"no probability from 0 to 1 for {', '.join(outside[:3])}"
    return next(wrong_minerals(minerals, values, dict(zip(labels, thresholds, strict=False))), "")


def wrong_minerals(
    minerals: Sequence[str], probabilities: Mapping[str, float], thresholds: Mapping[str, float]
) -> Iterator[str]:
    """Yield what is wrong with the minerals of an image or specimen.

    They must be labels, the most probable first, and those at or above the thresholds.

    Args:
        minerals: as the table lists them.
        probabilities: of every label.
        thresholds: of the labels, as far as they are known.
    """
    if set(minerals) - set(probabilities) or len(set(minerals)) != len(minerals):
        yield f"minerals {SEPARATOR.join(minerals)!r} are not distinct labels"
        return
    if any(probabilities[later] > probabilities[earlier] for earlier, later in pairwise(minerals)):
        yield "minerals are not in the order of their probabilities"
    for label, threshold in thresholds.items():
        difference = probabilities[label] - threshold
        if abs(difference) > _ROUNDING * threshold and (difference > 0) != (label in minerals):
            is_listed = "listed" if label in minerals else "not listed"
            yield f"{label} is {is_listed} at {probabilities[label]:g}, its threshold is {threshold:g}"
