"""What a running `fit` says: lines where there is no terminal, an estimate, and a warning if it takes long."""

from __future__ import annotations

import pytest
import torch

from mineral_train.model.presets import ModelConfig
from mineral_train.training import environment, reporter
from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.distributed import Process
from mineral_train.training.estimate import suggest_few
from mineral_train.training.recipes import STARTER_MODEL
from mineral_train.training.reporter import Reporter, duration

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves; `clock(seconds)`."""
    now = [0.0]
    monkeypatch.setattr(reporter.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(reporter.time, "perf_counter", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def _steps(clock, seconds, *, steps=20, quiet=False, epochs=50):
    config = TrainConfig(ModelConfig(), epochs=epochs)
    lines = []
    told = Reporter(
        config, RunOptions(quiet=quiet), Process(0, 1, CPU), (steps * 16, 10), steps, lines.append, lambda: "; a hint"
    )
    for _ in told.steps(1, 0, -1.0, torch.tensor(3.0)):
        clock(seconds)
    return lines


def test_a_run_says_how_long_it_takes_once(clock):
    lines = [line for line in _steps(clock, 1.0) if line.startswith("Estimate")]
    assert len(lines) == 1
    assert "17 min for 50 epochs (1 s per step, 20 steps per epoch)" in lines[0]
    assert "GiB of memory" in lines[0]


def test_a_run_of_hours_is_warned_about_with_a_hint(clock):
    assert "Warning: this run takes 2.8 h; a hint" in _steps(clock, 10.0)
    assert not any(line.startswith("Warning") for line in _steps(clock, 1.0))


def test_without_a_terminal_there_is_a_line_now_and_then(clock):
    lines = [line for line in _steps(clock, 10.0) if ", step " in line]
    assert len(lines) == 6
    assert "Epoch 1/50, step 3/20: loss 0.0625, 10 s per step, 3 min left in this epoch" in lines[0]
    assert not any(", step " in line for line in _steps(clock, 10.0, quiet=True))


@pytest.mark.parametrize(
    ("seconds", "words"), [(4, "4 s"), (600, "10 min"), (9_000, "2.5 h"), (260_000, "3.0 days"), (89, "89 s")]
)
def test_durations_are_for_people(seconds, words):
    assert duration(seconds) == words


def test_the_hint_is_measured_here():
    assert suggest_few(TrainConfig(ModelConfig()), 10, CPU).startswith("; --recipe few would take ")
    assert suggest_few(TrainConfig(STARTER_MODEL), 10, CPU) == "; fewer --epochs take less"


def test_deterministic_means_one_thread_and_is_put_back():
    threads = torch.get_num_threads()
    with environment.deterministic(True):
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
