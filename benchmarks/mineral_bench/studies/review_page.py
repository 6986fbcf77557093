"""What the page of `mineral-batch review` adds to the time of a reviewer: the wait for photographs, and keys.

The wait is measured in Chromium: from the key that saves a decision to the frame in which the next photograph is
painted. The keys are counted on labeled photographs: how many it takes to turn what the page proposes into the truth. A
key is 0.28 s by the keystroke-level model (Card, Moran and Newell 1983, an average typist); the time in which a person
looks and thinks is an assumption.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.evaluation.labels import match_paths, name_labels, read_labels
from mineral_batch.results.read import Results, read_results
from mineral_bench.report import Table

SECONDS_PER_KEY = 0.28
CANDIDATES = 9
PAGE = 60
_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
_TIMER = """
window.waits = [];
let pressed = 0;
document.addEventListener("keydown", (event) => { if (event.key === "0") pressed = event.timeStamp; }, true);
document.addEventListener("load", (event) => {
  if (event.target.id !== "photo" || !pressed) return;
  const since = pressed;
  pressed = 0;
  requestAnimationFrame(() => setTimeout(() => window.waits.push((performance.now() - since) / 1000)));
}, true);
"""


@dataclass(frozen=True)
class Keys:
    """Keys per photograph.

    Attributes:
        single: one by one, for each photograph.
        mistakes: the same where the existing labels are proposed and right.
        grid: of the pages that the model's answers fill: per photograph.
        in_grid: the photographs in these pages.
    """

    single: tuple[int, ...]
    mistakes: tuple[int, ...]
    grid: float
    in_grid: int


def waits(results: Path, photos: Path, count: int, thinking: float) -> list[float]:
    """Seconds from the key to the next photograph, for each of `count` decisions on a copy of a run.

    Args:
        results: output folder of predict.
        photos: where its relative paths start.
        count: decisions, each "none of them".
        thinking: seconds between a photograph's appearance and the next key.

    Raises:
        DataError: if Chromium is not there.
    """
    from playwright.sync_api import sync_playwright

    with _served(results, photos) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=_FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.add_init_script(_TIMER)
        page.goto(address)
        page.wait_for_selector("#candidates button")
        page.select_option("#order", "file")
        page.wait_for_timeout(1000)
        for done in range(count):
            time.sleep(thinking)
            page.keyboard.press("0")
            page.wait_for_function("done => window.waits.length > done", arg=done, polling=5)
        found: list[float] = page.evaluate("window.waits")
        browser.close()
    return found


def _chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise DataError("Chromium is not on the PATH")
    return found


@contextmanager
def _served(results: Path, photos: Path) -> Iterator[str]:
    """A review of a copy of the run, so that nobody's decisions are touched; gives its address."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "results"
        copy.mkdir()
        for file in (results / "predictions.csv", results / "run.json"):
            shutil.copy(file, copy)
        command = [sys.executable, "-m", "mineral_batch", "review", str(copy), "--no-browser", "--photos", str(photos)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own command
            assert process.stderr is not None
            try:
                found = re.search(r"http://\S+", process.stderr.readline())
                if found is None:
                    raise DataError(f"the review did not start: {process.stderr.read()}")
                yield found[0]
            finally:
                process.terminate()


def count_keys(results: Path, labels: Path, split: str | None) -> Keys:
    """Count the keys that turn what the page proposes into given labels.

    Args:
        results: output folder of predict.
        labels: the truth, a CSV.
        split: rows of this split only.

    Raises:
        DataError: if no photograph is in both.
    """
    run = read_results(results)
    table = run.predictions
    rows, _ = name_labels(read_labels(labels), table.labels)
    matches = match_paths(table.paths, [row.path for row in rows])
    truth = {
        matches.index[row.path]: set(row.labels)
        for row in rows
        if row.path in matches.index and split in (None, row.split)
    }
    if not truth:
        raise DataError(f"no photograph of {labels} is in {results}")
    single = [keys(_proposed(run, row), wanted, _candidates(run, row), table.labels) for row, wanted in truth.items()]
    mistakes = [keys(wanted, wanted, _candidates(run, row), table.labels) for row, wanted in truth.items()]
    pressed, in_grid = _grid(run, truth)
    return Keys(tuple(single), tuple(mistakes), pressed / max(1, in_grid), in_grid)


def _proposed(run: Results, row: int) -> set[str]:
    return {run.predictions.labels[column] for column in np.flatnonzero(run.predictions.called[row])}


def _candidates(run: Results, row: int) -> list[str]:
    return [run.predictions.labels[column] for column in np.argsort(-run.predictions.scores[row])[:CANDIDATES]]


def keys(proposed: set[str], wanted: set[str], candidates: Sequence[str], labels: Sequence[str]) -> int:
    """How many keys turn the labels that are proposed into those that are wanted, and save them."""
    if not wanted:
        return 1  # none of them
    changed = sorted(proposed ^ wanted)
    return 1 + sum(1 if label in candidates else _letters(label, labels) + 1 for label in changed)


def _letters(label: str, labels: Sequence[str]) -> int:
    """How many letters find a label first; a new one takes all of them and another Enter."""
    for count in range(1, len(label) + 1):
        starts = [name for name in labels if name.startswith(label[:count])]
        if starts and starts[0] == label:
            return count
    return len(label) + 1


def _grid(run: Results, truth: dict[int, set[str]]) -> tuple[int, int]:
    """Keys and photographs of the grid, mineral after mineral: a click for each wrong one, a key for each page."""
    left, pressed = set(truth), 0
    for column, label in enumerate(run.predictions.labels):
        shown = [row for row in left if run.predictions.called[row, column]]
        pressed += sum(label not in truth[row] for row in shown) + -(-len(shown) // PAGE)
        left -= set(shown)
    return pressed, len(truth) - len(left)


def table(kind: str, seconds: Sequence[float], found: Keys | None, thinking: Sequence[float]) -> list[Table]:
    """The figures as tables: the wait, and minutes per 100 photographs for assumed times of thinking."""
    median, tail, worst = (float(np.percentile(seconds, share)) for share in (50, 95, 100))
    waiting = Table(
        f"Seconds from the key to the next photograph ({kind})",
        ("decisions", "median", "95%", "longest"),
        [(len(seconds), f"{median:.2f}", f"{tail:.2f}", f"{worst:.2f}")],
    )
    if found is None:
        return [waiting]
    modes = {
        "one by one": float(np.mean(found.single)),
        "likely mistakes, existing labels right": float(np.mean(found.mistakes)),
        f"grid ({found.in_grid} photographs)": found.grid,
    }
    rows: list[tuple[Any, ...]] = []
    for name, count in modes.items():
        wait = 0.0 if name.startswith("grid") else float(np.mean(seconds))
        minutes = [100 * (one + wait + SECONDS_PER_KEY * count) / 60 for one in thinking]
        rows.append((name, f"{count:.2f}", *(f"{one:.1f}" for one in minutes)))
    columns = ("mode", "keys per photograph", *(f"minutes per 100, thinking {one:g} s" for one in thinking))
    return [waiting, Table("What the page adds to a reviewer's thinking", columns, rows)]
