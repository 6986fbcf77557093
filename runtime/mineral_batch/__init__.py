"""Batch recognition of minerals in photographs: the part that a user deploys.

>>> from mineral_batch import Predictor
>>> with Predictor() as predictor:                                        # doctest: +SKIP
...     for result in predictor.predict(["photos"]):
...         print(result.path, predictor.contract.labels[result.probabilities.argmax()])
"""

from mineral_batch.contract import MINERALS, InputSpec, Measured, ModelContract
from mineral_batch.errors import BackendError, ContractError, DataError, MineralError
from mineral_batch.images import Failure, Image, load_image
from mineral_batch.pipeline import Prediction
from mineral_batch.predictor import Predictor
from mineral_batch.sources import find_images

__all__ = [
    "MINERALS",
    "BackendError",
    "ContractError",
    "DataError",
    "Failure",
    "Image",
    "InputSpec",
    "Measured",
    "MineralError",
    "ModelContract",
    "Prediction",
    "Predictor",
    "find_images",
    "load_image",
]
