"""Objects in processes of their own."""

from __future__ import annotations

import importlib
import multiprocessing
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from mineral_bench.process.isolated import Isolated, IsolatedError
from mineral_bench.process.usage import cpu_seconds


def test_an_object_answers_from_its_own_process() -> None:
    with Isolated(partial(Counter, "aab")) as counter:
        answer = counter.call("most_common", 1)
        assert answer.value == [("a", 2)]
        counter.call("update", "bb")
        assert counter.call("most_common", 1).value == [("b", 3)]


def test_what_it_raises_comes_as_one_line_and_it_lives_on() -> None:
    with Isolated(partial(Counter, "aab")) as counter:
        with pytest.raises(IsolatedError, match="TypeError"):
            counter.call("most_common", 1, 2, 3)
        assert counter.call("total").value == 3


def test_what_cannot_be_made_and_what_dies_is_said() -> None:
    with pytest.raises(IsolatedError, match="ValueError: invalid literal"):
        Isolated(partial(int, "one"))
    with (
        Isolated(partial(importlib.import_module, "os")) as system,
        pytest.raises(IsolatedError, match="ended with code 3"),
    ):
        system.call("_exit", 3)


# Uses the CPU for 0.2 s, then sleeps as long.
WORK_AND_SLEEP = """
import time
start = time.process_time()
while time.process_time() - start < 0.2:
    pass
time.sleep(0.2)
"""


def test_a_call_counts_the_cpu_seconds_of_its_process_and_no_sleep() -> None:
    with Isolated(partial(importlib.import_module, "builtins")) as process:
        reply = process.call("exec", WORK_AND_SLEEP)
        assert process.work("exec", WORK_AND_SLEEP) >= 0.2
    assert reply.cpu_seconds >= reply.own_cpu_seconds >= 0.2
    assert reply.own_cpu_seconds <= reply.seconds - 0.15, "the sleep is not counted"


def _burn(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
    time.sleep(600)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system does not tell what children did")
def test_living_children_count() -> None:
    before = cpu_seconds()
    child = multiprocessing.get_context("fork").Process(target=_burn, args=(0.5,), daemon=True)
    child.start()
    try:
        deadline = time.monotonic() + 600
        while cpu_seconds() - before < 0.45 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert cpu_seconds() - before >= 0.45
    finally:
        child.kill()
        child.join()
