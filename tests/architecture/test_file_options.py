"""Every parameter of every command that names a file or folder, given what is none of the kind: one line in words.

The parameters are found by walking the commands, so that a new one is tried without being listed here.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from shutil import copyfile, rmtree
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import mineral_batch.cli
import mineral_bench.cli
import mineral_export.cli
import mineral_train.cli
from mineral_batch.cli import paths
from mineral_batch.errors import DataError
from mineral_batch.model.starter import starter_path

pytestmark = pytest.mark.slow

PROGRAMS = {
    "mineral-batch": mineral_batch.cli.main,
    "mineral-train": mineral_train.cli.main,
    "mineral-export": mineral_export.cli.main,
    "mineral-bench": mineral_bench.cli.main,
}
# What each command needs besides, as words with `{name}` for a file of the world.
COMMANDS: dict[str, dict[str, Any]] = {
    "mineral-batch predict": {"inputs": "{photos}", "model": "{model.onnx}", "output": "{out}", "backend": "onnx-cpu"},
    "mineral-batch merge": {"output": "{results}"},
    "mineral-batch evaluate": {"predictions": "{results}", "labels": "{labels.csv}", "bootstrap": 0},
    "mineral-batch check": {"path": "{results}"},
    "mineral-batch report": {"results": "{results}", "output": "{page.html}", "labels": "{labels.csv}"},
    "mineral-batch review": {"results": "{results}", "no_browser": True},
    "mineral-batch audit": {"labels": "{labels.csv}", "results": "{results}", "output": "{a.csv}", "features": True},
    "mineral-batch deliver": {"results": "{results}", "form": "csv-excel", "output": "{d.csv}"},
    "mineral-batch minerals": {},
    "mineral-batch explain": {"inputs": "{photos}", "model": "{model.onnx}", "output": "{maps}"},
    "mineral-batch info": {"model": "{model.onnx}"},
    "mineral-batch doctor": {"model": "{model.onnx}"},
    "mineral-train data": {"source": "{labels.csv}", "output": "{m.csv}"},
    "mineral-train adapt": {"source": "{labels.csv}", "base": "{model.onnx}", "output": "{adapted.onnx}"},
    "mineral-train fit": {"manifests": "{manifest.csv}", "run": "{run}", "labels": "{names.txt}"},
    "mineral-train average": {"runs": "{checkpoint}", "output": "{averaged}"},
    "mineral-train calibrate": {"model": "{model.onnx}", "manifest": "{manifest.csv}", "output": "{c.onnx}"},
    "mineral-train familiarity": {"model": "{model.onnx}", "manifest": "{manifest.csv}", "output": "{f.onnx}"},
    "mineral-train synth": {"folder": "{drawn}", "number": 1, "size": 32},
    "mineral-train tables": {"manifest": "{manifest.csv}", "folder": "{tables}", "labels": "{names.txt}"},
    "mineral-export onnx": {"checkpoint": "{checkpoint}", "output": "{e.onnx}"},
    "mineral-export fp16": {"model": "{model.onnx}", "output": "{e16.onnx}"},
    "mineral-export fp8": {"model": "{model.onnx}", "output": "{e8.onnx}", "calibrate": "{photos}"},
    "mineral-export int8": {"model": "{model.onnx}", "output": "{i8.onnx}", "calibrate": "{photos}"},
    "mineral-export trt": {"model": "{model.onnx}", "output": "{e.plan}"},
    "mineral-export triton": {"folder": "{triton}", "model": "{model.onnx}"},
    "mineral-bench throughput": {"model": "{model.onnx}", "photos": "{photos}"},
    "mineral-bench decode": {"photos": "{photos}", "labels": "{labels.csv}", "model": "{model.onnx}"},
    "mineral-bench peers": {"model": "{checkpoint}", "photos": "{photos}"},
    "mineral-bench engines": {"artifacts": "{model.onnx}"},
    "mineral-bench accuracy": {"labels": "{labels.csv}", "root": "{photos}", "artifacts": "{model.onnx}"},
    "mineral-bench scaling": {"model": "{model.onnx}"},
    "mineral-export verify": {"one": "{model.onnx}", "other": "{model.onnx}"},
}
#: Parameters of text that name files, too.
NAMES = frozenset({"specimen", "prevalence", "one", "other", "artifacts"})
KINDS = ("missing", "folder", "text", "empty", "junk", "forbidden", "sealed/x", "loop", "a" * 300)
#: What no message may hold: an error number, a class, the form in which Python shows an object.
UNREADABLE = re.compile(
    r"Traceback|Errno|\bNone\b|<class|<[\w.]+ object|PosixPath|\w\(\)|\b\w+(?:Exception|Warning)\b|\w+Error\b"
)
NOBODY = 65534
SECONDS = 120


def commands() -> Iterator[tuple[str, click.Command]]:
    for program, group in PROGRAMS.items():
        context = click.Context(group, info_name=program)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield f"{program} {name}", command


def names_a_file(parameter: click.Parameter) -> bool:
    kinds = (*OURS, click.Path, click.File)
    words = parameter.metavar or "" if isinstance(parameter, click.Option) else ""
    return isinstance(parameter.type, kinds) or bool(re.search("FILE|CSV|DIR", words)) or parameter.name in NAMES


OURS = tuple(kind for kind in vars(paths).values() if isinstance(kind, type) and issubclass(kind, click.ParamType))
ALL = dict(commands())
# A benchmark runs before it writes; the others measure whatever they are given.
WRITTEN_LAST = frozenset({"json_file", "markdown_file"})
BENCHMARKS = frozenset({"throughput", "decode", "peers", "engines", "accuracy", "scaling"})
CASES = [
    (name, parameter.name)
    for name, command in ALL.items()
    for parameter in command.params
    if names_a_file(parameter)
    and not ("bench" in name and (name.split()[1] not in BENCHMARKS or parameter.name in WRITTEN_LAST))
]


@pytest.fixture(scope="module")
def world() -> Iterator[Path]:
    """Photographs, a model, a run, labels and a checkpoint; and in `bad` what is none of them."""
    with tempfile.TemporaryDirectory() as name:  # not pytest's own, which only its owner may enter
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "photos").mkdir()
        for number in range(4):
            noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((96, 72)).save(folder / "photos" / f"{number}.jpg")
        copyfile(starter_path(), folder / "model.onnx")
        rows = [f"photos/{number}.jpg,{'gold' if number % 2 else 'quartz'}" for number in range(4)]
        splits = "train", "train", "val", "test"
        (folder / "labels.csv").write_text("\n".join(["path,labels", *rows]) + "\n")
        lines = [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
        (folder / "manifest.csv").write_text("\n".join(["path,labels,split", *lines]) + "\n")
        (folder / "names.txt").write_text("gold\nquartz\n")
        run = ["predict", f"{folder}/photos", "-m", f"{folder}/model.onnx", "-o", f"{folder}/results"]
        assert CliRunner().invoke(mineral_batch.cli.main, run).exit_code == 0
        make_checkpoint(folder / "checkpoint")
        make_bad(folder / "bad")
        yield folder
        (folder / "bad" / "sealed").chmod(0o700)


def make_checkpoint(folder: Path) -> None:
    from mineral_batch.model.contract import ModelContract
    from mineral_train.model.network import build_model, input_spec
    from mineral_train.model.presets import ModelConfig
    from mineral_train.training.checkpoint import save_checkpoint

    config = ModelConfig("test_vit", image_size=64, width=32, ffn=48, labels=("gold", "quartz"))
    save_checkpoint(folder, build_model(config, seed=0), ModelContract(config.labels, (0.5, 0.5), input_spec(config)))


def make_bad(folder: Path) -> None:
    (folder / "folder" / "deep").mkdir(parents=True)
    (folder / "text").write_text("nothing that belongs here\n")
    (folder / "empty").touch()
    (folder / "junk").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "loop").symlink_to("loop")
    (folder / "forbidden").write_text("secret\n")
    (folder / "forbidden").chmod(0)
    (folder / "sealed").mkdir()
    (folder / "sealed").chmod(0)


@contextmanager
def nobody() -> Iterator[None]:
    """Take the rights of a user who owns nothing, for root may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def limited() -> Iterator[None]:
    def end(*_: object) -> None:
        raise TimeoutError("the command goes on where it should have said what is wrong")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def words(command: click.Command, given: dict[str, Any]) -> list[str]:
    """The command line of parameters by name."""
    options, arguments = [], []
    for parameter in command.params:
        if parameter.name not in given:
            continue
        value = given[parameter.name]
        if isinstance(parameter, click.Argument):
            arguments.append(str(value))
        elif getattr(parameter, "is_flag", False):
            options.append(parameter.opts[-1])
        else:
            options += [parameter.opts[-1], str(value)]
    return [*options, *arguments]


