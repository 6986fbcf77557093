"""An engine is opened or refused: never another one in its place, never a model that it was not told about."""

from __future__ import annotations

import re
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mineral_batch import BackendError, ContractError, InputSpec, ModelContract, Predictor
from mineral_batch.cuda import probe
from mineral_batch.cuda.probe import DriverError, Gpu
from mineral_batch.engines import registry
from mineral_batch.engines.registry import BACKENDS, choose_backend, engine_names, open_backend
from mineral_batch.model.onnx_file import write_contract

onnxruntime = pytest.importorskip("onnxruntime")

GPU = Gpu(0, "NVIDIA L4", "8.9", 24 << 30)


def refused(error: type[Exception], *arguments: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        open_backend(*arguments, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_cpu_answers_in_float32_for_any_batch(model_path: Path, contract: ModelContract, batch: int) -> None:
    backend = open_backend(model_path, "onnx-cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 24, 32, 3)).astype(np.uint8)
    probabilities = backend.infer(pixels)
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (batch, 5))
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert (backend.name, backend.device, backend.contract) == ("onnx-cpu", "CPU, float32", contract)
    assert backend.batch_size >= 1
    backend.close()


def test_the_answer_is_the_graphs_own_arithmetic(model_path: Path, contract: ModelContract) -> None:
    """Against numpy, from the weights in the file."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(model_path)).graph
    weights = next(onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == "weights")
    pixels = np.random.default_rng(3).integers(0, 256, (2, 24, 32, 3)).astype(np.uint8)
    normal = (pixels / 255 - contract.input.mean) / contract.input.std
    cells = normal.reshape(2, 3, 8, 4, 8, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(2, -1)
    expected = 1 / (1 + np.exp(-cells @ weights.astype(float)))
    np.testing.assert_allclose(open_backend(model_path, "onnx-cpu").infer(pixels), expected, atol=1e-5)


def test_auto_takes_the_first_engine_that_works(model_path: Path) -> None:
    assert open_backend(model_path).name in BACKENDS


@pytest.mark.parametrize("name", ["auto", *BACKENDS])
def test_what_is_no_model_is_said_alike_by_every_engine(tmp_path: Path, bare_model_path: Path, name: str) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("version https://git-lfs.github.com/spec/v1\n")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(bare_model_path.read_bytes()[:-200])
    assert "no such model file" in refused(ContractError, tmp_path / "none.onnx", name)
    assert "not an ONNX file" in refused(ContractError, text, name)
    assert "not a complete ONNX model" in refused(ContractError, cut, name)
    assert "without a contract" in refused(ContractError, bare_model_path, name)


@pytest.mark.parametrize(
    "other",
    [
        ModelContract(labels=("a", "b"), thresholds=(0.5, 0.5), input=InputSpec(24, 32)),
        ModelContract(labels=tuple("abcde"), thresholds=(0.5,) * 5, input=InputSpec(32, 24)),
    ],
    ids=["labels", "size"],
)
def test_a_contract_of_another_graph_is_refused(model_path: Path, tmp_path: Path, other: ModelContract) -> None:
    path = tmp_path / "other.onnx"
    shutil.copy(model_path, path)
    write_contract(path, other)
    assert "its contract says" in refused(ContractError, path, "onnx-cpu")


def test_a_file_whose_graph_is_damaged_is_refused(model_path: Path, tmp_path: Path) -> None:
    content = bytearray(model_path.read_bytes())
    at = content.find(b"AveragePool")
    content[at : at + 11] = b"AveragePoop"
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    assert "ONNX Runtime cannot open" in refused(BackendError, path, "onnx-cpu")


def test_an_unknown_engine_is_answered_with_the_known_ones(model_path: Path) -> None:
    message = refused(BackendError, model_path, "tpu")
    assert all(name in message for name in ("tpu", "auto", *BACKENDS))


def test_a_batch_of_the_wrong_shape_is_a_backend_error(model_path: Path) -> None:
    backend = open_backend(model_path, "onnx-cpu")
    with pytest.raises(BackendError, match=r"onnx-cpu got uint8 \(2, 8, 8, 3\); it takes uint8") as caught:
        backend.infer(np.zeros((2, 8, 8, 3), np.uint8))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this build knows CUDA")
def test_cuda_without_its_package_is_refused_and_the_package_named(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "gpus", lambda: [GPU])
    assert "[gpu]'" in refused(BackendError, model_path, "onnx-cuda")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_that_would_run_on_the_cpu_is_refused(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The silent fall-back: the build names CUDA, and the session it makes runs on the CPU."""
    pretender = SimpleNamespace(
        SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=lambda path, settings, providers, enable_fallback: onnxruntime.InferenceSession(
            path, settings, providers=["CPUExecutionProvider"]
        ),
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        __version__="1.99",
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", pretender)
    monkeypatch.setattr(probe, "gpus", lambda: [GPU])
    message = refused(BackendError, model_path, "onnx-cuda")
    assert "would run on CPUExecutionProvider" in message
    choice = choose_backend(model_path, "auto")
    assert choice.backend.name == "onnx-cpu"
    assert list(choice.skipped) == ["onnx-cuda"]
    assert "would run on CPUExecutionProvider" in choice.skipped["onnx-cuda"]


@pytest.mark.parametrize("name", ["onnx-cuda", "onnx-tensorrt"])
def test_without_a_gpu_that_is_all_there_is_to_say(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def none() -> list[Gpu]:
        raise DriverError("no NVIDIA driver")

    monkeypatch.setattr(probe, "gpus", none)
    assert refused(BackendError, model_path, name) == (
        f"{name} needs an NVIDIA GPU: no NVIDIA driver; install the NVIDIA driver, or use a machine that has one"
    )


def test_without_onnxruntime_the_extra_is_named(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(probe, "gpus", lambda: [GPU])
    assert "[cpu]'" in refused(BackendError, model_path, "onnx-cpu")
    assert "[gpu]'" in refused(BackendError, model_path, "onnx-cuda")
    message = refused(BackendError, model_path, "auto")
    assert message.startswith("no inference engine is installed: pip install ")
    assert message.endswith("[gpu]'")


THIRD_PARTY = """
import numpy as np
from mineral_batch.engines.base import Engine, EngineInfo
from mineral_batch.model.onnx_file import read_contract


class HalfEngine(Engine):
    name = "half"

    def compute(self, pixels):
        return np.full((len(pixels), len(self.contract.labels)), 0.5, np.float32)


def open_half(path, options):
    contract = read_contract(path)
    HalfEngine.check_options(options)
    return HalfEngine(contract, EngineInfo("half 1.0", "float32"))


def broken(path, options):
    raise ValueError("no license")


def nothing(path, options):
    return object()
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with three engines, one of them under the name of a built-in one."""
    (tmp_path / "half.py").write_text(THIRD_PARTY)
    info = tmp_path / "half-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half\nVersion: 1.0\n")
    names = {"half": "open_half", "broken": "broken", "nothing": "nothing", "onnx-cpu": "broken"}
    lines = [f"{name} = half:{function}" for name, function in names.items()]
    (info / "entry_points.txt").write_text("\n".join(["[mineral_batch.engines]", *lines]) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "half", raising=False)


@pytest.mark.usefixtures("third_party")
def test_an_engine_of_another_package_is_opened_by_its_name(model_path: Path, album: Path) -> None:
    assert {"half", "broken", "nothing"} <= set(engine_names())
    with Predictor(model_path, backend="half") as predictor:
        assert (predictor.device, predictor.engine_version) == ("CPU, float32", "half 1.0, float32")
        assert {float(result.probabilities[0]) for result in predictor.predict([album])} == {0.5}
    assert open_backend(model_path, "onnx-cpu").version.startswith("ONNX Runtime"), "a built-in engine is not replaced"
    assert "choose --precision auto, float32" in refused(BackendError, model_path, "half", precision="bfloat16")


@pytest.mark.usefixtures("third_party")
def test_an_engine_of_another_package_that_fails_is_one_line(model_path: Path) -> None:
    assert "the engine broken (half:broken) does not open: no license" in refused(BackendError, model_path, "broken")
    assert "(half:nothing) returned a object, which is not a" in refused(BackendError, model_path, "nothing")


def test_a_closed_engine_says_so(model_path: Path) -> None:
    backend = open_backend(model_path, "onnx-cpu")
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="onnx-cpu: the engine is closed"):
        backend.infer(backend.buffer(1))


def test_the_engine_in_contributing_works(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text("utf-8")
    section = text[text.index("## A new engine") :]
    (tmp_path / "my_package.py").write_text(section.split("```python\n")[1].split("```")[0])
    (name, value) = re.findall(r'^\s*(\w+) = "(my_package:\w+)"$', section, re.MULTILINE)[0]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_third_party", lambda: {name: EntryPoint(name, value, registry.GROUP)})
    backend = open_backend(model_path, name)
    assert (backend.infer(backend.buffer(3)) == 0.5).all()
    assert backend.version == "constant 1.0, float32"
    backend.close()
