"""Checks that the records inside a model file make of themselves; each raises `ContractError` with one line."""

from __future__ import annotations

import sys
from typing import Any

from mineral_batch.errors import ContractError


def require(condition: bool, message: str) -> None:
    """Raise `ContractError` with `message` unless the condition holds."""
    if not condition:
        raise ContractError(message)


def require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Check that a value is one of those allowed."""
    require(value in allowed, f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def is_int(value: object) -> bool:
    """Whether it is an integer; a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_fraction(value: float) -> bool:
    """Whether it is 0 to 1."""
    return 0.0 <= value <= 1.0


def floats(name: str, values: Any, count: int) -> tuple[float, ...]:
    """`count` finite floats, or a message that says how many there are."""
    require(
        isinstance(values, (list, tuple)) and len(values) == count,
        f"{name} needs {count} numbers, got {values!r}",
    )
    require(
        # Compared, not converted: JSON has integers that no float holds.
        all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) <= sys.float_info.max for v in values),
        f"{name} must be finite numbers, got {list(values)}",
    )
    return tuple(float(v) for v in values)
