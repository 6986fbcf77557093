"""`bounded_map`: order, bound, and what an exception leaves."""

from __future__ import annotations

import threading
import time

import pytest

from mineral_batch.threads import bounded_map


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert list(bounded_map(slow_first, range(50), threads=3)) == [i * i for i in range(50)]


def test_items_are_not_read_far_ahead() -> None:
    read = []
    results = bounded_map(str, (read.append(i) or i for i in range(1000)), threads=2)
    assert next(results) == "0"
    assert len(read) <= 2 * 4 + 1
    results.close()


def test_exception_ends_the_map_and_cancels_what_waits() -> None:
    done, gate = [], threading.Event()

    def work(item: int) -> None:
        if item == 0:
            raise ValueError("broken")
        gate.wait(120)
        done.append(item)

    results = bounded_map(work, range(100), threads=1)
    gate.set()
    with pytest.raises(ValueError, match="broken"):
        list(results)
    assert len(done) < 10
