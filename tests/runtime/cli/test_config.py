"""Options from a TOML file and from the environment; `python -m`."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import mineral_batch.cli
import mineral_bench.cli
import mineral_export.cli
import mineral_train.cli
from mineral_batch.cli.config import COMMANDS

pytest.importorskip("onnxruntime")


@pytest.fixture
def run(album: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `mineral-batch predict` with a file `run.toml` of this text, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def predict(config: str, *arguments: object, env: dict[str, str] | None = None) -> Result:
        Path("run.toml").write_text(config.format(album=album, model=model_path))
        words = ["predict", "--config", "run.toml", *map(str, arguments)]
        return CliRunner().invoke(mineral_batch.cli.main, words, env=env)

    return predict


def options() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path("out/run.json").read_text())["options"]
    return record


CONFIG = """
[predict]
inputs = ["{album}"]
output = "out"
model = "{model}"
backend = "onnx-cpu"
batch-size = 3
columns = "size,gps"
format = ["jsonl"]
exact = true

[fit]
epochs = 3
"""


def test_options_come_from_the_file_and_are_printed_back(run: Any, album: Path) -> None:
    done = run(CONFIG)
    assert done.exit_code == 0, done.output
    found = options()
    assert (found["batch_size"], found["columns"], found["formats"]) == (3, ["size", "gps"], ["jsonl"])
    assert (found["exact"], found["inputs"], found["config"]) == (True, [str(album)], "run.toml")
    assert Path("out/predictions.jsonl").exists()


def test_the_command_line_counts_more_than_the_environment_and_that_more_than_the_file(run: Any) -> None:
    env = {"MINERAL_BATCH_PREDICT_BATCH_SIZE": "5", "MINERAL_BATCH_PREDICT_LAYOUT": "per-image"}
    assert run(CONFIG, "--batch-size", 7, env=env).exit_code == 0
    assert (options()["batch_size"], options()["layout"]) == (7, "per-image")
    assert run(CONFIG, env=env).exit_code == 0
    assert options()["batch_size"] == 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[predict]\nbatchsize = 3", "run.toml: [predict] has no option batchsize; did you mean batch-size?"),
        ("[predict]\nzzz = 3", "there are: "),
        ("predict = 3", "write the options of predict below a line [predict]"),
        ("[predict", "run.toml is not a TOML file"),
        ("[predict]\nbatch-size = 'many'", "'many' is not a valid"),
        ("[predict]\noutput = 5", "run.toml: [predict] output must be text in quotes"),
        ("[predict]\noutput = ['a']", "[predict] output must be text in quotes"),
        ("[predict]\nmodel = 2026-01-02", "[predict] model must be text in quotes"),
        ("[predict]\ninputs = ['a', 5]", "[predict] inputs must be text in quotes, or a list of them"),
        ("[predict]\nbatch-size = [[1]]", "batch-size must be text in quotes, a number, true or false"),
        ("a = " + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_the_fix(run: Any, config: str, message: str) -> None:
    done = run(config, "photos")
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_a_file_that_is_missing_is_said(tmp_path: Path) -> None:
    done = CliRunner().invoke(mineral_batch.cli.main, ["check", "--config", str(tmp_path / "no.toml"), "out"])
    assert (done.exit_code, "cannot read" in done.stderr) == (2, True)


@pytest.mark.parametrize("package", [mineral_batch, mineral_train, mineral_export, mineral_bench])
def test_every_command_has_the_option_and_a_prefix_for_the_environment(package: Any) -> None:
    main = package.cli.main
    assert main.context_settings["auto_envvar_prefix"] == package.__name__.upper()
    context = main.make_context("main", ["--help"], resilient_parsing=True)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert main.get_command(context, name) is command
        if not hasattr(command, "commands"):
            assert [parameter.name for parameter in command.params].count("config") == 1, name


@pytest.mark.parametrize("package", ["mineral_batch", "mineral_train", "mineral_export", "mineral_bench"])
def test_python_m_runs_the_command(package: str) -> None:
    done = subprocess.run([sys.executable, "-m", package, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"Usage: {package.replace('_', '-')} [OPTIONS] COMMAND")


def test_the_tables_of_a_file_are_the_commands_of_the_four_programs() -> None:
    packages = ("mineral_batch", "mineral_train", "mineral_export", "mineral_bench")
    names = {name for package in packages for name in importlib.import_module(f"{package}.cli")._COMMANDS}
    assert names == COMMANDS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[predikt]\nbatch-size = 3\n", "no command is called predikt; did you mean [predict]?"),
        ("batch-size = 3\n", "batch-size is in no table; write the options of predict below a line [predict]"),
    ],
)
def test_what_no_command_would_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    done = CliRunner().invoke(mineral_batch.cli.main, ["predict", str(tmp_path), "--config", str(file)])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
