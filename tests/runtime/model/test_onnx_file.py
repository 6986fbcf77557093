"""The metadata of ONNX files, judged by the onnx package."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mineral_batch.errors import ContractError
from mineral_batch.model import onnx_file as _onnx_file
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.onnx_file import (
    CONTRACT_KEY,
    Node,
    read_contract,
    read_graph,
    read_metadata,
    with_outputs,
    write_contract,
    write_metadata,
)

CONTRACT = ModelContract(labels=("azurite", "grün, or not", "辰砂"), thresholds=(0.5, 0.25, 1.0), name="tiny")

# Unicode without lone surrogates, which have no UTF-8 form.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
ENTRIES = st.dictionaries(TEXT, TEXT, max_size=5)


def model(metadata=None, weights=100):
    """A valid graph with an initializer, every optional top-level text, and two opset imports."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "graph",
        [value("x", TensorProto.FLOAT, [weights])],
        [value("y", TensorProto.FLOAT, [weights])],
        [helper.make_tensor("w", TensorProto.FLOAT, [weights], [0.25] * weights)],
    )
    made = helper.make_model(
        graph,
        producer_name="a test",
        doc_string="text",
        model_version=2**40,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
        ir_version=9,
    )
    helper.set_model_props(made, metadata or {})
    return made


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "model.onnx"
    onnx.save(model({"author": "somebody"}), file)
    return file


def props(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=ENTRIES, entries=ENTRIES)
def test_what_is_written_is_what_the_onnx_package_reads(path, before, entries):
    onnx.save(model(before), path)
    assert read_metadata(path) == before
    write_metadata(path, entries)
    assert props(path) == read_metadata(path) == before | entries
    after = onnx.load(path)
    onnx.checker.check_model(after, full_check=True)
    # With the metadata taken away, every byte is as it was.
    del after.metadata_props[:]
    assert after.SerializeToString() == model().SerializeToString()


def test_the_other_bytes_are_copied_and_not_serialized_anew(path):
    # A second graph field is legal protobuf (the two are merged), and no serializer would write it so.
    odd = model().SerializeToString() + b"\x3a\x02\x12\x00" + b"\x72\x08\x0a\x01k\x12\x03old"
    path.write_bytes(odd)
    write_metadata(path, {"k": "new"})
    assert path.read_bytes() == odd.removesuffix(b"\x72\x08\x0a\x01k\x12\x03old") + b"\x72\x08\x0a\x01k\x12\x03new"


def test_a_replaced_key_is_there_once_and_the_others_stay(path):
    for value in ("first", "second"):
        write_metadata(path, {"key": value})
    assert [(e.key, e.value) for e in onnx.load(path).metadata_props] == [("author", "somebody"), ("key", "second")]


def test_the_contract_survives_unicode_and_commas(path):
    write_contract(path, CONTRACT)
    assert read_contract(path) == CONTRACT
    assert ModelContract.from_json(props(path)[CONTRACT_KEY]) == CONTRACT
    assert props(path)["author"] == "somebody"
    tuned = CONTRACT.with_thresholds([0.1, 0.2, 0.3])
    write_contract(path, tuned)
    assert read_contract(path) == tuned


def test_a_file_without_a_contract_says_how_to_get_one(path):
    with pytest.raises(ContractError, match=r"model\.onnx .*without a contract.*mineral-export onnx"):
        read_contract(path)


def test_a_bad_contract_names_the_file(path):
    write_metadata(path, {CONTRACT_KEY: "{"})
    with pytest.raises(ContractError, match=r"model\.onnx: .*not JSON"):
        read_contract(path)


def test_every_truncation_is_noticed(path):
    whole = model().SerializeToString()  # without metadata: its last field is an opset import
    end_of_graph = whole.index(helper.make_opsetid("", 17).SerializeToString()) - 2
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        # Cut between two opset imports the file is a valid ONNX model; before them it is not.
        cut_is_visible = size <= end_of_graph or size not in boundaries(whole)
        if cut_is_visible:
            with pytest.raises(ContractError, match=r"not (an ONNX file|a complete ONNX model)") as caught:
                read_metadata(path)
            assert "\n" not in str(caught.value)
        else:
            read_metadata(path)


