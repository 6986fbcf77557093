"""Where the libraries are looked for, and that looking leaves the process as it was."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from mineral_batch.cuda import libraries as cuda_libraries
from mineral_batch.cuda.libraries import load_cuda_libraries

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ONNX Runtime's own search is all there is")


class Loader:
    """`ctypes.CDLL`, of empty files."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.damaged: set[str] = set()
        self.there: set[str] = set()

    def __call__(self, name: str, mode: int = 0) -> None:
        if mode and name not in self.there:
            raise OSError(f"{name} is not loaded")
        if name in self.damaged:
            raise OSError(f"{name}: file too short")
        if not mode:
            self.loaded.append(name)


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    one = Loader()
    monkeypatch.setattr(cuda_libraries.ctypes, "CDLL", one)
    return one


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two entries of sys.path; onnxruntime is in neither."""
    folders = [tmp_path / "one", tmp_path / "two"]
    monkeypatch.setattr(sys, "path", [str(tmp_path / "gone"), *map(str, folders)])
    return folders


def put(root: Path, *names: str) -> list[str]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return [str(root / name) for name in names]


def onnxruntime(cuda: str, *prints: str) -> ModuleType:
    """A module whose `preload_dlls` prints, as the real one's does."""
    module = ModuleType("onnxruntime")
    module.cuda_version = cuda  # type: ignore[attr-defined]
    module.prints = prints  # type: ignore[attr-defined]
    exec("def preload_dlls():\n    for words in prints:\n        print(words)", vars(module))
    return module


def test_every_entry_of_the_path_is_searched_in_its_order(loader: Loader, roots: list[Path]) -> None:
    late = put(roots[1], "nvidia/cu13/lib/libcublas.so.13", "nvidia/cudnn/lib/libcudnn.so.9")
    early = put(roots[0], "nvidia/cu13/lib/libcublasLt.so.13", "torch/lib/libcudnn.so.9", "nvidia/x/lib/libcufft.so.11")
    load_cuda_libraries(onnxruntime("13.0"))
    assert loader.loaded == [early[0], late[0], early[1]], "none of CUDA 12, and no second cuDNN"


def test_for_cuda_12_other_names_are_wanted(loader: Loader, roots: list[Path]) -> None:
    wanted = put(roots[0], "nvidia/cublas/lib/libcublas.so.12", "nvidia/cufft/lib/libcufft.so.11")
    put(roots[0], "nvidia/cu13/lib/libcublas.so.13", "nvidia/cu13/lib/libcufft.so.12")
    load_cuda_libraries(onnxruntime("12.8"))
    assert loader.loaded == wanted


def test_what_is_loaded_is_left_and_what_is_damaged_passed_over(loader: Loader, roots: list[Path]) -> None:
    damaged, _ = put(roots[0], "nvidia/cudnn/lib/libcudnn.so.9", "nvidia/cu13/lib/libcublas.so.13")
    (whole,) = put(roots[1], "nvidia/cudnn/lib/libcudnn.so.9")
    loader.damaged.add(damaged)
    loader.there.add("libcublas.so.13")  # by torch, say
    load_cuda_libraries(onnxruntime("13.0"))
    assert loader.loaded == [whole]


@pytest.mark.parametrize("cuda", ["", "unknown"])
def test_a_build_without_cuda_needs_nothing(loader: Loader, roots: list[Path], cuda: str) -> None:
    put(roots[0], "nvidia/cudnn/lib/libcudnn.so.9")
    load_cuda_libraries(onnxruntime(cuda))
    load_cuda_libraries(ModuleType("onnxruntime"))
    assert loader.loaded == []


def test_what_onnxruntime_prints_is_for_the_log_and_stdout_stays_as_it_is(
    loader: Loader, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = onnxruntime("13.0", "Failed to load libcudnn.so.9")
    seen: list[object] = []
    monkeypatch.setattr(cuda_libraries, "_log", SimpleNamespace(debug=lambda *words: seen.append((words, sys.stdout))))
    before = sys.stdout
    load_cuda_libraries(runtime)
    assert seen == [(("onnxruntime: %s", "Failed to load libcudnn.so.9"), before)], "said while it loads, in the log"
    assert capsys.readouterr().out == ""
    assert not hasattr(runtime, "print"), "its print is Python's again"


def test_the_real_onnxruntime_is_silent_too(
    loader: Loader, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(real, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(Loader, "__call__", _nothing_loads)
    load_cuda_libraries(real)
    assert capsys.readouterr().out == ""
    print("heard again")
    assert capsys.readouterr().out == "heard again\n"


def _nothing_loads(self: Loader, name: str, mode: int = 0) -> None:
    raise OSError(f"{name}: cannot open shared object file")
