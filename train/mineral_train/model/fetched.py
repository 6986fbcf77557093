"""Manifests, weights and checkpoints at URLs: copied into the user's cache, checked, and read from there.

Photographs, and what training writes, are on this machine, or on a file system that it has mounted.
"""

from __future__ import annotations

from pathlib import Path

from mineral_batch.errors import DataError
from mineral_batch.storage.models import ENGINES, fetch, fetch_folder
from mineral_batch.storage.urls import is_url, redact, restored

#: What a run's folder has of its best checkpoint.
CHECKPOINT_FILES = ("model.safetensors", "config.json")
ONNX = ".onnx"


def fetch_model(name: str | Path) -> Path:
    """Return the folder of a checkpoint, or the ONNX file or engine, that a path or URL names.

    At a URL, what ends with `.onnx` or `.plan` or begins with `hf://` is a file, everything else a checkpoint's folder.

    Raises:
        DataError: if it is not there or may not be read.
    """
    if not is_url(name):
        return Path(name)
    text = restored(name)
    is_file = text.endswith((ONNX, *ENGINES)) or text.startswith("hf://")
    return fetch(name) if is_file else fetch_folder(name, CHECKPOINT_FILES)


def shown(name: str | Path) -> str:
    """Return how a path or URL is called in messages and records: without what is secret in it."""
    return redact(restored(name))


def require_no_secret(name: str, option: str) -> None:
    """Check a URL that a run's record will hold.

    Raises:
        DataError: if it has a password or a signature.
    """
    if redact(name) != name:
        raise DataError(
            f"{option} {redact(name)} has a password or a signature, which the run's record must not hold: copy the "
            f"file to this machine, or give the rights by the environment"
        )
