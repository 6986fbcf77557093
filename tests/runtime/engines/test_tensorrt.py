"""The TensorRT engine on fakes of TensorRT, cuda-core and pycuda: order of calls, shapes, lifetimes."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch import BackendError, ContractError, Predictor
from mineral_batch.cuda import probe
from mineral_batch.engines.registry import open_backend
from mineral_batch.engines.tensorrt import open as open_module
from mineral_batch.engines.tensorrt.build import Built, Layers, inspected
from mineral_batch.engines.tensorrt.plan import EngineRecord, Profile, read_record, sidecar_path, write_engine
from mineral_batch.model.onnx_file import graph_digest, write_contract

from ...fakes.cuda import Cuda, CudaError
from ...fakes.tensorrt import Engines, ExecutionContext, tensorrt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mineral_batch import ModelContract

PLAN = b"the plan"


class Machine(Cuda):
    """With TensorRT; each label's answer is the mean of the picture, divided by the label's number."""

    def __init__(self, contract: ModelContract, layer: str) -> None:
        super().__init__()
        self.layer = layer
        shape, labels = contract.input.shape, len(contract.labels)
        self.tensorrt = Engines(self, tensorrt(), shape, labels, partial(expected, labels=labels))
        self.tensorrt.library.Runtime = self.tensorrt.runtime
        self.opened: list[Any] = []

    def open(self, engine: Path, **options: Any) -> Any:
        """Closed at the end of the test, if not before."""
        self.opened.append(backend := open_backend(engine, "tensorrt", **options))
        return backend


def expected(batch: np.ndarray, labels: int) -> np.ndarray:
    return (batch.reshape(len(batch), -1).mean(axis=1)[:, None] / 255 / np.arange(1, labels + 1)).astype(np.float32)


@pytest.fixture(params=["pycuda", "cuda-core"])
def machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, contract: ModelContract, tmp_path: Path
) -> Iterator[Machine]:
    machine = Machine(contract, request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", machine.tensorrt.library)
    machine.install(monkeypatch, pycuda=request.param == "pycuda")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield machine
    for backend in machine.opened:
        backend.close()
    machine.require_given_back()


def record(contract: ModelContract, **changes: Any) -> EngineRecord:
    made = EngineRecord(
        contract=contract,
        source="model.onnx",
        onnx_sha256="0" * 64,
        engine_sha256=hashlib.sha256(PLAN).hexdigest(),
        runtime="tensorrt",
        version="10.13.3.9",
        cuda="13.0",
        gpu="NVIDIA L4",
        compute_capabilities=("8.9",),
        precision="float16",
        products={"float16": 9},
        layers={"float16": 20, "float32": 3},
        layers_from="engine",
        profile=Profile(1, 4, 8),
        inputs={"pixels": "uint8 (-1, 24, 32, 3)"},
        outputs={"probabilities": "float32 (-1, 5)"},
        rebuild="mineral-export trt model.onnx -o model.plan",
    )
    return replace(made, **changes)


@pytest.fixture
def engine(tmp_path: Path, contract: ModelContract) -> Path:
    path = tmp_path / "model.plan"
    write_engine(path, PLAN, record(contract))
    return path


def pictures(count: int, contract: ModelContract) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *contract.input.shape)).astype(np.uint8)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises((BackendError, ContractError)) as caught:
        open_backend(path, "tensorrt", **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_plan_needs_no_backend_by_name(machine: Machine, engine: Path) -> None:
    with closing(open_backend(engine)) as backend:
        assert backend.name == "tensorrt"


def test_a_record_is_read_back_as_it_was_written(engine: Path, contract: ModelContract) -> None:
    assert read_record(engine) == record(contract)
    assert engine.read_bytes() == PLAN, "plain plan bytes, which trtexec and Triton load"


def test_an_engine_that_cannot_be_described_is_not_written(tmp_path: Path, contract: ModelContract) -> None:
    path = tmp_path / "model.plan"
    sidecar_path(path).mkdir()
    with pytest.raises(BackendError, match="cannot write the engine"):
        write_engine(path, PLAN, record(contract))
    assert not [found for found in tmp_path.iterdir() if found.is_file()]


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 11])
def test_every_picture_gets_its_answer_whatever_the_batch(
    machine: Machine, engine: Path, contract: ModelContract, batch: int
) -> None:
    backend = machine.open(engine)
    pixels = pictures(batch, contract)
    for _ in range(3):  # the other lane, then the first one again, with what lay there before
        np.testing.assert_allclose(backend.infer(pixels), expected(pixels, 5), rtol=1e-6)
    backend.close()


def test_a_batch_is_one_copy_one_launch_and_one_wait(machine: Machine, engine: Path, contract: ModelContract) -> None:
    backend = machine.open(engine)
    machine.log.clear()
    backend.infer(pictures(4, contract))
    assert machine.log == [f"to GPU {4 * 24 * 32 * 3}", "launch", "wait"]
    machine.log.clear()
    backend.infer(pictures(2, contract))
    assert machine.log == [f"to GPU {2 * 24 * 32 * 3}", "launch", "wait"], "a smaller batch copies only its pictures"


def test_everything_is_allocated_when_it_is_opened(machine: Machine, engine: Path, contract: ModelContract) -> None:
    backend = machine.open(engine, batch_size=8)
    sizes = [line for line in machine.log if line.startswith("allocate")]
    assert sizes == [f"allocate {8 * 24 * 32 * 3}", f"allocate {8 * 5 * 4}"] * backend.workers
    first = machine.log.index("capture")
    assert machine.log[first - 3 : first] == ["execute", f"from GPU {8 * 5 * 4}", "wait"], "run before it is recorded"
    for count in (8, 3, 20):
        backend.infer(pictures(count, contract))
    assert [line for line in machine.log if line.startswith("allocate")] == sizes


def test_closing_gives_everything_back_and_graphs_before_their_memory(machine: Machine, engine: Path) -> None:
    backend = machine.open(engine)
    machine.log.clear()
    backend.close()
    backend.close()
    lanes = ["wait", "destroy graph", "free", "free", "destroy stream"] * backend.workers
    assert machine.log[: len(lanes)] == lanes
    machine.require_given_back()


def test_closing_from_another_thread_gives_the_context_back_too(machine: Machine, engine: Path) -> None:
    backend = machine.open(engine)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(backend.close).result()
        assert pool.submit(lambda: machine.stack).result() == []
    machine.require_given_back()


def test_closing_waits_for_who_computes_and_refuses_who_comes_later(
    machine: Machine, engine: Path, contract: ModelContract
) -> None:
    backend, pixels = machine.open(engine), pictures(4, contract)
    inside, leave = threading.Event(), threading.Event()
    compute = machine.tensorrt.compute

    def slow(batch: np.ndarray) -> np.ndarray:
        inside.set()
        assert leave.wait(10)
        return compute(batch)

    machine.tensorrt.compute = slow
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(backend.infer, pixels)
        assert inside.wait(10)
        closing = pool.submit(backend.close)
        leave.set()
        closing.result()
        np.testing.assert_allclose(answer.result(), expected(pixels, 5), rtol=1e-6)
    with pytest.raises(BackendError, match="the engine is closed"):
        backend.infer(pixels)


@pytest.mark.parametrize("function", ["cuStreamSynchronize", "cuGraphExecDestroy", "cuMemFree_v2"])
def test_a_lost_gpu_is_told_and_closing_goes_on_and_hides_nothing(
    machine: Machine, engine: Path, contract: ModelContract, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is called after an illegal access answers with that error again."""
    backend = machine.open(engine)
    machine.errors.update({"cuMemcpyHtoDAsync_v2": 700, function: 700})
    with pytest.raises(BackendError, match="CUDA error 700"):
        backend.infer(pictures(4, contract))
    with caplog.at_level(logging.WARNING, logger="mineral_batch"):
        backend.close()
    assert len(caplog.records) == backend.workers
    assert "closing the engine" in caplog.text
    assert machine.log.count("destroy stream") >= backend.workers
    for forget in (machine.memory, machine.executables, *machine.streams.values()):
        forget.clear()  # they went with the GPU


