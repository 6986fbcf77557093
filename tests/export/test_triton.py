"""The model repository, read by Triton's own schema."""

from __future__ import annotations

import json
from dataclasses import replace

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from mineral_batch.model.contract import InputSpec, ModelContract, Numerics
from mineral_batch.model.onnx_file import write_contract
from mineral_export.cli import main

LABELS = ("quartz", 'the "fool\'s" gold', "Рубин\\n")
CONTRACT = ModelContract(LABELS, (0.1, 0.5, 0.9), InputSpec(48, 64), name='a "model"\nof two lines')


@pytest.fixture
def model(tmp_path):
    """A graph that is never run: the repository needs its contract."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixels"], ["probabilities"])],
        "g",
        [value("pixels", TensorProto.UINT8, ["N", 48, 64, 3])],
        [value("probabilities", TensorProto.UINT8, None)],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path)
    write_contract(path, CONTRACT)
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["triton", *map(str, arguments)])


def parsed(path):
    text_format = pytest.importorskip("google.protobuf.text_format")
    schema = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="Triton's schema comes with tritonclient[grpc]"
    )
    return text_format.Parse(path.read_text("utf-8"), schema.ModelConfig()), schema


def test_the_repository_has_the_layout_that_the_server_reads(model, tmp_path):
    done = run(tmp_path / "repository", "-m", model, "--name", "minerals-v1")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "repository" / "minerals-v1"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "labels.txt", "1/model.onnx"}
    assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert tuple((folder / "labels.txt").read_text("utf-8").splitlines()) == LABELS


def test_the_configuration_is_valid_by_tritons_schema(model, tmp_path):
    run(tmp_path / "r", "-m", model, "--max-batch", 16, "--delay", 250, "--instances", 2, "--kind", "cpu")
    config, schema = parsed(tmp_path / "r" / "minerals" / "config.pbtxt")
    assert (config.name, config.platform, config.max_batch_size) == ("minerals", "onnxruntime_onnx", 16)
    (pixels,), (probabilities,) = config.input, config.output
    assert (pixels.name, pixels.data_type, list(pixels.dims)) == ("pixels", schema.TYPE_UINT8, [48, 64, 3])
    assert (probabilities.name, probabilities.data_type) == ("probabilities", schema.TYPE_FP32)
    assert (list(probabilities.dims), probabilities.label_filename) == ([3], "labels.txt")
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    (group,) = config.instance_group
    assert (group.kind, group.count) == (schema.ModelInstanceGroup.KIND_CPU, 2)


def test_the_contract_reaches_clients_unchanged(model, tmp_path):
    run(tmp_path / "r", "-m", model)
    config, _ = parsed(tmp_path / "r" / "minerals" / "config.pbtxt")
    assert ModelContract.from_json(config.parameters["mineral.contract"].string_value) == CONTRACT


def write_engine(tmp_path, smallest, largest, runtime="tensorrt"):
    from mineral_batch.engines.tensorrt import plan as engines

    record = engines.EngineRecord(
        contract=replace(CONTRACT, name="engine"), source="model.onnx", onnx_sha256="", engine_sha256="",
        runtime=runtime, version="", cuda="", gpu="", compute_capabilities=(), precision="float16", products={},
        layers={}, layers_from="", profile=engines.Profile(smallest, smallest, largest), inputs={}, outputs={},
        rebuild="",
    )  # fmt: skip
    engines.write_engine(tmp_path / "model.plan", b"plan", record)
    return tmp_path / "model.plan"


def test_an_engine_is_served_as_a_plan(tmp_path):
    assert run(tmp_path / "r", "-m", write_engine(tmp_path, 1, 64)).exit_code == 0
    config, _ = parsed(tmp_path / "r" / "minerals" / "config.pbtxt")
    assert config.platform == "tensorrt_plan"
    assert (tmp_path / "r" / "minerals" / "1" / "model.plan").read_bytes() == b"plan"


@pytest.mark.parametrize(("smallest", "largest"), [(8, 64), (1, 32)])
def test_an_engine_that_does_not_take_the_servers_batches_is_refused(tmp_path, smallest, largest):
    done = run(tmp_path / "r", "-m", write_engine(tmp_path, smallest, largest))
    assert done.exit_code == 1
    assert f"takes {smallest} to {largest} images at once" in done.output
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("numerics", [Numerics("int8", "float16"), Numerics("float8")])
def test_a_file_that_the_servers_onnx_runtime_computes_wrongly_is_refused(model, tmp_path, numerics):
    write_contract(model, replace(CONTRACT, numerics=numerics))
    done = run(tmp_path / "r", "-m", model)
    assert done.exit_code == 1
    assert f"serve its TensorRT engine (mineral-export trt {model} --precision as-is)" in done.output
    assert not (tmp_path / "r").exists()
    write_contract(model, replace(CONTRACT, numerics=Numerics("int8", "float32")))
    assert run(tmp_path / "r", "-m", model).exit_code == 0


def test_an_engine_of_tensorrt_for_rtx_is_refused(tmp_path):
    done = run(tmp_path / "r", "-m", write_engine(tmp_path, 1, 64, runtime="tensorrt-rtx"))
    assert done.exit_code == 1
    assert "is an engine of tensorrt-rtx; the server loads those of tensorrt" in done.output


def test_what_is_there_is_not_overwritten(model, tmp_path):
    (tmp_path / "r" / "minerals").mkdir(parents=True)
    done = run(tmp_path / "r", "-m", model)
    assert done.exit_code == 1
    assert "exists already" in done.output
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["minerals"]


@pytest.mark.parametrize("name", ["a/b", "..", "", "ä"])
def test_a_name_that_is_no_folder_in_the_repository_is_refused(model, tmp_path, name):
    done = run(tmp_path / "r", "-m", model, "--name", name)
    assert done.exit_code == 1
    assert "is not a valid model name" in done.output
    assert json.dumps(name, ensure_ascii=False).strip('"') in done.output
