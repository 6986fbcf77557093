"""What a run's results depend on: results made with different models or software are not mixed in one folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mineral_batch.errors import ContractError
from mineral_batch.images.decoder import Decoder
from mineral_batch.model.onnx_file import graph_digest
from mineral_batch.predictor import Predictor

#: The decoder's key; a run that goes on keeps the decoder it began with.
DECODER = "decoder"
#: Beside the fingerprint: what else the engine was for some results. A GPU short of memory takes smaller batches.
ENGINE_LATER = "engine later"


def fingerprint(predictor: Predictor, decoder: Decoder) -> dict[str, str]:
    """Return everything that changes a probability.

    Thresholds are not part of it: they decide what the column `minerals` says, which is written anew from the journal.
    """
    contract = predictor.contract
    described = json.dumps([contract.labels, vars(contract.input)])
    return {
        "model": _computation_digest(predictor.model)[:16],
        "labels and input": hashlib.sha256(described.encode()).hexdigest()[:16],
        "engine": f"{predictor.backend}, {predictor.engine_identity}",
        DECODER: decoder.version,
    }


def _computation_digest(model: Path) -> str:
    """The digest of an ONNX file's graph; of the whole file where it is not ONNX."""
    try:
        return graph_digest(model)
    except ContractError:
        return file_digest(model)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
