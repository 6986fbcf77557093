"""`mineral-batch predict`: a folder of photographs in, a table of probabilities out."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from mineral_batch.backends import AUTO, BACKENDS
from mineral_batch.console import EXIT_SOME_PICTURES_FAILED
from mineral_batch.errors import DataError
from mineral_batch.images import Failure, find_images
from mineral_batch.models import starter_card
from mineral_batch.predictor import Predictor
from mineral_batch.sinks import FAILURES, PREDICTIONS, CsvSink, present

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mineral_batch.contract import ModelContract
    from mineral_batch.pipeline import Result

_SHOWN = 10


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("-m", "--model", type=click.Path(path_type=Path), help="ONNX file; default: the starter model.")
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
    backend: str,
    device: int,
    batch_size: int | None,
    decode_threads: int | None,
    exact: bool,
    quiet: bool,
) -> None:
    """Write the probability of every mineral for every photograph under INPUTS (folders or files).

    OUTPUT/predictions.csv has one row per picture; a picture that cannot be read is a row in OUTPUT/failures.csv and
    makes the exit code 3.
    """
    with Predictor(
        model, backend=backend, device=device, batch_size=batch_size, decode_threads=decode_threads, exact=exact
    ) as predictor:
        if not quiet:
            click.echo(_opening(predictor, is_starter=model is None), err=True)
        counts, failed, seconds = _run(predictor, inputs, output, quiet)
    total = sum(counts.values()) + failed
    if not quiet:
        click.echo(_closing(counts, failed, seconds, output, predictor.contract))
    if total == failed:
        raise DataError(f"none of {total} pictures could be read: see {output / FAILURES}")
    if failed:
        ctx.exit(EXIT_SOME_PICTURES_FAILED)


def _opening(predictor: Predictor, *, is_starter: bool) -> str:
    contract = predictor.contract
    lines = [f"{contract.name}, {len(contract.labels)} minerals, {predictor.backend}"]
    if is_starter:
        measured = contract.measured
        score = f" (test mAP {measured.mean_ap:.2f} on {measured.images} photographs)" if measured else ""
        lines.append(
            f"This is the small starter model{score}: good for a first look, not for decisions; "
            f"its limits are in {starter_card()}, your own is made with mineral-train."
        )
    return "\n".join(lines)


def _run(predictor: Predictor, inputs: tuple[Path, ...], output: Path, quiet: bool) -> tuple[Counter[str], int, float]:
    """Predict and write; gives the pictures per mineral ("" for none), the failures and the seconds."""
    counts: Counter[str] = Counter()
    started = time.monotonic()
    with closing(predictor.predict(inputs)) as results:
        # The first picture is drawn before the tables are opened: a mistyped folder must not leave files behind.
        first = next(results, None)
        if first is None:
            raise DataError(f"no photographs under {', '.join(map(str, inputs))}: no file has the suffix of a picture")
        with CsvSink(output, predictor.contract) as sink, _progress(inputs, quiet) as bar:
            try:
                for result in itertools.chain([first], results):
                    sink.write(result)
                    counts.update(_called(result, predictor.contract))
                    bar.update()
                    if isinstance(result, Failure):
                        bar.set_postfix(failed=sink.failed, refresh=False)
            except KeyboardInterrupt:
                raise DataError(
                    f"stopped after {sink.written + sink.failed} pictures; their rows are in {output}/*.unfinished"
                ) from None
        return counts, sink.failed, time.monotonic() - started


def _called(result: Result, contract: ModelContract) -> Iterator[str]:
    """What a result adds to the counts: its minerals, and one for the picture under the empty name."""
    if not isinstance(result, Failure):
        yield ""
        yield from present(result.probabilities.tolist(), contract)


def _progress(inputs: tuple[Path, ...], quiet: bool) -> tqdm[None]:
    """A bar whose total appears once a second walk of the folders has counted them, beside the work."""
    bar: tqdm[None] = tqdm(unit=" pictures", disable=quiet, smoothing=0.1, dynamic_ncols=True)

    def count() -> None:
        bar.total = sum(1 for _ in find_images(inputs))

    if not bar.disable:
        threading.Thread(target=count, daemon=True, name="count").start()
    return bar


def _closing(counts: Counter[str], failed: int, seconds: float, output: Path, contract: ModelContract) -> str:
    pictures = counts[""]
    lines = [f"{pictures} pictures in {seconds:.1f} s ({pictures / max(seconds, 1e-9):.1f} a second)"]
    if failed:
        lines.append(f"{failed} could not be read: {output / FAILURES}")
    minerals = [(name, n) for name, n in counts.most_common() if name]
    lines += [f"  {name:<20} in {n} pictures" for name, n in minerals[:_SHOWN]]
    if len(minerals) > _SHOWN:
        lines.append(f"  and {len(minerals) - _SHOWN} more minerals, of {len(contract.labels)}")
    return "\n".join([*lines, f"Table: {output / PREDICTIONS}"])
