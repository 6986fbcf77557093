"""Ctrl-C and SIGTERM: the state is saved, and the run that resumes ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch

from mineral_train.training.checkpoint import load_state
from mineral_train.training.run_folder import STATE

_OPTIONS = [
    "--recipe", "paper", "--backbone", "test_vit", "--image-size", "64", "--width", "32", "--ffn", "48",
    "--no-pretrained", "--epochs", "2", "--batch", "4", "--lr", "1e-3", "--workers", "0", "--device", "cpu",
]  # fmt: skip
# Sends itself the signal after the sixth step, in the second epoch, so that nothing depends on speed.
_SIGNALED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
from mineral_train.training.learner import Learner
from mineral_train.cli import main
number, step, count = int(sys.argv.pop()), Learner.step, [0]
def counted(self, *args, **options):
    count[0] += 1
    if count[0] == 6:
        os.kill(os.getpid(), number)
    return step(self, *args, **options)
Learner.step = counted
main(prog_name="mineral-train")
"""


def _fit(manifest, labels, folder, program, *more):
    arguments = ["fit", str(manifest), "-o", str(folder), "--labels", str(labels), *_OPTIONS, *more]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_within_the_epoch(colored_manifest, tmp_path, number, code):
    labels = tmp_path / "labels.txt"
    labels.write_text("agate\ngold\npyrite\nquartz\n", encoding="utf-8")
    stopped = _fit(colored_manifest, labels, tmp_path / "a", ["-c", _SIGNALED], str(int(number)))
    assert stopped.returncode == code, stopped.stderr
    assert "the state is saved in" in stopped.stderr
    progress = load_state(tmp_path / "a" / STATE)[1]["progress"]
    assert (progress["epoch"], progress["step"]) == (1, 2)
    for name in ("a", "b"):
        done = _fit(colored_manifest, labels, tmp_path / name, ["-m", "mineral_train"])
        assert done.returncode == 0, done.stderr
    resumed, whole = (load_state(tmp_path / name / STATE)[0] for name in "ab")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
