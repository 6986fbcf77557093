"""What a run's results depend on: results made with different models or software are not mixed in one folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from mineral_batch.errors import ContractError, DataError
from mineral_batch.images.decoder import Decoder
from mineral_batch.model.onnx_file import graph_digest
from mineral_batch.predictor import Predictor

#: The model's key: a digest of its graph.
MODEL = "model"
#: The decoder's key; a run that goes on keeps the decoder it began with.
DECODER = "decoder"
#: Beside the fingerprint: what else the engine was for some results. A GPU short of memory takes smaller batches.
ENGINE_LATER = "engine later"
#: The key of `--max-pixels` where many machines work on one run. In a folder of one machine's own the images to which
#: another limit makes a difference are done again instead.
LIMIT = "max pixels"
_LABELS = "labels and input"
_NANOSECONDS_TO_SETTLE = 10 * 10**9


def fingerprint(predictor: Predictor, decoder: Decoder) -> dict[str, str]:
    """Return everything that changes a probability.

    Thresholds are not part of it: they decide what the column `minerals` says, which is written anew from the journal.
    """
    contract = predictor.contract
    described = json.dumps([contract.labels, vars(contract.input)])
    return {
        MODEL: _computation_digest(predictor.model)[:16],
        _LABELS: hashlib.sha256(described.encode()).hexdigest()[:16],
        "engine": f"{predictor.backend}, {predictor.engine_identity}",
        DECODER: decoder.version,
    }


def shared_fingerprint(predictor: Predictor, decoder: Decoder) -> dict[str, str]:
    """Return the fingerprint for a run that many machines share, which also tells which images are refused."""
    return {**fingerprint(predictor, decoder), LIMIT: str(predictor.max_pixels)}


def _computation_digest(model: Path) -> str:
    """The digest of an ONNX file's graph; of the whole file where it is not ONNX."""
    try:
        return graph_digest(model)
    except ContractError:
        return file_digest(model)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; a file that stays as it is is read once in a process."""
    status = path.stat()
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    # A file that changes twice within a tick of its system's clock has the same times.
    is_settled = time.time_ns() - changed > _NANOSECONDS_TO_SETTLE
    return _settled_digest(path, identity) if is_settled else _digest(path)


@lru_cache(maxsize=32)
def _settled_digest(path: Path, _identity: tuple[int, ...]) -> str:
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_other(place: str | Path, earlier: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Check that results made with one fingerprint may be added to those of another.

    Args:
        place: where the earlier results are.
        earlier: their fingerprint; empty if there are none.
        now: of this run.

    Raises:
        DataError: naming everything that differs.
    """
    differing = [key for key in now if earlier and earlier.get(key) != now[key]]
    if differing:
        raise DataError(
            f"the results in {place} were {describe_difference(earlier, {key: now[key] for key in differing})}: "
            f"choose another folder with -o, or discard them with --restart"
        )


def describe_difference(earlier: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return how results were made, such as `made with another model (engine was A, is B)`.

    Args:
        earlier: the fingerprint of the results.
        now: of this run, only what differs.
    """
    head = "made with another model" if MODEL in now else "made differently"
    changes = [f"{key} was {earlier.get(key, 'unknown')}, is {now[key]}" for key in now if key not in (MODEL, _LABELS)]
    changes += ["labels or input differ"] if _LABELS in now else []  # a digest tells a user nothing
    return f"{head} ({'; '.join(changes)})" if changes else head
