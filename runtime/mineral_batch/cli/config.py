"""`--config FILE`: options of every command from a TOML file, a table for each command."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from mineral_batch.cli.paths import LOCAL
from mineral_batch.errors import plain_reason
from mineral_batch.storage.urls import redact

#: The commands of all four programs, which may share one file.
COMMANDS = frozenset(
    [
        "predict",
        "merge",
        "evaluate",
        "check",
        "report",
        "review",
        "audit",
        "deliver",
        "minerals",
        "explain",
        "info",
        "doctor",
        "data",
        "fit",
        "adapt",
        "average",
        "tables",
        "calibrate",
        "familiarity",
        "synth",
        "onnx",
        "fp16",
        "fp8",
        "int8",
        "trt",
        "triton",
        "verify",
        "throughput",
        "decode",
        "peers",
        "engines",
        "accuracy",
        "scaling",
        "memory",
        "feed",
        "review-page",
        "reviewing",
        "cost",
        "bombs",
        "cluster",
        "gpu",
        "gpu-pieces",
    ]
)
#: The names of click's and our own types of paths.
_PATHS = ("path", "file", "directory", "filename")
#: Where a context's `meta` has the name of the file.
CONFIG = "mineral_batch.config"


def add_config_option(command: click.Command) -> click.Command:
    """Give a command the option `--config`, once; what is given on the command line counts more than the file."""
    if all(parameter.name != "config" for parameter in command.params):
        option = click.Option(
            ["--config"],
            type=LOCAL,
            is_eager=True,
            expose_value=False,
            callback=_read,
            help="TOML file with options in a table for each command, such as [predict].",
        )
        before_help = len(command.params)
        command.params.insert(before_help, option)
    return command


def _read(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Make the file's values the defaults of this command."""
    del parameter
    if path is None:
        return
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {plain_reason(error)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} is not a TOML file: {plain_reason(error)}") from None
    except RecursionError:
        raise click.UsageError(f"{path} is not a file of options: its values are nested too deeply") from None
    name = ctx.command.name or ""
    _check_tables(path, tables, name)
    values = tables.get(name, {})
    parameters = _parameters(ctx.command)
    for key, value in values.items():
        if key.replace("_", "-") not in parameters:
            raise click.UsageError(_unknown(path, name, key, parameters))
        _check_value(path, name, key, value, parameters[key.replace("_", "-")])
    ctx.default_map = {parameters[key.replace("_", "-")].name: value for key, value in values.items()}
    ctx.meta[CONFIG] = str(path)


def _check_tables(path: Path, tables: dict[str, Any], command: str) -> None:
    """Refuse what no command would ever read: it would be ignored in silence."""
    for name, content in tables.items():
        if not isinstance(content, dict):
            raise click.UsageError(
                f"{path}: {name} is in no table; write the options of {command} below a line [{command}]"
            )
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            guess = f"; did you mean [{near[0]}]?" if near else f"; there are: {', '.join(sorted(COMMANDS))}"
            raise click.UsageError(f"{path}: no command is called {name}{guess}")


def _check_value(path: Path, command: str, key: str, value: object, parameter: click.Parameter) -> None:
    """Refuse values that no command line could give: click converts text, and a number is no path."""
    many = parameter.multiple or parameter.nargs != 1
    parts = value if many and isinstance(value, list) else [value]
    allowed = (str,) if parameter.type.name in _PATHS else (str, int, float)
    if not all(isinstance(part, allowed) for part in parts):
        wanted = "text in quotes" if allowed == (str,) else "text in quotes, a number, true or false"
        raise click.UsageError(f"{path}: [{command}] {key} must be {wanted}{', or a list of them' if many else ''}")


def _parameters(command: click.Command) -> dict[str, click.Parameter]:
    """What a file may call the parameters (`batch-size`) -> the parameters."""
    names = {}
    for parameter in command.params:
        if parameter.name is None or parameter.name == "config":
            continue
        options = [option.lstrip("-") for option in (*parameter.opts, *parameter.secondary_opts)]
        for name in (*options, parameter.name.replace("_", "-")):
            names[name] = parameter
    return names


def _unknown(path: Path, command: str, key: str, parameters: Iterable[str]) -> str:
    near = difflib.get_close_matches(key.replace("_", "-"), list(parameters), n=1)
    guess = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(sorted(parameters))}"
    return f"{path}: [{command}] has no option {key}{guess}"


def chosen_options(ctx: click.Context, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the options of a command as they came out of command line, environment and file, ready for JSON."""
    options = {name: _plain(value) for name, value in ctx.params.items() if name not in without}
    return options | ({"config": ctx.meta[CONFIG]} if CONFIG in ctx.meta else {})


def _plain(value: object) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, type(None))) else redact(str(value))
