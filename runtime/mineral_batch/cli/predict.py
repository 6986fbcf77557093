"""`mineral-batch predict`: from folders of images to a table of probabilities."""

from __future__ import annotations

import signal
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import click

from mineral_batch.cli.cluster import OnCluster, cluster_options, read_cluster_options
from mineral_batch.cli.config import chosen_options
from mineral_batch.cli.console import EXIT_SOME_IMAGES_FAILED, say, tables_line
from mineral_batch.cli.help import NumberFormat, SectionedCommand
from mineral_batch.cli.logs import LOG_FORMATS, Log
from mineral_batch.cli.opening import describe_predictor
from mineral_batch.cli.paths import INPUT
from mineral_batch.cli.pieces import PiecesRun, ThisProcess, Workers
from mineral_batch.cli.progress import Progress
from mineral_batch.cli.shared_options import max_pixels_option
from mineral_batch.cli.signals import Stop
from mineral_batch.cli.table_options import TABLE_OPTIONS, table_options
from mineral_batch.cluster.run import refuse_pieces
from mineral_batch.cluster.sizes import ClusterOptions
from mineral_batch.engines.base import PRECISIONS
from mineral_batch.engines.registry import AUTO, engine_names
from mineral_batch.errors import ContractError, DataError
from mineral_batch.images.decoder import CPU, DAMAGED, DECODERS, REFUSE
from mineral_batch.images.discover import NOT_THERE
from mineral_batch.images.lists import read_list
from mineral_batch.minerals.table import Table, load_table
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.familiarity import UNFAMILIAR
from mineral_batch.predictor import Predictor
from mineral_batch.results import run as runs
from mineral_batch.results.attempt import RunSummary
from mineral_batch.results.corrections import check_prevalence
from mineral_batch.results.csv import listed, open_csv
from mineral_batch.results.inputs import Inputs
from mineral_batch.results.manifest import other_thresholds
from mineral_batch.results.schema import BEST, FAILURES, PARTIAL
from mineral_batch.results.write import Tables
from mineral_batch.storage.urls import is_url
from mineral_batch.system import keep_some_freed_memory
from mineral_batch.words import counted

_OTHER_THRESHOLDS = "The thresholds are not those of the earlier run: the column minerals was written anew by them\n"
_SHOWN = 10


