"""The interpreter with onnxruntime-gpu, and stubs of the libraries that it needs.

Both onnxruntime wheels in one environment overwrite each other's files, so onnxruntime-gpu is in an environment of its
own: MINERAL_GPU_STUBS names its Python, by default `.venv-gpu-stubs/bin/python`. `.ci/gpu_stubs` makes it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .stubs import build_driver, build_stubs, missing_tool

if TYPE_CHECKING:
    from collections.abc import Callable

    Child = Callable[..., Any]

_CHILD = Path(__file__).with_name("child.py")
_ROOT = Path(__file__).parents[2]
#: What a child answers that died of a segmentation fault.
DIED = {"died": True}


@pytest.fixture(scope="session")
def interpreter() -> Path:
    """The Python of the environment with onnxruntime-gpu."""
    python = Path(os.environ.get("MINERAL_GPU_STUBS") or _ROOT / ".venv-gpu-stubs" / "bin" / "python")
    if sys.platform != "linux":
        pytest.skip("the stubs are shared libraries of Linux")
    if tool := missing_tool():
        pytest.skip(f"{tool} is not installed: apt-get install gcc g++ binutils")
    if not python.exists():
        pytest.skip(
            f"there is no {python}: run .ci/gpu_stubs, or name a Python with onnxruntime-gpu in MINERAL_GPU_STUBS"
        )
    command = [python, "-c", "import onnxruntime, onnx, cuda.core"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{python}: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture(scope="session")
def onnxruntime_folder(interpreter: Path) -> Path:
    command = [str(interpreter), "-c", "import onnxruntime; print(onnxruntime.__file__)"]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()).parent


@pytest.fixture(scope="session")
def child(interpreter: Path, onnxruntime_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Child:
    """`child(task, *arguments)` with the stubs: its answer, or `DIED`."""
    folder = tmp_path_factory.mktemp("stubs")
    build_stubs(onnxruntime_folder / "capi", folder)
    return lambda task, *arguments: run(interpreter, [folder], task, *arguments)[0]


@pytest.fixture(scope="session")
def driver_child(interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> Child:
    """`driver_child(task, *arguments)` with the driver in C: its answer, and what the driver was asked for."""
    folder = tmp_path_factory.mktemp("driver")
    build_driver(folder, resources.files("mineral_batch.images.gpu").joinpath("resample.cu").read_text("ascii"))
    return lambda task, *arguments: run(interpreter, [folder], task, *arguments)


def run(interpreter: Path, libraries: list[Path], task: str, *arguments: Any) -> tuple[Any, list[str]]:
    """The answer of a task, and the lines of stderr."""
    roots = [str(_ROOT / name) for name in ("runtime", "train", "export", "benchmarks")]
    environment = os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PYTHONPATH": os.pathsep.join(roots),
    }
    command = [str(interpreter), str(_CHILD), task, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    if done.returncode == -signal.SIGSEGV:
        return DIED, done.stderr.splitlines()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr.splitlines()
