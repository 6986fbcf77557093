"""Every command ends with the exit codes of one table: in the README, in the code, and on the command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
import pytest
from click.testing import CliRunner

import mineral_batch.cli
import mineral_bench.cli
import mineral_export.cli
import mineral_train.cli
from mineral_batch.cli import console

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "mineral-batch": mineral_batch.cli.main,
    "mineral-train": mineral_train.cli.main,
    "mineral-export": mineral_export.cli.main,
    "mineral-bench": mineral_bench.cli.main,
}
# For each command a call that can be read, and whose files are not there.
CALLS = {
    "mineral-batch predict": "no",
    "mineral-batch merge": "no",
    "mineral-batch evaluate": "no.csv no.csv",
    "mineral-batch check": "no",
    "mineral-batch report": "no",
    "mineral-batch review": "no",
    "mineral-batch audit": "no.csv no",
    "mineral-batch deliver": "no --as geojson",
    "mineral-batch explain": "no",
    "mineral-batch minerals": "no",
    "mineral-batch info": "no.onnx",
    "mineral-batch doctor": "-m no.onnx",
    "mineral-train data": "no.csv -o m.csv",
    "mineral-train fit": "no.csv -o run",
    "mineral-train adapt": "no.csv -o m.onnx",
    "mineral-train average": "no no -o run",
    "mineral-train calibrate": "no.onnx no.csv",
    "mineral-train familiarity": "no.onnx no.csv",
    "mineral-train tables": "no.csv -o runs",
    "mineral-train synth": "file -n 1",
    "mineral-export onnx": "no",
    "mineral-export fp16": "no.onnx",
    "mineral-export int8": "no.onnx --calibrate no --target openvino",
    "mineral-export fp8": "no.onnx --calibrate no",
    "mineral-export trt": "no.onnx",
    "mineral-export triton": "models -m no.onnx",
    "mineral-export verify": "no.onnx no.onnx",
    "mineral-bench throughput": "no.onnx no",
    "mineral-bench decode": "no",
    "mineral-bench peers": "no.onnx no",
    "mineral-bench engines": "no.onnx no.onnx",
    "mineral-bench accuracy": "no.csv no no.onnx",
    "mineral-bench scaling": "no",
    "mineral-bench feed": "no.onnx no",
    "mineral-bench cluster": "",
    "mineral-bench cost": "--photos 100",
    "mineral-bench reviewing": "no no.csv --features no.sqlite",
    "mineral-bench review-page": "no",
    "mineral-bench memory": "no.onnx no",
    "mineral-bench bombs": "no.onnx",
    "mineral-bench gpu": "--out out --photos no",
    "mineral-bench gpu-pieces": "out",
}
# They read no file, or measure before they look for one.
WITHOUT_FILES = {f"mineral-bench {name}" for name in ("cluster", "bombs", "cost", "gpu", "gpu-pieces")}
#: They import PyTorch, ONNX or an engine before they look for a file.
HEAVY = ("mineral-train", "mineral-export", "mineral-bench")


def run(name: str, *arguments: str) -> tuple[int, str]:
    program, command = name.split()
    done = CliRunner().invoke(PROGRAMS[program], [command, *arguments])
    return done.exit_code, done.output


def rows(text: str) -> list[str]:
    """The rows of the table of exit codes."""
    lines = text.split("| exit code | meaning |\n", 1)[1].splitlines()[1:]
    return [line for line in lines[: lines.index("")] if line.startswith("|")] if "" in lines else lines


def test_the_table_is_the_same_in_the_readme_and_in_the_code() -> None:
    documented = rows((ROOT / "runtime/README.md").read_text("utf-8"))
    assert documented == [line for line in rows(f"{console.__doc__}\n\n") if line]
    assert [int(line.split("|")[1]) for line in documented] == [0, 1, 2, 3, 130, 143]


def test_no_command_is_left_out() -> None:
    found = {f"{name} {command}" for name, group in PROGRAMS.items() for command in group.list_commands(None)}  # type: ignore[arg-type]
    assert found == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_an_option_that_does_not_exist_is_wrong_usage(name: str) -> None:
    code, said = run(name, "--no-such-option")
    assert code == 2
    assert "No such option" in said


def slow_if_heavy(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.slow if name.startswith(HEAVY) else ())


@pytest.mark.parametrize("name", [slow_if_heavy(name) for name in CALLS if name not in WITHOUT_FILES])
def test_a_file_that_is_not_there_is_an_error_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    code, said = run(name, *CALLS[name].split())
    assert code == 1, said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2, said


@pytest.mark.parametrize("name", CALLS)
def test_signals_end_every_command_with_their_codes(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    program, command = name.split()
    group = PROGRAMS[program]
    found = group.get_command(click.Context(group), command)
    assert found is not None

    def interrupted(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    def terminated(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def ends_with(callback: Callable[..., object]) -> int:
        monkeypatch.setattr(found, "callback", callback)
        code, said = run(name, *CALLS[name].split())
        assert "Traceback" not in said
        return code

    before = signal.getsignal(signal.SIGTERM)
    assert ends_with(interrupted) == console.EXIT_INTERRUPTED == 130
    assert ends_with(terminated) == console.EXIT_TERMINATED == 143
    assert signal.getsignal(signal.SIGTERM) == before
