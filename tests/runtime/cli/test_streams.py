"""Progress and messages may fail; the run may not. Two signals end a run whatever the engine does."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="closes descriptors and sends signals")


@pytest.fixture
def command(album: Path, model_path: Path, tmp_path: Path) -> list[str]:
    options = ["--log-every", "0", "-o", str(tmp_path / "out"), "-m", str(model_path), "--backend", "onnx-cpu"]
    return [sys.executable, "-m", "mineral_batch", "predict", *options, str(album)]


@pytest.mark.parametrize(
    "redirection", ["2>&-", ">&-", "2>&- >&-", "2>/dev/full", ">/dev/full", "2>/dev/full >/dev/full"]
)
def test_a_closed_or_full_stream_costs_no_row(command: list[str], tmp_path: Path, redirection: str) -> None:
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    done = subprocess.run(["/bin/sh", "-c", f'"$@" {redirection}', "sh", *command], check=False)
    assert done.returncode == 0
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 11


# An engine that never comes back from its first call, as an ONNX Loop without an end does.
ENDLESS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from mineral_batch.engines import onnx_cpu
from mineral_batch.cli import main, signals
signals._SECONDS_TO_SAVE = 0.2
def infer(self, pixels):
    print("inferring", file=sys.stderr, flush=True)
    while True:
        time.sleep(1)
onnx_cpu.OnnxCpuEngine.infer = infer
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_an_endless_engine(command: list[str], number: signal.Signals) -> None:
    program: list[Any] = [sys.executable, "-c", ENDLESS, *command[3:]]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("inferring" in line for line in iter(process.stderr.readline, ""))
            process.send_signal(number)
            assert any("in progress" in line for line in iter(process.stderr.readline, ""))
            time.sleep(0.1)
            assert process.poll() is None, "the first one waits for what is in flight"
            process.send_signal(number)
            assert process.wait(300) == 128 + number
        finally:
            process.kill()


def test_an_endless_call_ends_by_itself_some_time_after_the_first_signal(command: list[str]) -> None:
    impatient = "from mineral_batch.cli import signals\nsignals._SECONDS_TO_FINISH = 0.2\n"
    program = [sys.executable, "-c", impatient + ENDLESS, *command[3:]]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("inferring" in line for line in iter(process.stderr.readline, ""))
            process.send_signal(signal.SIGTERM)
            lines = process.stderr.readlines()
            assert process.wait(300) == 128 + signal.SIGTERM
            assert lines[-1] == "Stopped in the middle of a call; rerun the same command to resume.\n"
        finally:
            process.kill()
