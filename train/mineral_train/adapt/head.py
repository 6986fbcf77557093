"""One logistic regression per label on the features, with the old model's answer as one more input.

For a label that the old model knows, its logit is a feature of its own that is hardly penalized: with few photographs
the new layer is the old one, rescaled; with many it becomes what the photographs say. All of it is linear in the
features, so it is one layer of the exported graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
_CERTAIN = 6.0  # the logit of a label that every or no photograph shows: 0.25% of being wrong


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
        log_loss: of the held-out folds, mean over all decisions.
    """

    head: Head
    out_of_fold: Floats
    strength: float
    log_loss: float


def adapt_head(
    x: NDArray[np.float32],
    y: Bools,
    groups: NDArray[np.int64],
    old: Sequence[tuple[Floats, float] | None],
    seed: int,
    done: Callable[[str], None] = lambda _: None,
) -> Adapted:
    """Fit the layer, choosing the penalty by the log loss of held-out folds.

    Args:
        x: (N, C) features.
        y: (N, L) truth.
        groups: (N,) photographs of one specimen, and near-duplicates, have the same number and stay in one fold.
        old: per label the old model's weights (C,) and bias, None for a label that it does not know.
        seed: of the folds.
        done: called with a line after each part of the work.
    """
    folds = stratified_folds(y, groups, FOLDS, seed)
    strength = _chosen_strength(x, y, folds, old, seed, done)
    logits = _out_of_fold(x, y, folds, old, strength, done)
    return Adapted(fit_head(x, y, old, strength), logits, strength, _log_loss(logits, y))


def _chosen_strength(
    x: NDArray[np.float32],
    y: Bools,
    folds: NDArray[np.int64],
    old: Sequence[tuple[Floats, float] | None],
    seed: int,
    done: Callable[[str], None],
) -> float:
    """The strength with the lowest log loss of held-out folds, the stronger penalty if two are equal."""
    some = np.random.default_rng(seed).permutation(len(x))[:_IMAGES_FOR_CHOICE]
    losses = {}
    for place, c in enumerate(STRENGTHS, 1):
        losses[c] = _log_loss(_out_of_fold(x[some], y[some], folds[some], old, c), y[some])
        done(f"Compared {place} of {len(STRENGTHS)} penalties")
    return min(losses, key=lambda c: (losses[c], c))


def _out_of_fold(
    x: NDArray[np.float32],
    y: Bools,
    folds: NDArray[np.int64],
    old: Sequence[tuple[Floats, float] | None],
    c: float,
    done: Callable[[str], None] = lambda _: None,
) -> Floats:
    """(N, L) logits, of each photograph by the layer that was fitted without its fold."""
    logits = np.empty(y.shape)
    for place, fold in enumerate(np.unique(folds), 1):
        held = folds == fold
        logits[held] = fit_head(x[~held], y[~held], old, c).logits(x[held])
        done(f"Fitted {place} of {FOLDS} folds")
    return logits


def fit_head(x: NDArray[np.float32], y: Bools, old: Sequence[tuple[Floats, float] | None], c: float) -> Head:
    """Fit one logistic regression per label.

    All labels are fitted at once by L-BFGS: their losses add up, and one product of matrices serves all of them.

    Args:
        x: (N, C) features.
        y: (N, L) truth.
        old: per label the old model's weights (C,) and bias, None for a label that it does not know.
        c: inverse strength of the penalty.
    """
    mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64) + 1e-6
    normal = ((x - mean.astype(np.float32)) / spread.astype(np.float32)).astype(np.float32, copy=False)
    rows = [_normalized(row, mean, spread) for row in old]
    weights, bias = np.zeros((len(rows), x.shape[1])), np.where(y.all(axis=0), _CERTAIN, -_CERTAIN)
    for k, row in enumerate(rows):
        if row is not None:
            weights[k], bias[k] = row  # kept where there is nothing to tell apart
    both = np.flatnonzero(y.any(axis=0) & ~y.all(axis=0))
    if both.size:
        weights[both], bias[both] = _fit_labels(normal, y[:, both], [rows[k] for k in both.tolist()], c)
    weights = weights / spread
    return Head(weights, bias - weights @ mean)


