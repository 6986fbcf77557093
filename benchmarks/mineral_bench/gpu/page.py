"""What the stages measured, as one JSON file and one page of Markdown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mineral_bench.gpu.measured import (
    FOLDER_STAGES,
    RIGHT,
    STAGES_BY_BATCH,
    answers_of,
    ceiling_of,
    fastest,
    fastest_over,
    folder_rows,
    is_verified,
    rows_by_batch,
    wrong_rows,
)
from mineral_bench.gpu.record import read_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mineral_bench.gpu.measured import Found


def write(out: Path, names: list[str]) -> None:
    """Write OUT/results.json and OUT/results.md from the stages that there are."""
    found = {name: read_record(out, name) or {"status": "not done"} for name in names}
    _replace(out / "results.json", json.dumps(found, indent=1))
    _replace(out / "results.md", markdown(found))


def _replace(file: Path, text: str) -> None:
    scratch = file.with_name(f".{file.name}.part")
    scratch.write_text(text, "utf-8")
    scratch.replace(file)


def markdown(found: Found) -> str:
    """Return the page."""
    is_dry = any(stage.get("dry_run") for stage in found.values())
    title = "# GPU run" + (" - DRY RUN ON THE CPU: no figure here means anything" if is_dry else "")
    parts = [title, _machine(found["chip"]), "## In short", _in_short(found), "## Stages", _stages(found)]
    parts += ["## The GPU at work", _clocks(found)]
    brought = ("installed", "failed", "missing", "left_out", "onnxruntime")
    parts += ["## Brought along", _plain(found["install"], brought)]
    parts += ["## Ceilings", _plain({**found["pycuda"], **found["chip"]}, ("matrix_", "copy_", "native_backend"))]
    parts += ["## What bounds the paper's model", _bounds(found)]
    parts += ["## Images a second on the device, by batch", _by_batch(found)]
    parts += ["## Files to probabilities", _end_to_end(found)]
    parts += ["## Output compared with float32 ONNX on the CPU", _verified(found)]
    parts += [
        "## What the GPU spends its time on, for both graphs",
        _kernels(found["kernels"]),
    ]
    parts += ["## INT8 and FP8", _plain(found["quantized"], ("int8_", "float8_"))]
    words = ("built", "products", "layers", "compared", "said")
    parts += ["## TensorRT for RTX on this chip", _plain(found["rtx"], words)]
    return "\n\n".join(parts) + "\n"


def _machine(chip: dict[str, Any]) -> str:
    words = [f"{name} {value}" for part in ("machine", "packages") for name, value in chip.get(part, {}).items()]
    return ", ".join(words)


def _stages(found: Found) -> str:
    rows = [
        (name, stage.get("status", "cut off"), str(stage.get("seconds", "")), stage.get("error", ""))
        for name, stage in found.items()
    ]
    return _table(("stage", "status", "seconds", "why"), rows)


def _in_short(found: Found) -> str:
    """Summarize: our best engine for the paper's model beside the ceiling and the peers, and `predict` with it."""
    rates = {
        stage: {row.name: row for row in rows_by_batch(found, (stage,))} for stage in ("engines", "peers", "compiled")
    }
    ours, theirs = fastest(rates["engines"]), fastest({**rates["peers"], **rates["compiled"]})
    lines = []
    if ours:
        share = "" if ours.share is None else f", {ours.share:.0%} of the rate of matrix products in its type"
        lines.append(f"- on the device: {ours.name}, {_figure(ours.best)} images/s{share}{_doubt(ours.answers)}")
    if ours and theirs:
        lines.append(
            f"- the fastest peer there: {theirs.name}, {_figure(theirs.best)}; ours {ours.best / theirs.best:.2f} x"
        )
    if "better" in found["engines"]:
        better = found["engines"]["better"]
        lines.append(f"- the better FP16 graph: {better}{_doubt(answers_of(found, 'engines', better))}")
    for folder in sorted({name.rsplit(", ", 1)[-1] for name in folder_rows(found["end_to_end"])}):
        mine, peer = (
            fastest_over(found, folder, stages) for stages in (("end_to_end", "decoding"), ("peers", "compiled"))
        )
        ratio = (
            f"; the fastest peer {_figure(peer.best)} ({peer.name}), ours {mine.best / peer.best:.2f} x"
            if mine and peer
            else ""
        )
        if mine:
            told = f"{_figure(mine.best)} images/s ({mine.name}){_doubt(mine.answers)}"
            lines.append(f"- files to probabilities, {folder}: {told}{ratio}")
    if wrong := wrong_rows(found):
        lines.append(f"- not counted here, because their output is WRONG: {'; '.join(wrong)}")
    return "\n".join(lines) or "Nothing was measured."


