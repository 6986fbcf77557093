"""What a run was, in words for a curator: what was predicted, with which model, when, how well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

_NAMED = 5
#: Keys of run.json whose words say too little.
_KEYS = {
    "pictures": "photographs",
    "pictures_per_second": "photographs per second",
    "passed_over": "engines not used, and why",
    "blank": "photographs in which no mineral was found",
    "unnamed": "photographs without a specimen",
    "unnamed_example": "one of the photographs without a specimen",
    "further": "files with further images",
    "of_other_inputs": "kept from earlier runs with other inputs",
    "from_earlier_runs": "kept from earlier runs",
    "not_read": "files that are no photographs",
    "inputs_named": "number of inputs",
    "stage_seconds": "seconds per stage",
    "peak_memory_mib": "peak memory (MiB)",
    "thresholds_by": "how the thresholds were chosen",
}


def of_run(manifest: Mapping[str, Any], threshold_rule: str) -> list[tuple[str, str]]:
    """Return (heading, text) for each fact that run.json has; a part of another form is left out.

    Args:
        manifest: run.json.
        threshold_rule: how the model's thresholds were chosen, in words; empty if nobody knows.
    """
    facts: list[tuple[str, str]] = []
    for heading, describe in (
        ("Photographs", _photographs),
        ("From", _inputs),
        ("When", _when),
        ("Model", _model),
        ("How accurate", _accuracy),
        ("Probabilities", _probabilities),
        ("Found", lambda record: f"minerals at or above their threshold; {_rule(record, threshold_rule)}"),
        ("Computed by", _program),
        ("Tables", lambda record: _listed(record["tables"])),
    ):
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            if text := describe(manifest):
                facts.append((heading, text))
    return facts


def key_in_words(key: str) -> str:
    """A key of run.json as a heading."""
    return _KEYS.get(key, key.replace("_", " "))


def _photographs(manifest: Mapping[str, Any]) -> str:
    counts = manifest["pictures"]
    parts = [f"{counts['predicted']:,} predicted"]
    parts += [f"{counts['damaged']:,} of them damaged"] if counts.get("damaged") else []
    parts += [f"{counts['failed']:,} could not be read"] if counts["failed"] else []
    parts += [f"{counts['of_other_inputs']:,} kept from earlier runs"] if counts.get("of_other_inputs") else []
    return ", ".join(parts)


def _inputs(manifest: Mapping[str, Any]) -> str:
    return _listed(manifest["inputs"], manifest.get("inputs_named"))


def _listed(names: Sequence[str], count: int | None = None) -> str:
    shown = [str(name) for name in names[:_NAMED]]
    more = (count or len(names)) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")


def _when(manifest: Mapping[str, Any]) -> str:
    start, end = (datetime.fromisoformat(manifest[key]).astimezone(UTC) for key in ("started", "finished"))
    if f"{start:%Y-%m-%d %H:%M}" == f"{end:%Y-%m-%d %H:%M}":
        return f"{start:%Y-%m-%d %H:%M} UTC"
    last = f"{end:%H:%M}" if start.date() == end.date() else f"{end:%Y-%m-%d %H:%M}"
    return f"{start:%Y-%m-%d %H:%M} to {last} UTC"


def _model(manifest: Mapping[str, Any]) -> str:
    model = manifest["model"]
    return f"{model['name']}, which knows {len(model['labels'])} minerals"


def _accuracy(manifest: Mapping[str, Any]) -> str:
    measured = manifest["model"]["measured"]
    if measured is None:
        return "never measured"
    dataset = f" of {measured['dataset']}" if measured.get("dataset") else ""
    figure = f"mean average precision {measured['mean_ap']:.2f} (1 is perfect)"
    return f"{figure} on {measured['images']:,} photographs{dataset}"


def _probabilities(manifest: Mapping[str, Any]) -> str:
    found = manifest["model"]["calibration"]
    text = "not calibrated: they rank photographs, but do not say how often an answer is right"
    if found is not None:
        where = f"{found['images']:,} photographs ({found['dataset']}, {found['date']})"
        text = f"calibrated on {where}: about seven in ten answers of 70% are right, for photographs like these"
    return f"{text}; corrected for how frequent the minerals are" if manifest.get("prevalence") else text


def _rule(manifest: Mapping[str, Any], rule: str) -> str:
    thresholds = manifest["model"]["thresholds"]
    same = len(set(thresholds)) == 1
    own = f"it is {thresholds[0]:g} for all" if same else "each mineral has its own"
    return own + (f" (chosen for {rule})" if rule else "")


def _program(manifest: Mapping[str, Any]) -> str:
    program = f"mineral-batch {manifest['versions']['mineral-batch']}"
    engine = manifest.get("engine")
    if isinstance(engine, Mapping):
        return f"{program} with {engine['backend']} on {engine['device']}"
    return f"{program} on several machines, in {manifest['pieces']:,} pieces"
