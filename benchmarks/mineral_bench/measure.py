"""Timing in interleaved rounds: other load affects all candidates alike, so ratios are not affected.

Each round times every candidate once, in an order that rotates. A ratio is taken within rounds and not between
medians. CPU seconds are recorded as well; other programs change them far less, so on a busy machine trust their
ratio. Intervals are distribution-free, by order statistics: times on a shared machine are not normally distributed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Action = Callable[[], Any]

# Of the probability that the interval of a median covers it; five rounds reach 0.94 with all of them.
_COVERAGE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% confidence interval.

    Attributes:
        value: the median.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the width of the interval, relative to the value."""
        return (self.high - self.low) / (2 * self.value)

    def per(self, amount: float) -> Estimate:
        """Return a rate: `amount` in that many seconds."""
        return Estimate(amount / self.value, amount / self.high, amount / self.low)

    def __str__(self) -> str:
        return f"{three_digits(self.value)} ({three_digits(self.low)} to {three_digits(self.high)})"


def three_digits(value: float) -> str:
    """Format a number with three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def median(values: NDArray[np.float64]) -> Estimate:
    """Return the median of (R,) values with its interval by order statistics.

    The interval is the narrowest symmetric pair of ordered values that covers the median with 95% by the binomial
    distribution (Conover 1999, 3.2); with fewer than six values all of them, which covers 94% with five.
    """
    ordered = np.sort(values)
    count, below, mass = len(ordered), 0, 0.0
    while below < (count - 1) // 2:
        mass += math.comb(count, below) / 2**count
        if 1 - 2 * mass < _COVERAGE:
            break
        below += 1
    rank = max(0, below - 1)
    return Estimate(float(np.median(ordered)), float(ordered[rank]), float(ordered[count - 1 - rank]))


def ratio(times: NDArray[np.float64], reference: NDArray[np.float64]) -> Estimate:
    """Return how many times faster than the reference: the median over rounds of `reference / times`, both (R,)."""
    return median(reference / times)


def ratio_between_runs(new: NDArray[np.float64], old: NDArray[np.float64], seed: int = 0) -> Estimate:
    """Return `median(old) / median(new)` of two runs that did not share rounds, with a bootstrap interval."""
    rng = np.random.default_rng(seed)
    medians = [np.median(rng.choice(values, (_RESAMPLES, len(values))), axis=1) for values in (old, new)]
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    return Estimate(float(np.median(old) / np.median(new)), float(low), float(high))


class Times(NamedTuple):
    """Seconds of one call: by the clock, and CPU seconds over all threads."""

    clock: float
    cpu: float


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        least: rounds, without the warm-up.
        most: rounds.
        seconds: after which no new round begins, the warm-up included; `least` rounds are always made.
        tolerance: relative half width of every candidate's interval at which to stop earlier.
        warm_up: rounds at most that are thrown away, one at least.
    """

    least: int = 5
    most: int = 100
    seconds: float = 60.0
    tolerance: float = 0.02
    warm_up: int = 3


@dataclass(frozen=True)
class Rounds:
    """The result.

    Attributes:
        seconds: candidate -> (R,) seconds of each round, by the clock.
        cpu: candidate -> (R,) CPU seconds of each round, over all threads.
        warm_up: rounds thrown away before.
        is_stable: whether every interval was within the tolerance before the time was over.
    """

    seconds: Mapping[str, NDArray[np.float64]]
    cpu: Mapping[str, NDArray[np.float64]]
    warm_up: int
    is_stable: bool

    @property
    def count(self) -> int:
        """Number of rounds that count."""
        return len(next(iter(self.seconds.values())))

    def __str__(self) -> str:
        state = "stable" if self.is_stable else "not yet stable when the time was over"
        return f"{self.count} rounds after {self.warm_up} of warm-up, {state}"


# If a round is faster than the one before by more than this, caches, clocks or pools are still warming up.
_WARMING = 0.95


def interleave(candidates: Mapping[str, Action], plan: Plan = Plan()) -> Rounds:
    """Time every candidate once per round until the medians are stable.

    A candidate that works asynchronously must wait for its device before it returns. One that works in another process
    returns the CPU seconds that it took there.
    """
    deadline = time.perf_counter() + plan.seconds
    warm, last = 1, _round(candidates, 0)
    while warm < plan.warm_up and time.perf_counter() < deadline:
        previous, last = last, _round(candidates, warm)
        warm += 1
        if all(last[name].clock > _WARMING * previous[name].clock for name in candidates):
            break
    rounds: list[dict[str, Times]] = []
    while len(rounds) < plan.most:
        rounds.append(_round(candidates, len(rounds)))
        enough = len(rounds) >= plan.least
        if enough and (time.perf_counter() > deadline or is_steady(_columns(rounds, "clock"), plan.tolerance)):
            break
    clock = _columns(rounds, "clock")
    return Rounds(clock, _columns(rounds, "cpu"), warm, is_steady(clock, plan.tolerance))


def is_steady(times: Mapping[str, NDArray[np.float64]], tolerance: float) -> bool:
    """Whether the interval of every candidate's median is within the tolerance."""
    return all(median(values).half_width <= tolerance for values in times.values())


def _round(candidates: Mapping[str, Action], number: int) -> dict[str, Times]:
    names = list(candidates)
    shift = number % len(names)
    times = {name: timed(candidates[name]) for name in names[shift:] + names[:shift]}
    return {name: times[name] for name in names}


def timed(action: Action) -> Times:
    """Time one call."""
    start, cpu = time.perf_counter(), time.process_time()
    elsewhere = action()
    own = time.process_time() - cpu
    return Times(time.perf_counter() - start, elsewhere if isinstance(elsewhere, float) else own)


def _columns(rounds: list[dict[str, Times]], which: str) -> dict[str, NDArray[np.float64]]:
    return {name: np.array([getattr(one[name], which) for one in rounds]) for name in rounds[0]}
