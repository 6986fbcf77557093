"""The charts of a report, from the tables of a run and its accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mineral_batch.report.charts import Bar, Bars, Heatmap, Line, Panel, Panels, Places, Reliability

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mineral_batch.evaluation.curves import Accuracy, Curve
    from mineral_batch.report.charts import Chart, Floats
    from mineral_batch.report.groups import Groups
    from mineral_batch.results.read import Results

#: With fewer labeled photographs, a mineral's figures are mostly chance and its curve is a few steps.
FEWEST = 5

_NOTHING = "nothing"
# Rows of the charts of minerals found together and of confusions.
_PAIRS, _LOOK_ALIKES = 10, 15


def all_charts(results: Results, accuracy: Accuracy | None) -> Iterator[Chart]:
    """Build every chart for which there are data."""
    yield counts(results)
    together = co_occurrence(results)
    if together.rows:
        yield together
    if results.has_places:
        yield places(results)
    if accuracy:
        yield reliability(accuracy)
        yield average_precision(accuracy)
        yield precision_recall(accuracy)
        yield thresholds(results, accuracy)
        yield confusion(accuracy)


# The predictions alone


def counts(results: Results) -> Bars:
    """In how many images each mineral is found, the most frequent first; minerals that are never found are left out."""
    table = results.predictions
    rows = []
    for index, name in enumerate(table.labels):
        found = table.scores[table.called[:, index], index]
        if len(found):
            rows.append(Bar(name, len(found), (f"{len(found):,}", f"{np.median(found):.2f}")))
    return Bars(
        name="counts",
        caption="How many photographs show each mineral, and the median of its probability in them. "
        "Choose a mineral to see its photographs.",
        columns=("mineral", "photographs", "median probability"),
        rows=tuple(sorted(rows, key=lambda row: (-row.value, row.name))),
        links=True,
    )


def classes(results: Results, groups: Groups) -> Bars | None:
    """In how many images each class of minerals is found, the most frequent first; None if no class is known."""
    called = results.predictions.called
    rows = []
    for one in (one for one in groups.broader if one.level == "class"):
        count = int(called[:, list(one.labels)].any(axis=1).sum())
        names = [results.predictions.labels[label] for label in one.labels if called[:, label].any()]
        if count:
            rows.append(Bar(one.name, count, (f"{count:,}", ", ".join(names))))
    if not rows:
        return None
    return Bars(
        name="classes",
        caption="How many photographs show a mineral of each class (Strunz). Choose a class to see them.",
        columns=("class", "photographs", "minerals"),
        words=("minerals",),
        rows=tuple(sorted(rows, key=lambda row: (-row.value, row.name))),
        links=True,
    )


def never_found(results: Results) -> list[str]:
    """List the minerals that no image shows."""
    called = results.predictions.called
    return [results.predictions.labels[index] for index in np.flatnonzero(~called.any(axis=0)).tolist()]


def co_occurrence(results: Results) -> Heatmap:
    """In how many images two minerals are found together; minerals that are never found are left out.

    The diagonal is how often each is found. The color is the Jaccard index: images with both / images with either.
    """
    called = results.predictions.called
    present = np.flatnonzero(called.any(axis=0))
    # Floats, because only they are multiplied by a fast library; exact up to 2^24 images in a cell.
    chosen = called[:, present].astype(np.float32)
    both = np.rint(chosen.T @ chosen).astype(np.int64)
    alone = both.diagonal()
    either = alone[:, None] + alone[None] - both
    scale = both / np.maximum(either, 1)
    np.fill_diagonal(scale, alone / max(1, alone.max(initial=0)))
    names = tuple(results.predictions.labels[index] for index in present)
    return Heatmap(
        name="co-occurrence",
        caption="Photographs that show both minerals. The stronger the color, the larger their share of the "
        "photographs that show either. Framed cells: all photographs of one mineral.",
        rows=names,
        columns=names,
        counts=both,
        scale=scale,
        down="",
        across="found in the same photograph",
        frames_diagonal=True,
    )


def pairs(together: Heatmap) -> Bars | None:
    """Chart the minerals that are found together most often; None if no two are."""
    found = [
        (f"{together.rows[i]} with {together.rows[j]}", int(together.counts[i, j]))
        for i, j in np.argwhere(np.triu(together.counts, 1)).tolist()
    ]
    rows = sorted(found, key=lambda pair: (-pair[1], pair[0]))[:_PAIRS]
    if not rows:
        return None
    return Bars(
        name="pairs",
        caption="The minerals that are found in the same photograph most often",
        columns=("minerals", "photographs"),
        rows=tuple(Bar(name, count, (f"{count:,}",)) for name, count in rows),
    )


def places(results: Results) -> Places:
    """Where the images were taken, as far as they say."""
    points = results.places[np.isfinite(results.places).all(axis=1)]
    caption = f"{len(points):,} photographs say where they were taken."
    if len(points) == 1:
        caption = "One photograph says where it was taken."
    return Places(name="places", caption=caption, points=points)


# Against labels


def support(accuracy: Accuracy) -> NDArray[np.int64]:
    """Count the images that are labeled with each mineral, (L,)."""
    counts: NDArray[np.int64] = accuracy.evaluation.mean_ap.support
    return counts


def by_ap(accuracy: Accuracy, fewest: int = FEWEST) -> list[int]:
    """List the labels with at least `fewest` labeled images, the highest AP first (Wu et al. 2022, figure 5)."""
    figure = accuracy.evaluation.mean_ap
    return sorted(np.flatnonzero(figure.support >= fewest).tolist(), key=lambda index: -figure.per_label[index])


def average_precision(accuracy: Accuracy) -> Bars:
    """AP per mineral; those with fewer than `FEWEST` labeled images come last, whatever their AP."""
    figure, decisions = accuracy.evaluation.mean_ap, accuracy.evaluation.decisions
    judged = by_ap(accuracy)
    few = [index for index in by_ap(accuracy, fewest=1) if index not in judged]
    rows = []
    for index in (*judged, *few):
        value = float(figure.per_label[index])
        rates = (f"{decisions.precision[index]:.2f}", f"{decisions.recall[index]:.2f}")
        cells = (f"{value:.3f}", f"{figure.support[index]:,}", *rates)
        rows.append(Bar(accuracy.evaluation.labels[index], value, cells, is_faint=index in few))
    return Bars(
        name="average-precision",
        caption="Average precision (AP) per mineral: 1 if all photographs of the mineral rank before all others.",
        columns=("mineral", "AP", "labeled photographs", "precision", "recall"),
        rows=tuple(rows),
        full=1.0,
        faint_note=f"Fewer than {FEWEST} labeled photographs: these figures are mostly chance",
        mean=(float(figure.mean), f"mAP {figure.mean:.3f}"),
        links=True,
    )


def reliability(accuracy: Accuracy) -> Reliability:
    """How often decisions of a predicted probability are right."""
    found = accuracy.evaluation.calibration.reliability
    return Reliability(
        name="calibration",
        caption="When the model says 70%, is it right seven times in ten? A dot per bin: its mean probability across, "
        "the share that is true up. On the dotted line, probabilities mean what they say; below it, the model is too "
        "sure; above it, not sure enough. Bars: how many decisions are in the bin, on a logarithmic scale.",
        predicted=found.predicted,
        observed=found.observed,
        decisions=found.decisions,
        error=float(found.error),
    )


def precision_recall(accuracy: Accuracy) -> Panels:
    """A curve per mineral with enough labeled images."""
    panels = []
    for index in by_ap(accuracy):
        note = f"AP {accuracy.evaluation.mean_ap.per_label[index]:.2f}, {support(accuracy)[index]} photographs"
        line = Line("first", "precision", *steps(accuracy.curves[index]))
        panels.append(Panel(accuracy.evaluation.labels[index], note, (line,)))
    return Panels(
        name="precision-recall",
        caption="The area under the steps is the average precision.",
        across="recall",
        up="precision",
        panels=tuple(panels),
    )


def thresholds(results: Results, accuracy: Accuracy) -> Panels:
    """Precision, recall and F1 at every threshold, per mineral with enough labeled images."""
    panels = []
    for index in by_ap(accuracy):
        curve, best = accuracy.thresholds[index], int(np.nanargmax(accuracy.thresholds[index].f1))
        note = f"best F1 {curve.f1[best]:.2f} at {curve.threshold[best]:.2f}, {support(accuracy)[index]} photographs"
        lines = (
            Line("second", "precision", curve.threshold, curve.precision),
            Line("third", "recall", curve.threshold, curve.recall),
            Line("first", "F1", curve.threshold, curve.f1),
        )
        mark = float(results.thresholds[index]) if results.knows_thresholds else None
        panels.append(Panel(accuracy.evaluation.labels[index], note, lines, mark))
    return Panels(
        name="thresholds",
        caption="What another threshold would change.",
        across="threshold",
        up="",
        panels=tuple(panels),
        mark="the model's threshold" if results.knows_thresholds else "",
    )


def confusion(accuracy: Accuracy) -> Heatmap:
    """The minerals that are labeled, and what was found instead of them, as fractions of each row's images."""
    labels, table = accuracy.evaluation.labels, accuracy.confusion
    positives = accuracy.truth.sum(axis=0)
    rows = np.flatnonzero(positives)
    columns = np.union1d(rows, np.flatnonzero(table[:, :-1].any(axis=0)))
    counts = table[np.ix_(rows, np.append(columns, len(labels)))]
    return Heatmap(
        name="confusion",
        caption="Rows: the labeled mineral. Columns: what was found although it is not labeled, in photographs where "
        "the row's mineral was missed. Diagonal: photographs in which the labeled mineral was found. The stronger "
        "the color, the larger the share of the row's photographs.",
        rows=tuple(labels[index] for index in rows),
        columns=(*(labels[index] for index in columns), _NOTHING),
        counts=counts,
        scale=np.minimum(1.0, counts / np.maximum(positives[rows, None], 1)),
        down="labeled",
        across="found instead",
    )


