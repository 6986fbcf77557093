"""What every command of the four packages shares: lazy sub-commands, errors as one line, exit codes.

| exit code | meaning |
|---|---|
| 0 | everything was done |
| 1 | an error: one line says what is wrong; or `check` or `verify` found something |
| 2 | wrong usage: an option, or the value of one |
| 3 | done, but some images could not be read |
| 130 | stopped by Ctrl-C |
| 143 | stopped by SIGTERM |
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from mineral_batch.cli.config import CONFIG, add_config_option
from mineral_batch.cli.help import shorten_placeholders
from mineral_batch.errors import MineralError, OptionError, harmless
from mineral_batch.system import pip_install

EXIT_FOUND_SOMETHING = 1
EXIT_SOME_IMAGES_FAILED = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_STDERR = 2
_LOOP = "Symlink loop from "


def say(text: str, *, err: bool = False) -> None:
    """Print a line. A full disk or a closed stream costs the line, never the run that it reports on."""
    try:
        click.echo(text, err=err)
    except (OSError, ValueError):
        # What is still buffered would fail again when the interpreter ends.
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), (sys.stderr if err else sys.stdout).fileno())


class LazyGroup(click.Group):
    """A group whose sub-commands are imported when they are run, so that `--help` and start-up stay fast.

    `table` maps a command's name to `("module:attribute", "one line of help")`. The line is what the group's
    own `--help` shows without importing the module.
    """

    def __init__(self, *args: Any, table: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of the table: the order in which a user meets them."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one sub-command, None where the table has no such name."""
        if cmd_name not in self._table:
            return None
        module, attribute = self._table[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        if isinstance(command, click.Group):
            return command
        if ctx.auto_envvar_prefix:
            _name_environment(command, f"{ctx.auto_envvar_prefix}_{cmd_name}")
        shorten_placeholders(command)
        return add_config_option(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the sub-command; for an unknown one suggest the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self._table, n=1)
            guess = f" Did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"{error.message}{guess}", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of sub-commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in self._table.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the sub-command; whatever ends it early becomes one line on stderr and an exit code."""
        try:
            with _stopped_by_signals(ctx):
                return super().invoke(ctx)
        except click.BadParameter as error:
            source = _source(error)
            if not source:
                raise  # the same error: that of a missing parameter makes its own text
            raise click.BadParameter(f"{error.message}{source}", error.ctx, error.param, error.param_hint) from None
        except MineralError as error:
            kind = click.UsageError if isinstance(error, OptionError) else click.ClickException
            raise kind(harmless(str(error))) from error
        except OSError as error:
            if error.filename is None:  # of a stream
                raise
            raise click.ClickException(f"cannot use {_name_of(error)}: {error.strerror}") from error
        except RuntimeError as error:
            if not str(error).startswith(_LOOP):  # of Path.resolve
                raise
            raise click.ClickException(f"cannot use {harmless(str(error)[len(_LOOP) :])}: a link to itself") from error
        except ModuleNotFoundError as error:
            raise click.ClickException(_missing_package(error)) from error


def _name_of(error: OSError) -> str:
    from mineral_batch.results.csv import shown

    named = error.filename
    return shown(os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else str(named))


@contextmanager
def _stopped_by_signals(ctx: click.Context) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM, as of batch systems and `docker stop`, end the block so that files are cleaned up."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        say("\nstopped by Ctrl-C; run the same command again", err=True)
        ctx.exit(EXIT_INTERRUPTED)
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> NoReturn:
    with suppress(OSError):
        os.write(_STDERR, b"\nstopped by SIGTERM; run the same command again\n")  # a signal may arrive within a print
    sys.exit(EXIT_TERMINATED)


def _name_environment(command: click.Command, prefix: str) -> None:
    """Let arguments come from the environment too, as click does for options alone."""
    for parameter in command.params:
        if isinstance(parameter, click.Argument) and parameter.envvar is None:
            parameter.envvar = f"{prefix}_{parameter.name}".upper().replace("-", "_")


def _source(error: click.BadParameter) -> str:
    """Where a wrong value was written, if not on the command line."""
    context, parameter = error.ctx, error.param
    if context is None or parameter is None or parameter.name is None:
        return ""
    source = context.get_parameter_source(parameter.name)
    if source is ParameterSource.DEFAULT_MAP and CONFIG in context.meta:
        return f" (from {context.meta[CONFIG]}, [{context.command.name}])"
    if source is not ParameterSource.ENVIRONMENT:
        return ""
    name = parameter.envvar or f"{context.auto_envvar_prefix}_{parameter.name}".upper()
    return f" (from the environment variable {name})"


# The extra that brings each package which a command may find missing.
_EXTRA_OF = {
    "torch": "train",
    "timm": "train",
    "safetensors": "train",
    "tensorboard": "train",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "cpu",
    "pyarrow": "parquet",
    "scipy": "adapt",
    "threadpoolctl": "adapt",
    "matplotlib": "report",
    "starlette": "review",
    "uvicorn": "review",
    "lxml": "deliver",
    "xlsxwriter": "deliver",
}


def _missing_package(error: ModuleNotFoundError) -> str:
    """One line for a package that is not installed; a missing module of our own is a bug and is raised."""
    package = (error.name or "").split(".")[0]
    if package not in _EXTRA_OF:
        raise error
    return f"the Python package '{package}' is not installed; this command needs it: {pip_install(_EXTRA_OF[package])}"


def tables_line(output: object, names: Sequence[str]) -> str:
    """`Table: results/predictions.csv`, or `Tables: ...` with all of them; a layout in folders ends with a slash."""
    files = [f"{output}/{name}{'' if '.' in name else '/'}" for name in names]
    return f"{'Tables' if len(files) > 1 else 'Table'}: {', '.join(files)}"
