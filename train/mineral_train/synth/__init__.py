"""Labeled images of minerals without a camera: `generate` draws one, `write_dataset` a folder of them.

For trying the pipeline with no data, for tests, and for scoring explanations against known places. Every file says
in its metadata that it is synthetic; a model trained on them knows nothing about real minerals.
"""

from mineral_train.synth.compose import LEAST_VISIBLE, Specimen, generate
from mineral_train.synth.dataset import SynthConfig, read_mask, split_of, write_dataset
from mineral_train.synth.looks import LOOKS, Look

__all__ = [
    "LEAST_VISIBLE", "LOOKS", "Look", "Specimen", "SynthConfig", "generate", "read_mask", "split_of",
    "write_dataset",
]  # fmt: skip
