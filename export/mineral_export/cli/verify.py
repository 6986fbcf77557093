"""`mineral-export verify`: compare the output of two forms of a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from mineral_batch.cli.console import EXIT_FOUND_SOMETHING
from mineral_batch.cli.help import NumberFormat
from mineral_batch.cli.paths import LOCAL
from mineral_batch.words import counted
from mineral_export.cli._options import sample_options

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_export.cli._options import SampleOptions
    from mineral_export.verify.artifacts import Artifact
    from mineral_export.verify.budget import Budget
    from mineral_export.verify.parity import Parity

_PRECISIONS = ("float32", "float16", "bfloat16", "float8", "int8")


@click.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@sample_options
@click.option(
    "--budget",
    type=NumberFormat(_PRECISIONS),
    help="Accept what this precision may differ by. [default: the less exact of A and B]",
)
@click.option("--points", type=float, help="Points of mAP that may be lost. [default: the precision's budget]")
@click.option("--json", "json_file", type=LOCAL, metavar="FILE", help="Write every figure to this file.")
def verify(
    one: str,
    other: str,
    samples: SampleOptions,
    budget: str | None,
    points: float | None,
    json_file: Path | None,
) -> None:
    """Compare the output of A and B: the same model as a checkpoint, an ONNX file or an engine.

    A and B are PATH or PATH@ENGINE[:PRECISION], such as model.onnx@openvino:bfloat16. If no engine is named, an ONNX
    file runs on onnx-cpu and a checkpoint folder on torch. PATH may be a URL. Without --photos or --labels the images
    are synthetic.

    With labels, B is judged by its loss of mAP and, for a calibrated model, by the rise of its calibration error;
    without labels, by the differences of the probabilities and, on photographs, by how often the minerals named differ;
    synthetic images are too few and too unlike photographs for that. The exit code is 1 if B exceeds the budget.
    """
    from mineral_batch.results.seals import require_sealed
    from mineral_export.verify.artifacts import open_artifact, require_same
    from mineral_export.verify.budget import budget_for, least_exact
    from mineral_export.verify.parity import compare

    if json_file:
        require_sealed(json_file, "verify")
    with open_artifact(one) as a, open_artifact(other) as b:
        require_same(a, b)
        allowed = budget_for(budget or least_exact((a.precision, b.precision)), points)
        parity = compare(a.predict, b.predict, samples.load(a.contract), a.contract)
    click.echo("\n".join(_text(a, b, parity, allowed)))
    if json_file:
        _write(json_file, _record(a, b, parity, allowed))
    if parity.beyond(allowed):
        raise click.exceptions.Exit(EXIT_FOUND_SOMETHING)


def _text(a: Artifact, b: Artifact, parity: Parity, budget: Budget) -> list[str]:
    return [
        f"A  {a.name}  ({a.engine})",
        f"B  {b.name}  ({b.engine})",
        f"images         {parity.images} {parity.what}",
        f"probabilities  largest difference {parity.largest:.2g}, mean {parity.mean:.2g}",
        f"decisions      {parity.flips} of {parity.decisions} differ, in {parity.changed} of {parity.images} images",
        *_ap_lines(parity),
        *_calibration_lines(parity),
        f"budget         {budget}",
        *_synthetic_lines(parity),
        f"verdict        {'; '.join(parity.beyond(budget)) or 'within the budget'}",
    ]


def _synthetic_lines(parity: Parity) -> list[str]:
    if not parity.are_synthetic:
        return []
    images = counted(parity.images, "synthetic image")
    return [f"not judged     how often the minerals named differ: {images} cannot show it; use --photos"]


def _ap_lines(parity: Parity) -> list[str]:
    if parity.ap is None or parity.lost is None:
        return []
    a, b = parity.ap
    differing = [row for row in parity.minerals() if row[2] != row[3]]
    table = [f"  {'AP per mineral':<16}      images       A       B  B - A"] if differing else []
    table += [f"  {name:<16} {n:>11}  {x:.4f}  {y:.4f}  {100 * (y - x):+.2f}" for name, n, x, y in differing]
    head = f"mAP            A {a.mean:.4f}, B {b.mean:.4f}: {parity.lost:+.3f} points lost ({a.definition})"
    same = len(parity.minerals()) - len(differing)
    return [head, *table, f"  the same AP for {same} minerals"]


def _calibration_lines(parity: Parity) -> list[str]:
    if parity.scores is None or parity.drift is None:
        return []
    a, b = parity.scores
    return [
        f"calibration    error A {a.ece:.4f}, B {a.ece + parity.drift:.4f}: {parity.drift:+z.4f} "
        f"(both in the bins of A; B in its own: {b.ece:.4f})",
        f"log loss       A {a.log_loss:.4f}, B {b.log_loss:.4f}",
    ]


def _record(a: Artifact, b: Artifact, parity: Parity, budget: Budget) -> dict[str, Any]:
    artifacts = {key: {"name": one.name, "engine": one.engine} for key, one in (("a", a), ("b", b))}
    reasons = parity.beyond(budget)
    return {**artifacts, **parity.record(), "budget": vars(budget), "within": not reasons, "beyond": list(reasons)}


def _write(path: Path, record: dict[str, Any]) -> None:
    from mineral_batch.files import write_file
    from mineral_batch.results.seals import sealed_json

    write_file(path, sealed_json(json.dumps(record, indent=2, ensure_ascii=False)))
    click.echo(f"Wrote {path}")
