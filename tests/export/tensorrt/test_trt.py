"""`mineral-export trt` with a real TensorRT: TensorRT for RTX builds for chips that are not there, so no GPU is needed.

What it builds is described from the typed network. Where a test runs an engine, a stand-in of the GPU answers for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import shutil
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image as PILImage

import mineral_batch.cli
from mineral_batch.cuda import probe
from mineral_batch.cuda.probe import DriverError, Gpu
from mineral_batch.engines.registry import open_backend
from mineral_batch.engines.tensorrt import build as tensorrt_build
from mineral_batch.engines.tensorrt.build import Options
from mineral_batch.engines.tensorrt.plan import EngineRecord, Profile, read_record, sidecar_path
from mineral_batch.errors import BackendError
from mineral_batch.minerals import MINERALS
from mineral_batch.model.contract import InputSpec, ModelContract, Numerics
from mineral_batch.model.onnx_file import graph_digest, read_contract, write_contract
from mineral_batch.model.starter import starter_path
from mineral_export.cli import main
from mineral_export.onnx.export import export_onnx
from mineral_export.precision.fp16 import converted
from mineral_export.tensorrt import export_engine
from mineral_export.verify.budget import BUDGETS
from mineral_export.verify.samples import Samples, synthetic_images
from mineral_train.model.network import build_model, input_spec, preset

from ...fakes.cuda import Cuda
from ...fakes.tensorrt import Engines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has wheels for Linux and Windows on x86-64")

TWO_CHIPS = ("--compute-capability", "8.9", "--compute-capability", "12.0")
ONE_CHIP = TWO_CHIPS[:2]
SIDE = 32
LABELS = ("quartz", "pyrite", "Рубин")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise DriverError("no NVIDIA driver (libcuda.so.1 does not load)")

    monkeypatch.setattr(probe, "_driver", absent)


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver shows a GPU; nothing can be run on it."""
    gpus = [Gpu(0, "NVIDIA L4", "8.9", 24 << 30)]
    for module in ("cuda.probe", "engines.tensorrt.build"):
        monkeypatch.setattr(f"mineral_batch.{module}.gpus", lambda: gpus)
    monkeypatch.setattr("mineral_batch.engines.tensorrt.open.cuda_version", lambda: "13.0")


