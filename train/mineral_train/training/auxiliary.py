"""Names beside the labels as further targets of training, which no deployed model has.

A photograph of chrysocolla is "none of them" for a model of 36 minerals, but it can show what malachite is not.
So the names in another column of the manifest get a linear layer of their own on the mean of the tokens (an
auxiliary task; Caruana 1997, "Multitask Learning"). It is trained with the model and saved in the state of the run, but
not in the checkpoint: it is neither exported nor calibrated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mineral_batch.errors import DataError
from mineral_train.data.labels import nearest, split_labels
from mineral_train.data.manifest import Row, multi_hot

if TYPE_CHECKING:
    from mineral_train.model.network import MineralNet


@dataclass(frozen=True)
class AuxiliaryNames:
    """The auxiliary names of N training photographs.

    Attributes:
        names: A, in lower case, the most frequent first.
        targets: (N, A) float32 of 0 and 1.
    """

    names: tuple[str, ...]
    targets: torch.Tensor

    @classmethod
    def read(cls, rows: Sequence[Row], column: str, least: int, labels: Sequence[str]) -> AuxiliaryNames:
        """Collect the names that a column gives to the training split.

        Names are separated as labels are; their case does not count. A photograph with an empty cell has none of them.
        A name that is a label is left out: it is learned already.

        Args:
            rows: N photographs.
            column: of the manifests.
            least: names of fewer photographs are left out.
            labels: of the model.

        Raises:
            DataError: if no manifest has the column, or no name is frequent enough.
        """
        columns = {name for row in rows for name in row.extra}
        if column not in columns:
            guess = nearest(column, columns)
            hint = f"did you mean {guess!r}?" if guess else f"there are: {', '.join(sorted(columns)) or 'none'}"
            raise DataError(f"aux_column: the manifest has no column {column!r} beside path, labels and split; {hint}")
        own = {label.casefold() for label in labels}
        cells = [dict.fromkeys(split_labels(row.extra.get(column, "").casefold())) for row in rows]
        counts = Counter(name for cell in cells for name in cell if name not in own)
        names = tuple(name for name, count in counts.most_common() if count >= least)
        if not names:
            raise DataError(
                f"aux_column: no name in the column {column!r} that is not a label is in {least} or more of the "
                f"{len(rows):,} training images; lower aux_least, or leave out aux_column"
            )
        kept = set(names)
        known = [[name for name in cell if name in kept] for cell in cells]
        return cls(names, torch.from_numpy(multi_hot(known, names).astype(np.float32)))


class WithAuxiliary(nn.Module):
    """A model and the linear layer of the auxiliary names: (N, 3, H, W) to logits (N, L + A).

    The layer begins with weights 0 and the names' log odds as biases, so that at first it does not disturb a model that
    was trained before.

    Args:
        model: with L labels.
        targets: (N, A) of the training split.
        factors: (N,) how often each of its images is drawn.
    """

    def __init__(self, model: MineralNet, targets: torch.Tensor, factors: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        channels, names = model.layout.channels, targets.shape[1]
        self.auxiliary: nn.Module = nn.utils.skip_init(nn.Linear, channels, names)  # type: ignore[no-untyped-call]
        share = (targets * factors[:, None]).sum(dim=0) / factors.sum()
        with torch.no_grad():
            self.auxiliary.get_parameter("weight").zero_()
            self.auxiliary.get_parameter("bias").copy_(share.logit(eps=1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, L + A): the logits of the labels and, behind them, of the auxiliary names."""
        tokens = self.model.features(x)
        return torch.cat([self.model.classify(tokens), self.auxiliary(tokens.mean(dim=1))], dim=1)
