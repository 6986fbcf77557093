"""What is not imported: help and the base package need none of the heavy packages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "tensorrt", "pycuda", "sklearn")
HEAVY += ("safetensors", "tensorboard", "ray", "openvino", "matplotlib", "pandas", "pyarrow")

COMMANDS = ("mineral_batch", "mineral_train", "mineral_export", "mineral_bench")

_BLOCK = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked by the test", name=name)

sys.meta_path.insert(0, Blocker())
"""

# Walks a command and its sub-commands, asks each for its help, and prints what happened as JSON.
_HELP = """
import contextlib, importlib, importlib.util, io, json, traceback
import click

def invoke(command, words):
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            command.main([*words[1:], "--help"], prog_name=words[0], standalone_mode=False)
    except BaseException:
        return traceback.format_exc()
    return out.getvalue()

def walk(root, command, words, found):
    found[" ".join(words)] = invoke(root, words)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            try:
                sub = command.get_command(context, name)
            except BaseException:
                found[" ".join([*words, name])] = traceback.format_exc()
                continue
            walk(root, sub, [*words, name], found)

found = {}
name = sys.argv[1]
main = importlib.import_module(name + ".cli").main
walk(main, main, [name.replace("_", "-")], found)
print(json.dumps(found))
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _BLOCK + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def has_command(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(package + ".cli") is not None


def test_the_blocker_blocks() -> None:
    assert "blocked by the test" in run("import onnx.helper").stderr


def test_the_base_package_imports_without_any_heavy_package() -> None:
    done = run("import mineral_batch; print(mineral_batch.Predictor.__name__)")
    assert done.stdout == "Predictor\n", done.stderr


def test_importing_the_base_package_loads_its_few_dependencies_only() -> None:
    program = "import mineral_batch; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(run(program).stdout.split()) - set(sys.stdlib_module_names)
    third_party = {name for name in loaded if not name.startswith(("_", "mineral_batch"))}
    assert third_party <= {
        "numpy",
        "PIL",
        "simplejpeg",
        "click",
        "tqdm",
        "defusedxml",
        "olefile",
        "cython_runtime",
        "sitecustomize",
    }


@pytest.mark.parametrize("package", [name for name in COMMANDS if has_command(name)])
def test_every_command_shows_its_help_without_any_heavy_package(package: str) -> None:
    done = run(_HELP, package)
    assert done.returncode == 0, done.stderr
    helps: dict[str, str] = json.loads(done.stdout)
    assert len(helps) > 1
    broken = {words: text for words, text in helps.items() if not text.startswith("Usage: ")}
    assert not broken, "\n".join(broken.values())
    assert all("-h, --help" in text for text in helps.values())


@pytest.mark.parametrize("package", [name for name in COMMANDS if has_command(name)])
def test_the_line_in_the_list_of_commands_is_a_sentence(package: str) -> None:
    """A group shows its sub-commands from a table, without importing them: the table must name what exists."""
    helps: dict[str, str] = json.loads(run(_HELP, package).stdout)
    root = helps[package.replace("_", "-")]
    for words in helps:
        if words.count(" ") == 1:
            assert f"  {words.split()[1]} " in root
