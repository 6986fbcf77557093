"""Records of specimens in place of those of their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mineral_batch.deliver.inventory import Joined
from mineral_batch.deliver.records import Delivery
from mineral_batch.errors import OptionError
from mineral_batch.results.read import Results
from mineral_batch.results.specimens import Rule, combined, specimen_rule
from mineral_batch.review.decisions import Decision

#: The rule by which the numbers of the joined inventory name the specimens.
INVENTORY = "inventory"
_SEVERAL = ", "  # reviewers of one specimen


def by_specimen(delivery: Delivery, rule: str) -> Delivery:
    """Return the same delivery with a record for each specimen, in the order of their first images.

    The probabilities are those of specimens.csv. What people labeled on any image of a specimen is on the specimen;
    what they rejected on one and nobody labeled on another is not. A specimen is unsure if they were unsure of an
    image and labeled none.

    Args:
        delivery: with a record for each image.
        rule: as `predict --specimen` takes it, or `inventory`.

    Raises:
        DataError: as `results.specimens.specimen_rule` does; if the rule is `inventory` and none is joined.
    """
    results = delivery.results
    members = _members(results.predictions.paths, _rule(delivery, rule))
    images = {name: tuple(results.predictions.paths[row] for row in rows) for name, rows in members.items()}
    return replace(
        delivery,
        results=_combined(results, members),
        decisions=_decisions(delivery.decisions, images),
        joined=delivery.joined and _joined(delivery.joined, images),
        images=images,
        captured=dict(zip(results.predictions.paths, results.captured, strict=True)),
    )


def _rule(delivery: Delivery, rule: str) -> Rule:
    if rule != INVENTORY:
        return specimen_rule(rule)
    if delivery.joined is None:
        raise OptionError("--specimen inventory needs the inventory: --join CSV --on COLUMN")
    joined = delivery.joined
    return lambda path: joined.number(path) or None


def _members(paths: Sequence[str], rule: Rule) -> dict[str, list[int]]:
    """The rows of each specimen; an image that the rule says nothing about is one."""
    members: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        members.setdefault(rule(path) or path, []).append(row)
    return members


def _combined(results: Results, members: Mapping[str, list[int]]) -> Results:
    table = results.predictions
    shape = len(members), len(table.labels)
    scores = np.stack([combined(table.scores[rows]) for rows in members.values()]) if members else np.zeros(shape)
    return replace(
        results,
        predictions=replace(table, paths=tuple(members), scores=scores, called=scores >= results.thresholds),
        captured=tuple(min((results.captured[row] for row in rows), key=_empty_last) for rows in members.values()),
        places=np.array([_place(results.places[rows]) for rows in members.values()]).reshape(-1, 2),
        familiarity=np.full(len(members), np.nan),
        damaged=tuple(next(filter(None, (results.damaged[row] for row in rows)), "") for rows in members.values()),
    )


def _empty_last(text: str) -> tuple[bool, str]:
    return not text, text


def _place(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The place of the first image that has one: (N, 2) to (2,)."""
    found: NDArray[np.float64] = places[np.isfinite(places).all(axis=1)]
    return found[0] if len(found) else np.full(2, np.nan)


def _decisions(decisions: Mapping[str, Decision], images: Mapping[str, tuple[str, ...]]) -> dict[str, Decision]:
    made = {name: [decisions[path] for path in paths if path in decisions] for name, paths in images.items()}
    return {name: _decision(name, several) for name, several in made.items() if several}


def _decision(specimen: str, several: Sequence[Decision]) -> Decision:
    """What people decided about the images of a specimen, as one."""
    latest = max(several, key=lambda one: one.time)
    statuses = {one.status for one in several}
    status = next(status for status in ("labeled", "unsure", "rejected") if status in statuses)
    names = (name for one in several if one.status == status for name in one.minerals)
    return replace(
        latest,
        path=specimen,
        status=status,
        minerals=tuple(dict.fromkeys(names)),
        machine=tuple(dict.fromkeys(name for one in several for name in one.machine)),
        reviewer=_SEVERAL.join(dict.fromkeys(one.reviewer for one in several)),
    )


def _joined(joined: Joined, images: Mapping[str, tuple[str, ...]]) -> Joined:
    """The inventory with the numbers of specimens; one whose images have different numbers has none."""
    found = {name: {joined.numbers[path] for path in paths if path in joined.numbers} for name, paths in images.items()}
    return replace(joined, numbers={name: next(iter(numbers)) for name, numbers in found.items() if len(numbers) == 1})
