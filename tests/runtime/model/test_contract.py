"""The contract: it survives JSON, and refuses what contradicts itself with a line that says what to change."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mineral_batch import MINERALS, ContractError, InputSpec, Measured, ModelContract
from mineral_batch.model import contract as contract_module
from mineral_batch.model.calibration import calibrate_command
from mineral_batch.model.contract import Numerics

names = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters=";\r\n"), min_size=1)
    .map(str.strip)
    .filter(bool)
)
unit = st.floats(0, 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def contracts(draw: st.DrawFn) -> ModelContract:
    labels = tuple(
        draw(st.lists(names.filter(lambda name: len(name.splitlines()) == 1), min_size=1, max_size=8, unique=True))
    )
    spec = InputSpec(
        height=draw(st.integers(1, 8192)),
        width=draw(st.integers(1, 8192)),
        resize=draw(st.sampled_from(["squash", "crop"])),
        interpolation=draw(st.sampled_from(["bilinear", "bicubic"])),
        mean=draw(st.tuples(unit, unit, unit)),
        std=draw(st.tuples(*[st.floats(1e-3, 10)] * 3)),
    )
    measured = Measured(
        mean_ap=draw(unit),
        definition="equation 6",
        dataset=draw(st.text()),
        images=draw(st.integers(1, 10**9)),
        ap={label: draw(st.none() | unit) for label in labels},
        support={label: draw(st.integers(0, 1000)) for label in labels},
        low=draw(st.none() | unit),
    )
    return ModelContract(
        labels=labels,
        thresholds=tuple(draw(st.lists(unit, min_size=len(labels), max_size=len(labels)))),
        input=spec,
        name=draw(st.text()),
        license=draw(st.text()),
        provenance=draw(st.dictionaries(st.text(), json_values, max_size=3)),
        measured=draw(st.none() | st.just(measured)),
    )


def record(**changes: Any) -> dict[str, Any]:
    """A good contract's JSON object, with some fields changed; `input.x` reaches inside."""
    good = json.loads(ModelContract(labels=("agate", "gold"), thresholds=(0.5, 0.5)).to_json())
    for name, value in changes.items():
        where, _, inner = name.partition("__")
        if inner:
            good[where][inner] = value
        else:
            good[where] = value
    return good


@given(contracts())
def test_json_there_and_back(contract: ModelContract) -> None:
    text = contract.to_json()
    assert len(text.splitlines()) == 1 or "\n" not in text
    assert ModelContract.from_json(text) == contract
    assert ModelContract.from_json(text.encode("utf-8", "surrogatepass")) == contract


def test_labels_beyond_ascii_and_commas_stay_readable() -> None:
    contract = ModelContract(labels=("Größe, groß", "翡翠", "💎"), thresholds=(0, 0.5, 1))
    assert "翡翠" in contract.to_json()
    assert ModelContract.from_json(contract.to_json()).labels == ("Größe, groß", "翡翠", "💎")


