"""The runtime on systems without POSIX: what Windows lacks is taken away, and what it refuses is refused.

Simulated on Linux, in a process of its own: modules that only Unix has cannot be imported, functions that only Unix has
are gone, and a file that is open can be neither replaced nor removed.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

_LIKE_WINDOWS = """
import os, signal, sys
from pathlib import Path

class Blocker:
    missing = {"resource", "fcntl", "pwd", "grp", "termios", "posix_ipc", "readline"}
    def find_spec(self, name, path=None, target=None):
        if name in self.missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

# Libraries know for themselves on which system they run, so they keep what they find here.
import concurrent.futures, multiprocessing, shutil, sqlite3, subprocess, tempfile
import click, numpy, onnxruntime, PIL.Image, tqdm
for name in Blocker.missing & set(sys.modules):
    del sys.modules[name]
sys.meta_path.insert(0, Blocker())
for name in ("sched_getaffinity", "sched_setaffinity", "getloadavg", "fork", "statvfs", "geteuid", "getuid", "killpg",
             "setsid", "fchmod", "fchown", "chown", "uname", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGQUIT"):
    if hasattr(signal, name):
        delattr(signal, name)

def refuse_open(path):
    target = os.path.realpath(path)
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == target:
                raise PermissionError(13, "The process cannot access the file because it is being used", str(path))
        except FileNotFoundError:
            pass

def guarded(function, arguments):
    def call(*args, **kwargs):
        for path in args[:arguments]:
            if not kwargs:
                refuse_open(path)
        return function(*args, **kwargs)
    return call

os.replace, os.rename = guarded(os.replace, 2), guarded(os.rename, 2)
os.unlink, os.remove = guarded(os.unlink, 1), guarded(os.remove, 1)

from mineral_batch.cli import main
main(sys.argv[1:])
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _LIKE_WINDOWS, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, color in enumerate(["purple", "gold", "green"]):
        Image.new("RGB", (64, 48), color).save(folder / f"{index}.jpg")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing more")
    return folder


def test_a_run_its_resumption_and_its_check_need_nothing_that_only_unix_has(photos: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "predict", "photos", "--backend", "onnx-cpu")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    first = (tmp_path / "results" / "predictions.csv").read_bytes()
    assert first.count(b"\n") == 4
    Image.new("RGB", (64, 48), "red").save(photos / "new.jpg")
    again = run(tmp_path, "predict", "photos", "--backend", "onnx-cpu")
    assert again.returncode == 3, again.stderr
    assert (tmp_path / "results" / "predictions.csv").read_bytes().count(b"\n") == 5
    checked = run(tmp_path, "check", "results")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_report_and_the_doctor_need_nothing_that_only_unix_has(photos: Path, tmp_path: Path) -> None:
    assert run(tmp_path, "predict", "photos", "--backend", "onnx-cpu", "-q").returncode == 3
    report = run(tmp_path, "report", "results")
    assert report.returncode == 0, report.stderr
    doctor = run(tmp_path, "doctor")
    assert "Traceback" not in doctor.stderr
    assert "onnx-cpu" in doctor.stdout


@pytest.mark.slow
def test_shards_and_their_merge_need_nothing_that_only_unix_has(photos: Path, tmp_path: Path) -> None:
    for code in (3, 0):  # one photograph is damaged; the second time there is nothing to do
        done = run(tmp_path, "predict", str(photos), "-o", "shared", "--shard", "1/1")
        assert done.returncode == code, done.stderr
    for _ in range(2):
        done = run(tmp_path, "merge", "shared", "--layout", "per-image", "-q")
        assert done.returncode == 3, done.stderr
    assert (tmp_path / "shared/predictions.csv").read_text("utf-8").count("\n") == 4
