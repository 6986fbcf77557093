"""Label shift: the correction is Bayes' rule, and the estimate finds the prevalences that images were drawn with."""

from __future__ import annotations

import numpy as np
import pytest

from mineral_batch import ContractError, DataError, Failure, ModelContract, Prediction
from mineral_batch.model.calibration import Calibration, ProbabilityScores
from mineral_batch.results.prevalence import (
    read_prevalences,
    require_calibrated,
    shift_by_estimate,
    shift_to_file,
    trained_prevalences,
)

LABELS = ("agate", "gold", "quartz")
POSITIVES = (99, 499, 0)


def contract():
    scores = ProbabilityScores(0, 0, 0)
    calibration = Calibration("Platt", "val", 999, "2026-01-01", (1,) * 3, (0,) * 3, POSITIVES, scores, scores)
    return ModelContract(LABELS, (0.5,) * 3, calibration=calibration)


def results(probabilities):
    return [Prediction(f"{i}.jpg", row.astype(np.float32), 1, 1) for i, row in enumerate(np.atleast_2d(probabilities))]


def table(tmp_path, text):
    path = tmp_path / "prevalence.csv"
    path.write_text(text)
    return path


def test_the_odds_are_multiplied_by_the_ratio_of_the_prevalences_odds(tmp_path):
    shift = shift_to_file(contract(), table(tmp_path, "mineral,prevalence\nagate,0.5\n"))
    (result,) = shift(results(np.array([0.2, 0.4, 0.01])))
    old = 99.5 / 1000
    odds = 0.2 / 0.8 * (0.5 / 0.5) / (old / (1 - old))
    assert result.probabilities[0] == pytest.approx(odds / (1 + odds), rel=1e-5)
    assert result.probabilities[1:] == pytest.approx([0.4, 0.01]), "minerals that are not named stay"
    assert shift.record()["minerals"]["agate"] == {"trained": 0.0995, "here": 0.5}


def test_failures_pass_through(tmp_path):
    shift = shift_to_file(contract(), table(tmp_path, "mineral,prevalence\nagate,0.5\n"))
    failure = Failure("a.jpg", "decode", "damaged")
    assert list(shift([failure])) == [failure]


def test_a_mineral_that_is_never_here_is_never_probable(tmp_path):
    shift = shift_to_file(contract(), table(tmp_path, "mineral,prevalence\ngold,0\n"))
    (result,) = shift(results(np.array([0.2, 0.99, 0.01])))
    assert result.probabilities[1] < 1e-5


def world(rng, prevalence, images):
    """Images with features of known densities, and the probabilities of a model calibrated at the old prevalences."""
    truth = rng.random((images, 3)) < prevalence
    z = rng.normal(np.where(truth, 1.5, -1.5), 1.0)  # log likelihood ratio of presence: 3 z
    old = trained_prevalences(contract())
    return 1 / (1 + np.exp(-(3 * z + np.log(old / (1 - old))))), truth


def test_the_estimate_finds_the_prevalences_and_calibrates():
    here = np.array([0.4, 0.1, 0.05])
    probabilities, truth = world(np.random.default_rng(0), here, 4_000)
    shift = shift_by_estimate(contract(), results(probabilities))
    assert shift.target == pytest.approx(here, abs=0.02)
    corrected = np.stack([result.probabilities for result in shift(results(probabilities))])
    assert corrected.mean(axis=0) == pytest.approx(truth.mean(axis=0), abs=0.01)
    before, after = (np.log(np.where(truth, p, 1 - p)).mean() for p in (probabilities, corrected))
    assert after > before


def test_a_few_images_make_no_mineral_impossible():
    shift = shift_by_estimate(contract(), results(np.full((3, 3), 1e-6)))
    assert (shift.target > 0).all()
    assert (shift.target <= shift.trained).all()


def test_without_images_nothing_changes():
    shift = shift_by_estimate(contract(), [Failure("a.jpg", "read", "gone")])
    assert (shift.target == shift.trained).all()


def test_a_spreadsheets_file_with_other_names_is_read(tmp_path):
    path = table(tmp_path, "Label;Share\nAmethyst;0,25\nGOLD;0\n")
    assert read_prevalences(path, LABELS) == {"quartz": 0.25, "gold": 0.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mineral,prevalence\nagate,2\n", "line 2: '2' is not a prevalence"),
        ("mineral,prevalence\nagate,much\n", "line 2: 'much' is not a prevalence"),
        ("mineral,prevalence\nruby,0.1\n", "line 2: 'ruby' is not a mineral of the model; it has agate, gold, quartz"),
        ("mineral,prevalence\nagate,0.1\nAgate,0.2\n", "line 3: agate comes twice"),
        ("mineral,count\nagate,1\n", "has no column prevalence"),
        ("mineral,prevalence\n", "a header and no rows"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        shift_to_file(contract(), table(tmp_path, text))


def test_a_model_that_is_not_calibrated_is_refused_with_the_command():
    with pytest.raises(ContractError, match=r"mineral-train calibrate model\.onnx MANIFEST.csv --split val"):
        require_calibrated(ModelContract(LABELS, (0.5,) * 3), "model.onnx")
