"""`mineral-export trt`: an ONNX file in, a TensorRT engine out."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mineral_batch.cli.help import NumberFormat
from mineral_batch.cli.paths import FETCHED, LOCAL, require_output
from mineral_batch.engines.tensorrt.library import RUNTIMES
from mineral_batch.engines.tensorrt.plan import Profile, sidecar_path
from mineral_export.cli._options import ProgressPhases, budget_options, quiet_option, sample_options

if TYPE_CHECKING:
    from mineral_export.cli._options import BudgetOptions, SampleOptions
    from mineral_export.tensorrt import ExportedEngine


@click.command()
@click.argument("model", type=FETCHED)
@click.option("-o", "--output", type=LOCAL, metavar="FILE", help="Engine to write. [default: MODEL.plan]")
@click.option(
    "--precision",
    default="fp16",
    show_default=True,
    type=NumberFormat(["fp16", "fp32", "as-is"]),
    help="Precision of the matrix products; fp16 converts a float32 MODEL first.",
)
@click.option(
    "--runtime",
    type=click.Choice([*RUNTIMES]),
    help="Library that builds and runs the engine. [default: the one that is installed]",
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help="With tensorrt-rtx: GPU to build for, e.g. 8.9. Repeatable. [default: the GPU of this machine]",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 4096),
    help="One fixed batch size, which is fastest, in place of --min, --opt and --max.",
)
@click.option("--min", "smallest", type=click.IntRange(1, 4096), help="Smallest batch size. [default: 1]")
@click.option(
    "--opt",
    "optimum",
    type=click.IntRange(1, 4096),
    help="Batch size that the engine is optimized for. [default: 64, at most --max]",
)
@click.option("--max", "largest", type=click.IntRange(1, 4096), help="Largest batch size. [default: as --opt]")
@click.option(
    "--workspace",
    type=click.FloatRange(0, min_open=True),
    metavar="GIB",
    help="GPU memory that one layer may use while it computes, GiB. [default: TensorRT's]",
)
@click.option(
    "--timing-cache",
    type=LOCAL,
    metavar="FILE",
    help="File that makes later builds faster; read and written.",
)
@click.option(
    "--version-compatible", is_flag=True, help="Build an engine that later releases of this TensorRT can load."
)
@click.option("--hardware-compatible", is_flag=True, help="Build an engine for every GPU since Ampere; it is slower.")
@sample_options
@budget_options
@quiet_option
def trt(
    model: Path,
    output: Path | None,
    precision: str,
    runtime: str | None,
    capabilities: tuple[str, ...],
    batch: int | None,
    smallest: int | None,
    optimum: int | None,
    largest: int | None,
    workspace: float | None,
    timing_cache: Path | None,
    version_compatible: bool,
    hardware_compatible: bool,
    samples: SampleOptions,
    limits: BudgetOptions,
    quiet: bool,
) -> None:
    """Build a TensorRT engine from MODEL, an ONNX file of mineral-export onnx.

    OUTPUT is the plain plan; OUTPUT.json describes it, and predict refuses an engine that does not fit the machine or
    the model. TensorRT for RTX builds without a GPU (--compute-capability). The precision of the layers is read back
    from the finished engine: if fp16 was asked for and the layers do not have it, the engine is not written.

    If the engine runs on this machine's GPU, its output is compared with MODEL's before it is written, as
    mineral-export verify does, and an engine that exceeds the budget of its precision is refused.
    """
    from functools import partial

    from mineral_batch.engines.tensorrt.options import Options
    from mineral_batch.model.onnx_file import read_contract
    from mineral_export.tensorrt import export_engine

    options = Options(
        _profile(batch, smallest, optimum, largest),
        capabilities,
        workspace,
        version_compatible,
        hardware_compatible,
        timing_cache,
    )
    target = require_output(model, output, model.with_suffix(".plan"))
    with ProgressPhases(quiet=quiet, unit=" steps") as phases:
        engine = export_engine(
            model,
            target,
            options,
            precision=precision,  # type: ignore[arg-type]  # a click.Choice of the same three
            runtime=runtime,
            samples=partial(samples.load, read_contract(model)),
            points=limits.points,
            force=limits.force,
            rebuild=shlex.join(["mineral-export", *sys.argv[1:]]) if sys.argv[1:2] == ["trt"] else None,
            progress=phases,
        )
    click.echo(_summary(engine, model))


def _profile(batch: int | None, smallest: int | None, optimum: int | None, largest: int | None) -> Profile:
    if batch is None:
        best = optimum or min(max(64, smallest or 1), largest or 4096)
        return Profile(smallest or 1, best, largest or best)
    if smallest or optimum or largest:
        raise click.UsageError("--batch sets one fixed batch: leave out --min, --opt and --max, or leave out --batch")
    return Profile(batch, batch, batch)


def _summary(engine: ExportedEngine, source: Path) -> str:
    record = engine.record
    batches = f"{record.profile.smallest} / {record.profile.optimum} / {record.profile.largest}"
    layers = ", ".join(f"{count} {name}" for name, count in sorted(record.layers.items()))
    products = ", ".join(f"{count} {name}" for name, count in sorted(record.products.items()))
    return "\n".join(
        [
            f"{engine.path}: {engine.size / 1e6:.1f} MB, {record.runtime} {record.version}, compute capability "
            f"{', '.join(record.compute_capabilities)}, batch {batches}",
            f"Layers by precision, of the {record.layers_from}: {layers}; convolutions and matrix products: {products}",
            _comparison(engine, source),
            f"Description: {sidecar_path(engine.path)}",
        ]
    )


def _comparison(engine: ExportedEngine, source: Path) -> str:
    if engine.parity:
        return f"Compared with {source}: {engine.parity}"
    command = shlex.join(["mineral-export", "verify", str(source), str(engine.path)])
    return f"Not compared with {source}: {engine.why_not}. On the machine that will run it: {command}"
