"""Where the libraries are looked for, and that looking leaves the process as it was."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from mineral_batch import BackendError
from mineral_batch.cuda import libraries as cuda_libraries
from mineral_batch.cuda.libraries import (
    load_cuda_libraries,
    require_recent_driver,
    why_provider_does_not_load,
)

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


def test_what_is_loaded_is_left_and_what_is_damaged_is_skipped(loader: Loader, roots: list[Path]) -> None:
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


@pytest.mark.parametrize(
    ("built", "driver", "message"),
    [
        (
            "13.0",
            "12.8",
            r"supports CUDA 12.8, .* is built for CUDA 13.0: update the driver to 580 or newer, or install",
        ),
        ("14.0", "13.0", r"built for CUDA 14.0: update the driver, or install the build for CUDA 13 \(https"),
    ],
)
def test_a_driver_older_than_the_cuda_of_the_wheel_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, built: str, driver: str, message: str
) -> None:
    monkeypatch.setattr(cuda_libraries, "cuda_version", lambda: driver)
    runtime = SimpleNamespace(cuda_version=built, __version__="1.31.1")
    with pytest.raises(BackendError, match=message):
        require_recent_driver(runtime)


@pytest.mark.parametrize(("built", "driver"), [("12.8", "12.2"), ("12.8", "13.0"), ("", "none"), (None, "none")])
def test_a_driver_runs_every_minor_version_and_what_is_older(
    monkeypatch: pytest.MonkeyPatch, built: str | None, driver: str
) -> None:
    monkeypatch.setattr(cuda_libraries, "cuda_version", lambda: driver)
    require_recent_driver(SimpleNamespace(cuda_version=built, __version__="1.31.1"))


@pytest.mark.skipif(sys.platform != "linux", reason="names of libraries on Linux")
@pytest.mark.parametrize(
    ("provider", "missing", "fix"),
    [
        ("CUDAExecutionProvider", "libcublasLt.so.13", "[gpu]'"),
        ("TensorrtExecutionProvider", "libnvinfer.so.10", "[onnx-trt]'"),
        ("CUDAExecutionProvider", "libcuda.so.1", "install the NVIDIA driver"),
    ],
)
def test_a_provider_that_does_not_load_is_explained_in_the_loaders_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, provider: str, missing: str, fix: str
) -> None:
    capi = tmp_path / "capi"
    kind = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}[provider]
    put(capi, "libonnxruntime_providers_shared.so", f"libonnxruntime_providers_{kind}.so")

    def load(path: str, mode: int = 0) -> None:
        if kind in path:
            raise OSError(f"{missing}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(cuda_libraries.ctypes, "CDLL", load)
    runtime = SimpleNamespace(__file__=str(tmp_path / "__init__.py"))
    reason = why_provider_does_not_load(runtime, provider)
    assert reason.startswith(f"{missing}: cannot open shared object file")
    assert fix in reason
    monkeypatch.setattr(cuda_libraries.ctypes, "CDLL", lambda path, mode=0: None)
    assert why_provider_does_not_load(runtime, provider) == "", "it loads: the reason is another"
    assert why_provider_does_not_load(SimpleNamespace(), provider) == ""
