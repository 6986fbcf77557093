"""Each parameter of the four programs that is a path works by URL, or says in one line that it does not."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mineral_batch.cli.paths import FetchedBy, LocalPath, LocalText, PathOrUrl
from mineral_batch.model.starter import starter_path

pytest.importorskip("obstore")

PROGRAMS = ("mineral_batch", "mineral_train", "mineral_export", "mineral_bench")
# Texts that may be or hold a path, and are taken apart by the command.
TEXTS = {
    ("fit", "pretrained"): "{}",
    ("fit", "init"): "{}",
    ("tables", "weights"): "vit-b16-384={}",
    ("verify", "one"): "{}",
    ("verify", "other"): "{}",
    ("peers", "also"): "{}@openvino",
    ("engines", "artifacts"): "{}@onnx-cpu",
}
# What a command needs besides what is required, to come as far as the parameter.
NEEDED = {
    ("predict", "output"): ["photographs", "--backend", "onnx-cpu"],
    ("predict", "model"): ["photographs"],
    ("fit", "pretrained"): ["--recipe", "paper"],
}
# A run is written there; everything else is asked for what does not exist.
WRITTEN = {("predict", "output"): "s3://results/out", ("merge", "output"): "s3://results/out"}
OURS = (PathOrUrl, FetchedBy, LocalPath, LocalText)


def commands() -> Iterator[tuple[str, click.Command]]:
    for program in PROGRAMS:
        main = importlib.import_module(f"{program}.cli").main
        context = click.Context(main)
        for name in main.list_commands(context):
            yield program, main.get_command(context, name)


def parameters() -> Iterator[tuple[str, click.Command, click.Parameter]]:
    for program, command in commands():
        for parameter in command.params:
            is_text = (command.name, parameter.name) in TEXTS
            if isinstance(parameter.type, OURS) or is_text:
                yield program, command, parameter


def is_path_by_its_name(parameter: click.Parameter) -> bool:
    """Whether the help shows a text where a file belongs."""
    is_text = isinstance(parameter.type, click.types.StringParamType)
    return is_text and bool(re.search(r"FILE|CSV|DIR|PATH|MODEL", parameter.metavar or ""))


def test_every_path_is_of_our_types() -> None:
    """A `click.Path` would make a folder called `s3:` of a URL."""
    wrong = [
        f"{command.name} {parameter.name}: {parameter.type.name}"
        for _, command in commands()
        for parameter in command.params
        if isinstance(parameter.type, click.Path)
        or (is_path_by_its_name(parameter) and (command.name, parameter.name) not in TEXTS)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def here(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photograph, a manifest and a model; the bucket `photos` is empty."""
    from mineral_bench.images import write_photographs

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "here"
    (folder / "photographs").mkdir(parents=True)
    photographs = write_photographs(folder / "photographs", 3, (40, 30))
    splits = zip(photographs, ("train", "val", "test"), strict=True)
    rows = "".join(f"{path},quartz,{split}\n" for path, split in splits)
    (folder / "manifest.csv").write_text(f"path,labels,split\n{rows}")
    (folder / "predictions.csv").write_text("path,agate,quartz,minerals\nphotographs/0.jpg,0.1,0.9,quartz\n")
    (folder / "model.onnx").symlink_to(starter_path())
    monkeypatch.chdir(folder)
    return folder


def arguments(command: click.Command, wanted: click.Parameter, url: str) -> list[str]:
    """The command line with a URL for one parameter, and something that exists for each that is required."""
    words = []
    for parameter in command.params:
        if parameter is not wanted and not parameter.required:
            continue
        value = TEXTS.get((command.name or "", parameter.name or ""), "{}").format(url)
        if parameter is not wanted:
            value = stand_in(parameter)
        count = 2 if parameter.nargs == -1 and command.name in ("average", "engines") else 1
        option = [parameter.opts[0]] if isinstance(parameter, click.Option) else []
        words += [*option, *[value] * count]
    return words


def stand_in(parameter: click.Parameter) -> str:
    name = parameter.name or ""
    if isinstance(parameter.type, click.Choice):
        return str(parameter.type.choices[0])
    if isinstance(parameter.type, click.types.IntParamType):
        return "1"
    if isinstance(parameter, click.Option):
        return "out" if name in ("output", "run", "folder", "features", "out") else "photographs"
    files = {"labels": "manifest", "manifest": "manifest", "manifests": "manifest", "predictions": "predictions"}
    if name in files:
        return f"{files[name]}.csv"
    return {"folder": "out", "photos": "photographs", "root": "photographs", "results": "photographs"}.get(
        name, "model.onnx"
    )


@pytest.mark.slow
def test_a_model_at_a_url_is_converted_and_compared(here: Path) -> None:
    from mineral_batch.storage.store import open_store
    from mineral_export.cli import main

    open_store("s3://photos").put_file("m/model.onnx", starter_path())
    url = "s3://photos/m/model.onnx"
    refused = CliRunner().invoke(main, ["fp16", url])
    assert refused.exit_code == 2
    assert "MODEL is a URL: name the file to write with -o" in refused.output
    done = CliRunner().invoke(main, ["fp16", url, "-o", "half.onnx", "--count", "1", "--force"])
    assert done.exit_code == 0, done.output
    same = CliRunner().invoke(main, ["verify", f"{url}@onnx-cpu", "half.onnx", "--count", "1", "--budget", "fp16"])
    assert same.stdout.startswith(f"A  {url}@onnx-cpu  (ONNX Runtime"), same.output


@pytest.mark.slow
def test_a_url_is_read_or_refused_in_one_line(here: Path) -> None:
    wrong = []
    for program, command, parameter in parameters():
        which = command.name or "", parameter.name or ""
        url = WRITTEN.get(which, "s3://photos/absent.csv")
        line = [which[0], *arguments(command, parameter, url), *NEEDED.get(which, [])]
        result = CliRunner().invoke(importlib.import_module(f"{program}.cli").main, line)
        last = (result.stderr.splitlines() or [""])[-1]
        is_refused = result.exit_code in (1, 2) and isinstance(result.exception, SystemExit) and last[:7] == "Error: "
        is_named = url.rpartition("/")[0] in result.output and not re.search(r"s3:/(?!/)", result.output)
        is_done = which in WRITTEN and result.exit_code == 0
        if not is_named or not (is_refused or is_done) or (here / "s3:").exists():
            wrong.append(f"{' '.join(line)} -> {result.exit_code} {result.exception!r}: {last}")
    assert not wrong, "\n".join(wrong)