def test_an_engine_whose_copy_cannot_be_captured_goes_on_without_a_graph(
    machine: Machine, engine: Path, contract: ModelContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = machine.cuMemcpyDtoHAsync_v2

    def uncapturable(target: int, memory: int, size: int, stream: int) -> None:
        if stream in machine.capturing:
            raise CudaError("cuMemcpyDtoHAsync_v2", 900)
        copy(target, memory, size, stream)

    monkeypatch.setattr(machine, "cuMemcpyDtoHAsync_v2", uncapturable)
    backend = machine.open(engine)
    assert "without CUDA graph" in backend.device
    pixels = pictures(6, contract)
    np.testing.assert_allclose(backend.infer(pixels), expected(pixels, 5), rtol=1e-6)


def test_the_reason_is_told_whoever_opened_an_engine_before(machine: Machine, engine: Path) -> None:
    """TensorRT logs to the first logger that it was given in the process."""
    machine.open(engine).close()
    machine.tensorrt.loads = False
    assert "does not load the engine: no luck; build it again" in refused(engine)
    machine.tensorrt.loads, machine.tensorrt.starts = True, False
    assert "does not start: CUDA initialization failure with error: 35" in refused(engine)


def test_the_threads_own_context_is_current_again_after_closing(machine: Machine, engine: Path) -> None:
    machine.stack.append("torch's, on another GPU")
    machine.open(engine).close()
    assert (machine.stack.pop(), machine.stack) == ("torch's, on another GPU", [])


def test_a_gpu_with_too_little_memory_for_the_second_lane_keeps_nothing(machine: Machine, engine: Path) -> None:
    machine.tensorrt.most_contexts = 1
    assert "choose a smaller --batch-size" in refused(engine)
    machine.require_given_back()


def test_page_locked_memory_that_is_not_to_be_had_is_one_line(machine: Machine, engine: Path) -> None:
    machine.errors["cuMemHostAlloc"] = 2
    with pytest.raises(BackendError) as caught:
        open_backend(engine, "tensorrt")
    assert str(caught.value).startswith("tensorrt does not open on GPU 0 (NVIDIA L4): CUDA ")
    contexts = [one for one in gc.get_objects() if type(one) is ExecutionContext]
    assert not contexts, "the error keeps one alive, whose memory is in the GPU's context"
    machine.require_given_back()


def test_two_threads_use_two_lanes(machine: Machine, engine: Path, contract: ModelContract) -> None:
    backend = machine.open(engine)
    batches = [pictures(4, contract) + np.uint8(shift) for shift in range(20)]
    with ThreadPoolExecutor(backend.workers) as pool:
        answers = list(pool.map(backend.infer, batches))
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer, expected(batch, 5), rtol=1e-6)


