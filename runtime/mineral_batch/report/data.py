"""The data that the page's script reads, as JSON in script elements."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.model.calibration import log_odds
from mineral_batch.model.familiarity import UNFAMILIAR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mineral_batch.evaluation.curves import Accuracy
    from mineral_batch.evaluation.metrics import Floats
    from mineral_batch.report.groups import Groups
    from mineral_batch.results.read import Results

#: Images in a page of data.
ROWS = 2000
#: A probability is near its threshold if its odds are within this factor of the threshold's.
NEAR = 2.0
_FULL_SCALE = 65535


def script_json(value: Any) -> str:
    """Write JSON that may stand in a script element: ASCII, and without a character that could end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def frame(results: Results, accuracy: Accuracy | None, origin: str, groups: Groups) -> dict[str, Any]:
    """Collect what the script needs before the pages of data.

    Args:
        results: of the run.
        accuracy: against labels, if there are any.
        origin: link from the page to where relative paths start.
        groups: what photographs are grouped and found by.
    """
    low, high = _near(results.thresholds)
    data: dict[str, Any] = {
        "labels": list(results.predictions.labels),
        "thresholds": results.thresholds.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "count": len(results.predictions.paths),
        "origin": origin,
        "failures": [[f.path, f.stage, f.reason] for f in results.failures],
        **groups.record(),
    }
    if accuracy:
        for name, mistakes in (("alarms", accuracy.false_alarms), ("misses", accuracy.missed)):
            data[name] = [[int(accuracy.rows[mistake.image]), mistake.label] for mistake in mistakes]
    return data


def _near(thresholds: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute between which probabilities a label is unsure: odds within a factor of `NEAR` of the threshold's."""
    middle, step = log_odds(thresholds), np.log(NEAR)
    low, high = (1 / (1 + np.exp(-(middle + sign * step))) for sign in (-1, 1))
    return low, high


def pages(results: Results, accuracy: Accuracy | None, groups: Groups) -> Iterator[dict[str, Any]]:
    """Yield the images, `ROWS` at a time: paths, probabilities as base64 of little-endian uint16, what is found."""
    table = results.predictions
    truth = _truth(accuracy)
    order = np.argsort(-table.scores, axis=1, kind="stable")
    for start in range(0, len(table.paths), ROWS):
        rows = range(start, min(start + ROWS, len(table.paths)))
        scores = np.rint(table.scores[rows.start : rows.stop] * _FULL_SCALE).astype("<u2")
        yield {
            "paths": table.paths[rows.start : rows.stop],
            "scores": base64.b64encode(scores.tobytes()).decode(),
            "found": [[int(label) for label in order[row] if table.called[row, label]] for row in rows],
            "captured": results.captured[rows.start : rows.stop] if any(results.captured) else None,
            "truth": [truth.get(row) for row in rows] if truth else None,
            "unfamiliar": _unfamiliar(results, rows),
            "answers": {row - start: groups.answers[row] for row in rows if row in groups.answers},
            "implausible": [row - start for row in rows if row in groups.implausible],
            "specimen": groups.specimen_of[rows.start : rows.stop],
            "damaged": {row - start: results.damaged[row] for row in rows if results.damaged[row]},
        }


def _unfamiliar(results: Results, rows: range) -> list[int]:
    """List the rows, counted from the first of them, that look unlike the training images."""
    found: list[int] = np.flatnonzero(results.familiarity[rows.start : rows.stop] < UNFAMILIAR).tolist()
    return found


def _truth(accuracy: Accuracy | None) -> dict[int, list[int]]:
    """Map each judged row of the predictions to its labels."""
    if accuracy is None:
        return {}
    rows = zip(accuracy.rows.tolist(), accuracy.truth, strict=True)
    return {row: np.flatnonzero(labels).tolist() for row, labels in rows}
