"""The losses of the paper's Table 4, for multi-label logits."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mineral_batch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable


class MultiLabelLoss(nn.Module):
    """One formula that has all three losses as special cases.

    With p = sigmoid(logit), target y, and p_m = max(p - clip, 0):

        loss = - sum over labels [ a+ y (1 - p)^g+ log p  +  a- (1 - y) p_m^g- log(1 - p_m) ],  mean over pictures.

    The paper writes the sum over labels; the mean over pictures keeps the scale independent of the batch size, and
    is the same for every loss, so that one learning rate can be compared across them. Gradients flow through the
    focusing weights, as the formula says (the reference code of the asymmetric loss can switch that off).

    The logarithms are `logsigmoid` of the logits, never `log(p + eps)`, and half-precision logits are raised to
    float32 first (float64 stays): the loss and its gradient are finite at any finite logit.

    Args:
        positive: a+, weight of the labels that are present.
        negative: a-, weight of the labels that are absent.
        gamma_positive: g+, how much well-recognised present labels are played down; 0 is not at all.
        gamma_negative: g-, the same for absent labels.
        clip: probability margin below which an absent label costs nothing (Ridnik et al., equation 5), 0..1.

    Raises:
        DataError: for a negative weight or exponent, or a margin outside 0..1.
    """

    def __init__(
        self,
        positive: float = 1.0,
        negative: float = 1.0,
        gamma_positive: float = 0.0,
        gamma_negative: float = 0.0,
        clip: float = 0.0,
    ) -> None:
        super().__init__()
        if min(positive, negative, gamma_positive, gamma_negative, clip) < 0 or clip >= 1:
            raise DataError("a loss needs weights and gammas from 0 up, and a clip from 0 to below 1")
        self.positive: float | Tensor = positive  # one number, or (L,): a weight for each label
        self.negative = negative
        self.gamma_positive = gamma_positive
        self.gamma_negative = gamma_negative
        self.clip = clip

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch.

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
        present = self.positive * y * self._cost_of_present(x)
        absent = self.negative * (1 - y) * self._cost_of_absent(x)
        return (present + absent).sum(dim=1).mean()

    def _cost_of_present(self, x: Tensor) -> Tensor:
        # A power as exp(g log): its derivative is finite at probability 0, where pow's is not for g < 1.
        return -torch.exp(self.gamma_positive * F.logsigmoid(-x)) * F.logsigmoid(x)

    def _cost_of_absent(self, x: Tensor) -> Tensor:
        if self.clip == 0:
            return -torch.exp(self.gamma_negative * F.logsigmoid(x)) * F.logsigmoid(-x)
        p_m = (torch.sigmoid(x) - self.clip).clamp(min=torch.finfo(x.dtype).tiny)
        return -torch.exp(self.gamma_negative * torch.log(p_m)) * torch.log1p(-p_m)


def binary_cross_entropy() -> MultiLabelLoss:
    """Binary cross-entropy: both weights 1, no focusing."""
    return MultiLabelLoss()


def focal(gamma: float = 2.0, alpha: float = 0.25) -> MultiLabelLoss:
    """Focal loss (Lin et al. 2017, equation 5) with the paper's parameters: alpha weighs present labels."""
    return MultiLabelLoss(alpha, 1 - alpha, gamma, gamma)


def asymmetric(gamma_positive: float = 0.0, gamma_negative: float = 1.0, clip: float = 0.0) -> MultiLabelLoss:
    """Asymmetric loss (Ridnik et al. 2021) with the paper's parameters: gamma+ 0, gamma- 1, no margin."""
    return MultiLabelLoss(1.0, 1.0, gamma_positive, gamma_negative, clip)


LOSSES: dict[str, Callable[..., MultiLabelLoss]] = {
    "asymmetric": asymmetric,
    "focal": focal,
    "bce": binary_cross_entropy,
}


def make_loss(name: str, **options: Any) -> MultiLabelLoss:
    """A loss by name, with the paper's parameters unless others are given.

    Args:
        name: `asymmetric`, `focal` or `bce`.
        options: `gamma_positive`, `gamma_negative`, `clip` for asymmetric; `gamma`, `alpha` for focal.

    Returns:
        A module (logits (N, L), targets (N, L)) -> scalar.

    Raises:
        DataError: if there is no such loss or option.
    """
    if name not in LOSSES:
        raise DataError(f"no loss {name!r}; there are: {', '.join(LOSSES)}")
    known = list(inspect.signature(LOSSES[name]).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise DataError(f"the loss {name!r} has no option {', '.join(unknown)}; it has: {', '.join(known) or 'none'}")
    return LOSSES[name](**options)
