"""What a model file says about itself, so that no caller has to guess.

A `ModelContract` travels with the weights: as JSON in a checkpoint's `config.json`, and inside the ONNX file
(`metadata_props["mineral.contract"]`). It is checked whenever one is made, and a bad one is refused with a line
that says what to change.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from mineral_batch.errors import ContractError, plain_reason
from mineral_batch.model.calibration import Calibration
from mineral_batch.model.checks import floats, is_fraction, is_int, require, require_one_of

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Version 2 has `calibration`. A record of version 1 is read as one of a model that is not calibrated.
#: Each label is a column of the tables.
MAX_LABELS = 100_000
SCHEMA_VERSION = 2

#: What the matrix products of a model file can be stored in.
STORED_PRECISIONS = ("float32", "float16", "bfloat16", "int8", "float8")

Resize = Literal["squash", "crop"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes the model's input; the same object drives training and deployment.

    Attributes:
        height: rows of the input, pixels.
        width: columns of the input, pixels.
        resize: `squash` changes the aspect ratio (the paper's rule: "resized to 384 x 384"); `crop` scales until
            the image covers the input and keeps the center.
        interpolation: the resampling filter, always with antialiasing.
        mean: per channel (R, G, B) on the 0..1 scale; the graph computes `(pixels / 255 - mean) / std`.
        std: per channel (R, G, B) on the 0..1 scale.
    """

    height: int = 384
    width: int = 384
    resize: Resize = "squash"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image's pixels: (height, width, 3)."""
        return self.height, self.width, 3

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            require(is_int(value) and 1 <= value <= 8192, f"input.{name} must be 1 to 8192 pixels, got {value!r}")
        require_one_of("input.resize", self.resize, get_args(Resize))
        require_one_of("input.interpolation", self.interpolation, get_args(Interpolation))
        for name in ("mean", "std"):
            object.__setattr__(self, name, floats(f"input.{name}", getattr(self, name), 3))
        require(all(s > 0 for s in self.std), f"input.std must be above 0, got {list(self.std)}")


@dataclass(frozen=True)
class Numerics:
    """The number formats of a model file's graph. Engines choose their options by it.

    Attributes:
        precision: of the matrix products: one of `STORED_PRECISIONS`.
        unquantized: of everything else in a graph of 8 bits: `float32` or `float16`.
    """

    precision: str = "float32"
    unquantized: str = "float32"

    def __post_init__(self) -> None:
        require_one_of("numerics.precision", self.precision, STORED_PRECISIONS)
        require_one_of("numerics.unquantized", self.unquantized, ("float32", "float16"))

    @property
    def is_quantized(self) -> bool:
        """Whether the matrix products are of 8 bits."""
        return self.precision in ("int8", "float8")

    @property
    def has_float16(self) -> bool:
        """Whether the file itself says which of its tensors are float16."""
        return self.precision == "float16" or (self.is_quantized and self.unquantized == "float16")

    def __str__(self) -> str:
        return f"{self.precision}, the rest in {self.unquantized}" if self.is_quantized else self.precision


@dataclass(frozen=True)
class Measured:
    """One accuracy figure with the conditions it was measured under.

    Attributes:
        mean_ap: mean average precision, 0..1.
        definition: the name of the definition of AP that was used.
        dataset: what it was measured on, in words.
        images: how many images that was.
        ap: average precision per label, 0..1, None for a label with no positive image.
        support: positive images per label.
        low: lower end of the 95% bootstrap interval of `mean_ap`, None if not computed.
        high: its upper end.
    """

    mean_ap: float
    definition: str
    dataset: str
    images: int
    ap: Mapping[str, float | None] = field(default_factory=dict)
    support: Mapping[str, int] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        require(is_fraction(self.mean_ap), f"measured.mean_ap must be 0 to 1, got {self.mean_ap!r}")
        require(bool(self.definition), "measured.definition is empty: a figure needs its definition")
        for name in ("ap", "support"):
            value = getattr(self, name)
            require(isinstance(value, Mapping), f"measured.{name} must be one number per label, got {value!r}")
        require(is_int(self.images) and self.images > 0, f"measured.images must be above 0, got {self.images!r}")


@dataclass(frozen=True)
class Familiarity:
    """What the graph's output `familiarity` is (see `mineral_batch.model.familiarity`).

    Attributes:
        method: its name and source.
        dataset: the images that it was fitted on, in words.
        images: how many.
    """

    method: str
    dataset: str
    images: int

    def __post_init__(self) -> None:
        require(is_int(self.images) and self.images > 0, f"familiarity.images must be above 0, got {self.images!r}")


