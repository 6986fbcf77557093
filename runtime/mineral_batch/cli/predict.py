"""`mineral-batch predict`: a folder of photographs in, a table of probabilities out."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click
from tqdm import tqdm

from mineral_batch import runs
from mineral_batch.backends import AUTO, BACKENDS
from mineral_batch.console import EXIT_SOME_PICTURES_FAILED
from mineral_batch.errors import DataError, MineralError
from mineral_batch.images import Failure
from mineral_batch.models import starter_card
from mineral_batch.predictor import Predictor
from mineral_batch.sinks import FAILURES, PREDICTIONS, present
from mineral_batch.sources import find_sources, read_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.contract import ModelContract
    from mineral_batch.pipeline import Result
    from mineral_batch.runs import Report

_SHOWN = 10


@click.command()
@click.argument("inputs", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("-m", "--model", type=click.Path(path_type=Path), help="ONNX file; default: the starter model.")
@click.option("--list", "list_file", type=click.Path(path_type=Path), help="File of inputs, one a line; - for stdin.")
@click.option("--jsonl", "json_lines", is_flag=True, help="Write predictions.jsonl too.")
@click.option("--per-image", is_flag=True, help="Write one CSV per picture too, below OUTPUT/per-image.")
@click.option("--restart", is_flag=True, help="Forget what an earlier run into OUTPUT did.")
@click.option("--backend", default=AUTO, show_default=True, type=click.Choice([AUTO, *BACKENDS]), help="Engine.")
@click.option("--device", default=0, show_default=True, type=click.IntRange(0), help="Index of the GPU.")
@click.option("--batch-size", type=click.IntRange(1, 4096), help="Pictures per call of the engine.")
@click.option("--decode-threads", type=click.IntRange(1, 1024), help="Default: one per processor.")
@click.option("--exact", is_flag=True, help="Decode large JPEGs in full: slower, nearly the same pixels.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.pass_context
def predict(
    ctx: click.Context,
    inputs: tuple[Path, ...],
    output: Path,
    model: Path | None,
    list_file: Path | None,
    json_lines: bool,
    per_image: bool,
    restart: bool,
    backend: str,
    device: int,
    batch_size: int | None,
    decode_threads: int | None,
    exact: bool,
    quiet: bool,
) -> None:
    """Write the probability of every mineral for every photograph under INPUTS.

    INPUTS are folders, files, globs, zip and tar archives. OUTPUT/predictions.csv has one row per picture; a picture
    that cannot be read is a row in OUTPUT/failures.csv and makes the exit code 3. A run that was stopped goes on where
    it was when the same command is given again; later the same command does only what is new or changed.
    """
    # A picture's odd metadata is no news for the user; what cannot be read is in failures.csv.
    warnings.filterwarnings("ignore", module="PIL")
    everything = [*inputs, *map(Path, read_list(list_file) if list_file else [])]
    if not everything:
        raise click.UsageError("nothing to predict: name folders or files, or give --list")
    options = runs.Options(json_lines=json_lines, per_image=per_image, restart=restart)
    with Predictor(
        model, backend=backend, device=device, batch_size=batch_size, decode_threads=decode_threads, exact=exact
    ) as predictor:
        if not quiet:
            click.echo(_opening(predictor, is_starter=model is None), err=True)
        with _Watch(everything, predictor.contract, quiet) as watch:
            report = _run(predictor, everything, output, options, watch)
    if not quiet:
        click.echo(_closing(report, watch.minerals, output))
    if not report.predicted:
        raise DataError(f"none of {report.failed} pictures could be read: see {output / FAILURES}")
    if report.failed:
        ctx.exit(EXIT_SOME_PICTURES_FAILED)


def _run(predictor: Predictor, inputs: Sequence[Path], output: Path, options: runs.Options, watch: _Watch) -> Report:
    try:
        return runs.run(predictor, inputs, output, options, seen=watch)
    except KeyboardInterrupt:
        raise MineralError(
            f"stopped; what was predicted is safe in {output}: the same command goes on from there"
        ) from None


def _opening(predictor: Predictor, *, is_starter: bool) -> str:
    contract = predictor.contract
    lines = [f"{contract.name}: {len(contract.labels)} minerals, {predictor.backend} on {predictor.device}"]
    if is_starter:
        measured = contract.measured
        score = f" (test mAP {measured.mean_ap:.2f} on {measured.images} photographs)" if measured else ""
        lines.append(
            f"This is the small starter model{score}: for a first look, not for decisions. "
            f"What it can and cannot do: {starter_card()}"
        )
    return "\n".join(lines)


class _Watch:
    """The progress bar, and the pictures per mineral of this run. A bar's total comes from a second walk beside it."""

    def __init__(self, inputs: Sequence[Path], contract: ModelContract, quiet: bool) -> None:
        self.minerals: Counter[str] = Counter()
        self._contract = contract
        self._failed = self._reused = 0
        self._bar: tqdm[None] = tqdm(unit=" pictures", disable=True if quiet else None, dynamic_ncols=True)
        if not self._bar.disable:
            threading.Thread(target=self._count, args=(inputs,), daemon=True, name="count").start()

    def _count(self, inputs: Sequence[Path]) -> None:
        self._bar.total = sum(1 for _ in find_sources(inputs))

    def __call__(self, result: Result | None) -> None:
        if isinstance(result, Failure):
            self._failed += 1
        elif result is None:
            self._reused += 1
        else:
            self.minerals.update(present(result.probabilities.tolist(), self._contract))
        if not self._bar.disable:
            self._show(is_new=result is not None)

    def _show(self, *, is_new: bool) -> None:
        counts = {"failed": self._failed, "from earlier": self._reused}
        self._bar.set_postfix({name: n for name, n in counts.items() if n}, refresh=False)
        if is_new:
            self._bar.update()
        else:  # it counts as done, but must not flatter the rate
            self._bar.initial += 1
            self._bar.n += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _closing(report: Report, minerals: Counter[str], output: Path) -> str:
    new = report.predicted + report.failed - report.reused
    lines = [f"{new} pictures in {report.seconds:.1f} s ({new / report.seconds:.1f} a second)"]
    if report.reused:
        lines.append(f"{report.reused} more were done by an earlier run")
    if report.failed:
        lines.append(f"{report.failed} could not be read: {output / FAILURES}")
    lines += [f"  {name:<20} in {n} pictures" for name, n in minerals.most_common(_SHOWN)]
    if len(minerals) > _SHOWN:
        lines.append(f"  and {len(minerals) - _SHOWN} more minerals")
    return "\n".join([*lines, f"Table: {output / PREDICTIONS}"])
