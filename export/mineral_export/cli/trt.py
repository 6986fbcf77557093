"""`mineral-export trt`: an ONNX file in, a TensorRT engine out."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mineral_batch.engines.tensorrt.library import RUNTIMES
from mineral_batch.engines.tensorrt.plan import Profile, sidecar_path
from mineral_export.cli._options import Phases, gate_options, pictures_options, quiet_option

if TYPE_CHECKING:
    from mineral_export.cli._options import Gate, Pictures
    from mineral_export.tensorrt import Engine


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: MODEL with the suffix .plan.")
@click.option(
    "--precision",
    default="fp16",
    show_default=True,
    type=click.Choice(["fp16", "fp32", "as-is"]),
    help="Of the matrix products; fp16 converts a float32 MODEL first.",
)
@click.option("--runtime", type=click.Choice([*RUNTIMES]), help="Default: whichever is installed.")
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help="A chip to build for, as in 8.9; repeatable. Default: the GPU of this machine. tensorrt-rtx only.",
)
@click.option("--batch", type=click.IntRange(1, 4096), help="A fixed batch, the fastest; instead of the next three.")
@click.option("--min", "smallest", type=click.IntRange(1, 4096), help="Pictures at once, at least. Default: 1.")
@click.option("--opt", "optimum", type=click.IntRange(1, 4096), help="Best for these. Default: 64, at most --max.")
@click.option("--max", "largest", type=click.IntRange(1, 4096), help="Pictures at once. Default: as --opt.")
@click.option("--workspace", type=click.FloatRange(0, min_open=True), metavar="GIB", help="GPU memory for one layer.")
@click.option("--timing-cache", type=click.Path(path_type=Path), help="Read and written; later builds are faster.")
@click.option("--version-compatible", is_flag=True, help="Also for later releases of this TensorRT.")
@click.option("--hardware-compatible", is_flag=True, help="Also for every GPU since Ampere; slower.")
@pictures_options
@gate_options
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
    pictures: Pictures,
    gate: Gate,
    quiet: bool,
) -> None:
    """Build a TensorRT engine of MODEL, an ONNX file from mineral-export onnx.

    OUTPUT is the plain plan; OUTPUT.json says what it is for, and predict refuses it where it does not fit. With
    TensorRT for RTX no GPU is needed to build (--compute-capability). The layers are read back afterwards: an engine
    asked to be fp16 that is not is not written.

    Where this machine's GPU is one that the engine is for, its answers are compared with MODEL's before it is written,
    as mineral-export verify does, and an engine beyond the budget of its precision is refused.
    """
    from functools import partial

    from mineral_batch.engines.tensorrt.build import Options
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
    target = output or model.with_suffix(".plan")
    with Phases(quiet=quiet, unit=" steps") as phases:
        made = export_engine(
            model,
            target,
            options,
            precision=precision,  # type: ignore[arg-type]  # a click.Choice of the same three
            runtime=runtime,
            pictures=partial(pictures.samples, read_contract(model)),
            points=gate.points,
            force=gate.force,
            rebuild=shlex.join(["mineral-export", *sys.argv[1:]]) if sys.argv[1:2] == ["trt"] else None,
            progress=phases,
        )
    click.echo(_told(made, model))


def _profile(batch: int | None, smallest: int | None, optimum: int | None, largest: int | None) -> Profile:
    if batch is None:
        best = optimum or min(max(64, smallest or 1), largest or 4096)
        return Profile(smallest or 1, best, largest or best)
    if smallest or optimum or largest:
        raise click.UsageError("--batch is one fixed batch: leave out --min, --opt and --max, or --batch")
    return Profile(batch, batch, batch)


def _told(made: Engine, source: Path) -> str:
    record = made.record
    batches = f"{record.profile.smallest} / {record.profile.optimum} / {record.profile.largest}"
    layers = ", ".join(f"{count} {name}" for name, count in sorted(record.layers.items()))
    products = ", ".join(f"{count} {name}" for name, count in sorted(record.products.items()))
    return "\n".join(
        [
            f"{made.path}: {made.size / 1e6:.1f} MB, {record.runtime} {record.version}, compute capability "
            f"{', '.join(record.compute_capabilities)}, batch {batches}",
            f"Layers by precision, of the {record.layers_from}: {layers}; convolutions and matrix products: {products}",
            _compared(made, source),
            f"Description: {sidecar_path(made.path)}",
        ]
    )


def _compared(made: Engine, source: Path) -> str:
    if made.parity:
        return f"Compared with {source}: {made.parity}"
    command = shlex.join(["mineral-export", "verify", str(source), str(made.path)])
    return f"Not compared with {source}: {made.why_not}. Where the engine is to run: {command}"
