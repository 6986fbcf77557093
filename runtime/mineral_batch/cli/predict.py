"""`mineral-batch predict`: a folder of photographs in, a table of probabilities out."""

from __future__ import annotations

import signal
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mineral_batch.cli._progress import Progress, Stop
from mineral_batch.cli.console import EXIT_SOME_PICTURES_FAILED
from mineral_batch.engines.base import PRECISIONS
from mineral_batch.engines.registry import AUTO, BACKENDS
from mineral_batch.errors import DataError
from mineral_batch.images.decoder import CPU, DECODERS
from mineral_batch.images.discover import read_list
from mineral_batch.model.starter import starter_card
from mineral_batch.predictor import Predictor
from mineral_batch.results import run as runs
from mineral_batch.results.schema import COLUMNS, FAILURES, FORMATS, PARTIAL, PER_IMAGE, PREDICTIONS
from mineral_batch.results.write import Tables

if TYPE_CHECKING:
    from collections import Counter

    from mineral_batch.results.run import Report

_SHOWN = 10


def _indices(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """`0,1` -> (0, 1)."""
    del ctx, parameter
    words = [word.strip() for word in value.split(",")] if value else []
    if not all(word.isascii() and word.isdigit() for word in words):
        raise click.BadParameter(f"'{value}' is no list of GPUs: write their numbers, as in 0,1")
    return tuple(map(int, words))


def _columns(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    asked = tuple(name.strip() for name in value.split(",") if name.strip())
    unknown = [name for name in asked if name not in COLUMNS]
    if unknown:
        raise click.BadParameter(f"no such columns as {', '.join(unknown)}; there are {', '.join(COLUMNS)}")
    return tuple(name for name in COLUMNS if name in asked)


@click.command()
@click.argument("inputs", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("-m", "--model", type=click.Path(path_type=Path), help="ONNX file; default: the starter model.")
@click.option("--list", "list_file", type=click.Path(path_type=Path), help="File of inputs, one a line; - for stdin.")
@click.option("--format", "formats", multiple=True, type=click.Choice([*FORMATS]), help="Besides CSV; repeatable.")
@click.option(
    "--layout",
    default="table",
    show_default=True,
    type=click.Choice(["table", PER_IMAGE]),
    help=f"{PER_IMAGE}: a CSV per picture, too, in a copy of the tree below OUTPUT/{PER_IMAGE}.",
)
@click.option("--columns", default="", callback=_columns, help=f"More columns: any of {','.join(COLUMNS)}.")
@click.option("--restart", is_flag=True, help="Forget what an earlier run into OUTPUT did.")
@click.option("--backend", default=AUTO, show_default=True, type=click.Choice([AUTO, *BACKENDS]), help="Engine.")
@click.option("--devices", default="", metavar="LIST", callback=_indices, help="GPUs, as in 0,1; default: the first.")
@click.option("--precision", default=AUTO, show_default=True, type=click.Choice(PRECISIONS), help="Of the arithmetic.")
@click.option("--batch-size", type=click.IntRange(1, 4096), help="Pictures per call of the engine.")
@click.option("--decode-threads", type=click.IntRange(1, 1024), help="Default: one per processor.")
@click.option(
    "--decode-processes",
    type=click.IntRange(0, 1024),
    help="Decode in N processes, 0 for threads. Default: one per CPU if a GPU computes and there are 4 or more CPUs.",
)
@click.option("--exact", is_flag=True, help="Decode large JPEGs in full: slower, nearly the same pixels.")
@click.option(
    "--decode", default=CPU, show_default=True, type=click.Choice(DECODERS), help="gpu: big JPEGs by nvImageCodec."
)
@click.option("--log-every", default=60.0, type=click.FloatRange(0), help="Seconds between lines in a log file.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.pass_context
def predict(
    ctx: click.Context,
    inputs: tuple[Path, ...],
    output: Path,
    model: Path | None,
    list_file: Path | None,
    formats: tuple[str, ...],
    layout: str,
    columns: tuple[str, ...],
    restart: bool,
    backend: str,
    devices: tuple[int, ...],
    precision: str,
    batch_size: int | None,
    decode_threads: int | None,
    decode_processes: int | None,
    exact: bool,
    decode: str,
    log_every: float,
    quiet: bool,
) -> None:
    """Write the probability of every mineral for every photograph under INPUTS.

    INPUTS are folders, files, globs, zip and tar archives. OUTPUT/predictions.csv has one row per picture; a picture
    that cannot be read is a row in OUTPUT/failures.csv and makes the exit code 3. A run that was stopped
    goes on where it was when the same command is given again; later the same command does only what is new or
    changed. Ctrl-C finishes the pictures in flight (exit code 130; 143 for SIGTERM).
    """
    # A picture's odd metadata is no news for the user; what cannot be read is in failures.csv.
    warnings.filterwarnings("ignore", module="PIL")
    everything = [*inputs, *map(Path, read_list(list_file) if list_file else [])]
    if not everything:
        raise click.UsageError("nothing to predict: name folders or files, or give --list")
    tables = Tables(formats, layout == PER_IMAGE, columns)
    with Predictor(
        model,
        backend=backend,
        devices=devices,
        precision=precision,
        batch_size=batch_size,
        decode_threads=decode_threads,
        decode_processes=decode_processes,
        exact=exact,
        decode=decode,
    ) as predictor:
        if not quiet:
            click.echo(_opening(predictor, is_starter=model is None), err=True)
        with Stop() as stop, Progress(everything, predictor.contract, log_every, quiet) as progress:
            try:
                report = runs.run(predictor, everything, output, tables, restart=restart, seen=progress, stop=stop)
            except KeyboardInterrupt:
                report = None
    if report is None or not report.complete:
        click.echo(_stopped(report, output), err=True)
        ctx.exit(128 + (stop.signal or signal.SIGINT))
    if not quiet:
        click.echo(_closing(report, progress.minerals, output))
    if not report.predicted:
        raise DataError(f"none of {report.failed} pictures could be read: see {output / FAILURES}")
    if report.failed:
        ctx.exit(EXIT_SOME_PICTURES_FAILED)


def _opening(predictor: Predictor, *, is_starter: bool) -> str:
    contract = predictor.contract
    lines = [f"{contract.name}: {len(contract.labels)} minerals, {predictor.backend} on {predictor.device}"]
    lines += [f"  not {name}: {reason}" for name, reason in predictor.skipped.items()]
    if is_starter:
        measured = contract.measured
        score = f" (test mAP {measured.mean_ap:.2f} on {measured.images} photographs)" if measured else ""
        lines.append(
            f"This is the small starter model{score}: for a first look, not for decisions. "
            f"What it can and cannot do: {starter_card()}"
        )
    return "\n".join(lines)


def _stopped(report: Report | None, output: Path) -> str:
    done = f" after {report.predicted + report.failed} pictures" if report else ""
    seen = f" (see {output / PARTIAL})" if report and report.predicted else ""
    return f"Stopped{done}; what was predicted is safe in {output}{seen}: the same command goes on from there"


def _closing(report: Report, minerals: Counter[str], output: Path) -> str:
    new = report.predicted + report.failed - report.reused
    lines = [f"{new} pictures in {report.seconds:.1f} s ({new / report.seconds:.1f} a second)"] if new else []
    if report.reused:
        lines.append(f"{report.reused} {'more ' if new else 'pictures, all of them, '}were done by an earlier run")
    if report.failed:
        lines.append(f"{report.failed} could not be read: {output / FAILURES}")
    lines += [f"  {name:<20} in {n} pictures" for name, n in minerals.most_common(_SHOWN)]
    if len(minerals) > _SHOWN:
        lines.append(f"  and {len(minerals) - _SHOWN} more minerals")
    return "\n".join([*lines, f"Table: {output / PREDICTIONS}"])
