"""`mineral-bench`: measure speed, accuracy and cost."""

import click

from mineral_batch.cli.console import LazyGroup

_COMMANDS = {
    "throughput": ("mineral_bench.cli.throughput:throughput", "Images a second: decode, engine, end to end."),
    "decode": ("mineral_bench.cli.decode:decode", "Speed and fidelity of each decoder, by format and size."),
    "peers": ("mineral_bench.cli.peers:peers", "The same model with other programs, side by side."),
    "engines": ("mineral_bench.cli.engines:engines", "Precisions and engines of one model, side by side."),
    "accuracy": ("mineral_bench.cli.accuracy:accuracy", "mAP of every form of a model on labeled images."),
    "scaling": ("mineral_bench.cli.scaling:scaling", "Cost of more images, pixels, batch and cores; sizing."),
    "feed": ("mineral_bench.cli.feed:feed", "Images a second into an engine; extrapolation to more cores."),
    "cluster": ("mineral_bench.cli.cluster:cluster", "Scaling of a cluster run, by simulation."),
    "cost": ("mineral_bench.cli.cost:cost", "Machines, hours and money for a number of photographs."),
    "reviewing": (
        "mineral_bench.cli.reviewing:reviewing",
        "How much a model learns from a simulated reviewer.",
    ),
    "review-page": (
        "mineral_bench.cli.review_page:review_page",
        "What the review page adds to a reviewer's time.",
    ),
    "memory": ("mineral_bench.cli.memory:memory", "Peak memory of short and long runs."),
    "bombs": ("mineral_bench.cli.bombs:bombs", "Memory and time of small files that decode to gigabytes."),
    "gpu": ("mineral_bench.cli.gpu:gpu", "Measure everything that needs a GPU, in stages."),
    "gpu-pieces": ("mineral_bench.cli.gpu_pieces:gpu_pieces", "Prepare the files that the GPU run needs, in pieces."),
}


@click.group(
    cls=LazyGroup,
    table=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MINERAL_BENCH"},
)
@click.version_option(package_name="mineral-batch")
def main() -> None:
    """Measure on your machine, with your model and your photographs."""
