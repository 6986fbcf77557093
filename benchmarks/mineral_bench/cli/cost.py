"""`mineral-bench cost`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from mineral_bench.cli.options import numbers, output

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_bench.studies.cost import Machine

_MACHINE = re.compile(r"([^=]+)=(\d+)(?:x(\d+(?:\.\d+)?))?,(\d+),(\d+(?:\.\d+)?)")
# Rates of the paper's model on an L4 and an H100: computed, half of what 121 GFLOP an image and the cards' matrix rates
# allow. Of the prices `_PRICES` says where they are from.
_LISTED = ("g6.8xlarge=1x500,32,2.01", "p5.48xlarge=8x3000,192,39.33", "c7i.8xlarge, starter model=0,32,1.43")
_REQUESTS = 0.0004
_PRICES = (
    "The default prices are AWS's in US east, written down from memory in November 2026 and not looked up then: on "
    "demand as of 2025, p5.48xlarge by capacity block as of the end of 2024. Look up yours: --machine, --request-price."
)


def _machines(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[Machine]:
    from mineral_bench.studies.cost import Machine

    del ctx, parameter
    found = []
    for value in values:
        match = _MACHINE.fullmatch(value.strip())
        if match is None or bool(int(match[2])) != bool(float(match[3] or 0)) or not int(match[4]):
            raise click.BadParameter(
                f"'{value}' is not a machine: write NAME=GPUSxRATE,VCPUS,PRICE, such as g6.8xlarge=1x500,32,2.01, or "
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
@click.option(
    "--vcpu-share",
    default=0.6,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Work of a vCPU, as a share of a whole core's.",
)
@click.option(
    "--efficiency",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the rate that a cluster keeps.",
)
@click.option(
    "--request-price",
    default=_REQUESTS,
    show_default=True,
    type=click.FloatRange(0),
    help="Dollars for 1,000 objects read.",
)
@click.option("--hours", default=8.0, show_default=True, type=_POSITIVE, help="Hours in which it should be done.")
@output
def cost(
    photos: tuple[int, ...],
    machines: list[Machine],
    core_ms: float,
    engine_core_ms: float,
    vcpu_share: float,
    efficiency: float,
    request_price: float,
    hours: float,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Size a cluster: which machines, how many hours, how much money, for a number of photographs.

    Take the cost of an image from `mineral-bench scaling` and `feed` on a machine of that kind, with your model and
    photographs. Nothing is measured here.
    """
    from mineral_bench.conditions import conditions
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import cost as study

    image = study.ImageCost(core_ms, engine_core_ms, vcpu_share, efficiency, request_price)
    defaults = {click.get_current_context().get_parameter_source(name) for name in ("machines", "request_price")}
    notes = [_PRICES] if ParameterSource.DEFAULT in defaults else []
    rates = {machine.name: image.rate(machine)[0] for machine in machines}
    tables = [study.by_machine(machines, image, notes), study.by_task(photos, machines, image, hours)]
    figures = {"image": vars(image), "images_per_second": rates}
    BenchmarkReport("cost", conditions(), figures, tables).write(json_file, markdown_file)
