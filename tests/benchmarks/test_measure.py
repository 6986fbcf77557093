"""The statistics that every benchmark rests on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mineral_bench.measure import Plan, Times, interleave, is_steady, median, ratio, ratio_between_runs, three_digits


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=60))
def test_the_interval_holds_the_median_and_lies_within_the_values(values: list[float]) -> None:
    found = median(np.array(values))
    assert min(values) <= found.low <= found.value <= found.high <= max(values)


@pytest.mark.parametrize(
    ("count", "rank"), [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (50, 18)]
)
def test_the_ranks_are_those_of_the_sign_test_tables(count: int, rank: int) -> None:
    found = median(np.random.default_rng(count).permutation(np.arange(1.0, count + 1)))
    assert (found.low, found.high) == (rank, count + 1 - rank)


def test_the_interval_covers_the_true_median_of_a_skewed_distribution() -> None:
    rng = np.random.default_rng(0)
    draws = [median(rng.exponential(size=15)) for _ in range(400)]
    covered = np.mean([one.low <= np.log(2) <= one.high for one in draws])
    assert 0.93 <= covered <= 1.0


def test_a_ratio_within_rounds_survives_what_slows_both() -> None:
    disturbance = np.random.default_rng(1).uniform(1, 5, 20)
    found = ratio(2.0 * disturbance, 6.0 * disturbance)
    assert (found.low, found.high) == pytest.approx((3.0, 3.0))


def test_two_runs_differ_only_beyond_their_noise() -> None:
    rng = np.random.default_rng(2)
    old, same, faster = (factor * rng.normal(1, 0.05, 20) for factor in (1.0, 1.0, 0.7))
    assert ratio_between_runs(same, old).low < 1 < ratio_between_runs(same, old).high
    assert ratio_between_runs(faster, old).low > 1.2


def test_a_rate_turns_the_interval_around() -> None:
    rate = median(np.array([1.0, 2.0, 4.0])).per(8)
    assert (rate.value, rate.low, rate.high) == (4, 2, 8)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0"), (0.001234, "0.00123"), (1.0, "1.00"), (99.94, "99.9"), (12345.6, "12346")],
)
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


def test_rounds_are_interleaved_and_their_order_rotates() -> None:
    calls: list[str] = []
    work = {name: lambda name=name: calls.append(name) for name in "abc"}
    rounds = interleave(work, Plan(least=3, most=3, seconds=0, warm_up=1))
    assert rounds.warm_up == 1
    assert rounds.count == 3
    assert calls == [*"abc", *"abc", *"bca", *"cab"]
    assert list(rounds.seconds) == ["a", "b", "c"]


def test_warming_up_ends_when_rounds_no_longer_get_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([8.0, 4.0, 3.99, 4.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr("mineral_bench.measure.timed", lambda action: Times(next(durations), 1.0))
    rounds = interleave({"one": lambda: None}, Plan(least=4, most=9, seconds=60, warm_up=9))
    assert rounds.warm_up == 3
    assert rounds.is_stable
    assert rounds.seconds["one"].tolist() == [4.0] * 4


def test_noise_is_not_called_stable() -> None:
    steady, noisy = ({"a": np.array(values)} for values in ([1.0] * 6, [1.0, 2.0] * 3))
    assert is_steady(steady, 0.02)
    assert not is_steady(noisy, 0.02)


def test_what_works_elsewhere_says_how_long_processors_worked() -> None:
    rounds = interleave({"here": lambda: None, "elsewhere": lambda: 7.5}, Plan(least=2, most=2, seconds=0, warm_up=1))
    assert rounds.cpu["elsewhere"].tolist() == [7.5, 7.5]
    assert all(rounds.cpu["here"] < 1)
