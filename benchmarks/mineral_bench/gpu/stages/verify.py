"""Is the output of each engine right?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mineral_bench.gpu import subjects
from mineral_bench.gpu.stages.rows import backends

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_bench.gpu.record import Record
    from mineral_bench.gpu.settings import Settings


def verify(settings: Settings, record: Record) -> None:
    """Compare both FP16 graphs on each engine with float32 ONNX on the CPU."""
    for engine in backends(settings):
        for words, model in settings.graphs().items():
            compare_with_float32(settings, record, f"{engine}{words}", f"{model}@{engine}", "float16")


def compare_with_float32(
    settings: Settings, record: Record, name: str, other: str, precision: str, reference: Path | None = None
) -> None:
    """Save how far an artifact's output lies from a float32 file's on the CPU; beyond the budget it has failed.

    Args:
        settings: of the run.
        record: of the stage.
        name: of the row.
        other: as `open_artifact` takes it.
        precision: whose budget it is.
        reference: the float32 file; None for the paper's model with random weights.
    """
    from mineral_export.verify.artifacts import open_artifact
    from mineral_export.verify.budget import budget_for
    from mineral_export.verify.parity import compare
    from mineral_export.verify.samples import Samples

    if record.has(name):
        return
    budget, row = budget_for(precision), {}
    if reference is None:  # random weights decide nothing: the smallest difference flips a decision
        budget = replace(budget, changed=1.0)
    try:
        with (
            open_artifact(f"{reference or settings.model('float32')}@onnx-cpu") as one,
            open_artifact(other) as two,
        ):
            pixels, what = subjects.images(settings, one.contract, 64 if settings.photos else settings.sizes.verified)
            # Of eight drawn images one changed answer would be 12%: only photographs show how often answers change.
            samples = replace(Samples.of(pixels, what), are_synthetic=not settings.photos)
            parity = compare(one.predict, two.predict, samples, one.contract)
        row = {"parity": str(parity), "within_budget": not parity.beyond(budget)}
        if parity.beyond(budget):
            raise ValueError(f"output beyond the budget: {'; '.join(parity.beyond(budget))}")
        record.save(**{name: row})
    except Exception as error:  # the others are still verified
        record.failed(name, error, **row)
