"""What a model sees in photographs: the input of its last layer, kept beside the results of a run.

Reviewing needs these features of a few thousand photographs only, so they are computed while people already review, and
a review that is opened again goes on with those it has.
"""

from __future__ import annotations

import sqlite3
import threading
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.engines.onnx_session import CPU, LOG_ERRORS, first_line, make_session, onnxruntime_with
from mineral_batch.errors import BackendError, ContractError, DataError
from mineral_batch.files import is_file
from mineral_batch.images.decode import decode_image
from mineral_batch.model.onnx_file import graph_digest, read_contract, read_graph, with_outputs
from mineral_batch.results.fingerprint import file_digest
from mineral_batch.types import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mineral_batch.results.read import Results
    from mineral_batch.review.reading import Reader

FEATURES = "review-features.sqlite"

_BATCH = 16
_LARGEST = 8192  # numbers; more are the flattened states of a decoder, not a pooled vector
_LINEAR = ("Gemm", "MatMul")
#: What may stand between the last layer and the probabilities: the layer's bias, a calibration, a rounding.
_AFTER_LINEAR = ("Sigmoid", "Add", "Mul", "Sub", "Div", "Cast", "QuantizeLinear", "DequantizeLinear")
_TABLE = "CREATE TABLE IF NOT EXISTS feature (model TEXT, path BLOB, vector BLOB, PRIMARY KEY (model, path))"


class FeatureExtractor:
    """A model on the CPU that gives the input of its last layer.

    Args:
        model: an ONNX file.

    Raises:
        BackendError: if ONNX Runtime is not installed or refuses the model.
        ContractError: if the file is not a model, or does not end with one linear layer over a vector per image.
    """

    def __init__(self, model: Path) -> None:
        self.spec = read_contract(model).input
        self.digest = graph_digest(model)
        self._name = _input_of_last_layer(model)
        runtime = onnxruntime_with(CPU)
        options = runtime.SessionOptions()
        options.log_severity_level = LOG_ERRORS
        options.intra_op_num_threads = 1  # people are reviewing meanwhile
        self._session = make_session(runtime, model, options, [(CPU, {})], with_outputs(model, [self._name]))
        self._pixels = self._session.get_inputs()[0].name

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, H, W, 3) uint8 RGB to (N, D) float32.

        Raises:
            BackendError: if the run fails, or there is no vector per image.
        """
        try:
            (vectors,) = self._session.run([self._name], {self._pixels: pixels})
        except Exception as error:  # its exceptions have no common base class
            raise BackendError(f"cannot compute features: {first_line(error)}") from error
        if vectors.ndim != 2 or vectors.shape[0] != len(pixels) or vectors.shape[1] > _LARGEST:
            raise BackendError(f"the model's last layer reads {list(vectors.shape[1:])} numbers per image, no vector")
        return np.asarray(vectors, np.float32)


def _input_of_last_layer(model: Path) -> str:
    nodes, outputs = read_graph(model)
    producer = {name: node for node in nodes for name in node.outputs}
    node = producer.get(outputs[0]) if outputs else None
    while node is not None and node.operator in _AFTER_LINEAR:
        node = next((producer[name] for name in node.inputs if name in producer and producer[name].inputs), None)
    if node is None or node.operator not in _LINEAR:
        raise ContractError(f"{model} does not end with one linear layer")
    return node.inputs[0]


def model_of(results: Results, base: Path) -> Path | None:
    """Find the model file of a run by its name and digest in run.json; None if it is not there, or is another now."""
    from mineral_batch.model.starter import starter_path

    record = results.manifest.get("model")
    if not isinstance(record, dict) or not isinstance(record.get("file"), str):
        return None
    named = Path(record["file"])
    for file in (named, base / named, starter_path()):
        try:
            if is_file(file) and file_digest(file) == record.get("sha256"):
                return file
        except (OSError, ValueError):
            continue
    return None


class FeatureStore:
    """Features of a run's photographs in a file that only grows; safe from several threads.

    Args:
        folder: of the run.
        extractor: of the model.

    Raises:
        DataError: if the file cannot be written.
    """

    def __init__(self, folder: Path, extractor: FeatureExtractor) -> None:
        self.path = folder / FEATURES
        self._extractor = extractor
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._db.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            raise DataError(f"cannot use {self.path}: {error}; delete it, it is computed again") from None

    def vectors(self, paths: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Read what is there: places in `paths`, (K,), and the vectors of these, (K, D).

        Raises:
            DataError: if the file is damaged.
        """
        places, vectors = [], []
        for place, path in enumerate(paths):
            if (row := self._get(path)) is not None:
                places.append(place)
                vectors.append(np.frombuffer(row, "<f2").astype(np.float32))
        if not vectors:
            return np.empty(0, np.intp), np.empty((0, 0), np.float32)
        return np.array(places, np.intp), np.stack(vectors)

    def compute(self, paths: Sequence[str], reader: Reader, stop: threading.Event) -> None:
        """Compute what is missing, photograph by photograph; those that cannot be read are left out.

        Args:
            paths: as the run names them.
            reader: finds them.
            stop: ends the computation; what is computed stays.

        Raises:
            BackendError: if the model cannot be run.
            DataError: if the disk refuses them.
        """
        missing = (path for path in paths if self._get(path) is None)
        while not stop.is_set() and (group := list(islice(missing, _BATCH))):
            images = [image for path in group if (image := self._decoded(path, reader)) is not None]
            if images:
                vectors = self._extractor(np.stack([image.pixels for image in images]))
                self._put([image.path for image in images], vectors)

    def _decoded(self, path: str, reader: Reader) -> Image | None:
        read = reader.find(path)
        image = None if read is None else decode_image(path, read, self._extractor.spec, keep_damaged=True)
        return image if isinstance(image, Image) else None

    def _get(self, path: str) -> bytes | None:
        key = self._extractor.digest, _encoded(path)
        try:
            with self._lock:
                row = self._db.execute("SELECT vector FROM feature WHERE model = ? AND path = ?", key).fetchone()
        except sqlite3.DatabaseError as error:
            raise DataError(f"cannot read {self.path}: {error}; delete it, it is computed again") from None
        return None if row is None else row[0]

    def _put(self, paths: Sequence[str], vectors: NDArray[np.float32]) -> None:
        rows = [
            (self._extractor.digest, _encoded(path), vector.astype("<f2").tobytes())
            for path, vector in zip(paths, vectors, strict=True)
        ]
        try:
            with self._lock, self._db:
                self._db.execute("BEGIN")
                self._db.executemany("INSERT OR REPLACE INTO feature VALUES (?, ?, ?)", rows)
        except sqlite3.DatabaseError as error:
            raise DataError(f"cannot write {self.path}: {error}; free some space") from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def _encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