def call(name: str, world: Path, changed: dict[str, Any]) -> Result:
    program, command = name.split()
    given = {key: re.sub(r"\{(.+)\}", rf"{world}/\1", str(value)) for key, value in COMMANDS.get(name, {}).items()}
    line = words(ALL[name], {**given, **changed})
    return CliRunner().invoke(PROGRAMS[program], [command, *line])


def begin(*_: object, **__: object) -> None:
    """In place of training and exporting: what was given is taken to be right."""
    raise DataError("the slow part begins")


def given(name: str, parameter: str, path: Path) -> dict[str, Any]:
    """The value of the parameter, and what it cannot be without."""
    if (name, parameter) == ("mineral-train tables", "weights"):
        return {parameter: f"vit-b16-384={path}"}
    return {parameter: path, **({"column": "number"} if parameter == "inventory" else {})}


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_what_is_no_such_file_is_one_line_in_words(
    name: str, parameter: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    monkeypatch.setattr("mineral_batch.cli.review._serve", lambda *_, **__: None)
    monkeypatch.setattr("mineral_train.training.loop.Trainer.open", begin)
    monkeypatch.setattr("mineral_train.paper_tables.train_row", begin)
    monkeypatch.setattr("torch.onnx.export", begin)
    wrong = []
    for kind in KINDS:
        if (parameter, kind) == ("config", "empty"):  # a file of options that gives none
            continue
        path = world / "bad" / kind
        by = nobody() if kind in ("forbidden", "sealed/x") else nullcontext()
        with by, limited():
            done = call(name, world, given(name, parameter, path))
        wrong += [f"{kind}: {problem}" for problem in problems(done)]
        restore(world)
    assert not wrong, "\n".join(wrong)


def problems(done: Result) -> Iterator[str]:
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        yield f"{type(done.exception).__name__}: {done.exception}"
    said = done.stderr
    if done.exit_code not in (0, 1, 2, 3):
        yield f"exit code {done.exit_code}: {said[-300:]}"
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    if done.exit_code in (1, 2) and len(errors) != 1 and not done.stdout:  # `check` prints what it finds
        yield f"exit code {done.exit_code} with {len(errors)} lines of errors: {said[-300:]}"
    if found := UNREADABLE.search(said):
        yield f"{found[0]!r} in {said[-500:]}"


def restore(world: Path) -> None:
    """Undo what a command wrote where it was sent, so that the next finds the world as the first did."""
    for entry in (world / "bad").iterdir():
        entry.chmod(0o700, follow_symlinks=False) if not entry.is_symlink() else None
    rmtree(world / "bad")
    make_bad(world / "bad")
