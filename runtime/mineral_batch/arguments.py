"""Checks of the Python API's arguments: one of a wrong type or value is an `OptionError` that names it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from mineral_batch.errors import OptionError


def require_int(name: str, value: Any, low: int, high: int | None = None, *, or_none: bool = False) -> None:
    """Check that an argument is a whole number from `low` to `high`.

    Raises:
        OptionError: if it is not.
    """
    if value is None and or_none:
        return
    is_int = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_int or value < low or (high is not None and value > high):
        wanted = f"{low} or more" if high is None else f"{low} to {high}"
        raise OptionError(f"{name} must be a whole number, {wanted}{' or None' if or_none else ''}; got {value!r}")


def require_bool(name: str, value: Any) -> None:
    """Check that an argument is True or False, and not a text such as "no", which would count as True.

    Raises:
        OptionError: if it is not.
    """
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False; got {value!r}")


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Check that an argument is one of some names.

    Raises:
        OptionError: listing them, with the nearest.
    """
    if isinstance(value, str) and value in choices:
        return
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise OptionError(f"{name}={value!r}: {guess}choose one of {', '.join(choices)}")


def require_path(name: str, value: Any, *, or_none: bool = False) -> None:
    """Check that an argument is a path or a text, and not empty.

    Raises:
        OptionError: if it is not.
    """
    if not (isinstance(value, (str, Path)) and str(value)) and not (value is None and or_none):
        raise OptionError(f"{name} must be a path (str or Path){' or None' if or_none else ''}; got {value!r}")


def require_several(name: str, value: Any, fix: str, kind: type = Iterable) -> None:
    """Check that an argument is an iterable (or a sequence), and not one text or path, whose letters nobody meant.

    Raises:
        OptionError: if it is not.
    """
    if isinstance(value, (str, bytes, Path)) or not isinstance(value, kind):
        raise OptionError(f"{name} must be a list{fix}; got {shown(value)}")


def shown(value: object) -> str:
    """A value in an error message: short ones as they are, others by their type."""
    text = repr(value)
    return text if len(text) <= 60 else f"an object of type {type(value).__name__}"
