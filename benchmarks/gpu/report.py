"""What the stages measured as one JSON file and one page of markdown."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Engine of `predict` -> the row of its rate on the device.
_ON_DEVICE = {"onnx-cpu": "ONNX Runtime FP16", "onnx-cuda": "ONNX Runtime FP16", "tensorrt": "TensorRT FP16"}
#: Last word of a row's name -> the matrix product whose measured rate bounds it; FP16 for all others.
_CEILINGS = {"INT8": "int8", "FP8": "float8"}


def write(out: Path, names: list[str]) -> None:
    """OUT/results.json and OUT/results.md from whatever stages there are."""
    found = {name: common.read(out, name) or {"status": "not done"} for name in names}
    for file, text in (("results.json", json.dumps(found, indent=1)), ("results.md", markdown(found))):
        scratch = out / f".{file}.part"
        scratch.write_text(text, "utf-8")
        scratch.replace(out / file)


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """The page."""
    is_dry = any(stage.get("dry_run") for stage in found.values())
    title = "# GPU run" + (" - DRY RUN ON THE CPU: no figure here means anything" if is_dry else "")
    parts = [title, _machine(found["chip"]), "## Stages", _stages(found)]
    parts += ["## Brought along", _plain(found["install"], ("installed", "failed", "missing", "left_out"))]
    parts += ["## Ceilings", _plain(found["chip"], ("matrix_", "copy_", "native_backend"))]
    parts += ["## What bounds the paper's model", _bounds(found)]
    parts += ["## Pictures a second on the device, by batch", _by_batch(found)]
    parts += ["## Files to probabilities", _end_to_end(found)]
    parts += ["## Answers against float32 ONNX on the CPU", _verified(found)]
    parts += ["## INT8 and FP8", _plain(found["quantised"], ("int8_", "float8_"))]
    parts += ["## TensorRT for RTX on this chip", _plain(found["rtx"], ("built", "products", "layers", "said"))]
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
    rows = [(name, _figure(value)) for name, value in stage.items() if name.startswith(prefixes) and value]
    return _table(("what", "value"), rows) if rows else "Nothing was measured."


@dataclass(frozen=True)
class _Row:
    """One way to run one model.

    Attributes:
        name: of the way.
        rates: batch -> pictures a second.
        share: of the measured rate of matrix products that its best batch reaches; None where one is not known.
    """

    name: str
    rates: dict[str, float]
    share: float | None


def _rows(found: dict[str, dict[str, Any]]) -> Iterator[_Row]:
    """By batch, of every stage that measures so."""
    for stage in ("engines", "peers", "quantised", "starter"):
        model = found["starter" if stage == "starter" else "models"]
        for name, rates in found[stage].items():
            if isinstance(rates, dict) and "1" in rates:
                kind = _CEILINGS.get(name.split()[-1], "float16")
                ceiling, work = found["chip"].get(f"matrix_{kind}_tflops"), model.get("gflop_per_picture")
                share = max(rates.values()) * work / 1e3 / ceiling if ceiling and work else None
                yield _Row(name, rates, share)


def _by_batch(found: dict[str, dict[str, Any]]) -> str:
    rows = list(_rows(found))
    batches = sorted({int(batch) for row in rows for batch in row.rates})
    cells = [
        (
            row.name,
            *(_figure(row.rates.get(str(batch), "-")) for batch in batches),
            "-" if row.share is None else f"{row.share:.0%}",
        )
        for row in rows
    ]
    stages = ("engines", "peers", "quantised", "starter")
    ended = [f"- {name}: {why}" for stage in stages for name, why in found[stage].items() if name.endswith(" ended")]
    head = ("model and engine", *map(str, batches), "best, of the matrix products' rate")
    return "\n\n".join([_table(head, cells) if cells else "Nothing was measured.", "\n".join(ended)]).strip()


def _bounds(found: dict[str, dict[str, Any]]) -> str:
    """The roofline: pictures a second if nothing but this one thing took time."""
    chip, models = found["chip"], found["models"]
    work, shape = models.get("gflop_per_picture"), models.get("input")
    if not work or not shape:
        return "Nothing was measured."
    rows = [
        (f"matrix products in {kind}", _figure(chip[f"matrix_{kind}_tflops"] * 1e3 / work))
        for kind in ("float16", "int8", "float8")
        if f"matrix_{kind}_tflops" in chip
    ]
    size = shape[0] * shape[1] * shape[2]
    if copied := chip.get("copy_to_gpu_gb_per_s"):
        rows.append((f"copies to the GPU, {size / 1e6:.2f} MB a picture", _figure(copied * 1e9 / size)))
    return f"{work:.4g} GFLOP a picture.\n\n" + _table(("bound by", "pictures a second"), rows)


def _end_to_end(found: dict[str, dict[str, Any]]) -> str:
    on_device = {row.name: max(row.rates.values()) for row in _rows(found)}
    rows = []
    for stage in ("end_to_end", "decoding", "peers", "starter", "rtx"):
        for name, value in found[stage].items():
            if not isinstance(value, dict) or not ("pictures_per_s" in value or "failed" in value):
                continue
            rate = value.get("pictures_per_s")
            words = name.split(", ")
            model = "starter, " if words[0] == "starter" else ""
            best = on_device.get(model + _ON_DEVICE.get(words[1 if model else 0], ""))
            share = f"{rate / best:.0%}" if rate and best else "-"
            rows.append((name, _figure(rate or "-"), share, value.get("failed", "")))
    not_there = f"Decoding on the GPU: {found['decoding']['decoding']}" if "decoding" in found["decoding"] else ""
    head = ("engine, pictures", "pictures a second", "of the engine's best", "why not")
    return "\n\n".join([_table(head, rows) if rows else "Nothing was measured.", not_there]).strip()


def _verified(found: dict[str, dict[str, Any]]) -> str:
    rows = [
        (name, value.get("parity", value.get("failed", "")), str(value.get("within_budget", "-")))
        for stage in ("verify", "quantised", "rtx")
        for name, value in found[stage].items()
        if isinstance(value, dict) and ("parity" in value or (stage == "verify" and "failed" in value))
    ]
    return _table(("engine", "difference", "within budget"), rows) if rows else "Nothing was verified."


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return "; ".join(f"{name}: {what}" for name, what in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)
