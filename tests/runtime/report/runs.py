"""A run to report on, what `explain` left beside it, and a reader of the page."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from PIL import Image

from mineral_batch.cli import main

LABELS = ("agate", "gold", "pyrite", "quartz")
THRESHOLDS = (0.5, 0.3, 0.5, 0.6)
EVIL = "<img src=x onerror=document.title='owned'>.jpg"
WORSE = "x</script><script>document.title='owned'</script><!--.jpg"
WORSE_SHOWN = Path(WORSE).name
ROWS: list[tuple[str, tuple[float, ...], str]] = [
    # path, probabilities, labels
    ("photos/a.jpg", (0.9, 0.1, 0.05, 0.2), "agate"),
    ("photos/b.jpg", (0.1, 0.8, 0.2, 0.7), "gold;quartz"),
    ("photos/c.jpg", (0.1, 0.7, 0.4, 0.1), "pyrite"),
    ("photos/d.jpg", (0.1, 0.2, 0.1, 0.1), "quartz"),
    ("photos/missing.jpg", (0.1, 0.1, 0.95, 0.1), "pyrite"),
    (EVIL, (0.6, 0.1, 0.1, 0.1), ""),
    (WORSE, (0.55, 0.1, 0.1, 0.1), "agate"),
]
PLACES = {"photos/a.jpg": ("46.5", "7.9"), "photos/b.jpg": ("46.6", "8.1")}
MAPPED = [("photos/a.jpg", "agate", 0.9), ("photos/b.jpg", "gold", 0.8), ("photos/b.jpg", "quartz", 0.7)]
COLORS = {"agate": "purple", "gold": "orange", "quartz": "yellow"}


def write_predictions(path: Path, rows: list[tuple[str, tuple[float, ...], str]]) -> None:
    table = [["path", "minerals", "captured", "latitude", "longitude", *LABELS]]
    for name, scores, _ in rows:
        called = [label for label, p, cut in zip(LABELS, scores, THRESHOLDS, strict=True) if p >= cut]
        table.append([name, ";".join(called), "", *PLACES.get(name, ("", "")), *map(str, scores)])
    write_csv(path, table)


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows(rows)


def report(*words: str) -> Result:
    done = CliRunner().invoke(main, ["report", "results", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def explain(folder: Path, maps: list[tuple[str, str, float]] = MAPPED) -> None:
    """What `mineral-batch explain` leaves in a folder, each overlay in its mineral's color."""
    table = [["path", "mineral", "probability", "present", "peak_x", "peak_y", "overlay"]]
    for path, mineral, probability in maps:
        overlay = Path("overlays", path, f"{mineral}.png")
        (folder / overlay).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400, 300), COLORS.get(mineral, "white")).save(folder / overlay)
        table.append([path, mineral, str(probability), "1", "200.0", "150.0", overlay.as_posix()])
    folder.mkdir(exist_ok=True)
    write_csv(folder / "maps.csv", table)


class Page(HTMLParser):
    """The elements of a page, its visible text, and the data that its script reads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: dict[str, list[Any]] = {}
        self._kind: str | None = None
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._kind = (dict(attrs).get("class") or "code") if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._kind = None

    def handle_data(self, data: str) -> None:
        if self._kind is None:
            self.text += data
        elif self._kind != "code":
            self.data.setdefault(self._kind, []).append(json.loads(data))


def open_jpeg(content: bytes) -> Any:
    return Image.open(io.BytesIO(content))
