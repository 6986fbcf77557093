"""Signals: one finishes what is in flight, a second one ends the run at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from .helpers import table

pytest.importorskip("onnxruntime")

# A shell starts what it runs in the background deaf to Ctrl-C, and its children inherit that; the command's own process
# mends it, since code between fork and exec would run among the threads that this process has.
HEEDING_INTERRUPTS = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from mineral_batch.cli import main; main(sys.argv[1:])"
)


@pytest.fixture
def interrupted(model_path: Path, tmp_path: Path) -> Any:
    """Start the command on some ten seconds of work, send it signals once it works; gives exit code and error lines."""
    folder, out = tmp_path / "many", tmp_path / "out"
    folder.mkdir()
    PILImage.effect_noise((2500, 2500), 60).save(tmp_path / "large.jpg")
    for index in range(200):
        (folder / f"{index}.jpg").symlink_to(tmp_path / "large.jpg")
    options = ["-o", out, "-m", model_path, "--backend", "onnx-cpu", "--batch-size", "1", "--exact"]
    options += ["--decode-threads", "1"]  # more CPUs are not faster

    def run(*signals: signal.Signals, options: list[Any] = options) -> tuple[int, list[str]]:
        program = [sys.executable, "-c", HEEDING_INTERRUPTS, "predict"]
        program += map(str, [*options, "--log-every", 0, folder])
        with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                lines = [process.stderr.readline(), process.stderr.readline()]  # the opening and the first picture
                for number in signals[:-1]:
                    process.send_signal(number)
                    lines += iter(process.stderr.readline, FINISHING)
                process.send_signal(signals[-1])
                lines += process.stderr.readlines()
            except BaseException:
                process.kill()
                raise
        return process.returncode, [line.rstrip("\n") for line in lines if line.strip()]

    return run


FINISHING = "Finishing the images in progress; press Ctrl-C again to stop at once\n"


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_is_in_flight_and_says_how_to_go_on(
    interrupted: Any, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    code, lines = interrupted(number)
    assert code == 128 + number
    assert "Traceback" not in "".join(lines)
    done = len(table(out / "predictions.partial.csv"))
    assert 1 <= done < 200
    assert lines[-1] == (
        f"Stopped after {done} images. Results saved in {out} (so far: {out}/predictions.partial.csv); "
        f"rerun the same command to resume."
    )
    assert not (out / "predictions.csv").exists()
    said = FINISHING.strip() if number == signal.SIGINT else "Finishing the images in progress"
    assert said in lines


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_second_signal_ends_it_at_once(interrupted: Any, tmp_path: Path) -> None:
    code, lines = interrupted(signal.SIGINT, signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert "Traceback" not in "".join(lines)
    assert lines[-1].startswith("Stopped")
