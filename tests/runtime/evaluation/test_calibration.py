"""Calibration figures: their definitions, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from mineral_batch.errors import DataError
from mineral_batch.evaluation.calibration import calibration_drift, calibration_figures, probability_scores, reliability


def decisions(seed, images=40, labels=3):
    rng = np.random.default_rng(seed)
    scores = rng.random((images, labels))
    return scores, rng.random((images, labels)) < scores**2


def test_reliability_counts_every_decision_in_its_bin():
    scores = np.array([[0.05, 0.95], [0.15, 1.0]])
    truth = np.array([[False, True], [True, False]])
    found = reliability(scores, truth)
    assert found.decisions.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert found.predicted[9] == pytest.approx(0.975)
    assert found.observed[[0, 1, 9]].tolist() == [0.0, 1.0, 0.5]
    assert np.isnan(found.observed[2])
    assert found.error == pytest.approx((0.05 + 0.85 + 2 * 0.475) / 4)


@given(st.integers(0, 2**32 - 1))
def test_the_figures_are_scikit_learns(seed):
    scores, truth = decisions(seed)
    found = probability_scores(scores, truth)
    assert found.log_loss == pytest.approx(log_loss(truth.ravel(), scores.ravel()))
    assert found.brier == pytest.approx(brier_score_loss(truth.ravel(), scores.ravel()))
    observed, predicted = calibration_curve(truth.ravel(), scores.ravel(), n_bins=10)
    bins = reliability(scores, truth)
    np.testing.assert_allclose(bins.observed[bins.decisions > 0], observed)
    np.testing.assert_allclose(bins.predicted[bins.decisions > 0], predicted)


def test_the_baseline_is_the_prevalence_of_every_label():
    scores, truth = decisions(3)
    found = calibration_figures(scores, truth)
    prevalence = np.tile(truth.mean(axis=0), (len(truth), 1))
    assert found.baseline.log_loss == pytest.approx(log_loss(truth.ravel(), prevalence.ravel()))
    assert found.baseline.ece == pytest.approx(0)
    assert found.labels_predicted == pytest.approx(scores.sum() / len(scores))
    assert found.labels_true == pytest.approx(truth.sum() / len(truth))


def test_drift_is_zero_for_a_step_over_an_edge_and_what_a_shift_adds():
    scores, truth = decisions(5, images=2_000)
    truth = np.random.default_rng(9).random(scores.shape) < scores
    assert calibration_drift(scores, scores, truth) == 0
    edge = np.array([[0.3 - 1e-9, 0.7]])
    assert abs(calibration_drift(edge, edge + 2e-9, np.array([[True, False]]))) < 1e-8
    shifted = np.clip(scores + 0.1, 0, 1)
    assert calibration_drift(scores, shifted, truth) == pytest.approx(0.095, abs=0.02)


def test_a_certain_and_wrong_answer_costs_a_finite_amount():
    found = probability_scores(np.array([[1.0, 0.0]]), np.array([[False, True]]))
    assert found.log_loss == pytest.approx(24 * np.log(2))
    assert found.brier == 1.0


def test_a_probability_that_is_not_a_number_is_refused():
    with pytest.raises(DataError, match="NaN"):
        calibration_figures(np.array([[np.nan]]), np.array([[True]]))
