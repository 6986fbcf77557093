"""Recognition of minerals in whole folders of images: the part that a user deploys.

>>> from mineral_batch import Failure, Predictor
>>> with Predictor() as predictor:                                        # doctest: +SKIP
...     for result in predictor.predict(["photos"]):
...         print(result.path, result.reason if isinstance(result, Failure) else result.minerals)
"""

from mineral_batch.errors import BackendError, ContractError, DataError, MineralError, OptionError
from mineral_batch.images.decode import load_image
from mineral_batch.images.discover import find_images
from mineral_batch.images.given import Input
from mineral_batch.minerals import MINERALS
from mineral_batch.minerals.levels import Levels
from mineral_batch.model.contract import InputSpec, Measured, ModelContract
from mineral_batch.predictor import Predictor
from mineral_batch.types import Failure, Image, Prediction, Result

__all__ = [
    "MINERALS",
    "BackendError",
    "ContractError",
    "DataError",
    "Failure",
    "Image",
    "Input",
    "InputSpec",
    "Levels",
    "Measured",
    "MineralError",
    "ModelContract",
    "OptionError",
    "Prediction",
    "Predictor",
    "Result",
    "find_images",
    "load_image",
]