def _normalized(old: tuple[Floats, float] | None, mean: Floats, spread: Floats) -> tuple[Floats, float] | None:
    """The old layer's row for features of mean 0 and spread 1."""
    return None if old is None else (old[0] * spread, float(old[1] + old[0] @ mean))


def _fit_labels(
    x: NDArray[np.float32], y: Bools, old: Sequence[tuple[Floats, float] | None], c: float
) -> tuple[Floats, Floats]:
    """Weights (L, C) and bias (L,) of labels that some and not all photographs show."""
    from scipy.optimize import minimize

    known = np.array([row is not None for row in old])
    old_weights = np.stack([np.zeros(x.shape[1]) if row is None else row[0] for row in old])
    old_bias = np.array([0.0 if row is None else row[1] for row in old])
    prior = x @ old_weights.T.astype(np.float32) + old_bias.astype(np.float32)  # (N, L)
    center, spread = prior.mean(axis=0), np.where(prior.std(axis=0) > 0, prior.std(axis=0), 1.0)
    inputs = np.where(known, _PRIOR_SCALE * (prior - center) / spread, 0.0).astype(np.float32)
    start = np.zeros((y.shape[1], x.shape[1] + 2))
    shown = y.mean(axis=0)
    start[:, -1] = np.log(shown / (1 - shown))
    objective = _Objective(x, y, inputs, 1 / (c * len(x)))
    # After 200 steps the rest is not worth the time.
    options = {"maxiter": 200, "ftol": 1e-7, "gtol": 1e-5}
    with _scipy_on_one_thread():
        found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(start.shape)
    of_prior = found[:, -2] * _PRIOR_SCALE / spread * known
    return found[:, :-2] + of_prior[:, None] * old_weights, found[:, -1] + of_prior * (old_bias - center)


def _scipy_on_one_thread() -> Any:
    """Limit the BLAS that scipy brings; numpy's, which does the work, has all threads.

    L-BFGS's own vector products are so short that threads wait for each other: ten times slower on two busy cores.
    """
    import scipy.linalg  # noqa: F401  loads it
    from threadpoolctl import ThreadpoolController

    controller = ThreadpoolController()
    own = [library["filepath"] for library in controller.info() if "scipy" in library["filepath"]]
    return controller.select(filepath=own).limit(limits=1)


@dataclass(frozen=True)
class _Objective:
    """Mean log loss plus penalty of all labels, and its gradient.

    Attributes:
        x: (N, C) normalized features.
        y: (N, L).
        prior: (N, L) the old model's answers, normalized.
        penalty: of half the squared weights; the bias has none.
    """

    x: NDArray[np.float32]
    y: Bools
    prior: NDArray[np.float32]
    penalty: float

    def __call__(self, flat: Floats) -> tuple[float, Floats]:
        theta = flat.reshape(self.y.shape[1], -1)
        weights, of_prior, bias = theta[:, :-2], theta[:, -2], theta[:, -1]
        z = self.x @ weights.T.astype(np.float32) + self.prior * of_prior.astype(np.float32) + bias.astype(np.float32)
        signed = np.where(self.y, -z, z)
        e = np.exp(-np.abs(z))
        loss = float((np.maximum(signed, 0) + np.log1p(e)).sum(dtype=np.float64)) / len(self.x)
        residual = np.where(z >= 0, 1 / (1 + e), e / (1 + e)) - self.y
        gradient = np.empty_like(theta)
        gradient[:, :-2] = residual.T @ self.x
        gradient[:, -2] = (residual * self.prior).sum(axis=0)
        gradient[:, -1] = residual.sum(axis=0)
        gradient /= len(self.x)
        gradient[:, :-1] += self.penalty * theta[:, :-1]
        return loss + 0.5 * self.penalty * float(np.square(theta[:, :-1]).sum()), gradient.ravel()


def _log_loss(z: Floats, y: Bools) -> float:
    return float(np.logaddexp(0.0, np.where(y, -z, z)).mean())
