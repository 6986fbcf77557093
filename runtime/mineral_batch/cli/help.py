"""What the commands' `--help` and values have in common: options in sections, short placeholders, number formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

_FORMATS = (("float32", "fp32"), ("float16", "fp16"), ("bfloat16", "bf16"))
_OTHER_NAME = {name: other for pair in _FORMATS for name, other in (pair, pair[::-1])}


class SectionedCommand(click.Command):
    """A command whose `--help` lists its options in sections, for commands with many.

    `sections` maps a heading to the names of parameters; options that it does not name come first.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        named = {name for names in self._sections.values() for name in names}
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        rest = [option.name for option in options if option.name not in named]
        for heading, names in {"Options": rest, **self._sections}.items():
            records = [option.get_help_record(ctx) for option in options if option.name in names]
            shown = [record for record in records if record is not None]
            if shown:
                with formatter.section(heading):
                    formatter.write_dl(shown)


class NumberFormat(click.Choice[str]):
    """Number formats, each by either of its names: float16 or fp16."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name that is among the choices."""
        other = _OTHER_NAME.get(str(value))
        return super().convert(other if other in self.choices else value, param, ctx)


def shorten_placeholders(command: click.Command) -> None:
    """Show `--batch-size N` in place of `--batch-size INTEGER RANGE`: the range stands behind the text."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.metavar is None:
            if isinstance(parameter.type, (click.types.IntParamType, click.IntRange)):
                parameter.metavar = "N"
            elif isinstance(parameter.type, (click.types.FloatParamType, click.FloatRange)):
                parameter.metavar = "X"