@pytest.fixture
def l4(no_gpu: None, product: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    """An NVIDIA L4, on which every engine answers as `product` does on the processor."""
    session = onnxruntime.InferenceSession(product.read_bytes(), providers=["CPUExecutionProvider"])
    cuda = Cuda()
    cuda.install(monkeypatch)
    engines = Engines(
        cuda, tensorrt_rtx, (SIDE, SIDE, 3), len(LABELS), lambda pixels: session.run(None, {"pixels": pixels})[0]
    )
    monkeypatch.setattr(tensorrt_rtx, "Runtime", engines.runtime)
    yield engines
    cuda.require_given_back()


def run(*words: object) -> Any:
    return CliRunner().invoke(main, ["trt", *map(str, words)])


def built(*words: object) -> EngineRecord:
    result = run(*words, "-q")
    assert result.exit_code == 0, result.output
    return read_record(Path(str(words[words.index("-o") + 1])))


def refused(*words: object) -> str:
    result = run(*words, "-q")
    assert result.exit_code == 1, result.output
    assert result.output.startswith("Error: ")
    assert len(result.output.splitlines()) == 1
    return str(result.output)


# The graphs that are deployed.


def _starter(folder: Path) -> Path:
    return shutil.copy(starter_path(), folder / "model.onnx")


def _mobilenet(folder: Path) -> Path:
    """The preset with a smaller picture and decoder: exported in seconds."""
    config = preset("mobilenet-v2", image_size=64, width=64, heads=2, ffn=96)
    contract = ModelContract(MINERALS, (0.5,) * 36, input_spec(config), name="mobilenet-v2, random weights")
    return export_onnx(build_model(config, seed=0), contract, folder / "model.onnx").path


def _paper(folder: Path) -> Path:
    """The paper's model, all of it: 121 GFLOP a picture, so it is compared with torch on one."""
    config = preset("vit-b16-384")
    contract = ModelContract(MINERALS, (0.5,) * 36, input_spec(config), name="vit-b16-384, random weights")
    samples = Samples.of(synthetic_images(contract.input, 1), "one synthetic image")
    return export_onnx(build_model(config, seed=0), contract, folder / "model.onnx", samples=samples, force=True).path


@pytest.fixture(scope="module")
def small_paper(exported: Any) -> Path:
    """The paper's model with a small ViT: ViT, reshape projection, one decoder block, flatten head."""
    path: Path = exported(projection="reshape").path
    return path


@pytest.fixture(params=["starter", "mobilenet-v2", "the paper's model, small", "attention as one operator"])
def graph(request: pytest.FixtureRequest, tmp_path: Path, tiny: Any) -> Path:
    if request.param == "starter":
        return _starter(tmp_path)
    if request.param == "mobilenet-v2":
        return _mobilenet(tmp_path)
    if request.param == "attention as one operator":
        return export_onnx(*tiny(projection="reshape"), tmp_path / "model.onnx", opset=23).path
    return shutil.copy(request.getfixturevalue("small_paper"), tmp_path / "model.onnx")


def products(path: Path) -> int:
    """Convolutions and matrix products in the typed FP16 graph of a float32 file; an attention counts as one."""
    model = onnx.load(path)
    kinds = Counter(node.op_type for node in model.graph.node)
    return kinds["Conv"] + kinds["MatMul"] + kinds["Gemm"] + kinds["Attention"]


@pytest.mark.slow
def test_each_deployed_graph_becomes_an_fp16_engine_for_two_chips(graph: Path) -> None:
    require_fp16_engine(graph)


def require_fp16_engine(graph: Path) -> None:
    contract, plan = read_contract(graph), graph.with_name("model.plan")
    height, width, _ = contract.input.shape
    result = run(graph, *TWO_CHIPS, "--min", 1, "--opt", 8, "--max", 32)
    assert result.exit_code == 0, result.output
    record = read_record(plan)
    assert record.precision == "float16"
    assert record.products == {"float16": products(graph)}, "every matrix product of the graph, and none in float32"
    assert record.layers["float16"] > record.layers["float32"] > 0, "softmax and sigmoid stay in float32"
    assert record.layers_from == "typed network"
    assert record.inputs == {"pixels": f"uint8 (-1, {height}, {width}, 3)"}
    assert record.outputs == {"probabilities": f"float32 (-1, {len(contract.labels)})"}
    assert record.profile == Profile(1, 8, 32)
    assert record.compute_capabilities == ("8.9", "12.0")
    assert (record.runtime, record.version) == ("tensorrt-rtx", tensorrt_rtx.__version__)
    assert (record.gpu, record.cuda) == ("", ""), "built without one"
    assert (record.source, record.onnx_sha256) == ("model.onnx", graph_digest(graph))
    assert record.engine_sha256 == hashlib.sha256(plan.read_bytes()).hexdigest()
    unlike: dict[str, Any] = {"provenance": {}, "measured": None, "numerics": contract.numerics}
    assert replace(record.contract, **unlike) == replace(contract, **unlike)
    assert record.contract.numerics.precision == "float16"
    assert f"convolutions and matrix products: {products(graph)} float16" in result.output
    assert "compute capability 8.9, 12.0, batch 1 / 8 / 32" in result.output


# A graph of one matrix product, built in a fraction of a second.


def _product(folder: Path, *, quantised: bool = False, second: int | None = None) -> Path:
    """Pictures of SIDE pixels to three labels.

    Args:
        folder: to write to.
        quantised: the product is of INT8 numbers, with Q/DQ pairs.
        second: the element type of a second product after the first.
    """
    random = np.random.default_rng(0)
    weights = {
        "weights": random.normal(0, 0.05, (3 * SIDE**2, 3)).astype(np.float32),
        "shape": np.array([0, -1], np.int64),
        "scale": np.float32(255),
        "step": np.float32(0.03),
        "steps": np.float32(0.002),
        "zero": np.int8(0),
        "more": random.normal(0, 1, (3, 3)).astype(np.float32),
    }
    nodes = [("Cast", "pixels", "float", {"to": 1}), ("Reshape", "float shape", "flat", {})]
    nodes += [("Div", "flat scale", "x", {})]
    given, by = "x", "weights"
    if quantised:
        nodes += [("QuantizeLinear", "x step zero", "xq", {}), ("DequantizeLinear", "xq step zero", "xd", {})]
        nodes += [("QuantizeLinear", "weights steps zero", "wq", {}), ("DequantizeLinear", "wq steps zero", "wd", {})]
        given, by = "xd", "wd"
    nodes += [("MatMul", f"{given} {by}", "y", {})]
    if second:
        nodes += [("Cast", "y", "y2", {"to": second}), ("Cast", "more", "m2", {"to": second})]
        nodes += [("MatMul", "y2 m2", "z2", {}), ("Cast", "z2", "z", {"to": 1})]
    nodes += [("Sigmoid", "z" if second else "y", "probabilities", {})]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(kind, taken.split(), [gives], **more) for kind, taken, gives, more in nodes],
            "product",
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path = folder / "model.onnx"
    onnx.save(model, path)
    write_contract(path, ModelContract(LABELS, (0.5,) * 3, InputSpec(SIDE, SIDE), name="product"))
    return path