class LookAlike(NamedTuple):
    """In `images` of the `labeled` images of `mineral`, it was missed and `instead` was found."""

    mineral: str
    instead: str
    images: int
    labeled: int


def look_alikes(accuracy: Accuracy) -> list[LookAlike]:
    """List the most frequent confusions, by number of images and then by share of the mineral's images."""
    table = accuracy.confusion[:, :-1].copy()
    np.fill_diagonal(table, 0)
    labels, positives = accuracy.evaluation.labels, accuracy.truth.sum(axis=0)
    found = [
        LookAlike(labels[t], labels[j], int(table[t, j]), int(positives[t])) for t, j in np.argwhere(table > 0).tolist()
    ]
    return sorted(found, key=lambda pair: (-pair.images, pair.labeled, pair.mineral, pair.instead))[:_LOOK_ALIKES]


def look_alike_bars(accuracy: Accuracy) -> Bars | None:
    """Chart the most frequent confusions; None if there are none."""
    found = look_alikes(accuracy)
    if not found:
        return None
    return Bars(
        name="look-alikes",
        caption="The mineral was missed and another one found instead: in how many of its labeled photographs",
        columns=("labeled → found instead", "photographs"),
        rows=tuple(
            Bar(f"{p.mineral} → {p.instead}", p.images / p.labeled, (f"{p.images} of {p.labeled}",)) for p in found
        ),
        full=1.0,
    )


def steps(curve: Curve) -> tuple[Floats, Floats]:
    """The corners (x, y) of a precision-recall curve drawn as equation 6 sums it: from R_{n-1} to R_n at P_n."""
    is_new = np.diff(curve.recall, prepend=0.0) > 0
    recall, precision = curve.recall[is_new], curve.precision[is_new]
    return np.repeat(np.append(0.0, recall), 2)[1:-1], np.repeat(precision, 2)
