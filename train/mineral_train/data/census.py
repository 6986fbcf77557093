"""Count images and labels: the paper's Tables 1 and 2 for any manifest, with a column per split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mineral_train.data.manifest import SPLITS, Manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEADER = ("all", *SPLITS)


def table_1(manifest: Manifest) -> str:
    """Images per number of labels (Wu et al. 2022, Table 1); a last line counts the labels."""
    per_split = [manifest.targets(split).sum(axis=1) for split in (None, *SPLITS)]
    most = int(max(counts.max(initial=0) for counts in per_split))
    rows = [(str(n), [int((counts == n).sum()) for counts in per_split]) for n in range(most + 1)]
    totals = [
        ("images", [len(counts) for counts in per_split]),
        ("labels", [int(counts.sum()) for counts in per_split]),
    ]
    return _text("minerals in an image", rows, totals)


def table_2(manifest: Manifest) -> str:
    """Images per mineral (Wu et al. 2022, Table 2); a last line counts the labels without an image."""
    per_split = np.array([manifest.targets(split).sum(axis=0) for split in (None, *SPLITS)])  # (4, L)
    rows = list(zip(manifest.labels, per_split.T.tolist(), strict=True))
    shown = [row for row in rows if row[1][0]]
    text = _text("images of", shown, [])
    return f"{text}\n{len(rows) - len(shown)} of {len(rows)} labels have no image" if len(shown) < len(rows) else text


def missing(manifest: Manifest, split: str) -> list[str]:
    """List the labels that no image of a split shows."""
    counts: list[int] = manifest.targets(split).sum(axis=0).tolist()
    return [label for label, count in zip(manifest.labels, counts, strict=True) if count == 0]


def _text(title: str, rows: Sequence[tuple[str, Sequence[int]]], totals: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Aligned columns: names to the left, numbers to the right, a rule above the totals."""
    cells = [(title, *_HEADER), *((name, *(f"{n:,}" for n in counts)) for name, counts in [*rows, *totals])]
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]
    rule = "-" * len(lines[0])
    split_at = len(rows) + 1
    return "\n".join([lines[0], rule, *lines[1:split_at], *([rule, *lines[split_at:]] if totals else [])])
