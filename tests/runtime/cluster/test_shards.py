"""Which shard a task of a job array is: said by hand or by the scheduler, never guessed."""

from __future__ import annotations

import pytest

from mineral_batch import DataError
from mineral_batch.cluster.shards import Shard, parse_shard

SLURM = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "3"}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("3/16", {}, Shard(3, 16)),
        ("1/1", {}, Shard(1, 1)),
        ("auto", SLURM, Shard(3, 4)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "2"}, Shard(1, 2)),
        ("auto/16", {"JOB_COMPLETION_INDEX": "15"}, Shard(16, 16)),
        ("auto/16", {"SLURM_ARRAY_TASK_ID": "0"}, Shard(1, 16)),
    ],
)
def test_shards_are_read(text: str, environment: dict[str, str], expected: Shard) -> None:
    assert parse_shard(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("", {}, "is not a shard"),
        ("0/16", {}, "shards are numbered from 1/16 to 16/16"),
        ("17/16", {}, "shards are numbered from 1/16 to 16/16"),
        ("1/0", {}, "shards are numbered from 1/1"),
        ("all", {}, "is not a shard"),
        ("auto", {}, "SLURM_ARRAY_TASK_ID is not set"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "", "SLURM_ARRAY_TASK_COUNT": "4"}, "SLURM_ARRAY_TASK_ID is '', not a number"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_COUNT is not set"),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_ID": "7"}, "is 7, but the tasks of 4 shards are numbered from 3 to 6"),
        ("auto", {"JOB_COMPLETION_INDEX": "3"}, "auto/16"),
        ("auto/16", {"JOB_COMPLETION_INDEX": ""}, "JOB_COMPLETION_INDEX is ''"),
        ("auto/16", {"JOB_COMPLETION_INDEX": "16"}, "is 16, but the tasks of 16 shards are numbered from 0 to 15"),
        ("auto/4", {"SLURM_ARRAY_TASK_ID": "4"}, "is 4, but the tasks of 4 shards are numbered from 0 to 3"),
        ("auto/4", {}, r"neither SLURM_ARRAY_TASK_ID \(Slurm\) nor JOB_COMPLETION_INDEX \(Kubernetes\) is set"),
    ],
)
def test_what_is_no_shard_is_refused(text: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_shard(text, environment)


@pytest.mark.parametrize("count", [1, 3, 7, 12])
def test_every_piece_is_in_one_shard(count: int) -> None:
    shards = [Shard(number, count).of(range(10)) for number in range(1, count + 1)]
    assert sorted(piece for shard in shards for piece in shard) == list(range(10))
