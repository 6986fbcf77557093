"""The metrics against scikit-learn, against hand-computed examples, and against their own invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    fbeta_score,
    precision_recall_fscore_support,
)

from mineral_batch.errors import DataError
from mineral_batch.evaluation import metrics
from mineral_batch.evaluation.metrics import (
    DEFINITIONS,
    EMPTY_AS_ZERO,
    EQUATION_6,
    VOC_2010,
    average_precision,
    bootstrap_interval,
    mean_average_precision,
    precision_recall_f1,
)
from mineral_batch.evaluation.thresholds import LEAST_PROBABLE, binarize, expected_f1_thresholds, tune_thresholds

NAN = float("nan")


@st.composite
def tables(draw, max_pictures=30, max_labels=5):
    """Scores on a coarse grid, so that ties are common, and any truth, so that empty labels are too."""
    shape = (draw(st.integers(1, max_pictures)), draw(st.integers(1, max_labels)))
    steps = draw(st.sampled_from([1, 3, 1000]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    scores = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, steps))).astype(dtype) / dtype(steps)
    return scores, draw(hnp.arrays(np.bool_, shape))


def column(values):
    return np.array(values, float)[:, None]


# --- average precision ---------------------------------------------------------------------------------


@given(tables())
def test_equation_6_is_scikit_learns_average_precision(table):
    scores, truth = table
    found = mean_average_precision(scores, truth)
    expected = [average_precision_score(t, s) if t.any() else NAN for s, t in zip(scores.T, truth.T, strict=True)]
    np.testing.assert_allclose(found.per_label, expected, atol=1e-12)
    np.testing.assert_array_equal(found.support, truth.sum(axis=0))
    if truth.any():
        assert found.mean == pytest.approx(np.nanmean(expected))
        occupied = truth.any(axis=0)
        assert found.mean == pytest.approx(average_precision_score(truth[:, occupied], scores[:, occupied]))


def voc_devkit(scores, truth):
    """VOCap of the VOC 2010 development kit, in its own words (VOCevaldet.m), on distinct scores."""
    order = np.argsort(-scores)
    hits = truth[order].cumsum()
    recall = np.concatenate([[0], hits / truth.sum(), [1]])
    precision = np.concatenate([[0], hits / np.arange(1, len(hits) + 1), [0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return ((recall[steps] - recall[steps - 1]) * precision[steps]).sum()


@given(st.permutations(range(12)), hnp.arrays(np.bool_, 12))
def test_the_voc_envelope_is_that_of_the_development_kit(ranks, truth):
    assume(truth.any())
    scores = np.array(ranks) / 12
    assert average_precision(scores, truth, VOC_2010) == pytest.approx(voc_devkit(scores, truth))


def test_the_three_definitions_by_hand():
    # Ranking of label 0: yes no no yes yes -> precisions 1, 2/4, 3/5 at the positives; the envelope lifts 2/4 to 3/5.
    scores = np.stack([[0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5]], axis=1)
    truth = np.array([[1, 0, 0, 1, 1], [0, 0, 0, 0, 0]], bool).T
    paper = mean_average_precision(scores, truth)
    assert paper.definition == EQUATION_6
    assert paper.mean == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)
    assert paper.empty == (1,)
    assert np.isnan(paper.per_label[1])
    envelope = mean_average_precision(scores, truth, VOC_2010)
    assert envelope.mean == pytest.approx((1 + 3 / 5 + 3 / 5) / 3)
    assert mean_average_precision(scores, truth, EMPTY_AS_ZERO).mean == pytest.approx(paper.mean / 2)


def test_equal_scores_are_one_threshold():
    # The tie holds one of two positives: its threshold calls three pictures, two of them rightly.
    scores, truth = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    assert average_precision(scores, truth) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize("definition", DEFINITIONS)
@given(tables(), st.randoms(use_true_random=False))
def test_only_the_order_of_scores_matters_and_not_that_of_pictures(definition, table, random):
    scores, truth = table
    expected = mean_average_precision(scores, truth, definition)
    # Logit-like and strictly monotone on the grid of the scores.
    monotone = mean_average_precision(np.exp(3 * scores.astype(float)) - 7, truth, definition)
    np.testing.assert_array_equal(monotone.per_label, expected.per_label)
    order = random.sample(range(len(scores)), len(scores))
    np.testing.assert_allclose(
        mean_average_precision(scores[order], truth[order], definition).per_label, expected.per_label, atol=1e-12
    )


@given(tables())
def test_the_envelope_is_never_lower_and_all_are_fractions(table):
    paper, envelope, zero = (mean_average_precision(*table, name) for name in (EQUATION_6, VOC_2010, EMPTY_AS_ZERO))
    full = paper.support > 0
    assert (envelope.per_label[full] >= paper.per_label[full]).all()
    assert ((paper.per_label[full] > 0) & (envelope.per_label[full] <= 1)).all()
    assert zero.mean == pytest.approx(np.nan_to_num(paper.per_label).mean())


def test_nothing_positive_has_no_average_precision():
    scores, truth = np.array([0.1, 0.2]), np.zeros(2, bool)
    assert np.isnan(average_precision(scores, truth))
    assert average_precision(scores, truth, EMPTY_AS_ZERO) == 0.0
    assert np.isnan(mean_average_precision(np.empty((0, 2)), np.empty((0, 2), bool)).mean)


def test_a_broken_model_and_wrong_shapes_are_refused():
    with pytest.raises(DataError, match="1 probabilities are NaN, the first in row 2"):
        average_precision(np.array([0.1, NAN]), np.array([True, False]))
    with pytest.raises(ValueError, match=r"\(2, 1\) and \(3, 1\)"):
        mean_average_precision(np.zeros((2, 1)), np.zeros((3, 1), bool))
    with pytest.raises(ValueError, match="truth must be bool"):
        average_precision(np.zeros(2), np.zeros(2))


# --- bootstrap -----------------------------------------------------------------------------------------


def sample(pictures, labels=4, prevalence=0.3, separation=2.0, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.random((pictures, labels)) < prevalence
    return rng.normal(size=truth.shape) + separation * truth, truth


def test_the_interval_is_the_basic_bootstrap_of_explicit_resamples():
    scores, truth = sample(40)
    rng = np.random.default_rng(3)
    draws = [rng.integers(40, size=40) for _ in range(200)]
    means = [mean_average_precision(scores[rows], truth[rows]).mean for rows in draws]
    estimate = mean_average_precision(scores, truth).mean
    expected = 2 * estimate - np.quantile(means, [0.975, 0.025])
    np.testing.assert_allclose(bootstrap_interval(scores, truth, 200, seed=3), np.minimum(expected, 1), atol=1e-12)


def test_the_interval_depends_on_the_seed_and_not_on_the_chunks(monkeypatch):
    scores, truth = sample(60)
    first = bootstrap_interval(scores, truth, 100, seed=1)
    assert bootstrap_interval(scores, truth, 100, seed=1) == first
    assert bootstrap_interval(scores, truth, 100, seed=2) != first
    monkeypatch.setattr(metrics, "_CHUNK", 60 * 7)
    assert bootstrap_interval(scores, truth, 100, seed=1) == pytest.approx(first)


def test_the_interval_narrows_with_pictures_and_is_a_point_for_a_perfect_model():
    widths = [high - low for low, high in (bootstrap_interval(*sample(n), 200) for n in (50, 800))]
    assert widths[1] < widths[0] / 2
    _, truth = sample(50)
    assert bootstrap_interval(truth.astype(float), truth, 50) == (1.0, 1.0)
    assert np.isnan(bootstrap_interval(np.zeros((5, 2)), np.zeros((5, 2), bool), 10)).all()


def test_the_interval_covers_the_true_mean_ap_where_the_percentile_interval_would_not():
    # Few positives and a weak model: AP is biased upwards. The truth is known from a large sample.
    setting = {"labels": 12, "prevalence": 0.05, "separation": 1.5}
    true = mean_average_precision(*sample(40_000, **setting, seed=99)).mean
    intervals = [bootstrap_interval(*sample(200, **setting, seed=i), 200) for i in range(40)]
    assert sum(low <= true <= high for low, high in intervals) >= 32


# --- precision, recall, F1 -----------------------------------------------------------------------------


@given(tables())
def test_precision_recall_f1_are_scikit_learns(table):
    scores, truth = table
    called = binarize(scores, 0.5)
    found = precision_recall_f1(called, truth)

    def scikit_learn(called, truth):
        return precision_recall_fscore_support(truth, called, average="binary", zero_division=0.0)[:3]

    expected = np.array([scikit_learn(c, t) for c, t in zip(called.T, truth.T, strict=True)])
    np.testing.assert_allclose(np.stack([found.precision, found.recall, found.f1], axis=1), expected)
    np.testing.assert_array_equal([found.called, found.support], [called.sum(axis=0), truth.sum(axis=0)])
    np.testing.assert_allclose(found.overall, scikit_learn(called.ravel(), truth.ravel()))
    full = found.support > 0
    if full.any():
        np.testing.assert_allclose([*found.per_class[:2], found.macro_f1], expected[full].mean(axis=0))


def test_per_class_f1_is_of_the_means_and_macro_f1_the_mean_of_f1s():
    called = np.array([[1, 1], [1, 0], [0, 0], [0, 0]], bool)
    truth = np.array([[1, 1], [0, 1], [0, 1], [0, 1]], bool)
    found = precision_recall_f1(called, truth)
    assert found.per_class[:2] == (pytest.approx(0.75), pytest.approx(0.625))  # (1/2 + 1) / 2, (1 + 1/4) / 2
    assert found.per_class.f1 == pytest.approx(2 * 0.75 * 0.625 / 1.375)
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 5) / 2)
    assert found.overall == pytest.approx((2 / 3, 2 / 5, 1 / 2))


def test_a_label_without_positives_is_out_of_the_class_means_but_in_the_overall_ones():
    called, truth = np.array([[1, 1], [0, 1]], bool), np.array([[1, 0], [0, 0]], bool)
    found = precision_recall_f1(called, truth)
    assert found.per_class == (1.0, 1.0, 1.0)
    assert found.overall.precision == pytest.approx(1 / 3)
    nothing = precision_recall_f1(np.zeros((3, 2), bool), np.zeros((3, 2), bool))
    assert nothing.overall == nothing.per_class == (0.0, 0.0, 0.0)


def test_a_score_at_its_threshold_is_called():
    assert binarize(np.array([[0.3, 0.3]]), np.array([0.3, 0.31])).tolist() == [[True, False]]


# --- thresholds ----------------------------------------------------------------------------------------


@given(tables(max_labels=2), st.sampled_from([0.5, 1.0, 2.0]))
def test_no_other_threshold_has_a_higher_f_beta(table, beta):
    scores, truth = table
    tuned = tune_thresholds(scores, truth, beta, min_support=1)
    assert ((tuned >= 0) & (tuned <= 1)).all()
    for label in np.flatnonzero(truth.any(axis=0)):
        s, t = scores[:, label], truth[:, label]
        reached = fbeta_score(t, s >= tuned[label], beta=beta, zero_division=0.0)
        best = max(fbeta_score(t, s >= cut, beta=beta, zero_division=0.0) for cut in {*s.tolist(), 2.0})
        assert reached == pytest.approx(best)


def test_a_threshold_lies_midway_between_its_neighbors():
    truth = np.array([True, True, False, False])
    assert tune_thresholds(column([0.9, 0.8, 0.4, 0.1]), truth[:, None], min_support=1) == pytest.approx([0.6])
    # Everything positive: midway to 0.
    assert tune_thresholds(column([0.9, 0.8]), truth[:2, None], min_support=1) == pytest.approx([0.4])


def expected_f1(probabilities, cut):
    called = probabilities >= cut
    return 2 * probabilities[called].sum() / max(called.sum() + probabilities.sum(), 1e-300)


@given(tables(max_labels=2))
def test_no_other_threshold_has_a_higher_expected_f1(table):
    probabilities, _ = table
    chosen = expected_f1_thresholds(probabilities, np.ones(probabilities.shape, bool))
    assert ((chosen >= LEAST_PROBABLE) & (chosen <= 1)).all()
    for column_, cut in zip(probabilities.astype(np.float64).T, chosen, strict=True):
        best = max(expected_f1(column_, other) for other in {*column_.tolist(), 2.0} if other >= LEAST_PROBABLE)
        assert expected_f1(column_, cut) == pytest.approx(best)


def test_the_threshold_of_the_highest_expected_f1_is_half_of_it():
    probabilities = np.random.default_rng(0).beta(0.1, 1.0, (20_000, 1))
    [cut] = expected_f1_thresholds(probabilities, np.ones(probabilities.shape, bool))
    assert cut == pytest.approx(expected_f1(probabilities[:, 0], cut) / 2, abs=1e-3)


def test_a_label_that_no_image_shows_is_called_where_it_is_more_probable_than_not():
    probabilities, truth = np.full((4, 2), 0.2), np.array([[True, False]] * 4)
    assert expected_f1_thresholds(probabilities, truth)[1] == 0.5
    assert expected_f1_thresholds(np.zeros((4, 1)), truth[:, :1]).tolist() == [0.5]


def test_of_rare_labels_expected_thresholds_call_about_as_many_images_as_show_them():
    """The best cut of the few images that show a label calls far too many or too few of the next ones."""
    random = np.random.default_rng(0)
    probabilities = random.beta(0.02, 1.0, (1000, 40))  # each label in about 20 images, half of them hard to see
    seen, new = probabilities[:300], probabilities[300:]
    truth = random.random(probabilities.shape) < probabilities
    shown = truth[300:].sum(axis=0)

    def excess(thresholds):
        return np.abs(np.log((binarize(new, thresholds).sum(axis=0) + 1) / (shown + 1))).mean()

    assert excess(expected_f1_thresholds(seen, truth[:300])) < 0.8 * excess(tune_thresholds(seen, truth[:300]))


def test_neighboring_floats_are_told_apart():
    low = np.float64(0.5)
    scores = column([np.nextafter(low, 1), low])
    truth = np.array([[True], [False]])
    cut = tune_thresholds(scores, truth, min_support=1)
    assert binarize(scores, cut).tolist() == truth.tolist()


def test_rare_labels_share_the_threshold_that_is_best_for_all_of_them_together():
    scores, truth = sample(200, labels=4)
    scores = 1 / (1 + np.exp(-scores))
    truth[3:, 1:3] = False
    truth[:3, 1:3] = True
    tuned = tune_thresholds(scores, truth)
    assert tuned[1] == tuned[2]
    assert tuned[1] not in {0.5, tuned[0], tuned[3]}
    together = tune_thresholds(scores[:, 1:3].reshape(-1, 1), truth[:, 1:3].reshape(-1, 1))
    assert tuned[1] == together[0]


def test_labels_with_too_few_positives_even_together_keep_the_fallback():
    scores, truth = sample(200, labels=3)
    scores = 1 / (1 + np.exp(-scores))
    truth[:, 1] = False
    truth[:4, 1] = True
    tuned = tune_thresholds(scores, truth, fallback=np.array([0.1, 0.2, 0.3]))
    assert tuned[1] == 0.2
    assert tuned[0] != 0.1
    assert tuned[2] != 0.3
    assert tune_thresholds(scores, truth)[1] == 0.5
    gain = [f1_score(truth[:, 0], scores[:, 0] >= cut) for cut in (tuned[0], 0.5)]
    assert gain[0] >= gain[1]
