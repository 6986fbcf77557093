"""`mineral-bench cost`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from mineral_bench.cli.options import numbers, output

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_bench.studies.cost import Machine

_MACHINE = re.compile(r"([^=]+)=(\d+)(?:x(\d+(?:\.\d+)?))?,(\d+),(\d+(?:\.\d+)?)")
# Dollars on demand or by capacity block, US east, 2025. Rates of the paper's model on an L4 and an H100: computed, half
# of what 121 GFLOP an image and the cards' matrix rates allow. Name your own with --machine.
_LISTED = ("g6.8xlarge=1x500,32,2.01", "p5.48xlarge=8x3000,192,39.33", "c7i.8xlarge, starter model=0,32,1.43")


def _machines(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[Machine]:
    from mineral_bench.studies.cost import Machine

    del ctx, parameter
    found = []
    for value in values:
        match = _MACHINE.fullmatch(value.strip())
        if match is None or bool(int(match[2])) != bool(float(match[3] or 0)) or not int(match[4]):
            raise click.BadParameter(
                f"'{value}' is no machine: write NAME=GPUSxRATE,VCPUS,PRICE, such as g6.8xlarge=1x500,32,2.01, or "
                f"NAME=0,VCPUS,PRICE"
            )
        found.append(Machine(match[1], int(match[2]), float(match[3] or 0), int(match[4]), float(match[5])))
    return found


_POSITIVE = click.FloatRange(0, min_open=True)


@click.command()
@numbers("--photos", default=(1_000_000, 50_000_000), text="Photographs.")
@click.option(
    "--machine",
    "machines",
    multiple=True,
    default=_LISTED,
    show_default=True,
    callback=_machines,
    help="NAME=GPUSxRATE,VCPUS,PRICE: images a second of a GPU, dollars an hour. Repeatable.",
)
@click.option("--core-ms", default=1.0, show_default=True, type=_POSITIVE, help="Core-milliseconds to decode an image.")
@click.option(
    "--engine-core-ms",
    default=9.4,
    show_default=True,
    type=_POSITIVE,
    help="Core-milliseconds to predict on a CPU.",
)
@click.option("--hours", default=8.0, show_default=True, type=_POSITIVE, help="Hours in which it should be done.")
@output
def cost(
    photos: tuple[int, ...],
    machines: list[Machine],
    core_ms: float,
    engine_core_ms: float,
    hours: float,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Size a cluster: which machines, how many hours, how much money, for a number of photographs.

    What an image costs comes from `mineral-bench scaling` and `feed` on a machine of that kind, with your model and
    photographs. Nothing is measured here.
    """
    from mineral_bench.conditions import conditions
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import cost as study

    image = study.ImageCost(core_ms, engine_core_ms)
    rates = {machine.name: image.rate(machine)[0] for machine in machines}
    tables = [study.by_machine(machines, image), study.by_task(photos, machines, image, hours)]
    figures = {"image": vars(image), "images_per_second": rates}
    BenchmarkReport("cost", conditions(), figures, tables).write(json_file, markdown_file)