@pytest.fixture
def product(tmp_path: Path) -> Path:
    return _product(tmp_path)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return tmp_path / "model.plan"


@pytest.mark.parametrize(
    ("words", "profile"),
    [
        ((), Profile(1, 64, 64)),
        (("--batch", 4), Profile(4, 4, 4)),
        (("--min", 2, "--opt", 3, "--max", 5), Profile(2, 3, 5)),
        (("--max", 8), Profile(1, 8, 8)),
        (("--min", 100), Profile(100, 100, 100)),
    ],
)
def test_the_profile_is_the_one_asked_for(
    product: Path, plan: Path, words: tuple[object, ...], profile: Profile
) -> None:
    record = built(product, "-o", plan, *ONE_CHIP, *words)
    assert record.profile == profile
    assert record.inputs == {"pixels": "uint8 (-1, 32, 32, 3)"}


def test_a_fixed_batch_and_a_range_are_not_given_together(product: Path) -> None:
    result = run(product, "--batch", 4, "--max", 8)
    assert result.exit_code == 2
    assert "leave out --min, --opt and --max" in result.output
    assert "1 <= smallest <= optimum" in refused(product, "--opt", 9, "--max", 8, *ONE_CHIP)


def test_the_description_is_json_and_the_plan_what_tensorrt_wrote(
    product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    original = tensorrt_build.Network.build

    def build(self: Any, *given: Any) -> Any:
        made = original(self, *given)
        written.append(made.plan)
        return made

    monkeypatch.setattr(tensorrt_build.Network, "build", build)
    built(product, "-o", plan, *ONE_CHIP)
    assert plan.read_bytes() == written[0], "nothing in front of it, so that Triton loads it"
    told = json.loads(sidecar_path(plan).read_text("utf-8"))
    assert told["contract"]["labels"] == [*LABELS]
    assert told["products"] == {"float16": 1}


def test_progress_is_told_step_by_step(product: Path, plan: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    options = Options(Profile(1, 2, 4), ("8.9",))
    export_engine(product, plan, options, progress=lambda *step: seen.append(step))
    phases = {phase for phase, _, _ in seen}
    assert phases
    for phase in phases:
        steps = [(step, steps) for name, step, steps in seen if name == phase]
        assert steps[0][0] == 0
        assert steps == sorted(steps)
        assert steps[-1] == (steps[-1][1], steps[-1][1]), "to the end"


def test_ctrl_c_ends_a_build_and_writes_nothing(product: Path, plan: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def interrupt(phase: str, step: int, steps: int) -> None:
        seen.append(step)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            export_engine(product, plan, Options(Profile(1, 2, 4), ("8.9",)), progress=interrupt)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen
    assert not plan.exists()
    assert capfd.readouterr().err == "", "no trace of an exception inside of TensorRT"


# Precision is read back, not believed.


def test_a_float32_graph_is_converted_or_taken_as_it_is(product: Path, plan: Path) -> None:
    assert built(product, "-o", plan, *ONE_CHIP).precision == "float16"
    for precision in ("fp32", "as-is"):
        record = built(product, "-o", plan, *ONE_CHIP, "--precision", precision)
        assert (record.precision, record.products) == ("float32", {"float32": 1})


def test_a_typed_fp16_graph_is_not_converted_again(product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = product.with_name("half.onnx")
    assert CliRunner().invoke(main, ["fp16", str(product), "-o", str(half)]).exit_code == 0
    monkeypatch.setattr("mineral_export.precision.fp16.to_fp16", None)
    record = built(half, "-o", plan, *ONE_CHIP)
    assert (record.precision, record.source, record.onnx_sha256) == ("float16", "half.onnx", graph_digest(half))
    assert "the engine should be fp32, and its matrix products are 1 in float16" in refused(
        half, *ONE_CHIP, "--precision", "fp32"
    )


def test_an_engine_asked_to_be_fp16_that_is_not_is_refused(
    product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter that leaves everything in float32 and says it is FP16."""

    def lazy(source: Path, target: Path, **_: Any) -> Any:
        shutil.copy(source, target)
        return type("Made", (), {"path": target})

    monkeypatch.setattr("mineral_export.precision.fp16.to_fp16", lazy)
    message = refused(product, "-o", plan, *ONE_CHIP)
    assert "nothing was written: the engine should be fp16, and its matrix products are 1 in float32" in message
    assert "--precision as-is" in message
    assert sorted(path.name for path in plan.parent.iterdir()) == ["model.onnx"]


def test_one_product_in_another_precision_is_enough_to_refuse(tmp_path: Path, plan: Path) -> None:
    mixed = _product(tmp_path, second=TensorProto.FLOAT16)
    message = refused(mixed, "-o", plan, *ONE_CHIP, "--precision", "fp32")
    assert "1 in float32, 1 in float16 (precision mixed)" in message
    record = built(mixed, "-o", plan, *ONE_CHIP, "--precision", "as-is")
    assert (record.precision, record.products) == ("mixed", {"float32": 1, "float16": 1})


def test_a_quantised_graph_is_an_int8_engine(tmp_path: Path, plan: Path) -> None:
    """The types around a product with Q/DQ pairs are float32; TensorRT multiplies what was quantised."""
    model = _product(tmp_path, quantised=True)
    write_contract(model, replace(read_contract(model), numerics=Numerics("int8")))
    record = built(model, "-o", plan, *ONE_CHIP, "--precision", "as-is")
    assert (record.precision, record.products) == ("int8", {"int8": 1})
    assert "model.onnx is int8 already: build it with --precision as-is" in refused(model, *ONE_CHIP)


def test_the_counts_are_those_of_the_fp16_graph(product: Path, plan: Path) -> None:
    """Against the graph's own types, as ONNX infers them."""
    half = onnx.shape_inference.infer_shapes(converted(onnx.load(product)), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in half.graph.value_info}
    inputs = [types.get(node.input[0]) for node in half.graph.node if node.op_type == "MatMul"]
    assert built(product, "-o", plan, *ONE_CHIP).products == {"float16": inputs.count(TensorProto.FLOAT16)}


def test_an_engine_without_a_layer_of_fp16_is_refused(
    product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the network says: the built engine's own layers are asked, where they can be."""
    read_back = tensorrt_build.Layers({"float16": 1}, {"float32": 4}, "engine")
    monkeypatch.setattr(tensorrt_build, "engine_layers", lambda *_: read_back)
    message = refused(product, "-o", plan, *ONE_CHIP)
    assert "nothing was written: the engine should be fp16, and its layers are 4 in float32" in message
    assert nothing_but_the_model(plan)


def test_the_conversion_to_fp16_keeps_to_what_the_user_asks(
    product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU its comparison is the only one."""
    none = replace(BUDGETS["float16"], largest=0.0, mean=0.0, points=-1.0)
    monkeypatch.setitem(BUDGETS, "float16", none)
    assert "nothing was written: largest difference of a probability" in refused(product, "-o", plan, *ONE_CHIP)
    photos = plan.parent / "photos"
    photos.mkdir()
    PILImage.effect_noise((SIDE, SIDE), 80).convert("RGB").save(photos / "a.png")
    assert "over 1 photographs" in refused(product, "-o", plan, *ONE_CHIP, "--photos", photos)
    (photos / "labels.csv").write_text(f"path,labels\na.png,{LABELS[0]}\n", "utf-8")
    labelled = (product, "-o", plan, *ONE_CHIP, "--labels", photos / "labels.csv")
    assert "mAP lost, in points, 0 exceeds -1" in refused(*labelled)
    assert built(*labelled, "--points", 1).precision == "float16"
    assert built(product, "-o", plan, *ONE_CHIP, "--force").precision == "float16"


def test_attention_as_one_operator_is_built_in_float32_too(tmp_path: Path, plan: Path, exported: Any) -> None:
    """There is no kernel for all of it."""
    model = shutil.copy(exported(projection="linear", opset=23).path, tmp_path / "model.onnx")
    record = built(model, "-o", plan, *ONE_CHIP, "--precision", "fp32", "--batch", 2)
    assert record.products == {"float32": products(model)}


@pytest.mark.parametrize("allowed", [False, True])
def test_float32_is_tf32_only_where_that_is_allowed(
    product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """TensorRT allows it without being asked: 10 bits of mantissa under the name of 23."""
    flags: list[bool] = []
    original = tensorrt_build.Network._configured

    def configured(self: Any, *given: Any) -> Any:
        config, kept = original(self, *given)
        flags.append(config.get_flag(tensorrt_rtx.BuilderFlag.TF32))
        return config, kept

    monkeypatch.setattr(tensorrt_build.Network, "_configured", configured)
    options = Options(Profile(1, 2, 2), ("8.9",), tf32=allowed)
    record = export_engine(product, plan, options, precision="fp32").record
    assert flags == [allowed]
    assert record.precision == ("TF32 allowed" if allowed else "float32")


# Where the GPU is at hand, the answers are compared before the engine has its name.


def nothing_but_the_model(plan: Path) -> bool:
    return sorted(path.name for path in plan.parent.iterdir()) == ["model.onnx"]


def test_an_engine_is_compared_with_its_model_before_it_is_written(product: Path, plan: Path, l4: Engines) -> None:
    result = run(product, "-o", plan, *ONE_CHIP, "--max", 4)
    assert result.exit_code == 0, result.output
    record = read_record(plan)
    assert "over 8 synthetic images" in record.compared
    assert f"Compared with {product}: {record.compared}\n" in result.output
    assert l4.plans == [plan.read_bytes()] * len(l4.plans), "what was compared is what was written"


def test_an_engine_with_other_answers_is_not_written_unless_told(product: Path, plan: Path, l4: Engines) -> None:
    right = l4.compute
    l4.compute = lambda pixels: 1 - right(pixels)
    message = refused(product, "-o", plan, *ONE_CHIP)
    assert "nothing was written: largest difference of a probability" in message
    assert "(budget of float16); add --force to write it anyway" in message
    assert nothing_but_the_model(plan)
    assert "over 8 synthetic images" in built(product, "-o", plan, *ONE_CHIP, "--force").compared


def test_the_budget_is_that_of_the_precision(product: Path, plan: Path, l4: Engines) -> None:
    right = l4.compute

    def slightly_off(pixels: np.ndarray) -> np.ndarray:
        answers = np.array(right(pixels))
        answers[0, 0] += 0.003
        return answers

    l4.compute = slightly_off
    assert built(product, "-o", plan, *ONE_CHIP).precision == "float16"
    plan.unlink()
    assert "(budget of float32)" in refused(product, "-o", plan, *ONE_CHIP, "--precision", "fp32")


def test_with_labels_the_loss_of_map_decides(product: Path, plan: Path, l4: Engines) -> None:
    photos = plan.parent / "photos"
    photos.mkdir()
    session, rows = l4.compute, ["path,labels"]
    pixels = synthetic_images(read_contract(product).input, 6)
    first = session(pixels)[:, 0]
    for index, picture in enumerate(pixels):
        PILImage.fromarray(picture).save(photos / f"{index}.png")
        rows.append(f"{index}.png,{LABELS[int(first[index] < np.median(first))]}")
    (photos / "labels.csv").write_text("\n".join(rows) + "\n", "utf-8")
    words = (product, "-o", plan, *ONE_CHIP, "--labels", photos / "labels.csv")
    assert "0.00 points of mAP lost" in built(*words).compared
    plan.unlink()
    l4.compute = lambda pixels: 1 - session(pixels)
    assert "nothing was written: mAP lost, in points," in refused(*words)
    assert "over 6 photographs" in built(*words, "--points", 100).compared


@pytest.mark.parametrize("trouble", ["loads", "starts"])
def test_an_engine_that_does_not_run_where_it_should_is_not_written_unless_told(
    product: Path, plan: Path, l4: Engines, trouble: str
) -> None:
    setattr(l4, trouble, False)
    message = refused(product, "-o", plan, *ONE_CHIP)
    assert "nothing was written, because the engine could not be compared with its model: tensorrt-rtx" in message
    assert nothing_but_the_model(plan)
    result = run(product, "-o", plan, *ONE_CHIP, "--force")
    assert f"Not compared with {product}: tensorrt-rtx" in result.output
    assert read_record(plan).compared == ""


def test_an_engine_for_another_gpu_is_written_and_said_not_to_be_compared(
    product: Path, plan: Path, l4: Engines
) -> None:
    result = run(product, "-o", plan, "--compute-capability", "12.0")
    assert result.exit_code == 0, result.output
    assert (
        f"Not compared with {product}: NVIDIA L4 has compute capability 8.9. "
        f"On the machine that will run it: mineral-export verify {product} {plan}\n"
    ) in result.output
    assert read_record(plan).compared == ""
    assert "execute" not in l4.cuda.log


def test_without_a_gpu_it_is_said_that_nothing_was_compared(product: Path, plan: Path) -> None:
    result = run(product, "-o", plan, *ONE_CHIP)
    assert f"Not compared with {product}: this machine has no GPU. On the machine that will run it: " in result.output


# An engine that is not the one that is wanted.


def opened(plan: Path) -> str:
    """Why the runtime refuses an engine, as one line."""
    with pytest.raises(BackendError) as caught:
        open_backend(plan, "tensorrt")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def engine(product: Path, plan: Path, ada: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For this GPU; the tests are in its folder, as is one who types the command that rebuilds it."""
    monkeypatch.chdir(plan.parent)
    built(product.name, "-o", plan, *ONE_CHIP, "--batch", 2, "--force")  # it cannot be compared here
    assert "CUDA does not start on GPU 0" in opened(plan), "all that is missing to run it"
    return plan


def _another_graph(plan: Path) -> None:
    path = plan.with_suffix(".onnx")
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((3 * SIDE**2, 3), np.float32), "weights"))
    onnx.save(model, path)


def _another_chip(plan: Path) -> None:
    built("model.onnx", "-o", plan, "--compute-capability", "12.0", "--batch", 2, "--force")


def _damage(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-100])


def _another_release(plan: Path) -> None:
    told = json.loads(sidecar_path(plan).read_text())
    sidecar_path(plan).write_text(json.dumps(told | {"version": "1.0.0.1"}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_another_graph, "was built from another model.onnx than the one beside it"),
        (_another_chip, "was built for compute capability 12.0, and NVIDIA L4 has 8.9"),
        (_damage, "is not the engine that model.plan.json describes, or it was damaged"),
        (_another_release, "was built by tensorrt-rtx 1.0.0.1, and tensorrt-rtx 1."),
    ],
)
def test_a_stale_or_foreign_engine_is_refused_and_the_command_named_builds_it_again(
    engine: Path, change: Callable[[Path], None], reason: str
) -> None:
    profile = read_record(engine).profile
    change(engine)
    message = opened(engine)
    assert reason in message
    command = shlex.split(message.partition("build it again: ")[2])
    assert command[:2] == ["mineral-export", "trt"]
    if change is _another_chip:  # it builds what was built; for this GPU it has another chip
        command[command.index("12.0")] = "8.9"
    built(*command[2:], "--force")
    assert "CUDA does not start on GPU 0" in opened(engine)
    assert read_record(engine).profile == profile


def test_other_thresholds_in_the_model_leave_the_engine_valid(engine: Path) -> None:
    source = engine.with_suffix(".onnx")
    write_contract(source, read_contract(source).with_thresholds([0.9] * 3))
    assert "CUDA does not start on GPU 0" in opened(engine)


def test_the_command_that_was_typed_is_the_one_that_is_named(
    product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["trt", str(product), "-o", str(plan), *ONE_CHIP, "--opt", "3"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mineral-export", *words])
    assert built(*words[1:3], plan, *words[4:]).rebuild == shlex.join(["mineral-export", *words])


def test_every_option_is_in_the_command_of_one_who_called_a_function(product: Path, plan: Path) -> None:
    options = Options(Profile(1, 2, 4), ("8.9", "12.0"), workspace=0.5)
    rebuild = export_engine(product, plan, options, precision="fp32").record.rebuild
    assert rebuild == (
        "mineral-export trt model.onnx -o model.plan --runtime tensorrt-rtx --min 1 --opt 2 --max 4 "
        "--compute-capability 8.9 --compute-capability 12.0 --workspace 0.5 --precision fp32"
    )


# What cannot be built.


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--compute-capability", "9.0"), "has no target for compute capability 9.0; it has 7.5, 8.0, 8.6, 8.9, 12.0"),
        ((*ONE_CHIP, "--hardware-compatible"), "name every chip that the engine is for with --compute-capability"),
        ((*ONE_CHIP, "--version-compatible"), "leave out --version-compatible"),
        ((*ONE_CHIP, "--timing-cache", "timings"), "times no kernels while it builds: leave out --timing-cache"),
        ((*ONE_CHIP, "-o", "model.onnx"), "end it in .plan or .engine"),
        ((*ONE_CHIP, "-o", "nowhere/model.plan"), "no such folder: nowhere"),
        ((*ONE_CHIP, "-o", "folder.plan"), "folder.plan is a folder: name a file with -o"),
        ((*ONE_CHIP, "-o", "described.plan"), "described.plan.json is a folder"),
    ],
)
def test_what_tensorrt_for_rtx_does_not_do_is_refused_at_once(
    product: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(product.parent)
    for folder in ("folder.plan", "described.plan.json"):
        Path(folder).mkdir()
    monkeypatch.setattr("mineral_export.precision.fp16.to_fp16", None)
    assert reason in refused(product, *words)
    assert [path.name for path in product.parent.iterdir() if path.is_file()] == ["model.onnx"]


def test_a_graph_that_tensorrt_does_not_take_is_told_in_its_words(product: Path, plan: Path) -> None:
    contract, model = read_contract(product), onnx.load(product)
    model.graph.node[-1].op_type = "NonZero"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, product)
    write_contract(product, contract)
    assert "Error: tensorrt-rtx " in refused(product, "-o", plan, *ONE_CHIP, "--precision", "as-is")
    assert not plan.exists()


def test_a_file_without_a_contract_is_refused(tmp_path: Path) -> None:
    assert "there is no model file" in refused(tmp_path / "none.onnx", *ONE_CHIP)
    (tmp_path / "other.onnx").write_bytes(b"\x08\x0a")
    assert "contract" in refused(tmp_path / "other.onnx", *ONE_CHIP)


# A machine where something is missing.


def test_without_a_gpu_the_chip_must_be_named(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mineral_export.precision.fp16.to_fp16", None)  # told before minutes of work
    message = refused(product)
    assert "no NVIDIA driver" in message
    assert "--compute-capability 8.9" in message


def test_tensorrt_itself_needs_a_gpu(product: Path, datacentre: ModuleType) -> None:
    message = refused(product)
    assert "tensorrt builds an engine by timing kernels on the GPU, and here is no NVIDIA driver" in message
    assert "--runtime tensorrt-rtx" in message


@pytest.mark.parametrize("wanted", [(), ("--runtime", "tensorrt"), ("--runtime", "tensorrt-rtx")])
def test_without_tensorrt_the_packages_are_named(
    product: Path, wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    message = refused(product, *ONE_CHIP, *wanted)
    assert f"{wanted[1] if wanted else 'TensorRT'} is not installed: pip install tensorrt-rtx" in message
    assert "pip install 'tensorrt>=10.12'" in message


@pytest.mark.parametrize("name", ["model.onnx", "model.plan"])
def test_predict_without_a_gpu_is_one_line(product: Path, plan: Path, name: str) -> None:
    built(product, "-o", plan, *ONE_CHIP)
    words = ["predict", str(plan.parent), "--model", str(plan.with_name(name)), "--backend", "tensorrt"]
    result = CliRunner().invoke(mineral_batch.cli.main, [*words, "-o", str(plan.with_name("out.csv"))])
    assert result.exit_code == 1
    assert result.output == (
        "Error: tensorrt needs an NVIDIA GPU: no NVIDIA driver (libcuda.so.1 does not load); "
        "install the NVIDIA driver, or use a machine that has one\n"
    )


# TensorRT itself is nowhere to be had without a GPU; these calls it shares with TensorRT for RTX.


@pytest.fixture
def datacentre(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """TensorRT for RTX under TensorRT's name and version, without the targets that only it has."""

    class Other(ModuleType):
        __version__ = "10.16.1.11"

        def __getattr__(self, name: str) -> Any:
            if name == "ComputeCapability":
                raise AttributeError(name)
            return getattr(tensorrt_rtx, name)

    module = Other("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def timing_gpu(datacentre: ModuleType, ada: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A build that believes in its GPU; the engine is not loaded to be inspected, which crashes without one."""
    monkeypatch.setattr(tensorrt_build, "engine_layers", lambda *_: None)
    original = tensorrt_build.Network._configured

    def for_ada(self: Any, *given: Any) -> Any:
        config, kept = original(self, *given)
        config.num_compute_capabilities = 1
        config.set_compute_capability(tensorrt_rtx.ComputeCapability.SM89, 0)
        return config, kept

    monkeypatch.setattr(tensorrt_build.Network, "_configured", for_ada)
    return


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_tensorrt_builds_for_the_gpu_of_the_machine_with_a_timing_cache(
    product: Path, plan: Path, timing_gpu: None
) -> None:
    timings = plan.with_name("timings")
    words = (product, "-o", plan, "--timing-cache", timings, "--hardware-compatible", "--batch", 2, "--force")
    record = built(*words)
    assert (record.runtime, record.version) == ("tensorrt", "10.16.1.11")
    assert (record.gpu, record.cuda, record.compute_capabilities) == ("NVIDIA L4", "13.0", ("8.9",))
    assert record.hardware_compatible
    assert timings.stat().st_size > 0
    assert built(*words).precision == "float16"
    assert "leave out --compute-capability" in refused(product, *ONE_CHIP)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_that_tensorrt_refuses_is_not_overwritten(
    product: Path, plan: Path, timing_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings = plan.with_name("timings")
    timings.write_bytes(b"of another GPU")
    original = tensorrt_rtx.Builder.create_builder_config

    class Strict:
        """Its configuration with TensorRT's answer to a cache of another GPU; TensorRT for RTX takes any."""

        def __init__(self, config: Any) -> None:
            object.__setattr__(self, "_config", config)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._config, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(self._config, name, value)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            return False

    monkeypatch.setattr(tensorrt_rtx.Builder, "create_builder_config", lambda self: Strict(original(self)))
    message = refused(product, "-o", plan, "--timing-cache", timings)
    assert f"{timings} is no timing cache of this TensorRT and GPU: delete it" in message
    assert timings.read_bytes() == b"of another GPU"
    assert not plan.exists()


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_that_cannot_be_written_costs_a_warning(
    product: Path, plan: Path, timing_gpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="mineral_batch"):  # whatever a library has done to the root's level
        built(product, "-o", plan, "--timing-cache", plan.parent / "nowhere" / "timings", "--force")
    assert "cannot write the timing cache" in caplog.text


@pytest.mark.slow
def test_the_papers_model_whole(tmp_path: Path) -> None:
    """A minute of one core."""
    with TemporaryDirectory(dir=tmp_path) as folder:  # 1.3 GB, not to be kept with pytest's other folders
        require_fp16_engine(_paper(Path(folder)))
