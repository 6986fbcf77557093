"""What the stages measured as one JSON file and one page of markdown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import stages

if TYPE_CHECKING:
    from pathlib import Path


def write(out: Path, names: list[str]) -> None:
    """OUT/results.json and OUT/results.md from whatever stages there are."""
    found = {name: stages.read(out, name) or {"status": "not done"} for name in names}
    for file, text in (("results.json", json.dumps(found, indent=1)), ("results.md", markdown(found))):
        scratch = out / f".{file}.part"
        scratch.write_text(text, "utf-8")
        scratch.replace(out / file)


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """The page."""
    is_dry = any(stage.get("dry_run") for stage in found.values())
    title = "# GPU run" + (" - DRY RUN ON THE CPU: no figure here means anything" if is_dry else "")
    parts = [title, _machine(found["chip"]), "## Stages", _stages(found)]
    parts += ["## Ceilings", _plain(found["chip"], ("matrix_", "copy_", "pycuda_"))]
    parts += ["## Pictures a second on the device, by batch", _by_batch(found)]
    parts += ["## Files to probabilities", _end_to_end(found)]
    parts += ["## FP16 against float32 ONNX on the CPU", _verified(found["verify"])]
    parts += ["## TensorRT for RTX on this chip", _plain(found["rtx"], ("built", "products", "layers", "said"))]
    parts += ["Not measured by this script: FP8 and INT8 engines, decoding on the GPU."]
    return "\n\n".join(parts) + "\n"


def _machine(chip: dict[str, Any]) -> str:
    words = [f"{name} {value}" for part in ("machine", "packages") for name, value in chip.get(part, {}).items()]
    return ", ".join(words)


def _stages(found: dict[str, dict[str, Any]]) -> str:
    rows = [
        (name, stage.get("status", "cut off"), str(stage.get("seconds", "")), stage.get("error", ""))
        for name, stage in found.items()
    ]
    return _table(("stage", "status", "seconds", "why"), rows)


def _plain(stage: dict[str, Any], prefixes: tuple[str, ...]) -> str:
    rows = [(name, _figure(value)) for name, value in stage.items() if name.startswith(prefixes)]
    return _table(("what", "value"), rows) if rows else "Nothing was measured."


def _by_batch(found: dict[str, dict[str, Any]]) -> str:
    both = {**found["engines"], **found["peers"]}
    rates = {name: value for name, value in both.items() if isinstance(value, dict) and "1" in value}
    batches = sorted({int(batch) for value in rates.values() for batch in value})
    ceiling = found["chip"].get("matrix_float16_tflops")
    gflop = found["models"].get("gflop_per_picture")
    rows = []
    for name, value in rates.items():
        cells = [_figure(value[str(batch)]) if str(batch) in value else "-" for batch in batches]
        share = f"{max(value.values()) * gflop / 1e3 / ceiling:.0%}" if ceiling and gflop else "-"
        rows.append((name, *cells, share))
    ended = [f"- {name}: {why}" for name, why in both.items() if name.endswith(" ended")]
    head = ("engine", *map(str, batches), "of the matrix ceiling")
    return "\n\n".join([_table(head, rows) if rows else "Nothing was measured.", "\n".join(ended)]).strip()


def _end_to_end(found: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, value in {**found["end_to_end"], **found["peers"]}.items():
        if isinstance(value, dict) and ("pictures_per_s" in value or "failed" in value):
            rows.append((name, _figure(value.get("pictures_per_s", "-")), value.get("failed", "")))
    return _table(("engine, pictures", "pictures a second", "why not"), rows) if rows else "Nothing was measured."


def _verified(stage: dict[str, Any]) -> str:
    rows = [
        (name, value.get("parity", value.get("failed", "")), str(value.get("within_budget", "-")))
        for name, value in stage.items()
        if isinstance(value, dict)
    ]
    return _table(("engine", "difference", "within budget"), rows) if rows else "Nothing was verified."


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)