def test_the_papers_minerals_are_the_canonical_labels() -> None:
    contract = ModelContract(labels=MINERALS, thresholds=(0.5,) * 36)
    assert len(contract.labels) == 36
    assert list(MINERALS) == sorted(MINERALS)
    assert contract.input == InputSpec(384, 384, "squash")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": []}, "at least one"),
        ({"labels": "agate"}, "list"),
        ({"labels": ["agate", "agate"]}, "agate"),
        ({"labels": ["agate", ""]}, "empty"),
        ({"labels": ["agate", " gold"]}, "padded"),
        ({"labels": ["agate", "fool;s gold"]}, "';'"),
        ({"labels": ["agate", "go\nld"]}, "line break"),
        ({"labels": ["agate", 7]}, "7"),
        ({"thresholds": [0.5]}, "needs 2 numbers"),
        ({"thresholds": [0.5, 1.5]}, "0 to 1"),
        ({"thresholds": [0.5, -0.1]}, "0 to 1"),
        ({"thresholds": [0.5, "0.5"]}, "finite numbers"),
        ({"thresholds": [0.5, True]}, "finite numbers"),
        ({"thresholds": [0.5, 10**400]}, "thresholds"),
        ({"input": None}, "input"),
        ({"input": []}, "input must be a JSON object"),
        ({"input__height": 0}, "input.height"),
        ({"input__width": 8193}, "input.width"),
        ({"input__width": 32.0}, "input.width"),
        ({"input__width": True}, "input.width"),
        ({"input__resize": "stretch"}, "squash, crop"),
        ({"input__interpolation": ["bicubic"]}, "bilinear, bicubic"),
        ({"input__mean": [0.5, 0.5]}, "needs 3 numbers"),
        ({"input__std": [0.5, 0.5, 0]}, "above 0"),
        ({"input__color": "BGR"}, "color"),
        ({"measured": {"mean_ap": 0.5}}, "it lacks "),
        ({"measured": {"mean_ap": 2, "definition": "x", "dataset": "x", "images": 1}}, "mean_ap"),
        ({"measured": {"mean_ap": "high", "definition": "x", "dataset": "x", "images": 1}}, "contract.measured"),
        ({"measured": {"mean_ap": 0.5, "definition": "", "dataset": "x", "images": 1}}, "definition"),
        ({"measured": {"mean_ap": 0.5, "definition": "x", "dataset": "x", "images": 0}}, "images"),
        ({"schema_version": 3}, "schema version 3"),
        ({"sigmoid": False}, "sigmoid"),
        ({"name": None}, "name"),
        ({"license": 7}, "license"),
        ({"provenance": []}, "provenance"),
        ({"measured": {"mean_ap": 1, "definition": "x", "dataset": "x", "images": 1, "ap": []}}, "measured.ap"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ContractError, match=said) as caught:
        ModelContract.from_json(json.dumps(record(**changes)))
    assert len(str(caught.value).splitlines()) == 1


def calibration(**changes: Any) -> dict[str, Any]:
    """The JSON record of a good calibration of two labels, with some fields changed."""
    scores = {"ece": 0.3, "log_loss": 0.4, "brier": 0.1}
    good = {"method": "Platt", "dataset": "val", "images": 40, "date": "2026-01-02", "scale": [0.5, 1], "bias": [0, -3]}
    return {**good, "positives": [7, 0], "before": scores, "after": scores, **changes}


def test_a_calibration_travels_with_the_contract() -> None:
    contract = ModelContract.from_json(json.dumps(record(calibration=calibration())))
    assert contract.is_calibrated
    assert contract.calibration is not None
    assert contract.calibration.prevalence == (7 / 40, 0)
    assert contract.calibration.scale == (0.5, 1.0)
    assert ModelContract.from_json(contract.to_json()) == contract


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": [0.5]}, "calibration.bias needs 1 numbers"),
        ({"scale": [0.5, 0]}, "scale must be above 0"),
        ({"scale": [1, 1, 1], "bias": [0, 0, 0], "positives": [0, 0, 0]}, "calibration.scale needs 2 numbers"),
        ({"scale": None}, "scale must be numbers"),
        ({"bias": [0, float("inf")]}, "finite"),
        ({"images": 0}, "images must be above 0"),
        ({"positives": [41, 0]}, "positives must be 0 to 40"),
        ({"before": {"ece": 0}}, "it lacks "),
        ({"color": 1}, "color"),
    ],
)
def test_a_wrong_calibration_is_named_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ContractError, match=said) as caught:
        ModelContract.from_json(json.dumps(record(calibration=calibration(**changes))))
    assert "\n" not in str(caught.value)


def test_a_contract_of_version_1_is_read_as_one_of_an_uncalibrated_model() -> None:
    old = record(schema_version=1)
    del old["calibration"]
    contract = ModelContract.from_json(json.dumps(old))
    assert not contract.is_calibrated
    assert contract.schema_version == 2


def test_the_command_that_calibrates_names_what_can_be_calibrated() -> None:
    assert calibrate_command("runs/mine") == "mineral-train calibrate runs/mine MANIFEST.csv --split val"
    assert calibrate_command("model.plan").endswith(
        "MODEL.onnx MANIFEST.csv --split val, then mineral-export trt MODEL.onnx"
    )


