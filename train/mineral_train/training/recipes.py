"""Named recipes: the paper's, for its 165,000 training images, and one for few images.

`few` is the one of the starter model's card, in one run: it goes on from the starter's weights, which come with the
package, so that it needs no download. Nothing here imports torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from mineral_batch.errors import DataError, plain_reason
from mineral_train.model.presets import ModelConfig
from mineral_train.training.config import STARTER

Recipe = Literal["few", "paper"]

#: The architecture of the starter model, which `few` goes on from.
STARTER_MODEL = ModelConfig(
    "tf_efficientnet_lite2.in1k", 256, method="pool", stages=3, width=256, ffn=1024, drop_path=0.1
)

#: Fields of `TrainConfig`: those that the starter was trained with, from ImageNet's weights, on 4,290
#: images (see its card). They were chosen together, on one validation split. The card has a small study of single ones:
#: in runs of four passes that fine-tune one stage, the log loss is lower without mixup, which says little about eight
#: epochs that fine-tune four.
#: What they are worth from the starter's weights has not been measured.
FEW: Mapping[str, Any] = {
    "init": STARTER,
    "positive_weight": "sqrt-inverse",
    "positive_cap": 10.0,
    "repeat": 0.02,
    "mixup": 0.5,
    "augment": "",
    "flip": 0.5,
    "crop": 0.4,
    "jitter": 0.18,
    "train_size": 224,
    "epochs": 8,
    "batch": 24,
    "lr": 4e-4,
    "head_lr": 2.5,
    "weight_decay": 0.05,
    "schedule": "cosine",
    "warmup_epochs": 0.5,
    "clip": 20.0,
    "freeze_stages": 3,
    "freeze_norm": True,
    "ema": 0.995,
    "best": "loss",
    "tune_thresholds": True,
}

#: With fewer training images than this, `few` is the default. On 2,039 images, with EfficientNet-Lite0, it had a test
#: mAP of 0.391 where the paper's recipe had 0.281; on how many the paper's overtakes it has not been measured.
FEW_BELOW = 20_000


def default_recipe(images: int) -> tuple[Recipe, str]:
    """Choose a recipe by the number of training images, and say why."""
    if images < FEW_BELOW:
        return "few", f"{images:,} training images are fewer than {FEW_BELOW:,}; --recipe paper is made for far more"
    return "paper", f"{images:,} training images are {FEW_BELOW:,} or more; --recipe few is made for fewer"


def load_recipe(name: str) -> dict[str, Any]:
    """Load the settings of a recipe: `few`, `paper`, or a TOML file of `key = value` lines.

    Keys are the names of `fit`'s options, with `_` or `-`; `preset` and `backbone` name the model.

    Raises:
        DataError: if there is no such recipe or file, or it is not TOML.
    """
    if name in get_args(Recipe):
        return dict(FEW) if name == "few" else {}
    if not name.endswith(".toml"):
        raise DataError(f"no recipe {name!r}; choose {', '.join(get_args(Recipe))}, or give a TOML file, recipe.toml")
    try:
        with Path(name).open("rb") as file:
            record = tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not TOML, or not UTF-8
        raise DataError(
            f"cannot read the recipe {name}: {plain_reason(error)}; it has lines such as epochs = 20"
        ) from None
    return {key.replace("-", "_"): value for key, value in record.items()}