def boundaries(whole):
    """Where a top-level field ends, by the sizes that the onnx package can parse."""
    found = set()
    for size in range(len(whole) + 1):
        try:
            onnx.ModelProto.FromString(whole[:size])
        except Exception:
            continue
        found.add(size)
    return found


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html><title>404</title>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"\x80" * 64,
        b"PK\x03\x04" + bytes(64),
        helper.make_tensor("t", TensorProto.FLOAT, [2], [1.0, 2.0]).SerializeToString(),
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(20),
    ],
    ids=["empty", "web page", "lfs pointer", "endless number", "zip", "another message", "huge length"],
)
def test_what_is_not_onnx_is_refused_in_one_line_and_left_alone(path, content):
    path.write_bytes(content)
    for attempt in (read_metadata, read_contract, lambda p: write_contract(p, CONTRACT)):
        with pytest.raises(
            ContractError, match=r"model\.onnx is not an? (ONNX file|complete ONNX model \([^\n]+\)): [^\n]+$"
        ):
            attempt(path)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_raise_anything_but_a_contract_error(path, content):
    path.write_bytes(content)
    with pytest.raises(ContractError):
        read_contract(path)


def test_metadata_that_is_not_utf8_is_refused(path):
    path.write_bytes(model().SerializeToString() + b"\x72\x03\x0a\x01\xff")
    with pytest.raises(ContractError, match="not UTF-8"):
        read_metadata(path)


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    with pytest.raises(ContractError, match="there is no model file"):
        read_metadata(tmp_path / "none.onnx")
    with pytest.raises(ContractError, match="cannot read or write the model file"):
        read_metadata(tmp_path)


def test_the_graph_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "big.onnx"
    onnx.save(model({"k": "v"}, weights=1_000_000), path)  # 4 MB
    read = 0
    fields = _onnx_file.fields

    class Counting:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, size):
            nonlocal read
            read += size
            return self.file.read(size)

    monkeypatch.setattr(_onnx_file, "fields", lambda file, start, stop: fields(Counting(file), start, stop))
    assert read_metadata(path) == {"k": "v"}
    assert 0 < read < 200


def test_the_nodes_and_outputs_are_those_of_the_graph(path):
    assert read_graph(path) == ([Node("Add", ("x", "w"), ("y",))], ["y"])


def test_values_become_outputs_behind_those_that_are_there(path):
    made = onnx.load_from_string(with_outputs(path, ["w", "x"]))
    assert [one.name for one in made.graph.output] == ["y", "w", "x"]
    del made.graph.output[1:]
    assert made == onnx.load(path)


def test_a_graph_that_is_cut_short_is_one_line(tmp_path):
    path = tmp_path / "cut.onnx"
    made = model()
    inner = made.graph.SerializeToString()
    del made.graph.node[:]
    path.write_bytes(made.SerializeToString() + bytes([7 << 3 | 2, 4]) + inner[:4])
    with pytest.raises(ContractError, match="is not a complete ONNX model"):
        read_graph(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_onnx_file, "_copy", full)
    with pytest.raises(ContractError, match="No space left on device"):
        write_metadata(path, {"k": "v"})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and links")
def test_permissions_and_links_stay(path):
    path.chmod(0o640)
    link = path.with_name("link.onnx")
    link.symlink_to(path.name)
    write_metadata(link, {"k": "v"})
    assert link.is_symlink()
    assert read_metadata(path)["k"] == "v"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_neither_onnx_nor_protobuf_is_imported(path):
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['onnx', 'google.protobuf', 'onnxruntime', 'torch']));"
        f"from mineral_batch.model.onnx_file import read_metadata; print(read_metadata({str(path)!r}))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "{'author': 'somebody'}"
