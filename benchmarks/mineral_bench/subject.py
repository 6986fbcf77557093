"""What is measured: a checkpoint, its ONNX file, or a preset with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Subject:
    """One model in the forms that programs read.

    Attributes:
        model: the ONNX file.
        checkpoint: the folder it came from; None where only the file is known, which leaves torch out.
    """

    model: Path
    checkpoint: Path | None = None


def find_subject(given: Path, onnx: Path | None, scratch: Path) -> Subject:
    """Take a checkpoint's folder, an ONNX file, or a preset's name, and make what is missing in `scratch`.

    Args:
        given: what the user named.
        onnx: an export of the checkpoint, to save exporting it again.
        scratch: an empty folder.

    Raises:
        DataError: if it is neither.
    """
    if given.suffix == ".onnx":
        return Subject(given)
    checkpoint = given if given.is_dir() else _random_weights(given, scratch / "checkpoint")
    return Subject(onnx or _exported(checkpoint, scratch / "model.onnx"), checkpoint)


def _random_weights(given: Path, folder: Path) -> Path:
    """Save a preset with random weights as a checkpoint: speed does not depend on the weights."""
    from mineral_batch.model.contract import ModelContract
    from mineral_train.model.network import PRESETS, build_model, input_spec, preset
    from mineral_train.training.checkpoint import save_checkpoint

    name = str(given)
    if name not in PRESETS:
        raise DataError(f"{given} is not a checkpoint, an .onnx file or a preset; presets are {', '.join(PRESETS)}")
    config = preset(name)
    labels = tuple(config.labels)
    contract = ModelContract(labels, (0.5,) * len(labels), input_spec(config), name=f"{name}, random weights")
    save_checkpoint(folder, build_model(config, seed=0), contract)
    return folder


def _exported(checkpoint: Path, path: Path) -> Path:
    from mineral_export.onnx.export import export_onnx
    from mineral_train.training.checkpoint import load_checkpoint

    return export_onnx(*load_checkpoint(checkpoint), path).path
