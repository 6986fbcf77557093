"""Output files: whole or not at all, whatever ends the export."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mineral_batch.errors import DataError
from mineral_export.verify.staging import require_writable, staged_output

#: Begins an export, says so and waits in the conversion.
WAITING = """
import signal
import sys, time
from pathlib import Path
import click
from mineral_export.cli import main
from mineral_export.verify.staging import staged_output

@main.command(name="wait")
def wait() -> None:
    with staged_output(Path("model.onnx")) as path:
        path.write_bytes(b"half")
        print("begun", flush=True)
        time.sleep(600)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
main._table["wait"] = ("wait_command:wait", "")
sys.modules["wait_command"] = sys.modules["__main__"]
main(["wait"])
"""


#: Dies while it writes its argument.
KILLED = """
import os, pathlib, signal, sys
from mineral_export.verify.staging import staged_output
with staged_output(pathlib.Path(sys.argv[1])) as path:
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to handle")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_terminated_export_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "model.onnx").write_bytes(b"an earlier export")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", WAITING], cwd=tmp_path, text=True, **pipes) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        assert len(list(tmp_path.iterdir())) == 2
        child.send_signal(number)
        assert child.wait(300) == code
        assert child.stderr is not None
        (line,) = [line for line in child.stderr.read().splitlines() if line]
    by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert line == f"stopped by {by}; run the same command again"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"an earlier export"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO])
def test_what_the_system_refuses_to_write_is_one_line_about_the_target(tmp_path: Path, code: int) -> None:
    with pytest.raises(DataError, match=r"^cannot write .*model\.onnx: .*; choose another place with -o$") as caught:  # noqa: SIM117
        with staged_output(tmp_path / "model.onnx"):
            raise OSError(code, os.strerror(code))
    assert os.strerror(code) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits on the size of files are POSIX's")
def test_a_limit_on_the_size_of_files_is_one_line(tmp_path: Path) -> None:
    """A real one, as `ulimit -f` and batch systems set it."""
    program = (
        "import resource; from pathlib import Path\n"
        "from mineral_export.verify.staging import staged_output\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with staged_output(Path('model.onnx')) as path:\n"
        "    path.write_bytes(bytes(5000))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith(f"{os.strerror(errno.EFBIG)}; choose another place with -o")
    assert not list(tmp_path.iterdir())


def test_errors_that_are_not_about_writing_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_output(tmp_path / "model.onnx"):
        Path(tmp_path, "absent.onnx").read_bytes()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "message"), [("no/model.onnx", "no such folder"), ("", "is a folder: name a file")])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        require_writable(tmp_path / name)


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    """Of processes of this machine that are gone; the folder of one that runs stays."""
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "model.onnx"], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".exporting-")
    with staged_output(tmp_path / "other.onnx") as running:
        assert not left.exists()
        running.write_bytes(b"whole")
        with staged_output(tmp_path / "third.onnx") as third:
            third.write_bytes(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.onnx", "third.onnx"]
