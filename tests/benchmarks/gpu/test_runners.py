"""The ways to run a model, and what is measured with them."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image as PILImage

from mineral_bench.gpu import subjects
from mineral_bench.gpu.runners import kernels, onnx_runtime, pytorch
from mineral_bench.gpu.settings import FULL

from .helpers import make_settings

if TYPE_CHECKING:
    from pathlib import Path


def test_a_loader_has_a_process_per_processor_each_with_several_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch, "_SHARED", tmp_path)
    monkeypatch.setattr("mineral_batch.system.cpu_count", lambda: 16)
    free = 1 << 40
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    given, picture = make_settings(tmp_path, sizes=FULL), 384 * 384 * 3
    assert pytorch._workers_and_batch(given, 8192, picture) == (16, 64)
    assert pytorch._workers_and_batch(given, 1024, picture) == (16, 16)
    assert pytorch._workers_and_batch(given, 3, picture) == (16, 1)
    free = 64 << 20
    workers, batch = pytorch._workers_and_batch(given, 8192, picture)
    assert 0 < workers * batch * 2 * picture <= free, "what they hold ready"


def test_the_folders_hold_links_to_a_few_photographs(tmp_path: Path) -> None:
    given = make_settings(tmp_path)
    given.folder("384").mkdir(parents=True)
    (given.folder("384") / "000000.jpg").write_bytes(b"of an attempt that was cut off")
    subjects.write_folders(given)
    files = sorted(given.folder("384").iterdir())
    assert len(files) == 6
    assert len({file.stat().st_ino for file in files}) == 2
    with PILImage.open(files[0]) as picture:
        assert picture.size == (384, 384)
    before = files[0].stat().st_mtime_ns
    subjects.write_folders(given)
    assert files[0].stat().st_mtime_ns == before
    assert FULL.photos["12MP"] >= 1024


def test_the_operations_of_a_graph_are_counted(tmp_path: Path) -> None:
    weights = {"kernel": np.zeros((8, 3, 3, 3), np.float32), "matrix": np.zeros((8, 5), np.float32)}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=1),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["maps"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "counted",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 16, 16, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "counted.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    products = 16 * 16 * 8 * (3 * 3 * 3) + 8 * 5
    assert subjects.gflop(path) == pytest.approx(2 * products / 1e9)


def test_an_attention_counts_as_the_two_products_that_it_is(tmp_path: Path) -> None:
    batch, heads, queries, keys, wide = 1, 2, 5, 7, 4
    shapes = {"q": queries, "k": keys, "v": keys, "a": queries}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", heads, s, wide]) for n, s in shapes.items()]
    graph = helper.make_graph([helper.make_node("Attention", ["q", "k", "v"], ["a"])], "a", values[:3], values[3:])
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    path = tmp_path / "attention.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    products = heads * queries * keys * wide * 2
    assert subjects.gflop(path) == pytest.approx(2 * products / 1e9)


def test_why_a_session_is_no_cuda_graph_is_told(
    tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `predict` goes on: with another session, and aloud."""
    from mineral_batch.engines import onnx_cuda

    made: list[bool] = []
    fixed_session = onnx_cuda.fixed_session

    def refused(runtime: Any, path: Path, providers: Any, tuning: Any, batch: int, has_graph: bool) -> Any:
        made.append(has_graph)
        if has_graph:
            raise RuntimeError("This session cannot use the graph capture feature as requested")
        return fixed_session(runtime, path, providers, tuning, batch, has_graph)

    monkeypatch.setattr(onnx_cuda, "fixed_session", refused)
    with onnx_runtime.onnx_runtime(make_settings(tmp_path), 2, model_path) as workload:
        workload.run()
    assert workload.notes == "no CUDA graph (This session cannot use the graph capture feature as requested)"
    assert made == [True, False]


def test_time_is_told_by_kernel_the_longest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = {"copy": 1.0, "gemm": 6.0, "softmax": 2.0, "add": 1.0, "launch": 0.0}
    assert list(kernels.shares(spent, 2).items()) == [("gemm", "60.0%"), ("softmax", "20.0%"), ("2 others", "20.0%")]
    assert list(kernels.shares(spent, 4)) == ["gemm", "softmax", "copy", "add"]
    long = "cutlass" * 20
    assert kernels.shares({f"{long}<1>": 1.0, f"{long}<2>": 1.0, "add": 2.0}, 5) == {
        long[:120]: "50.0%",
        "add": "50.0%",
    }
    assert kernels.shares({}, 2) == {}
