"""Objects in processes of their own."""

from __future__ import annotations

import importlib
from collections import Counter
from functools import partial

import pytest

from mineral_bench.isolated import Isolated, IsolatedError


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
