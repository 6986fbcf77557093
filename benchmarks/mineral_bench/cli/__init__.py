"""`mineral-bench`: how fast, how right and how dear."""

import click

from mineral_batch.cli.console import LazyGroup

_COMMANDS = {
    "throughput": (
        "mineral_bench.cli.throughput:throughput",
        "Pictures a second: decode, engine, end to end.",
    ),
    "decode": (
        "mineral_bench.cli.decode:decode",
        "Milliseconds and fidelity of each decoder, per format and size.",
    ),
    "peers": ("mineral_bench.cli.peers:peers", "The same model by other programs' ways, side by side."),
    "engines": (
        "mineral_bench.cli.engines:engines",
        "Precisions and engines of one model, side by side.",
    ),
    "accuracy": (
        "mineral_bench.cli.accuracy:accuracy",
        "mAP of every artefact of a model on labelled photographs.",
    ),
    "scaling": (
        "mineral_bench.cli.scaling:scaling",
        "What more pictures, pixels, batch and cores cost; sizing.",
    ),
    "memory": ("mineral_bench.cli.memory:memory", "Peak memory of short and long runs."),
}


@click.group(
    cls=LazyGroup,
    table=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MINERAL_BENCH"},
)
@click.version_option(package_name="mineral-batch")
def main() -> None:
    """Measure on your machine, with your model and your photographs."""
