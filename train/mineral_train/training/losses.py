"""Losses for multi-label logits: the three of the paper's Table 4, and two for labels that are not complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mineral_batch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable


class MultiLabelLoss(nn.Module):
    """One formula with the paper's three losses as special cases; a subclass changes its two terms.

    With p = sigmoid(logit) and target y:

        loss = - sum over labels [ a+ y (1 - p)^g+ log p  +  a- (1 - y) p^g- log(1 - p) ],  mean over images.

    The paper sums over labels. The mean over images keeps the scale independent of the batch size. Both are the same
    for every loss, so one learning rate can be compared across them. Gradients flow through the focusing weights, as
    the formula says (the reference code of the asymmetric loss can switch that off).

    The logarithms are `logsigmoid` of the logits, never `log(p + eps)`, and half-precision logits are raised to
    float32 first (float64 stays): the loss and its gradient are finite at any finite logit.

    Args:
        positive: a+, weight of the labels that are present.
        negative: a-, weight of the labels that are absent.
        gamma_positive: g+, the focusing exponent for present labels; 0 switches focusing off.
        gamma_negative: g-, the same for absent labels.

    Raises:
        DataError: for a negative weight or exponent.
    """

    def __init__(
        self,
        positive: float = 1.0,
        negative: float = 1.0,
        gamma_positive: float = 0.0,
        gamma_negative: float = 0.0,
    ) -> None:
        super().__init__()
        if min(positive, negative, gamma_positive, gamma_negative) < 0:
            raise DataError("the weights and gammas of a loss must be 0 or more")
        self.positive: float | Tensor = positive  # one number, or (L,): a weight per label
        self.negative = negative
        self.gamma_positive = gamma_positive
        self.gamma_negative = gamma_negative

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            logits: (N, L), any floating type.
            targets: (N, L), 0 or 1 or between (smoothed labels), any type.

        Returns:
            A scalar, float32 (float64 for float64 logits).

        Raises:
            ValueError: if the shapes differ, which would otherwise broadcast to a wrong loss.
        """
        if logits.shape != targets.shape or logits.ndim != 2:
            raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} must both be (N, L)")
        x = logits if logits.dtype == torch.float64 else logits.float()
        y = targets.to(x.dtype)
        present, absent = self.terms(x)
        return (self.positive * y * present + self.negative * (1 - y) * absent).sum(dim=1).mean()

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what a present and an absent label cost at logits x, without their weights, each shaped like x."""
        # A power as exp(g log): its derivative is finite at probability 0, where pow's is not for g < 1.
        present = -torch.exp(self.gamma_positive * F.logsigmoid(-x)) * F.logsigmoid(x)
        absent = -torch.exp(self.gamma_negative * F.logsigmoid(x)) * F.logsigmoid(-x)
        return present, absent


class HillLoss(MultiLabelLoss):
    """Hill loss, and the focal margin loss for present labels (Zhang et al. 2021, arXiv 2112.07368).

    For labels that may be missing: an absent label costs `(1.5 - p) p^2`, whose slope falls again above p = 0.5, so
    that labels which the model is sure of are not pushed down. A present one costs `-(1 - q)^2 log q` with
    q = sigmoid(logit - 1). The constants are the paper's.
    """

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what a present and an absent label cost."""
        margin = x - 1
        p = x.sigmoid()
        return -((-margin).sigmoid() ** 2) * F.logsigmoid(margin), (1.5 - p) * p**2


class EntropyLoss(MultiLabelLoss):
    """Entropy maximization for images that name one label of several (Zhou et al. 2022, arXiv 2203.16219).

    A present label costs `-log p`, one that is not named `-a H(p)`, with H the binary entropy and a = `negative`: it is
    taken for unknown, not for absent. The loss can be below 0. Its probabilities are too high, more than those of other
    losses, and want calibration.
    """

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what a present and a label that is not named cost."""
        p = x.sigmoid()
        return -F.logsigmoid(x), p * F.logsigmoid(x) + (1 - p) * F.logsigmoid(-x)


def binary_cross_entropy() -> MultiLabelLoss:
    """Binary cross-entropy: both weights 1, no focusing."""
    return MultiLabelLoss()


def focal() -> MultiLabelLoss:
    """Focal loss (Lin et al. 2017, equation 5) with the paper's parameters: gamma 2, alpha 0.25 for present labels."""
    return MultiLabelLoss(0.25, 0.75, 2.0, 2.0)


def asymmetric() -> MultiLabelLoss:
    """Asymmetric loss (Ridnik et al. 2021) with the paper's parameters: gamma+ 0, gamma- 1, no margin."""
    return MultiLabelLoss(gamma_negative=1.0)


def entropy() -> MultiLabelLoss:
    """`EntropyLoss` with a = 0.1, its authors' value for COCO and NUS-WIDE."""
    return EntropyLoss(negative=0.1)


LOSSES: dict[str, Callable[[], MultiLabelLoss]] = {
    "asymmetric": asymmetric,
    "focal": focal,
    "bce": binary_cross_entropy,
    "hill": HillLoss,
    "entropy": entropy,
}


def make_loss(name: str) -> MultiLabelLoss:
    """Make a loss (logits (N, L), targets (N, L)) -> scalar, with its paper's parameters.

    Args:
        name: one of `LOSSES`.

    Raises:
        DataError: if there is no such loss.
    """
    if name not in LOSSES:
        raise DataError(f"no loss {name!r}; choose one of {', '.join(LOSSES)}")
    return LOSSES[name]()
