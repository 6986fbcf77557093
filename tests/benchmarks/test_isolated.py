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
        assert answer.seconds >= 0
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


def test_the_processors_seconds_are_those_of_the_work() -> None:
    with Isolated(partial(importlib.import_module, "hashlib")) as library:
        busy = library.work("pbkdf2_hmac", "sha256", b"word", b"salt", 2_000_000)
    with Isolated(partial(importlib.import_module, "time")) as clock:
        idle = clock.work("sleep", 0.3)
    assert idle < 0.1 < busy


def _burn(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
    time.sleep(30)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system does not tell what children did")
def test_living_children_count() -> None:
    before = cpu_seconds()
    child = multiprocessing.get_context("fork").Process(target=_burn, args=(0.5,), daemon=True)
    child.start()
    try:
        deadline = time.monotonic() + 60
        while cpu_seconds() - before < 0.45 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert cpu_seconds() - before >= 0.45
    finally:
        child.kill()
        child.join()
