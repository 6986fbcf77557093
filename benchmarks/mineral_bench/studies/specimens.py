"""How the probabilities of several photographs of one specimen are best joined.

    python -m mineral_bench.studies.specimens views LABELS FOLDER [COUNT]
    python -m mineral_bench.studies.specimens join PREDICTIONS LABELS VALIDATION [TEST ...]

`views` makes three synthetic views of each of COUNT photographs, and a table of them, views.csv; predict them with
`mineral-batch predict FOLDER`. `join` reads such a table, or one of real specimens (columns path, labels, split,
specimen). The dependence, an exponent, is fitted on the split VALIDATION. `results.specimens.combined`, which has a
dependence of 1, was chosen by this.
"""

from __future__ import annotations

import csv
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mineral_batch.evaluation.evaluate import join
from mineral_batch.evaluation.metrics import EQUATION_6, mean_average_precision
from mineral_batch.results.csv import write_csv
from mineral_batch.results.specimens import combined

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

    Join = Callable[[Floats], Floats]
    Specimens = tuple[list[Floats], Bools]

VIEWS = 3
_SIDE = 640
_COLUMNS = ("path", "labels", "split", "specimen")


def make_views(labels: Path, folder: Path, count: int = 250, seed: int = 1) -> None:
    """Write the views as JPEGs and `views.csv` beside them; every second photograph is of the split val, else test.

    A view is a crop of 35 to 100% of the area, turned by up to 20 degrees, perhaps mirrored, in other light.
    """
    with labels.open(encoding="utf-8-sig", newline="") as file:
        photos = [(labels.parent / row["path"], row["labels"]) for row in csv.DictReader(file)]
    generator = random.Random(seed)
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, (path, names) in enumerate(generator.sample(photos, min(count, len(photos)))):
        with Image.open(path) as opened:
            photo = ImageOps.exif_transpose(opened).convert("RGB")
        photo.thumbnail((_SIDE, _SIDE))
        for view in range(VIEWS):
            name = f"S-{number:04}_{view}.jpg"
            _view(photo, generator).save(folder / name, quality=88)
            rows.append((name, names, "test" if number % 2 else "val", f"S-{number:04}"))
    write_csv(folder / "views.csv", _COLUMNS, rows)


def _view(photo: Image.Image, generator: random.Random) -> Image.Image:
    scale = generator.uniform(0.35, 1) ** 0.5
    width, height = int(photo.width * scale), int(photo.height * scale)
    x, y = generator.randint(0, photo.width - width), generator.randint(0, photo.height - height)
    view = photo.crop((x, y, x + width, y + height)).rotate(generator.uniform(-20, 20), Image.Resampling.BICUBIC)
    if generator.random() < 0.5:
        view = ImageOps.mirror(view)
    view = ImageEnhance.Brightness(view).enhance(generator.uniform(0.6, 1.5))
    return ImageEnhance.Color(view).enhance(generator.uniform(0.6, 1.4))


def dependent_or(values: Floats, dependence: float) -> Floats:
    """1 - prod(1 - p) ** (n ** -dependence): (N, L) to (L,); a noisy-or for 0."""
    result: Floats = 1.0 - np.prod(1.0 - values, axis=0) ** (len(values) ** -dependence)
    return result


def _mean_logit(values: Floats) -> Floats:
    mean: Floats = np.mean(np.log(values) - np.log1p(-values), axis=0)
    return 1 / (1 + np.exp(-mean))


CANDIDATES: dict[str, Join] = {
    "first photograph": lambda values: values[0],
    "maximum": lambda values: values.max(axis=0),
    "mean of probabilities": lambda values: values.mean(axis=0),
    "mean of logits": _mean_logit,
    "noisy-or": lambda values: dependent_or(values, 0.0),
}


def read_specimens(predictions: str, labels: str, split: str) -> Specimens:
    """The probabilities of each specimen with two photographs or more, (N, L) each, and (S, L) what they show."""
    joined = join(predictions, labels, split)
    with Path(labels).open(encoding="utf-8-sig", newline="") as file:
        specimen_of = {row["path"]: row["specimen"] for row in csv.DictReader(file) if row["specimen"]}
    members: dict[str, list[int]] = defaultdict(list)
    for row, path in enumerate(joined.predictions.paths):
        if found := next((name for known, name in specimen_of.items() if path.endswith(known)), None):
            members[found].append(row)
    several = [rows for rows in members.values() if len(rows) > 1]
    scores = joined.predictions.scores.clip(1e-7, 1 - 1e-7)
    return [scores[rows] for rows in several], np.array([joined.truth[rows].any(axis=0) for rows in several])


def log_loss(joined: Floats, truth: Bools) -> float:
    """Summed over labels, mean over specimens."""
    known = joined.clip(1e-7, 1 - 1e-7)
    return float(-np.where(truth, np.log(known), np.log1p(-known)).sum(axis=1).mean())


def _joined(values: Sequence[Floats], rule: Join) -> Floats:
    return np.stack([rule(several) for several in values])


def fitted(values: Sequence[Floats], truth: Bools) -> float:
    """The dependence with the lowest log loss."""
    candidates = np.arange(0, 1.51, 0.05).tolist()
    return float(
        min(candidates, key=lambda one: log_loss(_joined(values, lambda several: dependent_or(several, one)), truth))
    )


def compare(predictions: str, labels: str, validation: str, *tests: str) -> None:
    """Print the table."""
    values, truth = read_specimens(predictions, labels, validation)
    best = fitted(values, truth)
    fit: dict[str, Join] = {f"1 - prod(1 - p)^(n^-{best:.2f})": lambda several: dependent_or(several, best)}
    rules = CANDIDATES | fit | {"1 - prod(1 - p)^(1/n)": combined}
    for split in (validation, *tests):
        values, truth = read_specimens(predictions, labels, split)
        click.echo(
            f"{split}: {len(values)} specimens, {sum(map(len, values))} photographs, {int(truth.sum())} positives"
        )
        for name, rule in rules.items():
            joined = _joined(values, rule)
            mean_ap = mean_average_precision(joined, truth, EQUATION_6).mean
            click.echo(f"  {name:<26} log loss {log_loss(joined, truth):.3f}, mAP {mean_ap:.2f}")


if __name__ == "__main__":
    task, *rest = sys.argv[1:]
    if task == "views":
        make_views(Path(rest[0]), Path(rest[1]), *map(int, rest[2:]))
    else:
        compare(*rest)
