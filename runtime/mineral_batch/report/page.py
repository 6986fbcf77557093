"""The page: one HTML file that needs no network, no other file, and runs no script but its own.

Jinja templates with autoescaping write everything that is seen; names, labels and reasons from outside reach the page
as escaped text, or as JSON in script elements that are data (see `data`). The content security policy allows exactly
the style sheet and the script of this package, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mineral_batch.evaluation.metrics import DEFINITIONS, EQUATION_6
from mineral_batch.evaluation.thresholds import rule_in_words
from mineral_batch.model.familiarity import UNFAMILIAR
from mineral_batch.report import figures, svg, warnings
from mineral_batch.report.about_run import key_in_words, of_run
from mineral_batch.report.script import bundle
from mineral_batch.report.worldmap import world_map
from mineral_batch.words import counted

if TYPE_CHECKING:
    from mineral_batch.evaluation.curves import Accuracy
    from mineral_batch.report.explained import Explained
    from mineral_batch.report.groups import Groups
    from mineral_batch.results.read import Results


class Section(NamedTuple):
    """A section of the page; its content is the template of the same name as its anchor."""

    anchor: str
    title: str


_KINDS = (
    ("all", "all"),
    ("found", "with a mineral"),
    ("several", "with several minerals"),
    ("nothing", "without a mineral"),
    ("unsure", "unsure: near a threshold"),
    ("failed", "could not be read"),
)
_KINDS_WITH_FAMILIARITY = (("unfamiliar", "unlike the training images"),)
_KINDS_WITH_DAMAGED = (("damaged", "damaged: only a part decoded"),)
_KINDS_WITH_PAIRS = (("implausible", "minerals that hardly occur together"),)
_KINDS_WITH_MAPS = (("explained", "with a map of where it looks"),)
_KINDS_WITH_LABELS = (
    ("right", "labeled: everything right"),
    ("wrong", "labeled: a mineral wrongly found"),
    ("missed", "labeled: a mineral missed"),
)


def page(
    results: Results, accuracy: Accuracy | None, explained: Explained | None, groups: Groups, *, in_folder: bool
) -> str:
    """Write the page up to its data.

    Args:
        results: of the run.
        accuracy: against labels, if there are any.
        explained: maps of where the model looks, if there are any.
        groups: what photographs are grouped and found by.
        in_folder: whether the policy allows images and data beside the page.
    """
    style, beside = _asset("page.css"), " 'self'" if in_folder else ""
    policy = (
        f"default-src 'none'; script-src '{_digest(script())}'{beside}; style-src '{_digest(style)}'; "
        f"img-src data:{beside}; base-uri 'none'; form-action 'none'"
    )
    context: dict[str, Any] = {
        "policy": policy,
        "style": Markup(style),  # noqa: S704 - a file of this package
        "title": title(results),
        "summary": _summary(results, groups),
        "warnings": warnings.of_model(results.manifest),
        "sections": _sections(results, accuracy),
        "results": results,
        "explained": explained,
        "accuracy": accuracy,
        "never_found": figures.never_found(results),
        "threshold_rule": _threshold_rule(results),
        "about_run": of_run(results.manifest, _threshold_rule(results)),
        "kinds": _kinds(results, accuracy, explained, groups),
        "implausible": Counter(groups.implausible.values()),
        "groups": groups,
        "charts": _charts(results, accuracy, groups),
    }
    if accuracy:
        context |= _of_accuracy(accuracy)
    return _environment().get_template("page.html").render(context)


@cache
def script() -> str:
    """Return the script that makes the gallery."""
    return bundle()


def title(results: Results) -> str:
    """Return the title of the page."""
    return f"Minerals in {counted(len(results.predictions.paths), 'photograph')}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mineral_batch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "px": _pixels,
        "heatmap_shapes": svg.heatmap,
        "panel_shapes": svg.panel,
        "reliability_shapes": svg.reliability,
        "map_shapes": world_map,
        "line_key": svg.key,
        "fact": key_in_words,
    }
    return environment


def _pixels(value: float) -> str:
    """Write a number of pixels, to a hundredth."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _asset(name: str) -> str:
    return resources.files("mineral_batch.report").joinpath("assets", name).read_text("utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _summary(results: Results, groups: Groups) -> str:
    table, manifest = results.predictions, results.manifest
    found = table.called.sum(axis=1)
    parts = [
        f"{int(table.called.any(axis=0).sum())} of {len(table.labels)} minerals found",
        f"{int((found > 0).sum()):,} photographs with a mineral, {int((found > 1).sum()):,} with several",
    ]
    parts += [_specimens(groups)] if groups.specimens else []
    broader = len(groups.answers)
    parts += [f"{broader:,} where only a group or class is sure"] if broader else []
    unfamiliar = int((results.familiarity < UNFAMILIAR).sum())
    parts += [f"{unfamiliar:,} unlike the training images"] if unfamiliar else []
    damaged = sum(map(bool, results.damaged))
    parts += [f"{damaged:,} damaged, predicted from what could be decoded"] if damaged else []
    parts += [f"{len(results.failures):,} could not be read"] if results.failures else []
    model = manifest.get("model")
    parts += [f"model {model['name']}"] if isinstance(model, dict) and model.get("name") else []
    finished = manifest.get("finished")
    parts += [str(finished)[:10]] if finished else ["the run was stopped before it was complete"]
    return " · ".join(parts)


def _specimens(groups: Groups) -> str:
    single = groups.specimen_of.count(-1)
    return f"{len(groups.specimens):,} specimens" + (f" and {single:,} photographs of none" if single else "")


def _threshold_rule(results: Results) -> str:
    """Say how the model's thresholds were chosen, as far as run.json knows."""
    model = results.manifest.get("model")
    chosen = model.get("thresholds_by") if isinstance(model, dict) else None
    rule = str(chosen.get("rule", "")) if isinstance(chosen, dict) else ""
    return rule_in_words(rule)


def _kinds(
    results: Results, accuracy: Accuracy | None, explained: Explained | None, groups: Groups
) -> list[tuple[str, str]]:
    """List what the gallery can be filtered by."""
    kinds = [*_KINDS]
    kinds += _KINDS_WITH_FAMILIARITY if np.isfinite(results.familiarity).any() else ()
    kinds += _KINDS_WITH_DAMAGED if any(results.damaged) else ()
    kinds += _KINDS_WITH_PAIRS if groups.implausible else ()
    kinds += _KINDS_WITH_MAPS if explained else ()
    kinds += _KINDS_WITH_LABELS if accuracy else ()
    return kinds


def _sections(results: Results, accuracy: Accuracy | None) -> list[Section]:
    sections = [
        Section("gallery", "Photographs"),
        Section("minerals", "Minerals"),
        Section("together", "Minerals in the same photograph"),
    ]
    sections += [Section("map", "Where they were taken")] if results.has_places else []
    sections += [Section("accuracy", "Accuracy")] if accuracy else []
    sections += [Section("failures", "Could not be read")] if results.failures else []
    sections += [Section("run", "How this was made")] if results.manifest else []
    return sections


def _charts(results: Results, accuracy: Accuracy | None, groups: Groups) -> dict[str, Any]:
    together = figures.co_occurrence(results)
    charts: dict[str, Any] = {
        "counts": figures.counts(results),
        "classes": figures.classes(results, groups),
        "co_occurrence": together,
        "pairs": figures.pairs(together),
        "places": figures.places(results) if results.has_places else None,
    }
    if accuracy:
        charts |= {
            "reliability": figures.reliability(accuracy),
            "average_precision": figures.average_precision(accuracy),
            "look_alikes": figures.look_alike_bars(accuracy),
            "confusion": figures.confusion(accuracy),
            "precision_recall": figures.precision_recall(accuracy),
            "thresholds": figures.thresholds(results, accuracy),
        }
    return charts


def _of_accuracy(accuracy: Accuracy) -> dict[str, Any]:
    """What the accuracy section prints beside its charts."""
    model, baseline = accuracy.evaluation.calibration.scores, accuracy.evaluation.calibration.baseline
    return {
        "fewest": figures.FEWEST,
        "ap_definition": DEFINITIONS[EQUATION_6],
        "unlabeled": [accuracy.evaluation.labels[index] for index in accuracy.evaluation.mean_ap.empty],
        "probability_scores": [
            ("Expected calibration error, 10 bins", f"{model.ece:.4f}", "0, by definition"),
            ("Brier score", f"{model.brier:.4f}", f"{baseline.brier:.4f}"),
            ("Log loss", f"{model.log_loss:.4f}", f"{baseline.log_loss:.4f}"),
        ],
    }
