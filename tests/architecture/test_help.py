"""`--help` of every command of the four programs, as an 80-column terminal shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

import mineral_batch.cli
import mineral_bench.cli
import mineral_export.cli
import mineral_train.cli

PROGRAMS = {
    "mineral-batch": mineral_batch.cli.main,
    "mineral-train": mineral_train.cli.main,
    "mineral-export": mineral_export.cli.main,
    "mineral-bench": mineral_bench.cli.main,
}


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    for program, group in PROGRAMS.items():
        parent = click.Context(group, info_name=program)
        for name in group.list_commands(parent):
            command = group.get_command(parent, name)
            assert command is not None
            yield f"{program} {name}", command, click.Context(command, info_name=name, parent=parent, terminal_width=80)


COMMANDS = {name: (command, context) for name, command, context in commands()}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal_and_shows_every_option(name: str) -> None:
    command, context = COMMANDS[name]
    text = command.get_help(context)
    # A list of presets cannot be broken.
    assert [line for line in text.splitlines() if len(line) > 80 and "|" not in line] == []
    assert "\\b" not in text
    shown = [o for o in command.params if isinstance(o, click.Option) and not o.hidden]
    assert [o.opts for o in shown if not re.search(rf"^  .*{o.opts[-1]}\b", text, re.MULTILINE)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_described_in_one_manner(name: str) -> None:
    """`[default: what]` at the end, `Repeatable.` where an option may be repeated, no placeholder that says nothing."""
    command, context = COMMANDS[name]
    for option in (o for o in command.params if isinstance(o, click.Option) and not o.hidden):
        words, text = option.get_help_record(context) or ("", "")
        assert text, f"{words} is not described"
        assert not re.search(r"[;.] default: |^default|\[repeat\]", text, re.IGNORECASE), text
        assert not re.search("INTEGER|FLOAT", words), words
        if option.multiple:
            assert "repeatable" in text.lower() or option.name == "redo", text


def test_predict_lists_its_options_in_sections() -> None:
    command, context = COMMANDS["mineral-batch predict"]
    headings = re.findall(r"^(\S.*):$", command.get_help(context), re.MULTILINE)
    assert headings[:3] == ["Options", "Tables", "Engine"]


@pytest.mark.parametrize("given", ["fp32", "float32"])
def test_a_number_format_goes_by_either_name(given: str) -> None:
    done = CliRunner().invoke(mineral_batch.cli.main, ["predict", "nothing-here", "--precision", given])
    assert "nothing-here" in done.output, done.output  # the option was understood
    export = COMMANDS["mineral-export trt"][0]
    precision = next(option for option in export.params if option.name == "precision")
    assert precision.type.convert(given, precision, None) == "fp32"
