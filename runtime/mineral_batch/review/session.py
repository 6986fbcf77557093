"""One review of one run: its images, their order, what is decided."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.errors import ImageError
from mineral_batch.images.decode import open_rgb
from mineral_batch.images.limits import read_file
from mineral_batch.images.names import FORMULA_SIGNS
from mineral_batch.results.csv import shown
from mineral_batch.review import order
from mineral_batch.review.decisions import STATUSES, Decision, Decisions, now
from mineral_batch.review.labels import GivenLabels, LabelTable
from mineral_batch.review.reading import Reader
from mineral_batch.review.teaching import TeachingOrder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.minerals.levels import Levels
    from mineral_batch.report.explained import Explained, Overlay
    from mineral_batch.results.read import Results
    from mineral_batch.review.features import FeatureStore

#: Longest side of what the page shows, pixels.
LARGE, SMALL = 1600, 320
_CANDIDATES = 9
_PAGE = 60
_LONGEST_LABEL = 100
_QUALITY = 85
#: A JPEG is decoded at the decoder's smallest scale whose shorter side has 2 * 3/8 of the pixels that the page shows at
#: most: enough for the eye, at a third of the time of 36 megapixels at the scale that a model's input needs.
_DRAFT = (3, 8)
_PNG = b"\x89PNG\r\n\x1a\n"


class UnknownError(Exception):
    """A request that names what does not exist; in words."""


@dataclass
class Review:
    """What the server shows and records.

    Attributes:
        results: of the run.
        decisions: open.
        base: where relative paths start.
        reviewer: who decides.
        given: labels that exist already.
        maps: of `mineral-batch explain`; None if nobody made any.
        features: of the run's model, for the order that teaches most; None without the model.
        levels: the broader names that are answers where no label is sure; None for labels only.
    """

    results: Results
    decisions: Decisions
    base: Path
    reviewer: str
    given: GivenLabels = field(default_factory=GivenLabels)
    maps: Explained | None = None
    features: FeatureStore | None = None
    levels: Levels | None = None

    def __post_init__(self) -> None:
        self._index = {path: row for row, path in enumerate(self.results.predictions.paths)}
        self._orders: dict[tuple[str, int], Sequence[int]] = {}
        self._reader = Reader(self.base)
        self.teaching = TeachingOrder(self.results.predictions.scores, self.paths, self.features, self._reader)
        self.teaching.start()
        self.jpeg = lru_cache(maxsize=128)(self._jpeg)

    def close(self) -> None:
        """Stop what goes on in the background."""
        self.teaching.close()

    @property
    def paths(self) -> Sequence[str]:
        """Of all images."""
        return self.results.predictions.paths

    def labels(self) -> list[str]:
        """The model's labels, then the broader names that are answers, then those that people added."""
        added = {name for decision in self.decisions for name in decision.minerals}
        added |= {name for names in self.given.labels.values() for name in names}
        broader = self.levels.unions if self.levels else ()
        known = [*self.results.predictions.labels, *(union.name for union in broader)]
        return [*known, *sorted(added - set(known))]

    def state(self) -> dict[str, Any]:
        """What the page needs first."""
        orders = {name: text for name, text in order.ORDERS.items() if name != "mistakes" or self.given.labels}
        return {
            "images": len(self.paths),
            "labels": self.labels(),
            "orders": orders,
            "counts": self.counts(),
            "reviewer": self.reviewer,
            "page": _PAGE,
            "maps": self.maps is not None,
        }

    def counts(self) -> dict[str, int]:
        """Status -> how many images have it."""
        return {status: self.decisions.counts[status] for status in STATUSES}

    def left(self) -> dict[str, int]:
        """Label of the model -> how many images it is reported in that have no decision and no existing label."""
        predictions = self.results.predictions
        is_open = np.ones(len(self.paths), bool)
        known = [decision.path for decision in self.decisions] + list(self.given.labels)
        is_open[[self._index[path] for path in known if path in self._index]] = False
        counts = predictions.called[is_open].sum(axis=0).tolist()
        return dict(zip(predictions.labels, counts, strict=True))

    def queue(
        self,
        name: str,
        label: str,
        offset: int,
        limit: int,
        *,
        undecided: bool,
        called: bool = False,
        edition: int | None = None,
    ) -> dict[str, Any]:
        """A stretch of the images in one order.

        Args:
            name: one of `order.ORDERS`.
            label: for the order `mineral`.
            offset: place in the order.
            limit: how many at most.
            undecided: leave out images that have a decision or, but in the order `mistakes`, an existing label.
            called: in the order `mineral`, only images in which the model reports it.
            edition: of the order `teaches`, as an earlier stretch was of; None for the newest.

        Raises:
            UnknownError: if there is no such order or label.
        """
        edition = self.teaching.edition if edition is None else edition
        rows = self.teaching.rows(edition) if name == "teaches" else self._order(name, label)
        if called and name == "mineral":
            reported = self.results.predictions.called[:, self.results.predictions.labels.index(label)]
            rows = np.asarray(rows)[reported[rows]]
        items: list[dict[str, Any]] = []
        place = max(0, offset)
        while place < len(rows) and len(items) < min(limit, 4 * _PAGE):
            row = int(rows[place])
            if not (undecided and self._is_known(row, name)):
                items.append(self.item(row) | {"place": place} | self._of_mineral(row, name, label))
            place += 1
        return {"items": items, "next": place, "total": len(rows), "edition": edition}

    def _of_mineral(self, row: int, name: str, label: str) -> dict[str, float]:
        """In the order `mineral`, the probability of the mineral, which need not be among the candidates."""
        if name != "mineral":
            return {}
        predictions = self.results.predictions
        return {"probability": round(float(predictions.scores[row, predictions.labels.index(label)]), 4)}

    def _is_known(self, row: int, name: str) -> bool:
        return self.decisions.get(self.paths[row]) is not None or (
            name != "mistakes" and self.paths[row] in self.given.labels
        )

    def label_table(self) -> LabelTable:
        """What labels.csv holds."""
        return LabelTable(self.decisions, self.given)

    def _order(self, name: str, label: str) -> Sequence[int]:
        if name not in order.ORDERS:
            raise UnknownError(f"no order is called {name}")
        predictions = self.results.predictions
        if name == "mineral" and label not in predictions.labels:
            raise UnknownError(f"the model has no label {label}")
        key = name, predictions.labels.index(label) if name == "mineral" else -1
        if key not in self._orders:
            self._orders[key] = self._ordered(*key)
        return self._orders[key]

    def _ordered(self, name: str, label: int) -> Sequence[int]:
        scores = self.results.predictions.scores
        if name == "mineral":
            return order.by_mineral(scores, label)  # type: ignore[return-value]
        if name == "mistakes":
            return order.mistakes(scores, *self._given_matrix())  # type: ignore[return-value]
        return range(len(self.paths))

    def _given_matrix(self) -> tuple[Any, Any]:
        labels = self.results.predictions.labels
        present = np.zeros((len(self.paths), len(labels)), bool)
        known = np.zeros(len(self.paths), bool)
        for path, names in self.given.labels.items():
            row = self._index[path]
            known[row] = True
            for name in names:
                if name in labels:
                    present[row, labels.index(name)] = True
        return present, known

    def item(self, row: int) -> dict[str, Any]:
        """One image for the page.

        Raises:
            UnknownError: if there is no such image.
        """
        self._require(row)
        predictions = self.results.predictions
        decision = self.decisions.get(self.paths[row])
        given = self.given.labels.get(self.paths[row])
        return {
            "row": row,
            "name": shown(self.paths[row]),
            "candidates": [
                {"label": predictions.labels[index], "probability": round(value, 4)}
                for index, value in order.top(predictions.scores[row], _CANDIDATES)
            ],
            "machine": self.machine(row),
            "damaged": shown(self.results.damaged[row]),
            "given": list(given) if given is not None else None,
            "maps": [predictions.labels[overlay.label] for overlay in self._overlays(row)],
            "decision": _described(decision),
        }

    def machine(self, row: int) -> list[str]:
        """The labels that the model gave an image, as its table says; with levels, its answer with broader names."""
        predictions = self.results.predictions
        if self.levels is None:
            return [predictions.labels[index] for index in np.flatnonzero(predictions.called[row])]
        (answer,) = self.levels.answers(predictions.scores[row : row + 1], predictions.called[row : row + 1])
        return list(answer)

    def decide(self, choices: Sequence[tuple[int, str, Sequence[str]]]) -> None:
        """Record decisions, all or none.

        Args:
            choices: row, status and minerals of each.

        Raises:
            UnknownError: if there is no such image or status, or a label is not a usable name.
            DataError: if the disk refuses them.
        """
        time = now()
        decided = []
        for row, status, minerals in choices:
            self._require(row)
            if status not in STATUSES:
                raise UnknownError(f"no status is called {status}")
            clean = tuple(dict.fromkeys(_label(name) for name in minerals))
            decided.append(Decision(self.paths[row], status, clean, tuple(self.machine(row)), self.reviewer, time))
        self.decisions.decide_all(decided)

    def undo(self) -> int | None:
        """Take back the last decision; the row of its image."""
        decision = self.decisions.undo(reviewer=self.reviewer)
        return None if decision is None else self._index.get(decision.path, 0)

    def _jpeg(self, row: int, side: int) -> bytes:
        """An image as JPEG, upright, its longest side about `side` pixels and not more.

        Raises:
            UnknownError: if there is no such image, it is no longer there, or cannot be read.
        """
        self._require(row)
        read = self._reader.find(self.paths[row])
        if read is None:
            raise UnknownError(f"{shown(self.paths[row])} is no longer there")
        try:
            content = read()
            if isinstance(content, bytes):  # a damaged one, if it was predicted
                draft = side * _DRAFT[0] // _DRAFT[1]
                image = open_rgb(content, target=(draft, draft), keep_damaged=True, max_pixels=self.results.max_pixels)
            else:
                image = content.convert("RGB")
        except (OSError, ImageError) as error:
            raise UnknownError(f"{shown(self.paths[row])}: {error}") from None
        image.thumbnail((side, side))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=_QUALITY)
        return out.getvalue()

    def map(self, row: int, number: int) -> bytes:
        """A map of where the model looks, as PNG.

        Raises:
            UnknownError: if there is none of that number.
        """
        self._require(row)
        overlays = self._overlays(row)
        if not 0 <= number < len(overlays):
            raise UnknownError(f"no map {number} of image {row}")
        name = shown(overlays[number].file.name)
        try:
            content = read_file(overlays[number].file)
        except (OSError, ImageError) as error:
            raise UnknownError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
        if not content.startswith(_PNG):  # the table beside the maps may name any file
            raise UnknownError(f"{name} is no map")
        return content

    def _overlays(self, row: int) -> tuple[Overlay, ...]:
        return self.maps.overlays.get(row, ()) if self.maps else ()

    def _require(self, row: int) -> None:
        if not 0 <= row < len(self.paths):
            raise UnknownError(f"no image has the number {row}")


def _described(decision: Decision | None) -> dict[str, Any] | None:
    if decision is None:
        return None
    return {
        "status": decision.status,
        "minerals": list(decision.minerals),
        "reviewer": decision.reviewer,
        "time": decision.time,
    }


def _label(name: str) -> str:
    """A label as a table can hold it."""
    clean = " ".join(name.split()).strip()
    if not clean or len(clean) > _LONGEST_LABEL or ";" in clean or not clean.isprintable():
        raise UnknownError(f"'{clean[:40]}' cannot be a label: 1 to {_LONGEST_LABEL} printable characters without ';'")
    if clean.startswith(FORMULA_SIGNS):
        raise UnknownError(f"'{clean[:40]}' cannot be a label: a spreadsheet would run it as a formula")
    return clean


__all__ = ["LARGE", "SMALL", "Review", "UnknownError"]
