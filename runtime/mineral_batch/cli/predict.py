"""`mineral-batch predict`: from folders of images to a table of probabilities."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import click

from mineral_batch.cli.cluster import OnCluster, cluster_options, read_cluster_options
from mineral_batch.cli.config import chosen_options
from mineral_batch.cli.folder_run import FolderRun
from mineral_batch.cli.help import NumberFormat, SectionedCommand
from mineral_batch.cli.logs import LOG_FORMATS, Log
from mineral_batch.cli.opening import describe_predictor
from mineral_batch.cli.paths import INPUT
from mineral_batch.cli.pieces import PiecesRun, ThisProcess, Workers
from mineral_batch.cli.shared_options import max_pixels_option
from mineral_batch.cli.table_options import TABLE_OPTIONS, table_options
from mineral_batch.cluster.sizes import ClusterOptions
from mineral_batch.engines.base import PRECISIONS
from mineral_batch.engines.registry import AUTO, engine_names
from mineral_batch.images.decoder import CPU, DAMAGED, DECODERS, REFUSE
from mineral_batch.images.lists import read_list
from mineral_batch.predictor import Predictor
from mineral_batch.results.write import Tables
from mineral_batch.storage.urls import is_url
from mineral_batch.system import keep_some_freed_memory


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
    options = chosen_options(ctx, without=("quiet", "log_every", "log_format", "exit_zero_on_failures"))
    asked: dict[str, Any] = {
        "named": named,
        "output": output,
        "tables": tables,
        "log": Log(log_format),
        "log_every": log_every,
        "quiet": quiet,
        "options": options,
        "restart": restart,
        "prune": prune,
        "exit_zero_on_failures": exit_zero_on_failures,
    }
    ray = read_cluster_options(cluster, workers, worker_cpus, worker_gpus)
    if shard is None and ray is None and not is_url(output):
        ctx.exit(FolderRun(**asked)(model, engine))
    if damaged != REFUSE:  # merged tables would not have its column
        raise click.UsageError(f"--damaged {damaged} is not possible with --shard, --cluster or an output by URL")
    run = PiecesRun(**asked, shard=shard, piece_images=piece_images, mixed=allow_mixed_engines)
    ctx.exit(run(_workers(ray, model, engine, shard, quiet=quiet)))


def _workers(
    cluster: ClusterOptions | None, model: Path | str | None, engine: dict[str, Any], shard: str | None, *, quiet: bool
) -> Workers:
    if cluster is not None:
        return OnCluster.of(cluster, model, engine, shard)
    opening = partial(describe_predictor, quiet=quiet)
    return ThisProcess(partial(Predictor, model, **engine), opening)
