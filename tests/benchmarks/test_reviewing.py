"""The study of orders of labeling, on features that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from mineral_batch.errors import DataError
from mineral_bench.studies import reviewing


def photos() -> reviewing.Photos:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 6)).astype(np.float32)
    y = x[:, :3] + 0.3 * rng.normal(size=(240, 3)) > 0.8
    splits = np.array(["train"] * 140 + ["val"] * 30 + ["test"] * 70)
    return reviewing.Photos(x, y, np.arange(240), splits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "teaches, by features"])
def test_labels_raise_the_map_whatever_the_order(name: str) -> None:
    (choose,) = reviewing.orders([name]).values()
    found = reviewing.curve(photos(), choose, rounds=2, size=70, seed=0)
    assert len(found) == 3
    assert found[-1] > found[0]
    assert found[-1] == pytest.approx(reviewing.curve(photos(), choose, rounds=1, size=140, seed=0)[-1], abs=0.02)


def test_labels_needed_are_counted_between_rounds() -> None:
    mean = np.array([0.2, 0.3, 0.5])
    assert reviewing.labels_needed(mean, 0.4, 100) == pytest.approx(150)
    assert reviewing.labels_needed(mean, 0.1, 100) == 0
    assert reviewing.labels_needed(mean, 0.6, 100) is None


def test_an_order_that_there_is_not_is_refused() -> None:
    with pytest.raises(DataError, match="no order is called 'alphabet'; there are: random"):
        reviewing.orders(["alphabet"])