def _indices(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """`0,1` -> (0, 1)."""
    del ctx, parameter
    words = [word.strip() for word in value.split(",")] if value else []
    if not all(word.isascii() and word.isdigit() for word in words):
        raise click.BadParameter(f"'{value}' is not a list of GPU indices, e.g. 0,1")
    return tuple(map(int, words))


_SECTIONS = {
    "Tables": TABLE_OPTIONS,
    "Engine": ("backend", "devices", "precision", "batch_size"),
    "Images": ("damaged", "exact", "decode", "decode_threads", "decode_processes", "max_pixels"),
    "Many machines": (
        "shard",
        "cluster",
        "workers",
        "worker_cpus",
        "worker_gpus",
        "piece_images",
        "allow_mixed_engines",
    ),
    "Schedulers and logs": ("exit_zero_on_failures", "log_format", "log_every"),
}


@click.command(cls=SectionedCommand, sections=_SECTIONS)
@click.argument("inputs", nargs=-1, type=INPUT)
@click.option("-o", "--output", default="results", show_default=True, type=INPUT, help="Folder or URL for the tables.")
@click.option(
    "-m", "--model", type=INPUT, help="ONNX file or TensorRT engine, or its URL. [default: the starter model]"
)
@click.option("--list", "list_file", type=INPUT, help="File that names inputs, one per line; - for standard input.")
@table_options
@click.option("--restart", is_flag=True, help="Discard the results of earlier runs in OUTPUT and start over.")
@click.option("--prune", is_flag=True, help="Remove the rows of images that are not among INPUTS.")
@click.option(
    "--backend",
    default=AUTO,
    show_default=True,
    type=click.Choice([AUTO, *engine_names()]),
    help="Inference engine. auto: onnx-cuda on an NVIDIA GPU, else onnx-cpu; openvino and TensorRT only by name.",
)
@click.option(
    "--devices", default="", metavar="LIST", callback=_indices, help="GPUs by index, e.g. 0,1. [default: the first]"
)
@click.option(
    "--precision",
    default=AUTO,
    show_default=True,
    type=NumberFormat(PRECISIONS),
    help="Number format of the engine; auto: the file's, or what the engine prefers.",
)
@click.option("--batch-size", type=click.IntRange(1, 4096), help="Images in a batch. [default: what suits the engine]")
@click.option(
    "--decode-threads", type=click.IntRange(1, 1024), help="Threads that decode images. [default: one per CPU]"
)
@click.option(
    "--decode-processes",
    type=click.IntRange(0, 1024),
    help="Processes that decode images, instead of threads; 0: threads. [default: one per CPU if the engine runs on a "
    "GPU and there are 4 or more CPUs, else 0]",
)
@click.option(
    "--exact", is_flag=True, help="Decode large JPEGs at full resolution: slower, for nearly the same pixels."
)
@click.option(
    "--decode",
    default=CPU,
    show_default=True,
    type=click.Choice(DECODERS),
    help="gpu: decode large JPEGs on the GPU; auto: measure which is faster.",
)
@click.option(
    "--shard",
    metavar="N/COUNT",
    help="Predict only this share of the images, such as 3/16. auto or auto/16: take the number from the job array "
    "(Slurm, Kubernetes). When all shares are done, mineral-batch merge writes the tables.",
)
@click.option(
    "--piece-images",
    type=click.IntRange(1, 1_000_000),
    help="With --shard or an output by URL: number of images saved together, which is the most that a crash can cost. "
    "[default: 2000, or fewer, so that no shard is idle]",
)
@cluster_options
@click.option("--allow-mixed-engines", is_flag=True, help="Let the machines of one run use different engines.")
@click.option("--exit-zero-on-failures", is_flag=True, help="Exit with 0 even if some images could not be read.")
@click.option(
    "--log-format",
    default="text",
    show_default=True,
    type=click.Choice(LOG_FORMATS),
    help="json: progress and results as one JSON object per line on standard error.",
)
@click.option(
    "--damaged",
    default=REFUSE,
    show_default=True,
    type=click.Choice(DAMAGED),
    help="What to do with a damaged image. refuse: make it a row of failures.csv. predict: predict it from what can be "
    "decoded, and say so in the column `damaged`.",
)
@max_pixels_option
@click.option(
    "--log-every",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds between lines of progress if the output is a file or a pipe.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and warnings.")
@click.pass_context
def predict(
    ctx: click.Context,
    inputs: tuple[Path | str, ...],
    output: Path,
    model: Path | str | None,
    list_file: Path | str | None,
    tables: Tables,
    restart: bool,
    prune: bool,
    backend: str,
    devices: tuple[int, ...],
    precision: str,
    batch_size: int | None,
    decode_threads: int | None,
    decode_processes: int | None,
    exact: bool,
    decode: str,
    shard: str | None,
    piece_images: int | None,
    cluster: str | None,
    workers: tuple[int, int] | None,
    worker_cpus: float | None,
    worker_gpus: float | None,
    allow_mixed_engines: bool,
    exit_zero_on_failures: bool,
    log_format: str,
    damaged: str,
    max_pixels: int,
    log_every: float,
    quiet: bool,
) -> None:
    """Write the probability of every mineral for every image under INPUTS.

    INPUTS are folders, files, glob patterns, zip and tar archives, Parquet files with an image column, and URLs of all
    of these (s3://, gs://, az://, https://). OUTPUT/predictions.csv gets one row per image. An image that cannot be
    read becomes a row of OUTPUT/failures.csv, and the exit code is 3.

    Run the same command again to resume a run that was stopped, or to predict only what is new or changed. Rows of
    earlier runs stay in the tables. Ctrl-C finishes the images in progress and saves them (exit code 130; 143 after
    SIGTERM); a second Ctrl-C stops at once.

    With --shard, many machines share a run: OUTPUT is a folder that all of them see, or a URL such as
    s3://bucket/results, and `mineral-batch merge OUTPUT` writes the tables. Without --shard, OUTPUT may be a URL too.
    """
    # Odd metadata of an image does not concern the user; what cannot be read is in failures.csv.
    warnings.filterwarnings("ignore", module="PIL")
    keep_some_freed_memory()
    named = [*inputs, *([read_list(list_file)] if list_file else [])]
    if not named:
        raise click.UsageError("nothing to predict: name folders or files, or use --list")
    log = Log(log_format)
    engine: dict[str, Any] = {
        "backend": backend,
        "devices": devices,
        "precision": precision,
        "batch_size": batch_size,
        "decode_threads": decode_threads,
        "decode_processes": decode_processes,
        "exact": exact,
        "decode": decode,
        "familiarity": tables.needs_familiarity,
        "damaged": damaged,
        "max_pixels": max_pixels,
    }
    chosen = chosen_options(ctx, without=("quiet", "log_every", "log_format", "exit_zero_on_failures"))
    ray = read_cluster_options(cluster, workers, worker_cpus, worker_gpus)
    if shard is not None or ray is not None or is_url(output):
        if damaged != REFUSE:  # merged tables would not have its column
            raise click.UsageError(f"--damaged {damaged} is not possible with --shard, --cluster or an output by URL")
        run = PiecesRun(
            named,
            output,
            tables,
            shard,
            piece_images,
            log,
            log_every=log_every,
            quiet=quiet,
            options=chosen,
            restart=restart,
            prune=prune,
            mixed=allow_mixed_engines,
            exit_zero_on_failures=exit_zero_on_failures,
        )
        ctx.exit(run(_workers(ray, model, engine, shard, quiet=quiet)))
    refuse_pieces(output)
    given, _ = runs.check_run(named, output, tables)
    for warning in given.warnings():
        log.line(f"Warning: {warning}")
    with Predictor(model, **engine) as predictor:
        check_prevalence(predictor.contract, predictor.model, tables)
        changed = _OTHER_THRESHOLDS if other_thresholds(output, predictor.contract) else ""
        for line in describe_predictor(predictor, quiet=quiet):
            log.line(line)
        with Stop() as stop, Progress(given.existing, log_every, quiet, log=log.progress) as progress:
            try:
                summary = runs.run(
                    predictor,
                    given,
                    output,
                    tables,
                    restart=restart,
                    prune=prune,
                    options=chosen,
                    seen=progress,
                    stop=stop,
                    stopped=stop.finished,
                )
            except KeyboardInterrupt:
                summary = None
    if summary is None or not summary.complete:
        log.line(_stopped(summary, output))
        ctx.exit(128 + (stop.signal or signal.SIGINT))
    log.run_finished(summary, output)
    if summary.predicted and not quiet:
        say(changed + _closing(summary, output, predictor.contract, tables))
    _refuse_nothing(summary, given, output)
    if summary.failed and not exit_zero_on_failures:
        ctx.exit(EXIT_SOME_IMAGES_FAILED)


def _workers(
    cluster: ClusterOptions | None, model: Path | str | None, engine: dict[str, Any], shard: str | None, *, quiet: bool
) -> Workers:
    if cluster is not None:
        return OnCluster.of(cluster, model, engine, shard)
    opening = partial(describe_predictor, quiet=quiet)
    return ThisProcess(partial(Predictor, model, **engine), opening)


def _refuse_nothing(summary: RunSummary, given: Inputs, output: Path) -> None:
    """Raise if there is not one prediction: something is wrong with the model or with all images."""
    if summary.is_model_at_fault:
        raise ContractError(
            f"the model's output is not a probability for any of {summary.failed} images: the images were read, "
            f"the model is at fault (was it exported by mineral-export?)"
        )
    if not summary.predicted and not summary.failed:
        raise DataError(f"no images in {listed(given.first_named(_SHOWN))}: the files are empty")
    if not summary.predicted:
        raise DataError(_nothing_read(summary, output))


def _hazard_lines(minerals: Counter[str], table: Table) -> list[str]:
    """One line for the minerals found that need care, most frequent first."""
    found = [name for name, _ in minerals.most_common() if name in table and table[name].danger]
    named = ", ".join(f"{name} ({table[name].danger})" for name in found)
    return [f"  Handle with care: {named}; see mineral-batch minerals NAME"] if found else []


def _nothing_read(summary: RunSummary, output: Path) -> str:
    """One line with the first reason, so that a single bad image needs no look into failures.csv."""
    with open_csv(output / FAILURES) as table:
        _, (path, _, reason) = next(iter(table))
    subject = "the image" if summary.failed == 1 else f"none of {summary.failed} images"
    verb = "cannot" if summary.failed == 1 else "can"
    return f"{subject} {verb} be read: {path}: {reason} (see {output / FAILURES})"


def _stopped(summary: RunSummary | None, output: Path) -> str:
    done = f" after {counted(summary.predicted + summary.failed)}" if summary else ""
    partial = f" (so far: {output / PARTIAL})" if summary and summary.predicted else ""
    return f"Stopped{done}. Results saved in {output}{partial}; rerun the same command to resume."


def _closing(summary: RunSummary, output: Path, contract: ModelContract, tables: Tables) -> str:
    new, reused = summary.new - summary.new_failed, summary.reused
    lines = (
        [f"{counted(new)} predicted in {summary.seconds:.1f} s ({new / summary.seconds:.1f} images/s)"] if new else []
    )
    if reused:
        failed = 0 if summary.kept else summary.failed - summary.new_failed
        of_these = f" ({failed:,} of them could not be read)" if failed > 0 else ""
        lines.append(f"{counted(reused, 'more image' if new else 'image')} already done by an earlier run{of_these}")
    if summary.damaged:
        lines.append(f"{counted(summary.damaged, 'saved result')} damaged on disk; predicted again")
    if summary.kept:
        lines.append(f"{counted(summary.kept, 'row')} of earlier runs, not of these inputs (--prune removes them)")
    if summary.failed:
        lines.append(f"{counted(summary.failed)} could not be read: {output / FAILURES}")
    if summary.counts and summary.counts.damaged:
        what = counted(summary.counts.damaged, "damaged image")
        lines.append(f"Warning: {what} predicted from what could be decoded (column damaged)")
    lines += [summary.not_read] if summary.not_read else []
    lines += [summary.counts.further_line()] if summary.counts and summary.counts.further else []
    # Missing names were told at the start, and are rows of failures.csv.
    lines += [f"Warning: {warning}" for warning in summary.warnings if not warning.startswith(NOT_THERE)]
    minerals = summary.counts.minerals if summary.counts else Counter()
    lines += [f"  {name:<20} in {counted(n)}" for name, n in minerals.most_common(_SHOWN)]
    if len(minerals) > _SHOWN:
        lines.append(f"  and {counted(len(minerals) - _SHOWN, 'more mineral')}")
    lines += _hazard_lines(minerals, load_table(tables.minerals))
    if summary.counts and summary.counts.blank:
        where = "column best has" if BEST in tables.columns else "--columns best shows"
        lines.append(
            f"  {summary.counts.blank} of {summary.counts.predicted} images have no mineral at or above its threshold "
            f"({where} the most probable)"
        )
    if summary.counts and summary.counts.familiar:
        lines.append(
            f"  {summary.counts.unfamiliar} of {summary.counts.familiar} images look like nothing the model was "
            f"trained on (familiarity below {UNFAMILIAR:g})"
        )
    lines += [] if contract.is_calibrated else ["The probabilities are not calibrated: see the warning above."]
    if specimens := summary.counts.specimens_line() if summary.counts else "":
        lines.append(specimens)
    return "\n".join([*lines, tables_line(output, summary.files)])
