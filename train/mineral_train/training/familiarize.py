"""Give an ONNX file the output `familiarity`, fitted to its features of images. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.model.contract import Familiarity
from mineral_batch.model.familiarity import add_familiarity, features_name
from mineral_batch.model.onnx_file import read_contract, write_contract
from mineral_batch.model.onnx_graph import load_graph
from mineral_train.familiarity import METHOD, fit_familiarity, percentiles
from mineral_train.training.onnx_values import graph_values
from mineral_train.training.staged import staged_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mineral_batch.model.contract import ModelContract
    from mineral_train.training.onnx_values import Progress

# Fewer held-out images have no 5th percentile to speak of: out-of-fold training images stand in for them.
_LEAST_HELD = 200


def familiarize_onnx(
    path: Path,
    images: Sequence[Path],
    held: Sequence[Path],
    dataset: str,
    *,
    target: Path | None = None,
    progress: Progress | None = None,
) -> ModelContract:
    """Fit the score to a model's features of its training images, and write it into the graph and the contract.

    Args:
        path: an ONNX file that ends with a linear layer over pooled features.
        images: that trained the model.
        held: that did not, for the percentiles; fewer than 200 are not used.
        dataset: what the images are, in words.
        target: where to write; None for `path`.
        progress: wraps the decoded images, of which it is told the number.

    Raises:
        ContractError: if the file is not a model, or of another form.
        DataError: if too few images can be read, or the target cannot be written.
    """
    contract = read_contract(path)
    name = features_name(path, load_graph(path))

    def features_of(files: Sequence[Path]) -> NDArray[np.float32]:
        values, _ = graph_values(path, name, files, progress)
        return values[np.isfinite(values).all(axis=1)]

    features = features_of(images)
    others = features_of(held) if len(held) >= _LEAST_HELD else None
    score = fit_familiarity(features, held=others)
    method = METHOD + percentiles(0 if others is None else len(others))
    described = replace(contract, familiarity=Familiarity(method, dataset, len(features)))
    with staged_file(target or path) as staged:  # graph and contract appear together
        add_familiarity(path, staged, score)
        write_contract(staged, described)
    return described
