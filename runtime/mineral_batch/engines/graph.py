"""What every engine checks of a model's graph before it believes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mineral_batch.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.model.contract import ModelContract


def check(
    contract: ModelContract,
    pixels: tuple[str, Sequence[object]],
    probabilities: tuple[str, Sequence[object]],
    *,
    inputs: int,
) -> None:
    """The graph must be the one that the contract describes: one input, one answer per label.

    Args:
        contract: the model's.
        pixels: dtype and shape of the first input; the batch dimension, the first, is anything.
        probabilities: dtype and shape of the first output.
        inputs: how many the graph has.

    Raises:
        ContractError: if it is another graph.
    """
    height, width, _ = contract.input.shape
    labels = len(contract.labels)
    (taken, shape_in), (given, shape_out) = pixels, probabilities
    fits = taken == "uint8" and list(shape_in[1:]) == [height, width, 3]
    if inputs != 1 or not fits or given != "float32" or list(shape_out[1:]) != [labels]:
        raise ContractError(
            f"the model's graph takes {inputs} input, {taken} {_words(shape_in)}, and gives {given} "
            f"{_words(shape_out)}; its contract says uint8 (N, {height}, {width}, 3) and float32 (N, {labels}): "
            f"export it again with mineral-export onnx"
        )


def _words(shape: Sequence[object]) -> str:
    return f"({', '.join(map(str, shape))})"