@dataclass(frozen=True)
class ModelContract:
    """Everything a runtime must know to use a model's weights rightly.

    Attributes:
        labels: L distinct names, in the order of the model's outputs. Any Unicode text without a line break,
            and without `;`, which separates labels in tables.
        thresholds: L probabilities; a label is called present at or above its own.
        input: how an image becomes the input.
        name: what to call the model to a user.
        license: SPDX expression or a sentence; empty when unknown.
        numerics: the number formats of the file's graph.
        provenance: free facts about the making: recipe, data, versions, date, source checkpoint.
        measured: accuracy on held-out data, None when never measured.
        calibration: how the probabilities were calibrated, None if they were not.
        familiarity: what the graph's output `familiarity` is, None if it has none.
        schema_version: of this record.

    Raises:
        ContractError: when two fields contradict each other or a value is out of its range.
    """

    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    input: InputSpec = field(default_factory=InputSpec)
    name: str = "unnamed"
    license: str = ""
    numerics: Numerics = field(default_factory=Numerics)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    measured: Measured | None = None
    calibration: Calibration | None = None
    familiarity: Familiarity | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require(
            self.schema_version == SCHEMA_VERSION,
            f"the model's contract has schema version {self.schema_version!r}; this program reads version "
            f"{SCHEMA_VERSION}: install the mineral-batch release that made the model, or export it again",
        )
        object.__setattr__(self, "labels", _checked_labels(self.labels))
        object.__setattr__(self, "thresholds", floats("thresholds", self.thresholds, len(self.labels)))
        outside = [t for t in self.thresholds if not is_fraction(t)]
        require(not outside, f"thresholds must be 0 to 1, got {outside[:3]}")
        for name, kind in _FIELD_TYPES.items():
            value = getattr(self, name)
            require(isinstance(value, kind), f"{name} must be of type {kind.__name__}, got {value!r}")

        if self.calibration is not None:
            floats("calibration.scale", self.calibration.scale, len(self.labels))

    @property
    def is_calibrated(self) -> bool:
        """Whether a probability means how often such an answer is right."""
        return self.calibration is not None

    def with_thresholds(self, thresholds: Sequence[float]) -> ModelContract:
        """The same contract with other thresholds."""
        return replace(self, thresholds=tuple(thresholds))

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to an equal contract."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelContract:
        """Read and check a contract.

        Raises:
            ContractError: naming the field that is missing, unknown or wrong.
        """
        try:
            record = json.loads(text)
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ContractError("the model's contract holds half a surrogate pair: export the model again") from None
        except (ValueError, RecursionError) as error:
            raise ContractError(
                f"the model's contract is not JSON ({plain_reason(error)}): export the model again"
            ) from None
        nested = {"input": InputSpec, "measured": Measured, "numerics": Numerics, "familiarity": Familiarity}
        contract: ModelContract = _build(cls, _upgraded(_with_numerics(record)), "contract", nested)
        return contract


_FIELD_TYPES = {"input": InputSpec, "name": str, "license": str, "numerics": Numerics, "provenance": Mapping}


def _upgraded(record: Any) -> Any:
    """An older record as one of this version, and the nested record of the calibration read."""
    if not isinstance(record, dict):
        return record
    if "licence" in record:  # the field's name in files of before 0.2
        record = {"license" if name == "licence" else name: value for name, value in record.items()}
    version = record.get("schema_version")
    if version == 1 and "calibration" not in record:
        record = {**record, "schema_version": SCHEMA_VERSION}
    if record.get("calibration") is not None:
        record = {**record, "calibration": Calibration.from_record(record["calibration"])}
    return record


def _with_numerics(record: Any) -> Any:
    """The record with `numerics`, which files written before that field existed have among their provenance."""
    if not isinstance(record, dict) or "numerics" in record:
        return record
    facts = record.get("provenance")
    if not isinstance(facts, Mapping):
        return record
    numerics = {"precision": facts.get("precision", "float32"), "unquantized": facts.get("unquantised", "float32")}
    rest = {key: value for key, value in facts.items() if key not in ("precision", "unquantised")}
    return {**record, "numerics": numerics, "provenance": rest}


def _build(kind: type[Any], record: Any, where: str, nested: Mapping[str, type[Any]]) -> Any:
    """A dataclass from a JSON object; nested ones by the table; unknown and missing names are errors."""
    require(isinstance(record, dict), f"{where} must be a JSON object, got {type(record).__name__}")
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(record) - known)
    require(not unknown, f"{where} has unknown fields {unknown}; known are {sorted(known)}")
    values = {
        name: _build(nested[name], value, f"{where}.{name}", {}) if name in nested and value is not None else value
        for name, value in record.items()
    }
    try:
        return kind(**values)
    except TypeError as error:
        raise ContractError(f"{where} is incomplete or of the wrong type: {plain_reason(error)}") from None


def _checked_labels(labels: Any) -> tuple[str, ...]:
    require(isinstance(labels, (list, tuple)) and len(labels) > 0, "labels must be a list of at least one name")
    require(len(labels) <= MAX_LABELS, f"{len(labels)} labels are too many: a table has at most {MAX_LABELS} columns")
    for label in labels:
        require(
            isinstance(label, str) and label.strip() == label != "",
            f"label {label!r} is empty or padded text",
        )
        is_line = ";" not in label and len(label.splitlines()) == 1
        require(is_line, f"label {label!r} contains ';' or a line break")
    if len(set(labels)) < len(labels):
        duplicates = sorted(label for label, count in Counter(labels).items() if count > 1)
        raise ContractError(f"labels must differ, these come twice: {duplicates[:8]}")
    return tuple(labels)
