"""What a simulated reviewer's labels are worth: mAP on test photographs against the number of photographs labeled.

A first model is fitted on the validation photographs. The reviewer then labels the training photographs, truthfully, in
the order that is studied; after every round the head is fitted again on what is labeled, as `mineral-train adapt` does
it (the first model's answers are inputs), and orders the photographs that are left. Features are computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.evaluation.metrics import mean_average_precision
from mineral_batch.review import order
from mineral_bench.report import Table
from mineral_train.adapt.features import FeatureCache, extract
from mineral_train.adapt.graph import LinearHead
from mineral_train.adapt.head import Head, adapt_head
from mineral_train.adapt.photos import read_photos
from mineral_train.adapt.run import photo_groups
from mineral_train.data.folders import TableFormat
from mineral_train.data.manifest import multi_hot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Rows = NDArray[np.intp]
    # (probabilities (N, L), features (N, C), random numbers) -> all N places, in order
    Order = Callable[[NDArray[np.float64], NDArray[np.float32], np.random.Generator], Rows]

_SHARE_OF_FIRST = 0.8  # of the validation photographs, drawn by seed: five seeds are five first models


@dataclass(frozen=True)
class Photos:
    """Labeled photographs.

    Attributes:
        x: (N, C) features.
        y: (N, L) truth.
        groups: (N,) photographs of one specimen and near-duplicates share a number.
        splits: (N,) train, val or test.
    """

    x: NDArray[np.float32]
    y: NDArray[np.bool_]
    groups: NDArray[np.int64]
    splits: NDArray[np.str_]

    def rows(self, split: str) -> Rows:
        """The places of a split."""
        return np.flatnonzero(self.splits == split)


def read(manifest: Path, model: Path, folder: Path, progress: Callable[[Iterable[int], int], Iterable[int]]) -> Photos:
    """Read labeled photographs and compute their features, or take them from the folder.

    Args:
        manifest: CSV with the columns path, labels, split and specimen.
        model: an ONNX file that ends with one linear layer.
        folder: where features are kept.
        progress: wraps the photographs whose features are computed.

    Raises:
        DataError: if one is missing or unsuitable, or a split has no photographs.
    """
    head = LinearHead.read(model)
    table = TableFormat("path", "labels", ";", "split", None)
    photos = read_photos(manifest, head.contract.labels, None, table)
    features = extract(head, photos.rows, FeatureCache(folder, head), progress)
    y = multi_hot([row.labels for row in features.rows], photos.labels)
    splits = np.array([row.split for row in features.rows])
    for split in ("train", "val", "test"):
        if not y[splits == split].any():
            raise DataError(f"{manifest} has no labeled photographs of the split {split}")
    return Photos(features.vectors, y, photo_groups(features, "specimen"), splits)


def by_random(scores: NDArray[np.float64], _: NDArray[np.float32], rng: np.random.Generator) -> Rows:
    """As the photographs come."""
    return rng.permutation(len(scores))


def by_margin(scores: NDArray[np.float64], _: NDArray[np.float32], __: np.random.Generator) -> Rows:
    """By the label nearest to 50%."""
    return np.argsort(np.abs(scores - 0.5).min(axis=1), kind="stable")


def by_worth(scores: NDArray[np.float64], _: NDArray[np.float32], __: np.random.Generator) -> Rows:
    """By the worth of `mineral-batch review`, without spreading."""
    return np.argsort(-order.worth(scores), kind="stable")


def by_answers(scores: NDArray[np.float64], _: NDArray[np.float32], __: np.random.Generator) -> Rows:
    """As `mineral-batch review` orders without features."""
    chosen = order.candidates(scores)
    return order.teaches(scores, order.answers(scores[chosen]), chosen)


def by_features(scores: NDArray[np.float64], x: NDArray[np.float32], _: np.random.Generator) -> Rows:
    """As `mineral-batch review` orders what teaches most."""
    chosen = order.candidates(scores)
    return order.teaches(scores, x[chosen], chosen)


ORDERS: dict[str, Order] = {
    "random": by_random,
    "margin": by_margin,
    "worth": by_worth,
    "teaches, by answers": by_answers,
    "teaches, by features": by_features,
}


def orders(names: Sequence[str]) -> dict[str, Order]:
    """The orders of these names; all if there are none.

    Raises:
        DataError: if there is no such order.
    """
    unknown = [name for name in names if name not in ORDERS]
    if unknown:
        raise DataError(f"no order is called '{unknown[0]}'; there are: {', '.join(ORDERS)}")
    return {name: choose for name, choose in ORDERS.items() if not names or name in names}


def curve(photos: Photos, choose: Order, *, rounds: int, size: int, seed: int, judged: str = "test") -> list[float]:
    """The mAP before and after each round: (rounds + 1,).

    Args:
        photos: labeled.
        choose: the order.
        rounds: how many.
        size: photographs in each.
        seed: of the first model, the folds and the random order.
        judged: the split that mAP is computed on.
    """
    rng = np.random.default_rng(seed)
    first = rng.permutation(photos.rows("val"))
    head = _fit(photos, first[: int(_SHARE_OF_FIRST * len(first))], [None] * photos.y.shape[1], seed)
    old = [(head.weights[label], float(head.bias[label])) for label in range(photos.y.shape[1])]
    left, labeled = rng.permutation(photos.rows("train")), np.empty(0, np.intp)
    found = [_mean_ap(photos, head, judged)]
    for _ in range(rounds):
        chosen = choose(_probabilities(head, photos.x[left]), photos.x[left], rng)[:size]
        labeled, left = np.concatenate([labeled, left[chosen]]), np.delete(left, chosen)
        head = _fit(photos, labeled, old, seed)
        found.append(_mean_ap(photos, head, judged))
    return found


def _fit(photos: Photos, rows: Rows, old: Sequence[Any], seed: int) -> Head:
    return adapt_head(photos.x[rows], photos.y[rows], photos.groups[rows], old, seed).head


def _probabilities(head: Head, x: NDArray[np.float32]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-head.logits(x)))


def _mean_ap(photos: Photos, head: Head, split: str) -> float:
    rows = photos.rows(split)
    return mean_average_precision(head.logits(photos.x[rows]), photos.y[rows]).mean


def labels_needed(curves: NDArray[np.float64], target: float, size: int) -> float | None:
    """How many photographs a mean curve (rounds + 1,) needs to reach an mAP, between rounds linearly; None: never."""
    above = np.flatnonzero(curves >= target)
    if not len(above):
        return None
    place = int(above[0])
    if place == 0:
        return 0.0
    low, high = float(curves[place - 1]), float(curves[place])
    return size * (place - 1 + (target - low) / (high - low))


def table(curves: dict[str, NDArray[np.float64]], size: int, title: str) -> Table:
    """Rows of the mean over seeds, with the standard deviation, every few rounds.

    Args:
        curves: order -> (seeds, rounds + 1).
        size: photographs in a round.
        title: of the table.
    """
    rounds = next(iter(curves.values())).shape[1] - 1
    shown = sorted({*range(0, rounds + 1, 2), rounds})
    target = float(curves.get("random", next(iter(curves.values()))).mean(axis=0)[-1])
    rows = []
    for name, values in curves.items():
        mean, spread = values.mean(axis=0), values.std(axis=0)
        needed = labels_needed(mean, target, size)
        cells = [f"{mean[r]:.3f} ± {spread[r]:.3f}" for r in shown]
        rows.append([name, *cells, "never" if needed is None else f"{needed:.0f}"])
    return Table(
        title,
        ["order", *(str(r * size) for r in shown), f"labels for {target:.3f}"],
        rows,
        ["Mean over the seeds ± standard deviation; the last column by the means, linear between rounds."],
    )


def plot(curves: dict[str, NDArray[np.float64]], size: int, file: Path) -> None:
    """Draw the means, random order with its standard deviation, as SVG or PNG by the file's name.

    Raises:
        OSError: if it cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, values in curves.items():
        at, mean, spread = size * np.arange(values.shape[1]), values.mean(axis=0), values.std(axis=0)
        (line,) = axes.plot(at, mean, label=name, linewidth=1.6)
        axes.fill_between(at, mean - spread, mean + spread, color=line.get_color(), alpha=0.08, linewidth=0)
    axes.set(xlabel="photographs labeled", ylabel="mAP on test photographs", xlim=(0, None))
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    with mpl.rc_context({"svg.hashsalt": "mineral-batch", "svg.fonttype": "none"}):
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
