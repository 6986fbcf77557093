"""The page: one HTML file that needs no network, no other file and runs no script but its own.

Pictures' names, labels and reasons reach the page as escaped text or as JSON in script elements that are data. The
content security policy allows exactly the style sheet and the script that come with this package, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.evaluation.curves import log_odds
from mineral_batch.evaluation.metrics import DEFINITIONS, EQUATION_6
from mineral_batch.report import figures
from mineral_batch.report.charts import Bar, Line, bars, matrix, panel, world
from mineral_batch.report.markup import Markup, join, tag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mineral_batch.evaluation.curves import Accuracy
    from mineral_batch.evaluation.metrics import Floats
    from mineral_batch.report.explained import Explained
    from mineral_batch.results.read import Results

#: Pictures in a page of data.
ROWS = 2000
#: A probability is near its threshold if its odds are within this factor of the threshold's.
NEAR = 2.0
_FULL_SCALE = 65535


def asset(name: str) -> str:
    """A file that comes with the package."""
    return resources.files("mineral_batch.report").joinpath("assets", name).read_text("utf-8")


def head(title: str, *, in_folder: bool) -> str:
    """Everything up to the body; `in_folder` allows pictures and data beside the page."""
    style, script = asset("page.css"), asset("page.js")
    beside = " 'self'" if in_folder else ""
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'{beside}; style-src '{_digest(style)}'; "
        f"img-src data:{beside}; base-uri 'none'; form-action 'none'"
    )
    parts = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content="mineral-batch report"),
        tag("title", title),
        tag("style", Markup(style)),
    ]
    return f'<!doctype html>\n<html lang="en">\n<head>\n{join(parts)}\n</head>\n'


def script() -> Markup:
    """The script element that makes the gallery."""
    return tag("script", Markup(asset("page.js")))


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def title_of(results: Results) -> str:
    """The title of the page."""
    count = len(results.predictions.paths)
    return f"Minerals in {count:,} photograph{'' if count == 1 else 's'}"


def body(results: Results, accuracy: Accuracy | None, explained: Explained | None = None) -> Markup:
    """Everything that is seen, the pictures apart: the script fills the gallery."""
    sections = [_gallery(results, accuracy, explained), _minerals(results), _together(results)]
    sections += [_map(results)] if results.has_places else []
    sections += [_accuracy(results, accuracy)] if accuracy else []
    sections += [_failures(results)] if results.failures else []
    sections += [_certificate(results)] if results.certificate else []
    links = [tag("a", name, href=f"#{anchor}") for anchor, name, _ in sections]
    theme = tag("button", "Light / dark", type="button", id="theme")
    top = tag(
        "header",
        tag("h1", title_of(results)),
        tag("p", _summary(results)),
        tag("nav", *links, theme, aria_label="Sections"),
    )
    content = [
        tag("section", tag("h2", name, id=f"{anchor}-title"), inner, id=anchor, aria_labelledby=f"{anchor}-title")
        for anchor, name, inner in sections
    ]
    return join([tag("a", "Skip to the gallery", href="#gallery", class_="skip"), top, tag("main", *content)])


def _summary(results: Results) -> str:
    table = results.predictions
    several = int((table.called.sum(axis=1) > 1).sum())
    nothing = int((~table.called.any(axis=1)).sum())
    parts = [
        f"{int(table.called.any(axis=0).sum())} of {len(table.labels)} minerals found",
        f"several minerals in {several:,}",
        f"none in {nothing:,}",
        f"{len(results.failures):,} could not be read",
    ]
    model, finished = _at(results.certificate, "model", "name"), _at(results.certificate, "finished")
    parts += [f"model {model}"] if model else []
    parts += [finished[:10]] if finished else ["the run was stopped before it was complete"]
    return " · ".join(parts)


def _at(record: Any, *keys: str) -> str:
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return str(record) if record else ""


_Section = tuple[str, str, Markup]


def _gallery(results: Results, accuracy: Accuracy | None, explained: Explained | None) -> _Section:
    assumed = tag(
        "p",
        "The certificate of this run does not say the thresholds; “unsure” is taken around 0.5.",
        class_="note",
    )
    inner = [
        None if results.knows_thresholds else assumed,
        _controls(results, accuracy, explained),
        _legend(explained) if explained else None,
        tag("p", id="found", role="status", aria_live="polite"),
        tag("div", id="cards", aria_label="Photographs", role="list"),
        tag("nav", id="pages", aria_label="Pages of the gallery"),
        tag("noscript", "The gallery needs JavaScript, which this page brings itself; the figures below do not."),
        tag("dialog", id="detail", aria_labelledby="detail-name"),
    ]
    return "gallery", "Photographs", join(inner)


_KINDS = (
    ("all", "all"),
    ("found", "with a mineral"),
    ("several", "with several minerals"),
    ("nothing", "without a mineral"),
    ("unsure", "unsure: near a threshold"),
    ("failed", "could not be read"),
)
_EXPLAINED = (("explained", "with a map of where it looks"),)
_JUDGED = (
    ("right", "labelled: all right"),
    ("wrong", "labelled: a wrong call"),
    ("missed", "labelled: something missed"),
)
_ORDERS = (
    ("mineral", "by mineral"),
    ("probable", "most probable first"),
    ("unsure", "nearest to a threshold first"),
    ("file", "as in the run"),
    ("name", "name"),
)


def _legend(explained: Explained) -> Markup:
    """What the colours of a map mean; it is seen while maps are."""
    return tag(
        "p",
        "What speaks for the mineral: little ",
        tag("span", class_="heat", role="img", aria_label="from dark through purple and orange to yellow"),
        f" much. Each map is scaled to its own largest value: it says where, not how sure. {explained.count:,} maps of "
        f"{len(explained.overlays):,} photographs; the others are shown as they are.",
        id="legend",
        class_="note",
        hidden=True,
    )


def _controls(results: Results, accuracy: Accuracy | None, explained: Explained | None) -> Markup:
    minerals = [("", "any mineral"), *((name, name) for name in sorted(results.predictions.labels))]
    kinds = _KINDS + (_EXPLAINED if explained else ()) + (_JUDGED if accuracy else ())
    fields = [
        tag("label", "Name", tag("input", type="search", id="query", autocomplete="off", spellcheck="false")),
        tag("label", "Mineral", _select("mineral", minerals)),
        tag(
            "label",
            tag("span", "Probability at least ", tag("output", "0", id="least-value", for_="least")),
            tag("input", type="range", id="least", min="0", max="1", step="0.01", value="0"),
        ),
        tag("label", "Show", _select("kind", kinds)),
        tag("label", "Order", _select("order", _ORDERS)),
        tag("label", tag("input", type="checkbox", id="maps"), "Where it looks", class_="tick") if explained else None,
        tag("button", "Clear", type="reset"),
    ]
    return tag("form", *fields, id="controls", role="search", aria_label="Filter the photographs")


def _select(name: str, options: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> Markup:
    return tag("select", *(tag("option", text, value=value) for value, text in options), id=name)


def _minerals(results: Results) -> _Section:
    rows = figures.counts(results)
    most = max((row.pictures for row in rows), default=0) or 1
    found = [
        Bar(row.mineral, row.pictures / most, (f"{row.pictures:,}", f"{row.median:.2f}"))
        for row in rows
        if row.pictures
    ]
    absent = [row.mineral for row in rows if not row.pictures]
    inner = [
        bars(
            "In how many photographs each mineral is called present, and how sure the model is of it. "
            "A name shows its photographs.",
            ("mineral", "photographs", "median probability"),
            found,
            link=True,
        ),
        tag("p", f"In no photograph: {', '.join(absent)}.") if absent else None,
    ]
    return "minerals", "Minerals", join(inner)


def _together(results: Results) -> _Section:
    together = figures.co_occurrence(results)
    pairs = figures.pairs(together)
    if not pairs:
        return "together", "Together", tag("p", "No photograph shows two minerals.")
    most = pairs[0][2]
    inner = [
        bars(
            "The minerals that are called in one photograph most often",
            ("minerals", "photographs"),
            [Bar(f"{a} with {b}", n / most, (f"{n:,}",)) for a, b, n in pairs],
        ),
        _folded(
            "All pairs",
            tag("p", "The stronger the colour, the greater their common share (both / either). Framed: all of one."),
            matrix("Minerals called together, by pairs", *together, diagonal=True),
        ),
    ]
    return "together", "Together", join(inner)


def _folded(summary: str, *children: Markup) -> Markup:
    return tag("details", tag("summary", summary), *children, open=True)


def _map(results: Results) -> _Section:
    places = results.places[np.isfinite(results.places).all(axis=1)]
    note = f"{len(places):,} photographs say where they were taken. The page works offline, so no map lies below."
    return "map", "Map", join([tag("p", note), world(places)])


def _failures(results: Results) -> _Section:
    shown = results.failures[:100]
    rows = [tag("tr", tag("th", f.path, scope="row"), tag("td", f.stage), tag("td", f.reason)) for f in shown]
    more = len(results.failures) - len(shown)
    heads = (tag("th", name, scope="col") for name in ("file", "stage", "reason"))
    inner = [
        tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows)),
        tag("p", f"and {more:,} more: choose “could not be read” in the gallery.") if more else None,
    ]
    return "failures", "Could not be read", join(inner)


def _certificate(results: Results) -> _Section:
    note = tag("p", "What run.json says: with what, on what and how fast the tables were made.")
    return "run", "Run", join([note, _record(results.certificate)])


def _record(record: Mapping[str, Any]) -> Markup:
    rows = [tag("tr", tag("th", key.replace("_", " "), scope="row"), tag("td", _value(v))) for key, v in record.items()]
    return tag("table", tag("tbody", *rows), class_="record")


def _value(value: Any) -> Markup | str:
    if isinstance(value, Mapping):
        return _record(value) if value else "none"
    if isinstance(value, list):
        text = ", ".join(map(str, value)) or "none"
        return tag("details", tag("summary", f"{len(value)} values"), text) if len(text) > 120 else text
    return "none" if value is None else str(value)


# Accuracy


def _accuracy(results: Results, accuracy: Accuracy) -> _Section:
    inner = [_verdict(accuracy), _average_precision(accuracy), _worst(accuracy), _confusion(accuracy)]
    inner += [_curves(accuracy), _thresholds(results, accuracy), _calibration(accuracy)]
    return "accuracy", "Accuracy", join(inner)


def _verdict(accuracy: Accuracy) -> Markup:
    figure, interval = accuracy.evaluation.mean_ap, accuracy.evaluation.interval
    found = accuracy.evaluation.decisions
    within = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f}, bootstrap over photographs)" if interval else ""
    counted = int((figure.support > 0).sum())
    facts = [
        tag("p", tag("b", f"mAP {figure.mean:.3f}"), f"{within} on {len(accuracy.truth):,} photographs: "
            f"{accuracy.source}; mean over the {counted} minerals that occur in them."),
        tag("p", f"Decisions: overall precision {found.overall.precision:.3f}, recall {found.overall.recall:.3f}, "
            f"F1 {found.overall.f1:.3f}; mean F1 per mineral {found.macro_f1:.3f}."),
        tag("p", DEFINITIONS[EQUATION_6], class_="note"),
    ]  # fmt: skip
    notes = tag("p", "; ".join(accuracy.notes) + ".", class_="note") if accuracy.notes else None
    return join([*facts, notes])


def _average_precision(accuracy: Accuracy) -> Markup:
    figure, found = accuracy.evaluation.mean_ap, accuracy.evaluation.decisions
    rows = []
    for index in figures.by_ap(accuracy):
        value = float(figure.per_label[index])
        numbers = (f"{value:.3f}", f"{figure.support[index]:,}", f"{found.precision[index]:.2f}")
        rows.append(Bar(accuracy.evaluation.labels[index], value, (*numbers, f"{found.recall[index]:.2f}")))
    empty = [accuracy.evaluation.labels[index] for index in figure.empty]
    caption = "Average precision per mineral. With few photographs (support) a figure is mostly chance."
    columns = ("mineral", "AP", "support", "precision", "recall")
    absent = tag("p", f"In no labelled photograph: {', '.join(empty)}.") if empty else None
    return join([tag("h3", "Average precision"), bars(caption, columns, rows, link=True), absent])


def _worst(accuracy: Accuracy) -> Markup:
    note = (
        "Farthest on the wrong side of the threshold. Look at the photograph before you blame the model: "
        "the label may be what is wrong, or the mineral may be there and not be labelled."
    )
    parts = [tag("h3", "Worst mistakes"), tag("p", note)]
    for anchor, name, mistakes in (
        ("alarms", "Called, but not labelled", accuracy.false_alarms),
        ("misses", "Labelled, but not called", accuracy.missed),
    ):
        inner = tag("div", id=anchor, class_="strip", role="list", aria_label=name) if mistakes else tag("p", "None.")
        parts += [tag("h4", name), inner]
    return join(parts)


def _confusion(accuracy: Accuracy) -> Markup:
    pairs = figures.look_alikes(accuracy)
    rows = [Bar(f"{p.mineral} → {p.instead}", p.pictures / p.support, (f"{p.pictures} of {p.support}",)) for p in pairs]
    caption = "Missed, and this called instead: photographs, and their share of all that have the mineral"
    table = (
        bars(caption, ("mineral → called instead", "photographs"), rows)
        if rows
        else tag("p", "No mineral was missed while another was called instead.")
    )
    explained = (
        "Rows: what the labels say; columns: what was called although it is not labelled, in photographs where the "
        "row's mineral was missed. On the diagonal: called rightly. The stronger the colour, the greater the share "
        "of the row's photographs."
    )
    whole = matrix("Confusion of minerals", *figures.confusions(accuracy), diagonal=False)
    return join([tag("h3", "Look-alikes"), table, _folded("All pairs", tag("p", explained), whole)])


def _curves(accuracy: Accuracy) -> Markup:
    panels = []
    for index in figures.by_ap(accuracy):
        name, curve = accuracy.evaluation.labels[index], accuracy.curves[index]
        ap, support = accuracy.evaluation.mean_ap.per_label[index], accuracy.evaluation.mean_ap.support[index]
        panels.append(panel(name, f"AP {ap:.2f}, {support} photographs", [Line("first", *figures.steps(curve))]))
    note = tag("p", "Across: recall, up: precision. The area below the steps is the average precision.")
    return join([tag("h3", "Precision and recall"), note, tag("div", *panels, class_="panels")])


def _thresholds(results: Results, accuracy: Accuracy) -> Markup:
    panels = []
    for index in figures.by_ap(accuracy):
        curve, cut = accuracy.thresholds[index], float(results.thresholds[index])
        lines = [Line("second", curve.threshold, curve.precision), Line("third", curve.threshold, curve.recall)]
        lines.append(Line("first", curve.threshold, curve.f1))
        best = int(np.nanargmax(curve.f1))
        note = f"best F1 {curve.f1[best]:.2f} at {curve.threshold[best]:.2f}"
        panels.append(panel(accuracy.evaluation.labels[index], note, lines, cut if results.knows_thresholds else None))
    key = [tag("span", name, class_=f"key {kind}") for kind, name in (("first", "F1"), ("second", "precision"))]
    key += [tag("span", "recall", class_="key third")]
    key += [tag("span", "the model's threshold", class_="key mark")] if results.knows_thresholds else []
    note = tag("p", "Across: the threshold. ", *key)
    return join([tag("h3", "Thresholds"), note, tag("div", *panels, class_="panels")])


def _calibration(accuracy: Accuracy) -> Markup:
    found = accuracy.evaluation.calibration.reliability
    diagonal = np.array([0.0, 1.0])
    lines = [Line("ideal", diagonal, diagonal), Line("first", found.predicted, found.observed, dots=True)]
    bins = len(found.decisions)
    rows = [
        tag("tr", tag("th", f"{i / bins:.1f} to {(i + 1) / bins:.1f}", scope="row"),
            *(tag("td", text, class_="number") for text in (f"{n:,}", _percent(p), _percent(o))))
        for i, (n, p, o) in enumerate(zip(found.decisions.tolist(), found.predicted, found.observed, strict=True))
    ]  # fmt: skip
    heads = (tag("th", name, scope="col") for name in ("probability", "decisions", "mean", "true"))
    note = (
        "When the model says 70 %, is it right seven times in ten? Up: the share that is true, across: the mean "
        "probability, over all minerals and photographs. On the dotted line it is well calibrated; below, too sure."
    )
    plot = panel("Reliability", f"expected calibration error {found.error:.3f}", lines, size=260)
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows))
    return join([tag("h3", "Calibration"), tag("p", note), tag("div", plot, table, class_="pair")])


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f} %"


# Data for the script


def frame(results: Results, accuracy: Accuracy | None, origin: str) -> dict[str, Any]:
    """What the script needs to know before the pages of data.

    Args:
        results: of the run.
        accuracy: against labels, if there are any.
        origin: link from the page to where relative paths start.
    """
    low, high = _near(results.thresholds)
    data: dict[str, Any] = {
        "labels": list(results.predictions.labels),
        "thresholds": results.thresholds.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "count": len(results.predictions.paths),
        "rows": ROWS,
        "origin": origin,
        "failures": [[f.path, f.stage, f.reason] for f in results.failures],
    }
    if accuracy:
        rows = accuracy.rows
        for name, mistakes in (("alarms", accuracy.false_alarms), ("misses", accuracy.missed)):
            data[name] = [[int(rows[mistake.picture]), mistake.label] for mistake in mistakes]
    return data


def _near(thresholds: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The probabilities between which a label is unsure: odds within a factor of `NEAR` of the threshold's."""
    middle, step = log_odds(thresholds), np.log(NEAR)
    low, high = (1 / (1 + np.exp(-(middle + sign * step))) for sign in (-1, 1))
    return low, high


def pages(results: Results, accuracy: Accuracy | None) -> Iterator[dict[str, Any]]:
    """The pictures, `ROWS` at a time: paths, probabilities as base64 of little-endian uint16, what is called."""
    table = results.predictions
    truth = _truth(accuracy)
    order = np.argsort(-table.scores, axis=1, kind="stable")
    for start in range(0, len(table.paths), ROWS):
        rows = range(start, min(start + ROWS, len(table.paths)))
        scores = np.rint(table.scores[rows.start : rows.stop] * _FULL_SCALE).astype("<u2")
        yield {
            "paths": table.paths[rows.start : rows.stop],
            "scores": base64.b64encode(scores.tobytes()).decode(),
            "called": [[int(label) for label in order[row] if table.called[row, label]] for row in rows],
            "captured": results.captured[rows.start : rows.stop] if any(results.captured) else None,
            "truth": [truth.get(row) for row in rows] if truth else None,
        }


def _truth(accuracy: Accuracy | None) -> dict[int, list[int]]:
    """Row of the predictions -> the labels it has."""
    if accuracy is None:
        return {}
    return {
        row: np.flatnonzero(labels).tolist() for row, labels in zip(accuracy.rows.tolist(), accuracy.truth, strict=True)
    }
