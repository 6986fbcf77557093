"""Which pieces a shard does: `3/16` by hand, or `auto` from what Slurm and Kubernetes tell a task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mineral_batch.errors import DataError

_T = TypeVar("_T")
_AUTO = re.compile(r"auto(?:/(\d+))?")
_NUMBERS = re.compile(r"(\d+)/(\d+)")
_SLURM, _SLURM_COUNT, _SLURM_FIRST = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"
_KUBERNETES = "JOB_COMPLETION_INDEX"


@dataclass(frozen=True)
class Shard:
    """One of `count` shards.

    Attributes:
        number: 1 to `count`.
        count: all shards.
    """

    number: int
    count: int

    def of(self, pieces: Sequence[_T]) -> Sequence[_T]:
        """Return this shard's pieces: every `count`th, so that slow folders are shared out."""
        return pieces[self.number - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Read `3/16`, `auto` or `auto/16`.

    `auto` takes the task from SLURM_ARRAY_TASK_ID, counted from SLURM_ARRAY_TASK_MIN, and the number of shards from
    SLURM_ARRAY_TASK_COUNT. `auto/16` takes SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX as 0 to 15.

    Raises:
        DataError: if it is none of these, or the environment does not say which shard this is.
    """
    if match := _NUMBERS.fullmatch(text.strip()):
        return _checked(int(match[1]), int(match[2]), f"--shard {text}")
    match = _AUTO.fullmatch(text.strip())
    if match is None:
        raise DataError(f"--shard '{text}' is not a shard: write 3/16 for the third of 16, or auto in a job array")
    if match[1]:
        name = _SLURM if _SLURM in environment else _KUBERNETES
        index = _number(environment, name, text)
        return _checked(index + 1, int(match[1]), f"{name}={index} with --shard {text}, which counts from 0,")
    if _SLURM not in environment and _KUBERNETES in environment:
        raise DataError(
            f"{_KUBERNETES} says which shard this is, but not of how many: write --shard auto/COMPLETIONS, such as "
            f"--shard auto/16"
        )
    number, count = _number(environment, _SLURM, text), _number(environment, _SLURM_COUNT, text)
    first = _number(environment, _SLURM_FIRST, text) if _SLURM_FIRST in environment else 0
    return _checked(number - first + 1, count, f"{_SLURM}={number} of {_SLURM_COUNT}={count} from {first}")


def _number(environment: Mapping[str, str], name: str, text: str) -> int:
    value = environment.get(name, "").strip()
    if not (value.isascii() and value.isdigit()):
        state = f"{name} is '{value}', not a number" if name in environment else f"{name} is not set"
        raise DataError(f"--shard {text}: {state}; is this task part of a job array? Write --shard 3/16 to say which")
    return int(value)


def _checked(number: int, count: int, what: str) -> Shard:
    if not 1 <= number <= count:
        raise DataError(f"{what} is not a shard: the number must be from 1 to the number of shards")
    return Shard(number, count)
