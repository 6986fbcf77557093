"""A kill before each operation that creates, renames or removes a file: the run resumes to the same bits."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from mineral_train.training import checkpoint
from mineral_train.training.checkpoint import load_checkpoint, load_state
from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.fit import fit
from mineral_train.training.run_folder import STATE

HERE = RunOptions(device="cpu", workers=0, quiet=True, save_every=1)
_OPERATIONS = [
    (Path, "replace"),
    (Path, "rename"),
    (Path, "mkdir"),
    (Path, "unlink"),
    (os, "fsync"),
    (shutil, "rmtree"),
    (checkpoint, "save_file"),
]


def _train(config, manifest, run, kill_at):
    """Train in this process, which dies before its `kill_at`-th operation; 0 = never."""
    count = [0]

    def counted(function):
        def operation(*args, **kwargs):
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return operation

    for owner, name in _OPERATIONS:
        setattr(owner, name, counted(getattr(owner, name)))
    fit(config, manifest, run, HERE)
    Path(f"{run}.operations").write_text(str(count[0]), "utf-8")


def _run(*arguments):
    process = multiprocessing.get_context("fork").Process(target=_train, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, so that a kill costs no start of Python")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_kill_at_any_operation_costs_nothing_but_time(tiny_config, colored_manifest, tmp_path):
    config = TrainConfig(tiny_config("test_vit"), pretrained="none", epochs=2, batch=16, lr=1e-3)
    assert _run(config, colored_manifest, tmp_path / "whole", 0) == 0
    operations = int((tmp_path / "whole.operations").read_text("utf-8"))
    assert operations > 20
    whole, best = load_state(tmp_path / "whole" / STATE)[0], load_checkpoint(tmp_path / "whole")[0].state_dict()
    for number in range(1, operations + 1):
        run = tmp_path / f"killed{number}"
        assert _run(config, colored_manifest, run, number) == -signal.SIGKILL
        assert _run(config, colored_manifest, run, 0) == 0
        resumed = load_state(run / STATE)[0]
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == [], number
        weights = load_checkpoint(run)[0].state_dict()
        assert all(torch.equal(best[name], weights[name]) for name in best), number
        names = sorted(path.relative_to(run).as_posix() for path in run.rglob("*"))
        assert names == ["config.json", "last", "last/state.safetensors", "log.csv", "model.safetensors"], number
        shutil.rmtree(run)
