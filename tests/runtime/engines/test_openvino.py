"""OpenVINO: the same answers as ONNX Runtime, to the bit the same in any batch, and the precision is named."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch import BackendError, ContractError, InputSpec, ModelContract, Prediction, Predictor
from mineral_batch.engines import openvino as engine
from mineral_batch.engines.registry import open_backend
from mineral_batch.model.onnx_file import write_contract
from mineral_batch.results.fingerprint import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(11).integers(0, 256, (count, 24, 32, 3)).astype(np.uint8)


def test_float32_answers_as_onnx_runtime_does(model_path: Path, contract: ModelContract) -> None:
    backend = open_backend(model_path, "openvino", precision="float32")
    pixels = pictures(6)
    answers = backend.infer(pixels)
    assert (answers.dtype, answers.shape) == (np.float32, (6, 5))
    np.testing.assert_allclose(answers, open_backend(model_path, "onnx-cpu").infer(pixels), atol=1e-6)
    assert (backend.name, backend.device, backend.contract) == ("openvino", "CPU, float32", contract)
    backend.close()


def test_the_precision_it_chose_is_named_and_close(model_path: Path) -> None:
    backend = open_backend(model_path, "openvino")
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert backend.device == ("CPU, bfloat16" if "BF16" in able else "CPU, float32")
    assert backend.version == f"OpenVINO {openvino.__version__.split('-')[0]}, {backend.device[5:]}"
    reference = open_backend(model_path, "onnx-cpu").infer(pictures(6))
    # bfloat16 keeps 8 bits; logits of a few units.
    np.testing.assert_allclose(backend.infer(pictures(6)), reference, atol=0.02)


def test_a_precision_that_the_cpu_lacks_is_refused_with_those_it_has(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = SimpleNamespace(get_property=lambda device, name: ["FP32", "INT8"])
    monkeypatch.setattr(engine, "_core", lambda: old)
    with pytest.raises(BackendError, match="does not compute in bfloat16; OpenVINO can use here: float32"):
        open_backend(model_path, "openvino", precision="bfloat16")


@pytest.mark.parametrize("precision", ["auto", "float32"])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_an_answer_is_the_same_to_the_bit_in_any_batch_and_thread(model_path: Path, precision: str, batch: int) -> None:
    backend = open_backend(model_path, "openvino", precision=precision)
    pixels = pictures(14)
    alone = [backend.infer(picture[None])[0] for picture in pixels]
    parts = [pixels[start : start + batch] for start in range(0, 14, batch)]
    # More threads than workers: the others wait.
    with ThreadPoolExecutor(backend.workers + 3) as threads:
        together = np.concatenate(list(threads.map(backend.infer, parts)))
    np.testing.assert_array_equal(together, alone)


CLOSED_ELSEWHERE = """
import os, signal, sys, threading
from mineral_batch.engines.registry import open_backend

opened = [open_backend(sys.argv[1], "openvino")]
closing = threading.Thread(target=lambda: opened.pop().close())
closing.start()
closing.join()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="signals are those of Unix")
def test_a_signal_is_handled_after_the_engine_was_closed_in_another_thread(model_path: Path) -> None:
    """Ctrl-C would end the process with a segmentation fault: see `openvino._core`."""
    program = [sys.executable, "-c", CLOSED_ELSEWHERE, str(model_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_an_answer_is_not_overwritten_by_the_next(model_path: Path) -> None:
    backend = open_backend(model_path, "openvino")
    pixels = pictures(2)
    first = backend.infer(pixels[:1])
    kept = first.copy()
    backend.infer(pixels[1:])
    np.testing.assert_array_equal(first, kept)


def test_a_run_says_what_it_computed_in_and_is_not_mixed_with_another(model_path: Path, album: Path) -> None:
    prints = []
    for precision in ("auto", "float32"):
        with Predictor(model_path, backend="openvino", precision=precision) as predictor:
            assert all(isinstance(result, Prediction) for result in predictor.predict([album]))
            assert predictor.decoder is not None
            prints.append(fingerprint(predictor, predictor.decoder)["engine"])
            assert predictor.device.removeprefix("CPU, ") in prints[-1]
    assert prints[1].endswith("float32")


def test_a_contract_of_another_graph_is_refused(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(model_path.read_bytes())
    write_contract(path, ModelContract(labels=("a", "b"), thresholds=(0.5, 0.5), input=InputSpec(24, 32)))
    with pytest.raises(ContractError, match=r"takes 1 input, uint8 \(N, 24, 32, 3\).* its contract says"):
        open_backend(path, "openvino")


@pytest.mark.parametrize("pixels", [np.zeros((2, 8, 8, 3), np.uint8)])
def test_a_batch_of_the_wrong_shape_is_one_line_and_the_engine_goes_on(model_path: Path, pixels: Any) -> None:
    backend = open_backend(model_path, "openvino")
    for _ in range(backend.workers + 1):
        with pytest.raises(BackendError, match=r"openvino got uint8 \(2, 8, 8, 3\)") as caught:
            backend.infer(pixels)
        assert len(str(caught.value).splitlines()) == 1
    assert backend.infer(pictures(1)).shape == (1, 5)


def test_a_graph_that_is_damaged_is_refused_in_one_line(model_path: Path, tmp_path: Path) -> None:
    content = bytearray(model_path.read_bytes())
    at = content.find(b"AveragePool")
    content[at : at + 11] = b"AveragePoop"
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    with pytest.raises(BackendError, match=r"OpenVINO cannot open .*AveragePoop") as caught:
        open_backend(path, "openvino")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["openvino", "onnx-cpu"])
def test_an_engine_for_the_processor_refuses_a_gpu(model_path: Path, name: str) -> None:
    with pytest.raises(BackendError, match="leave out --devices"):
        open_backend(model_path, name, devices=[0])
