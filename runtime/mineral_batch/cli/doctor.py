"""`mineral-batch doctor`: what is installed, what works, and how to fix what does not."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import FETCHED
from mineral_batch.doctor import Cache, Diagnosis, EngineTrial, Machine, examine
from mineral_batch.engines.registry import AUTO_ORDER
from mineral_batch.errors import ContractError, MineralError
from mineral_batch.model.starter import starter_path
from mineral_batch.storage.cache import LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@click.command()
@click.option("-m", "--model", type=FETCHED, help="ONNX file or its URL. [default: the starter model]")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def doctor(model: Path | None, as_json: bool) -> None:
    """Show what is installed, try every engine on one image, and say what to install.

    Each engine opens the model in its own process. The exit code is 0 if at least one engine works.
    """
    if model is not None and not model.is_file():
        raise ContractError(f"no such model file: {model}")
    path = model or (starter_path() if starter_path().is_file() else None)
    diagnosis = examine(path)
    click.echo(json.dumps(asdict(diagnosis), indent=2) if as_json else "\n".join(_text(diagnosis)))
    if path is None:
        raise MineralError(
            "no engine was tried, because this installation has no starter model: name a model with --model"
        )
    if not diagnosis.works:
        raise MineralError("no engine works here: see above")


def _text(diagnosis: Diagnosis) -> Iterator[str]:
    yield from _machine_lines(diagnosis.machine)
    yield _cache_line(diagnosis.cache)
    yield ""
    yield from map(_engine_line, diagnosis.engines)
    yield from _auto_line(diagnosis.engines)
    decoding = diagnosis.gpu_decoding
    yield f"{'GPU decoding':<14} " + (f"yes  {decoding.version}" if decoding.works else f"no   {decoding.reason}")
    if diagnosis.findings:
        yield ""
    for finding in diagnosis.findings:
        yield f"To fix: {finding.what}"
        yield f"    {finding.fix}"


def _machine_lines(machine: Machine) -> Iterator[str]:
    yield f"system     {machine.system}, Python {machine.python}"
    yield f"CPU        {machine.processor}, {machine.cpu_count} usable ({' '.join(machine.cpu_features) or 'plain'})"
    if not machine.gpus:
        yield f"GPU        none: {machine.no_gpu}"
    for gpu in machine.gpus:
        memory = f"{gpu.memory / 2**30:.0f} GiB"
        driver = f"driver {machine.driver or 'unknown'}, CUDA {machine.cuda}"
        yield f"GPU {gpu.index}      {gpu.name}, compute capability {gpu.compute_capability}, {memory}, {driver}"
    yield f"packages   {', '.join(f'{name} {version}' for name, version in machine.packages.items())}"
    absent = [name for name, is_there in machine.codecs.items() if not is_there]
    there = [name for name, is_there in machine.codecs.items() if is_there]
    yield f"Pillow     {' '.join(there)}" + (f"; not {' '.join(absent)}" if absent else "")


def _cache_line(cache: Cache) -> str:
    copies, most, others = map(_in_words, (cache.copies, cache.most_copies, cache.others))
    return (
        f"cache      {cache.folder}: {copies} copied from URLs (at most {most}: {LIMIT}), {others} of engines "
        f"and other files"
    )


def _in_words(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _auto_line(engines: Sequence[EngineTrial]) -> Iterator[str]:
    """What `--backend auto` takes, where a faster engine may be in the list."""
    working = [engine.name for engine in engines if engine.works]
    taken = next((name for name in AUTO_ORDER if name in working), None)
    others = [name for name in working if name not in AUTO_ORDER]
    if taken:
        yield (
            f"{'auto':<14} {taken}, the engine that the model was measured with"
            + (f"; {' and '.join(others)} only with --backend" if others else "")
        )


def _engine_line(engine: EngineTrial) -> str:
    if not engine.works:
        return f"{engine.name:<14} no   {engine.reason}"
    milliseconds = f"{1000 * (engine.seconds or 0):.1f} ms per image on one worker"
    is_compared = engine.difference is not None and engine.name != "onnx-cpu"
    difference = f", within {engine.difference:.1g} of onnx-cpu" if is_compared else ""
    return f"{engine.name:<14} yes  {engine.device}, {milliseconds}{difference}"
