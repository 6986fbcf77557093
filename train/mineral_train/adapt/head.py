"""One logistic regression per label on the features, with the old model's answer as one more input.

For a label that the old model knows, its logit is a feature of its own that is hardly penalised: with few photographs
the new layer is the old one, rescaled; with many it becomes what the photographs say. All of it is linear in the
features, so it is one layer of the exported graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mineral_train.data.splits import stratified_folds

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Inverse strengths of the L2 penalty that are compared.
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FOLDS = 5
_PRIOR_SCALE = 10.0  # the old logit counts a hundred times less in the penalty than a feature
_IMAGES_FOR_CHOICE = 2000  # with more, the choice of the penalty takes minutes and is the same
_CERTAIN = 6.0  # the logit of a label that every or no photograph shows: 0.25 % of being wrong


@dataclass(frozen=True)
class Head:
    """A linear layer.

    Attributes:
        weights: (L, C).
        bias: (L,).
    """

    weights: Floats
    bias: Floats

    def logits(self, x: NDArray[np.floating]) -> Floats:
        """(N, C) to (N, L)."""
        return np.asarray(x, np.float64) @ self.weights.T + self.bias


@dataclass(frozen=True)
class Adapted:
    """A new layer and what it is worth.

    Attributes:
        head: fitted on all photographs.
        out_of_fold: (N, L) logits, of each photograph by the layer that was fitted without its fold.
        strength: the inverse penalty that was chosen.
    """

    head: Head
    out_of_fold: Floats
    strength: float


def adapt_head(
    x: NDArray[np.float32], y: Bools, groups: NDArray[np.int64], old: Sequence[tuple[Floats, float] | None], seed: int
) -> Adapted:
    """Fit the layer, choosing the penalty by the log loss of held-out folds.

    Args:
        x: (N, C) features.
        y: (N, L) truth.
        groups: (N,) photographs of one specimen, and near-duplicates, have the same number and stay in one fold.
        old: per label the old model's weights (C,) and bias, None for a label that it does not know.
        seed: of the folds.
    """
    folds = stratified_folds(y, groups, FOLDS, seed)
    some = np.random.default_rng(seed).permutation(len(x))[:_IMAGES_FOR_CHOICE]
    losses = {c: _log_loss(_out_of_fold(x[some], y[some], folds[some], old, c), y[some]) for c in STRENGTHS}
    strength = min(losses, key=lambda c: (losses[c], c))
    return Adapted(fit_head(x, y, old, strength), _out_of_fold(x, y, folds, old, strength), strength)


def _out_of_fold(
    x: NDArray[np.float32], y: Bools, folds: NDArray[np.int64], old: Sequence[tuple[Floats, float] | None], c: float
) -> Floats:
    logits = np.empty(y.shape)
    for fold in np.unique(folds):
        held = folds == fold
        logits[held] = fit_head(x[~held], y[~held], old, c).logits(x[held])
    return logits


def fit_head(x: NDArray[np.float32], y: Bools, old: Sequence[tuple[Floats, float] | None], c: float) -> Head:
    """Fit one logistic regression per label; arguments as `adapt_head`, `c` the inverse penalty."""
    mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64) + 1e-6
    normal = (x - mean) / spread
    rows = [_fit_label(normal, y[:, k], _normalised(old[k], mean, spread), c) for k in range(y.shape[1])]
    weights = np.stack([w for w, _ in rows]) / spread
    return Head(weights, np.array([b for _, b in rows]) - weights @ mean)


def _normalised(old: tuple[Floats, float] | None, mean: Floats, spread: Floats) -> tuple[Floats, float] | None:
    """The old layer's row for features of mean 0 and spread 1."""
    return None if old is None else (old[0] * spread, float(old[1] + old[0] @ mean))


def _fit_label(x: Floats, y: Bools, old: tuple[Floats, float] | None, c: float) -> tuple[Floats, float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if not y.any() or y.all():  # nothing to tell apart
        return old or (np.zeros(x.shape[1]), _CERTAIN if y.all() else -_CERTAIN)
    prior = np.zeros(len(x)) if old is None else x @ old[0] + old[1]
    spread = float(prior.std()) or 1.0
    inputs = np.column_stack([x, _PRIOR_SCALE * (prior - prior.mean()) / spread])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after 200 steps the rest is not worth the time
        model = LogisticRegression(C=c, max_iter=200, tol=1e-3).fit(inputs, y)
    own, of_prior = model.coef_[0, :-1], model.coef_[0, -1] * _PRIOR_SCALE / spread
    bias = float(model.intercept_[0]) - of_prior * float(prior.mean())
    return (own, bias) if old is None else (own + of_prior * old[0], bias + of_prior * old[1])


def _log_loss(z: Floats, y: Bools) -> float:
    return float(np.logaddexp(0.0, np.where(y, -z, z)).mean())