def _doubt(answers: str) -> str:
    return "" if answers == RIGHT else f", output {answers}"


def _clocks(found: Found) -> str:
    """Return the clocks while the GPU was at least half busy, by stage."""
    rows = [(name, _figure(stage["gpu"])) for name, stage in found.items() if stage.get("gpu")]
    return _table(("stage", "nvidia-smi, while busy"), rows) if rows else "Nothing was read."


def _plain(stage: dict[str, Any], prefixes: tuple[str, ...]) -> str:
    rows = [(name, _figure(value)) for name, value in stage.items() if name.startswith(prefixes) and value]
    return _table(("what", "value"), rows) if rows else "Nothing was measured."


def _by_batch(found: Found) -> str:
    rows = list(rows_by_batch(found))
    batches = sorted({int(batch) for row in rows for batch in row.rates})
    cells = [
        (
            row.name,
            *(_figure(row.rates.get(str(batch), "-")) for batch in batches),
            "-" if row.share is None else f"{row.share:.0%}",
            row.says,
            row.answers,
        )
        for row in rows
    ]
    ended = [
        f"- {name}: {_figure(why)}"
        for stage in STAGES_BY_BATCH
        for name, why in found[stage].items()
        if name.endswith(" ended")
    ]
    head = ("model and engine", *map(str, batches), "best, of the matrix products' rate", "with", "output")
    return "\n\n".join([_table(head, cells) if cells else "Nothing was measured.", "\n".join(ended)]).strip()


def _bounds(found: Found) -> str:
    """Return the roofline: images a second if nothing but this one thing took time."""
    chip, models = found["chip"], found["models"]
    work, shape = models.get("gflop_per_picture"), models.get("input")
    if not work or not shape:
        return "Nothing was measured."
    rows = [
        (f"matrix products in {kind}", _figure(ceiling * 1e3 / work))
        for kind in ("float16", "int8", "float8")
        if (ceiling := ceiling_of(chip, f"matrix_{kind}_tflops"))
    ]
    size = shape[0] * shape[1] * shape[2]
    if copied := ceiling_of(chip, "copy_to_gpu_gb_per_s"):
        rows.append((f"copies to the GPU, {size / 1e6:.2f} MB an image", _figure(copied * 1e9 / size)))
    return f"{work:.4g} GFLOP an image.\n\n" + _table(("bound by", "images a second"), rows)


def _end_to_end(found: Found) -> str:
    on_device = {row.name: row.rates for row in rows_by_batch(found)}
    rows = []
    for stage in FOLDER_STAGES:
        for name, value in folder_rows(found[stage]).items():
            if is_verified(stage, name):
                continue
            rate, rates = value.get("pictures_per_s"), on_device.get(value.get("beside", ""), {})
            batch = str(value.get("batch_size", ""))
            shares = [f"{rate / other:.0%}" if rate and other else "-" for other in _beside(rates, batch)]
            why = value.get("failed", value.get("left_out", value.get("decoding", "")))
            answers = answers_of(found, stage, name) if rate else ""
            rows.append((name, _figure(rate or "-"), batch, *shares, why, answers))
    columns = ("images a second", "batch", "of the engine at this batch", "of its best")
    head = ("engine, images", *columns, "notes", "output")
    return _table(head, rows) if rows else "Nothing was measured."


def _beside(rates: dict[str, float], batch: str) -> tuple[float | None, float | None]:
    """Return the engine's rate at a batch, and its best."""
    return rates.get(batch), max(rates.values(), default=None)


def _verified(found: Found) -> str:
    rows = [
        (name, value.get("parity", value.get("failed", "")), str(value.get("within_budget", "-")))
        for stage in ("verify", "starter", "quantized", "rtx")
        for name, value in found[stage].items()
        if isinstance(value, dict) and ("parity" in value or ("failed" in value and is_verified(stage, name)))
    ]
    return _table(("engine", "difference", "within budget"), rows) if rows else "Nothing was verified."


def _kernels(stage: dict[str, Any]) -> str:
    """Return the shares by kernel, for each graph, in the session of `predict`."""
    rows = [
        (row, name, _figure(value))
        for row, values in stage.items()
        if row.startswith("kernels") and isinstance(values, dict)
        for name, value in (values or {"nothing": "-"}).items()
    ]
    return _table(("graph", "kernel", "share of the time"), rows) if rows else "Nothing was measured."


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_figure(what)}" for name, what in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)
