"""`mineral-batch`: from a folder of photographs to a table of probabilities."""

import click

from mineral_batch.cli.console import LazyGroup

_COMMANDS = {
    "predict": ("mineral_batch.cli.predict:predict", "Write a table of mineral probabilities for photographs."),
    "evaluate": ("mineral_batch.cli.evaluate:evaluate", "Compare a table with labels: AP per mineral, mAP, P/R/F1."),
    "check": ("mineral_batch.cli.check:check", "Check that the tables of a run are whole and agree."),
    "report": ("mineral_batch.cli.report:report", "Make a page to look at: gallery, figures, accuracy."),
    "explain": ("mineral_batch.cli.explain:explain", "Show where the model looks, laid over the photographs."),
    "info": ("mineral_batch.cli.info:info", "Show what a model file says about itself."),
    "doctor": ("mineral_batch.cli.doctor:doctor", "Show what is installed, what works, and how to mend the rest."),
}


@click.group(cls=LazyGroup, table=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mineral-batch")
def main() -> None:
    """Tell which minerals are in photographs, for whole folders of them."""