def test_without_graphs_the_answers_are_the_same(machine: Machine, engine: Path, contract: ModelContract) -> None:
    machine.errors["cuStreamBeginCapture_v2"] = 900
    backend = machine.open(engine)
    pixels = pictures(6, contract)
    np.testing.assert_allclose(backend.infer(pixels), expected(pixels, 5), rtol=1e-6)
    assert "without CUDA graph" in backend.device


def test_an_engine_that_says_it_cannot_be_captured_is_not(machine: Machine, engine: Path) -> None:
    machine.tensorrt.is_capturable = False
    assert "without CUDA graph" in machine.open(engine).device
    assert "capture" not in machine.log


@pytest.fixture
def rtx_engine(machine: Machine, engine: Path, contract: ModelContract, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TensorRT for RTX, and one of its engines."""
    machine.tensorrt.library.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", machine.tensorrt.library)
    write_engine(engine, PLAN, record(contract, runtime="tensorrt-rtx"))
    return engine


def test_tensorrt_for_rtx_compiles_the_kernels_of_a_batch_before_they_are_recorded(
    machine: Machine, rtx_engine: Path
) -> None:
    backend = machine.open(rtx_engine)
    made = [line for line in machine.log if line.startswith("context")]
    assert made == ["context, eager"] * backend.workers


def test_the_kernels_that_it_compiled_are_kept_for_every_batch_size_and_shared(
    machine: Machine, rtx_engine: Path, tmp_path: Path
) -> None:
    machine.open(rtx_engine).close()
    one, other = machine.tensorrt.caches
    assert one is other
    (kept,) = (tmp_path / "cache").rglob("*.bin")
    assert kept.read_bytes() == b"kernels 4"
    machine.open(rtx_engine, batch_size=8).close()
    assert kept.read_bytes() == b"kernels 4 8"
    written = kept.stat().st_ino
    for batch in (4, 8):
        machine.open(rtx_engine, batch_size=batch).close()
        assert machine.tensorrt.caches[-1].batches == {4, 8}
    assert kept.stat().st_ino == written, "there was nothing new to write"
    kept.write_bytes(b"of another driver")
    machine.open(rtx_engine).close()
    assert kept.read_bytes() == b"kernels 4", "what is not taken is written anew"


def test_kernels_that_cannot_be_kept_cost_a_warning(
    machine: Machine, rtx_engine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("no folder")
    with caplog.at_level(logging.WARNING, logger="mineral_batch"):
        machine.open(rtx_engine).close()
    assert "cannot keep the compiled kernels" in caplog.text


def test_a_failure_of_cuda_is_one_line_and_frees_the_lane(
    machine: Machine, engine: Path, contract: ModelContract
) -> None:
    backend = machine.open(engine)
    machine.errors["cuMemcpyHtoDAsync_v2"] = 700
    with pytest.raises(BackendError, match="CUDA error 700"):
        backend.infer(pictures(4, contract))
    machine.errors.clear()
    pixels = pictures(4, contract)
    for _ in range(backend.workers):
        np.testing.assert_allclose(backend.infer(pixels), expected(pixels, 5), rtol=1e-6)
    assert not machine.stack, "the context of the thread is as it was"


def test_an_engine_that_does_not_load_leaves_nothing_behind(machine: Machine, engine: Path) -> None:
    machine.tensorrt.loads = False
    assert "no luck; build it again: mineral-export trt" in refused(engine)
    machine.require_given_back()


def test_a_tensorrt_that_does_not_start_is_one_line(machine: Machine, engine: Path) -> None:
    machine.tensorrt.starts = False
    message = refused(engine)
    assert "does not start: CUDA initialization failure with error: 35; see whether the NVIDIA driver" in message


def test_it_says_what_it_is(machine: Machine, engine: Path, contract: ModelContract) -> None:
    backend = machine.open(engine)
    assert backend.device == f"GPU 0 (NVIDIA L4), float16, CUDA by {machine.layer}"
    engine_digest = hashlib.sha256(PLAN).hexdigest()[:12]
    assert backend.version == (
        f"tensorrt 10.13.3.9, float16, engine {engine_digest}, NVIDIA L4 (compute capability 8.9), batches of 4"
    )
    assert (backend.contract, backend.batch_size, backend.workers) == (contract, 4, 2)
    assert backend.buffer(3).shape == (3, 24, 32, 3)


def test_predict_feeds_it(machine: Machine, engine: Path, album: Path) -> None:
    with Predictor(engine, backend="tensorrt") as predictor:
        results = list(predictor.predict([album]))
    assert len(results) == 11
    assert len({float(result.probabilities[0]) for result in results}) == 11


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "10.14.0.1"}, "was built by tensorrt 10.14.0.1, and tensorrt 10.13.3.9 is installed"),
        ({"compute_capabilities": ("9.0", "12.0")}, "compute capability 9.0, 12.0, and NVIDIA L4 has 8.9"),
        ({"gpu": "NVIDIA L40S"}, "was built by timing kernels on NVIDIA L40S, and here is NVIDIA L4"),
        ({"engine_sha256": "1" * 64}, "is not the engine that model.plan.json describes"),
    ],
)
def test_a_foreign_engine_is_refused_with_the_command_that_builds_it(
    machine: Machine, engine: Path, contract: ModelContract, changes: dict[str, Any], reason: str
) -> None:
    write_engine(engine, PLAN, record(contract, **changes))
    message = refused(engine)
    assert reason in message
    assert message.endswith("build it again: mineral-export trt model.onnx -o model.plan")
    assert (machine.log, machine.tensorrt.plans) == ([], []), "nothing was loaded"


@pytest.mark.parametrize(
    "changes",
    [
        {"compute_capabilities": ("8.0",), "gpu": "NVIDIA A100", "hardware_compatible": True},
        {"version": "10.12.0.1", "version_compatible": True},
        {"version": "10.12.0.1.post1", "version_compatible": True},
    ],
)
def test_a_compatible_engine_is_taken(
    machine: Machine, engine: Path, contract: ModelContract, changes: dict[str, Any]
) -> None:
    write_engine(engine, PLAN, record(contract, **changes))
    machine.open(engine).close()


def test_an_engine_older_than_the_model_beside_it_is_refused(
    machine: Machine, engine: Path, contract: ModelContract, model_path: Path
) -> None:
    source = engine.with_name("model.onnx")
    source.write_bytes(model_path.read_bytes())
    assert "built from another model.onnx" in refused(engine)
    write_engine(engine, PLAN, record(contract, onnx_sha256=graph_digest(source)))
    machine.open(engine).close()


@pytest.mark.parametrize("damage", ["", "{}", '{"schema_version": 9}', "[1]", "\0"])
def test_an_engine_without_a_whole_description_is_refused(machine: Machine, engine: Path, damage: str) -> None:
    sidecar_path(engine).write_text(damage)
    assert "mineral-export trt" in refused(engine)
    sidecar_path(engine).unlink()
    assert "has no description model.plan.json" in refused(engine)


def test_a_batch_outside_the_profile_and_another_precision_are_refused(machine: Machine, engine: Path) -> None:
    assert "takes 1 to 8 images at once, not 9" in refused(engine, batch_size=9)
    assert "mineral-export fp16" in refused(engine, precision="float32")


def test_an_onnx_file_is_built_once(
    machine: Machine, model_path: Path, tmp_path: Path, contract: ModelContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    class Network:
        def __init__(self, library: Any, source: Path) -> None:
            built.append(source)

        def build(self, options: Any) -> Built:
            return Built(PLAN, Layers({"float32": 1}, {"float32": 8}), {}, {})

    monkeypatch.setattr(open_module, "Network", Network)
    source = tmp_path / "model.onnx"
    source.write_bytes(model_path.read_bytes())
    machine.tensorrt.compute = open_backend(model_path, "onnx-cpu").infer

    def opened(**options: Any) -> Any:
        backend = open_backend(source, "tensorrt", **options)
        backend.close()
        return backend

    assert ", TF32 allowed, " in opened().version
    machine.require_given_back()  # also the context that it was built in
    opened()
    assert len(built) == 1, "the second time it is read"
    changed = contract.with_thresholds([0.9] * 5)
    write_contract(source, changed)
    assert opened().contract == changed
    assert len(built) == 1, "thresholds do not change the graph"
    opened(batch_size=2)
    assert len(built) == 2, "another batch is another engine"
    assert ", float32, " in opened(precision="float32").version
    assert len(built) == 3, "float32 without TF32 is another engine, too"
    kept = next(iter((tmp_path / "cache").rglob("model.plan.json")))
    kept.write_text("{}")
    kept.with_name("model.plan").write_bytes(b"half of it")
    opened()
    opened(batch_size=2)
    opened(precision="float32")
    assert len(built) == 4, "a damaged one is built anew"


@pytest.mark.parametrize("wrong", [0.5, np.nan])
def test_an_engine_that_answers_otherwise_than_its_model_is_not_kept(
    machine: Machine, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    plan = Built(PLAN, Layers({"float32": 1}, {"float32": 8}), {}, {})
    monkeypatch.setattr(open_module, "Network", lambda *_: SimpleNamespace(build=lambda options: plan))
    right = open_backend(model_path, "onnx-cpu").infer
    machine.tensorrt.compute = lambda pixels: right(pixels) + np.float32(wrong)
    message = refused(model_path)
    assert "builds from tiny.onnx differs from ONNX Runtime by" in message
    assert not list((tmp_path / "cache").rglob("*.plan"))
    machine.tensorrt.compute = right
    machine.open(model_path)


def test_a_cache_that_cannot_be_made_is_told_before_minutes_of_work(
    machine: Machine, model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert "set XDG_CACHE_HOME to a folder that can be written to" in refused(model_path)
    assert not machine.log


def test_without_a_driver_nothing_of_tensorrt_is_touched(
    engine: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise probe.DriverError("no NVIDIA driver: libcuda.so.1: cannot open")

    monkeypatch.setattr(probe, "_driver", absent)
    for path in (engine, model_path):
        message = refused(path)
        assert "needs an NVIDIA GPU" in message
        assert "install the NVIDIA driver" in message


def test_a_missing_package_is_named(machine: Machine, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "pip install" in refused(engine)


@pytest.mark.parametrize("error", ["OSError('libnvinfer.so.10: cannot open')", "ImportError('libcudart.so.13')"])
def test_a_tensorrt_without_its_libraries_says_so(
    machine: Machine, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(f"raise {error}")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    assert "tensorrt is installed and does not load (lib" in refused(engine)


def test_the_inspectors_words_are_counted_in_both_forms() -> None:
    told = {
        "Layers": [
            {"Name": "a", "Outputs": [{"Format/Datatype": "Half"}]},
            {"Name": "b", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
            {"Name": "c", "Outputs": [{"Format/Datatype": "Float"}]},
            {"Name": "d", "Outputs": [{"Format/Datatype": "Row major Int8 format"}]},
            {"Name": "e", "Outputs": []},
            "only a name",
        ]
    }
    assert inspected(json.dumps(told)) == {"float16": 2, "float32": 1, "int8": 1}
