"""Precision-recall and threshold curves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve

from mineral_batch.evaluation.curves import precision_recall_curve as precision_recall_curve_of
from mineral_batch.evaluation.curves import threshold_curves
from mineral_batch.report.figures import steps


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_precision_recall_curve_equals_scikit_learn(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, 8, count) / 8, rng.random(count) < 0.4
    truth[0] = True
    curve = precision_recall_curve_of(scores, truth)
    precision, recall, _ = precision_recall_curve(truth, scores)
    np.testing.assert_allclose(curve.precision, precision[:-1][::-1])
    np.testing.assert_allclose(curve.recall, recall[:-1][::-1])
    x, y = steps(curve)
    assert float(np.sum(np.diff(x) * y[1:])) == pytest.approx(average_precision_score(truth, scores))


def test_threshold_curves_count_at_or_above() -> None:
    found = threshold_curves(np.array([0.2, 0.5, 0.9]), np.array([False, True, True]))
    at = {round(t, 2): i for i, t in enumerate(found.threshold.tolist())}
    assert found.precision[at[0.5]] == 1.0
    assert found.recall[at[0.5]] == 1.0
    assert found.recall[at[0.51]] == 0.5
    assert found.precision[at[0.2]] == pytest.approx(2 / 3)
    assert np.isnan(found.precision[at[1.0]])
