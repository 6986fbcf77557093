"""Thresholds for a precision or a recall: the bounds are exact, and the promises are kept on images not seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mineral_batch.errors import DataError
from mineral_batch.evaluation.thresholds import Rule, binarize, lower_bound, promise_thresholds


def draw(rng, images, labels=8):
    """Calibrated probabilities of labels that are often present, and their truth."""
    scores = 1 / (1 + np.exp(-rng.normal(-0.5, 3.0, (images, labels))))
    return scores, rng.random(scores.shape) < scores


@given(st.integers(1, 300), st.data())
def test_the_bound_is_that_of_clopper_and_pearson(trials, data):
    successes = data.draw(st.integers(0, trials))
    exact = binomtest(successes, trials, alternative="greater").proportion_ci(0.95, "exact").low
    assert lower_bound(successes, trials) == pytest.approx(exact, abs=1e-9)


def test_no_trial_promises_nothing():
    assert lower_bound(0, 0) == 0.0


@pytest.mark.parametrize("goal", ["precision", "recall"])
def test_a_promise_fails_on_other_images_no_more_often_than_its_confidence_allows(goal):
    rng = np.random.default_rng(0)
    rule, failed, promised = Rule(goal, 0.8), 0, 0
    fresh, truth = draw(rng, 20_000, 1)
    for _ in range(60):
        found = promise_thresholds(*draw(rng, 300), rule)
        for threshold, bound in zip(found.thresholds, found.bound, strict=True):
            if np.isnan(bound):
                continue
            called = binarize(fresh, threshold)
            whole = called if goal == "precision" else truth
            promised += 1
            failed += (called & truth).sum() / whole.sum() < 0.8
    assert promised > 100
    assert failed / promised < 0.07


def test_a_promise_finds_more_than_the_safe_threshold_does():
    scores, truth = draw(np.random.default_rng(2), 2_000)
    found = promise_thresholds(scores, truth, Rule("precision", 0.9))
    assert (found.bound >= 0.9).all()
    assert (found.thresholds < 0.9).all()
    assert binarize(scores, found.thresholds)[truth].mean() > binarize(scores, 0.9)[truth].mean()


def test_without_enough_images_calibration_alone_speaks():
    scores, truth = draw(np.random.default_rng(3), 20, 2)
    found = promise_thresholds(scores, truth, Rule("precision", 0.9))
    assert np.isnan(found.bound).all()
    assert found.thresholds.tolist() == [0.9, 0.9]
    found = promise_thresholds(scores, truth, Rule("recall", 0.9))
    assert np.isnan(found.bound).all()
    called = binarize(scores, found.thresholds)
    assert ((scores * called).sum(axis=0) / scores.sum(axis=0) >= 0.9 - 1e-12).all()
    assert not called.all()


def test_a_label_in_no_image_gets_no_promise():
    scores = np.full((50, 1), 0.2)
    for goal in ("precision", "recall"):
        assert np.isnan(promise_thresholds(scores, np.zeros((50, 1), bool), Rule(goal, 0.9)).bound).all()


def test_rules_are_read_and_printed():
    for text in ("f1", "precision=0.9", "recall=0.75"):
        assert str(Rule.parse(text)) == text
    with pytest.raises(DataError, match="'precision=2' is not a rule"):
        Rule.parse("precision=2")
