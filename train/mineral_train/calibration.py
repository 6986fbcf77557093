"""Fit a calibration: one increasing affine map of the logit per label, rare labels drawn towards the common map.

    P(label k | logit z) = sigmoid(scale_k z + bias_k),   scale_k > 0

Per label this is Platt's map (Platt 1999). The labels share a Gaussian prior, a hierarchical ("partially pooled")
logistic regression: with u = (z - center) / spread,

    scale_k z + bias_k = exp(alpha + a_k) u + beta + b_k,   a_k ~ N(0, slope_sd^2),  b_k ~ N(0, offset_sd^2).

alpha and beta are free, a_k and b_k are at their posterior mode. A label without positives stays near the common map;
one with many follows its own images. The two standard deviations are chosen by cross-validated log loss; 0 and 0 is
the common map. A map that increases leaves every ranking as it was, and so every AP.

numpy only: scikit-learn's calibrators fit one label at a time, with nothing shared between labels.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.evaluation.calibration import probability_scores
from mineral_batch.model.calibration import Calibration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

METHOD = (
    "Platt's map per mineral, P = sigmoid(scale z + bias), with a Gaussian prior towards the map of all minerals; "
    "the prior's width by 5-fold cross-validation"
)

SLOPE_SDS = (0.0, 0.1, 0.3)
OFFSET_SDS = (0.0, 0.25, 0.5, 1.0)
_FOLDS = 5
# With more images the prior hardly matters, and the choice would only take longer.
_IMAGES_FOR_CHOICE = 4_000
# Standard deviations of the common map's own prior: it keeps data finite that are perfectly separable.
_WEAK_SDS = np.array([3.0, 10.0])
_LARGEST_LOG = 500.0  # beyond, exp overflows
_STEPS = 100
_STEP_LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.01, 0.001)
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class AffineMap:
    """z_k -> scale_k z_k + bias_k.

    Attributes:
        scale: (L,), all above 0.
        bias: (L,).
    """

    scale: Floats
    bias: Floats

    def __call__(self, logits: NDArray[np.floating]) -> Floats:
        """(N, L) to (N, L)."""
        return self.scale * np.asarray(logits, np.float64) + self.bias


def fit_calibration(
    logits: NDArray[np.floating], truth: Bools, *, dataset: str, seed: int = 0, date: str | None = None
) -> Calibration:
    """Fit the maps; how good they are is measured by cross-validation over the same images.

    Args:
        logits: (N, L), of images that the model was not trained on.
        truth: (N, L) bool.
        dataset: what these images are, in words.
        seed: of the assignment to folds.
        date: ISO 8601; None for today.

    Raises:
        DataError: for fewer than two images, logits that are not finite, or truth that is all absent or all present.
    """
    z, y = _checked(logits, truth)
    fold = np.random.default_rng(seed).permutation(np.arange(len(z)) % _FOLDS)
    sds = _choose_prior(z, y, fold)
    fitted = fit_maps(z, y, *sds)
    before, after = (probability_scores(_sigmoid(x), y) for x in (z, _out_of_fold(z, y, fold, *sds)))
    return Calibration(
        method=METHOD,
        dataset=dataset,
        images=len(z),
        date=date or datetime.datetime.now(datetime.UTC).date().isoformat(),
        scale=tuple(fitted.scale.tolist()),
        bias=tuple(fitted.bias.tolist()),
        positives=tuple(y.sum(axis=0).tolist()),
        before=before,
        after=after,
    )


def fit_maps(logits: Floats, truth: Bools, slope_sd: float, offset_sd: float) -> AffineMap:
    """Fit the maps with a given prior.

    Args:
        logits: (N, L).
        truth: (N, L) bool, with decisions of both kinds.
        slope_sd: standard deviation of the log slopes between labels.
        offset_sd: standard deviation of the offsets between labels, in logits.
    """
    common = _Common.fit(logits, truth)
    theta = np.zeros((logits.shape[1] + 1, 2))
    theta[0] = common.alpha, common.beta
    if slope_sd or offset_sd:
        theta = _fit(common.coordinate(logits), truth, theta, slope_sd, offset_sd)
    log_slope, offset = (theta[0] + [slope_sd, offset_sd] * theta[1:]).T
    scale = np.exp(log_slope) / common.spread
    return AffineMap(scale, offset - scale * common.center)


@dataclass(frozen=True)
class _Common:
    """The map of all labels together, and the coordinate u in which slope and offset are nearly independent."""

    alpha: float
    beta: float
    center: float
    spread: float

    @classmethod
    def fit(cls, z: Floats, y: Bools) -> _Common:
        """Fit Platt's map of all decisions, of logits (N, L) to truth (N, L).

        `center` and `spread` are those of the logits where the decision is open.
        """
        first = cls(0.0, 0.0, float(z.mean()), float(z.std()) or 1.0)
        alpha, beta = _fit(first.coordinate(z), y, np.zeros((z.shape[1] + 1, 2)), 0.0, 0.0)[0]
        p = _sigmoid(np.exp(alpha) * first.coordinate(z) + beta)
        weight = p * (1 - p) + 1e-12
        center = float(np.average(z, weights=weight))
        spread = float(np.sqrt(np.average((z - center) ** 2, weights=weight))) or first.spread
        slope = float(np.exp(alpha)) / first.spread
        return cls(float(np.log(slope * spread)), float(beta) + slope * (center - first.center), center, spread)

    def coordinate(self, z: Floats) -> Floats:
        return (z - self.center) / self.spread


def _checked(logits: NDArray[np.floating], truth: Bools) -> tuple[Floats, Bools]:
    z, y = np.asarray(logits, np.float64), np.asarray(truth, bool)
    if z.ndim != 2 or z.shape != y.shape:
        raise ValueError(f"logits {z.shape} and truth {y.shape} must both be (N, L)")
    if not np.isfinite(z).all():
        raise DataError("the model answers with numbers that are not finite: it cannot be calibrated")
    if len(z) < 2 or not y.any() or y.all():
        raise DataError(
            f"calibration needs images with a label and images without: of {len(z)} images {int(y.any(axis=1).sum())} "
            "have one; name another split, or add labeled images to this one"
        )
    return z, y


def _choose_prior(z: Floats, y: Bools, fold: NDArray[np.int64]) -> tuple[float, float]:
    """(slope_sd, offset_sd) of the lowest cross-validated log loss; of equals the strongest prior."""
    some = slice(_IMAGES_FOR_CHOICE)  # the folds are random, so the first images are as good as any
    z, y, fold = z[some], y[some], fold[some]
    loss = {sds: round(_log_loss(_out_of_fold(z, y, fold, *sds), y), 7) for sds in product(SLOPE_SDS, OFFSET_SDS)}
    return min(loss, key=lambda sds: (loss[sds], sds))


def _out_of_fold(z: Floats, y: Bools, fold: NDArray[np.int64], slope_sd: float, offset_sd: float) -> Floats:
    """Calibrated logits (N, L), of each image by the maps that were fitted without its fold."""
    out = np.empty_like(z)
    for held in (fold == f for f in np.unique(fold)):
        rest = y[~held]
        # Too few images to leave any out: the fold's own are better than none.
        train = ~held if rest.any() and not rest.all() else np.ones_like(held)
        out[held] = fit_maps(z[train], y[train], slope_sd, offset_sd)(z[held])
    return out


def _log_loss(z: Floats, y: Bools) -> float:
    return float(np.logaddexp(0.0, np.where(y, -z, z)).mean())


def _sigmoid(z: Floats) -> Floats:
    p: Floats = 1 / (1 + np.exp(-np.clip(z, -_LARGEST_LOG, _LARGEST_LOG)))
    return p


def _fit(u: Floats, y: Bools, start: Floats, slope_sd: float, offset_sd: float) -> Floats:
    """Minimize the penalized negative log likelihood by Fisher scoring.

    The deviations are in units of their standard deviation, so that a standard deviation of 0 is no special case.

    Args:
        u: (N, L) coordinates.
        y: (N, L) truth.
        start: (L + 1, 2) log slope and offset: those of all labels, then each label's deviation.
        slope_sd: see `fit_maps`.
        offset_sd: see `fit_maps`.
    """
    sds = np.array([slope_sd, offset_sd])
    theta, loss = start, _penalized_loss(u, y, start, sds)
    for _ in range(_STEPS):
        step = _scoring_step(u, y, theta, sds)
        for factor in _STEP_LENGTHS:
            candidate = theta + factor * step
            candidate_loss = _penalized_loss(u, y, candidate, sds)
            if candidate_loss <= loss:
                break
        else:
            return theta
        improvement, theta, loss = loss - candidate_loss, candidate, candidate_loss
        if improvement < _TOLERANCE * (1 + abs(loss)):
            break
    return theta


def _penalized_loss(u: Floats, y: Bools, theta: Floats, sds: Floats) -> float:
    log_slope, offset = (theta[0] + sds * theta[1:]).T
    x = np.exp(np.minimum(log_slope, _LARGEST_LOG)) * u + offset
    nll = np.maximum(x, 0) - np.where(y, x, 0) + np.log1p(np.exp(-np.abs(x)))
    return float(nll.sum() + 0.5 * ((theta[0] / _WEAK_SDS) ** 2).sum() + 0.5 * (theta[1:] ** 2).sum())


def _scoring_step(u: Floats, y: Bools, theta: Floats, sds: Floats) -> Floats:
    """The step (L + 1, 2) by the expected Hessian: 2 x 2 blocks of the labels, bordered by that of the common map."""
    log_slope, offset = (theta[0] + sds * theta[1:]).T
    v = np.exp(np.minimum(log_slope, _LARGEST_LOG)) * u
    p = _sigmoid(v + offset)
    residual, weight = y - p, p * (1 - p)
    score = np.stack([(residual * v).sum(axis=0), residual.sum(axis=0)], axis=1)  # (L, 2)
    cross = (weight * v).sum(axis=0)
    fisher = np.stack([(weight * v * v).sum(axis=0), cross, cross, weight.sum(axis=0)], axis=1).reshape(-1, 2, 2)
    own = sds[:, None] * fisher * sds + np.eye(2)
    border = fisher * sds  # (L, 2, 2): common by own
    own_score = sds * score - theta[1:]
    solved = np.linalg.solve(own, np.concatenate([border.transpose(0, 2, 1), own_score[..., None]], axis=2))
    common = (fisher - border @ solved[..., :2]).sum(axis=0) + np.diag(_WEAK_SDS**-2.0)
    common_score = (score - (border @ solved[..., 2:])[..., 0]).sum(axis=0) - theta[0] * _WEAK_SDS**-2.0
    step = np.linalg.solve(common, common_score)
    return np.concatenate([step[None], solved[..., 2] - solved[..., :2] @ step])
