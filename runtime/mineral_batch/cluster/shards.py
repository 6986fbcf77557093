"""Which pieces a shard does: `3/16` by hand, or `auto` from what Slurm and Kubernetes tell a task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mineral_batch.errors import OptionError

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
        OptionError: if it is none of these, or the environment does not say which shard this is.
    """
    if match := _NUMBERS.fullmatch(text.strip()):
        return _checked(int(match[1]), int(match[2]), f"--shard {text}")
    match = _AUTO.fullmatch(text.strip())
    if match is None:
        raise OptionError(f"--shard '{text}' is not a shard: write 3/16 for the third of 16, or auto in a job array")
    if match[1]:
        name = _SLURM if _SLURM in environment else _KUBERNETES
        index = _number(environment, name, text)
        return _of_task(index, 0, int(match[1]), f"--shard {text}: {name} is {index}")
    if _SLURM not in environment and _KUBERNETES in environment:
        raise OptionError(
            f"--shard {text}: {_KUBERNETES} says which shard this is, but not how many there are: write "
            f"--shard auto/COMPLETIONS, such as --shard auto/16"
        )
    number, count = _number(environment, _SLURM, text), _number(environment, _SLURM_COUNT, text)
    first = _number(environment, _SLURM_FIRST, text) if _SLURM_FIRST in environment else 0
    return _of_task(number, first, count, f"--shard {text}: {_SLURM} is {number}")


def _number(environment: Mapping[str, str], name: str, text: str) -> int:
    value = environment.get(name, "").strip()
    if not (value.isascii() and value.isdigit()):
        state = f"{name} is '{value}', not a number" if name in environment else _missing(name)
        raise OptionError(
            f"--shard {text}: {state}; in a job that is not an array, write the shard, such as --shard 3/16"
        )
    return int(value)


def _missing(name: str) -> str:
    """What is missing: the variable, or both of which one would do."""
    if name == _KUBERNETES:
        return f"neither {_SLURM} (Slurm) nor {_KUBERNETES} (Kubernetes) is set"
    return f"{name} is not set"


def _checked(number: int, count: int, what: str) -> Shard:
    if not 1 <= number <= count:
        raise OptionError(f"{what}: shards are numbered from 1/{count or 1} to {count or 1}/{count or 1}")
    return Shard(number, count)


def _of_task(number: int, first: int, count: int, what: str) -> Shard:
    """The shard of a task, the first of which has the number `first`."""
    if not first <= number < first + count:
        last = first + max(count, 1) - 1
        raise OptionError(f"{what}, but the tasks of {count} shards are numbered from {first} to {last}")
    return Shard(number - first + 1, count)