@pytest.mark.parametrize("missing", ["labels", "thresholds"])
def test_a_missing_field_is_named(missing: str) -> None:
    incomplete = record()
    del incomplete[missing]
    with pytest.raises(ContractError, match=missing):
        ModelContract.from_json(json.dumps(incomplete))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", b"\xff\xfe\x00", '{"labels": NaN}'])
def test_what_is_not_a_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(ContractError):
        ModelContract.from_json(text)


@given(json_values | st.dictionaries(st.sampled_from(sorted(record())), json_values))
def test_any_json_is_a_contract_or_a_contract_error(value: Any) -> None:
    try:
        contract = ModelContract.from_json(json.dumps(value))
    except ContractError:
        return
    assert len(contract.labels) == len(contract.thresholds)


def test_other_thresholds_are_checked_too() -> None:
    contract = ModelContract(labels=("agate", "gold"), thresholds=(0.5, 0.5))
    assert contract.with_thresholds([0.1, 0.2]).thresholds == (0.1, 0.2)
    assert contract.thresholds == (0.5, 0.5)
    with pytest.raises(ContractError):
        contract.with_thresholds([0.1])


def test_lists_from_json_become_tuples() -> None:
    contract = ModelContract.from_json(json.dumps(record()))
    assert isinstance(contract.labels, tuple)
    assert isinstance(contract.input.mean, tuple)
    assert hash(contract.input) == hash(InputSpec())
    assert asdict(contract)["labels"] == ("agate", "gold")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, Numerics()),
        ({"precision": "float16"}, Numerics("float16")),
        ({"precision": "int8", "unquantised": "float16"}, Numerics("int8", "float16")),
    ],
)
def test_files_from_before_numerics_was_a_field_say_it_in_their_provenance(
    facts: dict[str, str], expected: Numerics
) -> None:
    record = json.loads(ModelContract(labels=("a",), thresholds=(0.5,), provenance={"recipe": 1, **facts}).to_json())
    del record["numerics"]
    contract = ModelContract.from_json(json.dumps(record))
    assert (contract.numerics, contract.provenance) == (expected, {"recipe": 1})
    assert ModelContract.from_json(contract.to_json()) == contract


def test_a_file_that_says_licence_is_read() -> None:
    """The field's name in files of before 0.2, the starter's among them."""
    text = ModelContract(labels=("a",), thresholds=(0.5,), license="CC0-1.0").to_json()
    assert ModelContract.from_json(text.replace('"license"', '"licence"')).license == "CC0-1.0"


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ContractError, match=r"numerics.precision must be one of .*float16.*got 'fp16'"):
        Numerics("fp16")


def test_as_many_labels_as_are_allowed_are_read_and_more_are_refused() -> None:
    """A check of each label against all others would take minutes here."""
    count = contract_module.MAX_LABELS
    labels = tuple(f"label {number}" for number in range(count))
    contract = ModelContract(labels=labels, thresholds=(0.5,) * count)
    assert ModelContract.from_json(contract.to_json()).labels == labels
    with pytest.raises(ContractError, match=f"{count + 1} labels are too many"):
        ModelContract(labels=(*labels, "one more"), thresholds=(0.5,) * (count + 1))
    with pytest.raises(ContractError, match=r"come twice: \['label 7'\]"):
        ModelContract(labels=(*labels[:-1], "label 7"), thresholds=(0.5,) * count)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "is not JSON"),
        (json.dumps({"labels": ["\ud800"], "thresholds": [0.5]}), "half a surrogate pair"),
        (json.dumps({"labels": ["a"], "thresholds": [0.5], "name": "\udfff"}), "half a surrogate pair"),
        (json.dumps({"labels": ["a\u2028b"], "thresholds": [0.5]}), "a line break"),
    ],
    ids=["deep", "label", "name", "line separator"],
)
def test_a_hostile_contract_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        ModelContract.from_json(text)
    assert len(str(caught.value).splitlines()) == 1
    str(caught.value).encode()
