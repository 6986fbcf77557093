"""`mineral-bench feed`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import LOCAL
from mineral_bench.cli.options import limit, output

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("photos", nargs=-1, type=LOCAL)
@click.option(
    "--side", default=384, show_default=True, type=click.IntRange(8), help="Side of the engine's input, pixels."
)
@click.option(
    "--width", default=384, show_default=True, type=click.IntRange(8), help="Width of generated JPEGs, pixels."
)
@click.option("--images", default=2000, show_default=True, type=click.IntRange(1), help="Images in a round.")
@click.option(
    "--rate", default=0.0, type=click.FloatRange(0), help="Images a second that the engine takes. [default: no limit]"
)
@click.option(
    "--cores",
    multiple=True,
    default=(8, 16, 32),
    show_default=True,
    type=click.IntRange(1),
    help="Extrapolate to this many cores. Repeatable.",
)
@limit(120)
@output
def feed(
    photos: tuple[Path, ...],
    side: int,
    width: int,
    images: int,
    rate: float,
    cores: tuple[int, ...],
    seconds: float,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure how many images a second can be read, decoded and handed to an engine, and extrapolate to more cores.

    The engine computes nothing, but takes as long as --rate says. mineral-batch's decode threads and processes are
    compared with a PyTorch DataLoader, simplejpeg, torchvision and images decoded beforehand, on 1, 2, 4, ... cores of
    this machine. Images are PHOTOS, repeated as often as needed, or generated JPEGs of --width pixels. How long each
    image holds the interpreter lock is sampled with py-spy, if that is installed.
    """
    import tempfile
    from itertools import cycle
    from pathlib import Path

    from mineral_batch.errors import DataError
    from mineral_bench.conditions import conditions
    from mineral_bench.images import write_photographs
    from mineral_bench.measure import Plan
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import feed as bench
    from mineral_export.verify.samples import image_files

    with tempfile.TemporaryDirectory() as folder:
        if photos:
            named = image_files(photos)
            if not named:
                raise DataError(f"no image under {', '.join(map(str, photos))}")
            paths = [Path(folder, f"{index:07}{path.suffix}") for index, path in zip(range(images), cycle(named))]
            for link, path in zip(paths, cycle(named)):
                link.symlink_to(path.absolute())
            data = f"{len(named)} photographs"
        else:
            paths = write_photographs(Path(folder), images, (width, width * 3 // 4 if width > side else width))
            data = f"generated JPEGs {width} pixels wide"
        load = bench.FeedLoad(tuple(map(str, paths)), side, rate)
        before = conditions(data=data, input=f"{side} x {side}")
        result = bench.measure(load, Plan(least=3, seconds=seconds))
    tables = bench.tables(result, load, cores)
    BenchmarkReport("feed", before, bench.figures(result, cores, rate), tables).write(json_file, markdown_file)
