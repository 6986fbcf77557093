"""The calibration's fit: scikit-learn's where there is one, near the truth where that is known, finite everywhere."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mineral_batch.errors import DataError
from mineral_batch.evaluation.metrics import mean_average_precision
from mineral_train.calibration import AffineMap, fit_calibration, fit_maps
from mineral_train.training.staged import staged_file

LABELS = 12


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def loss(z, y):
    return np.logaddexp(0, np.where(y, -z, z)).mean()


class World:
    """Labels whose logits need maps that are alike, but not the same."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.map = AffineMap(np.exp(self.rng.normal(-0.3, 0.2, LABELS)), self.rng.normal(-1, 0.8, LABELS))

    def draw(self, images):
        calibrated = self.rng.normal(np.linspace(-5, -1, LABELS), 2.0, (images, LABELS))
        return (calibrated - self.map.bias) / self.map.scale, self.rng.random(calibrated.shape) < sigmoid(calibrated)


def maps_of(calibration):
    return AffineMap(np.array(calibration.scale), np.array(calibration.bias))


def test_the_common_map_is_scikit_learns_logistic_regression():
    z, y = World().draw(400)
    found = fit_maps(z, y, 0.0, 0.0)
    reference = LogisticRegression(C=1e9, tol=1e-8).fit(z.reshape(-1, 1), y.ravel())
    np.testing.assert_allclose(found.scale, reference.coef_[0, 0], rtol=2e-3)
    np.testing.assert_allclose(found.bias, reference.intercept_[0], rtol=2e-3)


def test_a_wide_prior_leaves_every_label_its_own_map():
    z, y = World().draw(3_000)
    found = fit_maps(z, y, 10.0, 10.0)
    for label in (6, 11):
        own = LogisticRegression(C=1e9, tol=1e-8).fit(z[:, [label]], y[:, label])
        assert found.scale[label] == pytest.approx(own.coef_[0, 0], rel=0.02)
        assert found.bias[label] == pytest.approx(own.intercept_[0], abs=0.1)


def test_the_prior_comes_nearer_to_the_truth_than_one_map_and_than_none():
    world = World()
    z, y = world.draw(400)
    fresh, truth = world.draw(20_000)
    found = fit_calibration(z, y, dataset="val")
    hierarchical = loss(maps_of(found)(fresh), truth)
    one, best = loss(fit_maps(z, y, 0.0, 0.0)(fresh), truth), loss(world.map(fresh), truth)
    assert best < hierarchical < one < loss(fresh, truth)
    assert hierarchical - best < 0.3 * (one - best)


def test_what_it_promises_of_itself_is_cross_validated():
    world = World(1)
    z, y = world.draw(500)
    found = fit_calibration(z, y, dataset="val")
    fresh, truth = world.draw(20_000)
    assert found.before.log_loss == pytest.approx(loss(z, y), rel=1e-4)
    assert found.after.log_loss > loss(maps_of(found)(z), y), "better on the images that it was fitted on"
    assert found.after.log_loss == pytest.approx(loss(maps_of(found)(fresh), truth), rel=0.05)
    assert found.after.ece < 0.2 * found.before.ece


def test_no_average_precision_changes():
    z, y = World(2).draw(300)
    found = maps_of(fit_calibration(z, y, dataset="val"))
    np.testing.assert_array_equal(mean_average_precision(found(z), y).per_label, mean_average_precision(z, y).per_label)


def test_a_label_in_no_image_gets_nearly_the_common_map():
    z, y = World(3).draw(300)
    y[:, 0] = False
    found = fit_calibration(z, y, dataset="val")
    assert found.positives[0] == 0
    assert 0.3 < found.scale[0] / np.median(found.scale) < 3
    assert np.isfinite(found.bias).all()


def test_the_same_images_give_the_same_map():
    z, y = World(4).draw(100)
    one, other = (fit_calibration(z.astype(np.float32), y, dataset="val", date="2026-01-01") for _ in range(2))
    assert one == other


def test_separable_images_give_a_finite_map():
    rng = np.random.default_rng(0)
    z = np.where(rng.random((50, 3)) < 0.5, 5.0, -5.0)
    found = maps_of(fit_calibration(z, z > 0, dataset="val"))
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()
    assert np.isfinite(found.bias).all()


def test_logits_that_rank_the_wrong_way_still_give_an_increasing_map():
    z, y = World(5).draw(200)
    assert (maps_of(fit_calibration(-z, y, dataset="val")).scale > 0).all()


@pytest.mark.parametrize("images", [2, 3, 7])
def test_a_handful_of_images_is_enough_to_go_on(images):
    z = np.linspace(-2, 2, images * 2).reshape(images, 2)
    y = np.zeros((images, 2), bool)
    y[0, 0] = True
    found = fit_calibration(z, y, dataset="val")
    assert np.isfinite([*found.scale, *found.bias]).all()


@pytest.mark.parametrize("truth", [np.zeros((5, 3), bool), np.ones((5, 3), bool), np.ones((1, 3), bool)])
def test_images_without_both_kinds_of_decisions_are_refused(truth):
    with pytest.raises(DataError, match="calibration needs images with a label and images without"):
        fit_calibration(np.zeros(truth.shape), truth, dataset="val")


def test_answers_that_are_not_numbers_are_refused():
    with pytest.raises(DataError, match="not finite"):
        fit_calibration(np.array([[np.nan], [1.0]]), np.array([[True], [False]]), dataset="val")


def test_what_a_killed_calibration_left_is_removed_by_the_next(tmp_path):
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from mineral_train.training.staged import staged_file\n"
        "with staged_file(Path(sys.argv[1])) as path:\n"
        "    path.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    subprocess.run([sys.executable, "-c", program, target], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    with staged_file(target) as path:
        path.write_bytes(b"new")
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"model.onnx": b"new"}
