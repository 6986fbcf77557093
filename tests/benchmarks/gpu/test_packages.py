"""What is installed, and what a stage finds."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mineral_batch
from mineral_bench.gpu import packages, run

from .helpers import make_settings

if TYPE_CHECKING:
    import pytest


def test_an_onnx_runtime_for_the_processor_is_not_enough(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("torch", "torchvision", "timm", "safetensors", "onnx", "onnxscript", "numpy", "PIL", "tqdm"):
        packages.NEEDED.pop(name)
    package = tmp_path / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.missing(is_dry=True) == []
    assert packages.missing(is_dry=False) == ["onnxruntime-gpu"]
    assert packages.imported_onnxruntime() == f"{package}, without the CUDA provider"
    (package / "capi" / "libonnxruntime_providers_cuda.so").touch()
    assert packages.missing(is_dry=False) == []
    assert packages.imported_onnxruntime() == f"{package}, with the CUDA provider"


def test_the_onnx_runtime_of_the_stages_is_told_by_version_and_provider(tmp_path: Path) -> None:
    for folder in ("brought", "machine"):
        (tmp_path / folder / "onnxruntime" / "capi").mkdir(parents=True)
        (tmp_path / folder / "onnxruntime" / "__init__.py").write_text(f'"""Words."""\n__version__ = "1.{folder[0]}"\n')
    (tmp_path / "brought" / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so").touch()
    paths = [str(tmp_path / "brought"), str(tmp_path / "machine")]
    assert packages.onnxruntime_at(paths) == "1.b with the CUDA provider"
    shutil.rmtree(tmp_path / "brought")
    assert packages.onnxruntime_at(paths) == "1.m without the CUDA provider"
    assert packages.onnxruntime_at(paths[:1]) == "none"


def test_a_stage_finds_what_was_brought_along_and_cudas_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime in OUT/site, CUDA and cuDNN where PyTorch's packages are."""
    given = make_settings(tmp_path)
    for folder in ("nvidia/cudnn/lib", "nvidia/cu13/lib", "torch/lib", "other/lib"):
        (tmp_path / "installed" / folder).mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/the/driver")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    found = run.stage_environment(given)
    libraries = found["LD_LIBRARY_PATH"].split(os.pathsep)
    folders = ("nvidia/cu13/lib", "nvidia/cudnn/lib", "torch/lib")
    assert libraries[:4] == ["/the/driver", *(str(tmp_path / "installed" / folder) for folder in folders)]
    paths = found["PYTHONPATH"].split(os.pathsep)
    assert (paths[0], paths[-1]) == (str(given.site), "/mine")
    assert str(Path(mineral_batch.__file__).parents[1]) in paths
