"""Runs on a real Ray cluster: whatever is killed, the table is that of one machine, row for row."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch.cluster.place import Folder, open_place

COMMAND = [sys.executable, "-m", "mineral_batch", "predict", "--backend", "onnx-cpu"]
_SECONDS = 900


class Nodes:
    """A cluster in a process of its own; see `ray_nodes`.

    Args:
        count: of nodes, of one CPU each.
        cpus: of the first one.
    """

    def __init__(self, count: int, cpus: int = 1) -> None:
        program = [sys.executable, str(Path(__file__).with_name("ray_nodes.py")), str(count), str(cpus)]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address, self.client, self.metrics = self._line().split()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __call__(self, command: str) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return int(self._line().split()[1])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()


@pytest.fixture
def nodes(s3: str) -> Iterator[Nodes]:
    """Three nodes whose environment leads to the store `s3`."""
    pytest.importorskip("ray")
    cluster = Nodes(3)
    yield cluster
    cluster.close()


def start(output: object, model: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    words = [*COMMAND, "-o", output, "-m", model, *arguments]
    return subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=_SECONDS)
    return process.returncode, out, err


def upload_photographs(count: int) -> str:
    """Photographs of a few hundred bytes, every 500th damaged."""
    place = open_place("s3://results/photos")
    noise = np.random.default_rng(0)
    for index in range(count):
        path = f"{index % 7}/{index:05}.png"
        pixels = noise.integers(0, 256, (3, 4, 3), np.uint8)

        buffer = io.BytesIO()
        PILImage.fromarray(pixels).resize((32, 24)).save(buffer, "PNG")
        place.put(path, b"damaged" if index % 500 == 7 else buffer.getvalue())
    return "s3://results/photos/"


def chaos(nodes: Nodes, model: Path, photos: str, output: str, piece_images: int, pause: float) -> list[str]:
    """Run until it is done, while a worker is killed, a node removed and the driver killed, in any order and at random
    moments; return what was done to it. If it is done too soon, parts are deleted and it is run again."""
    events = ["kill", "remove", "driver"]
    random.shuffle(events)
    done: list[str] = []
    options = ["--cluster", nodes.address, "--workers", 3, "--worker-cpus", 1, "--piece-images", piece_images]
    while True:
        process = start(output, model, photos, *options, "--exit-zero-on-failures", "--log-format", "json")
        happened = disturb(nodes, process, events, pause)
        done += happened
        code, out, err = finish(process)
        if "driver" in happened:
            assert code == -signal.SIGKILL, err
            continue
        assert code == 0, err
        assert "Merged" in out
        if not events:
            return done
        place = open_place(output)
        for part in random.sample(sorted(place.keys("parts/")), 10):
            place.delete(part)
        done.append("parts deleted")


def disturb(nodes: Nodes, process: subprocess.Popen[str], events: list[str], pause: float) -> list[str]:
    """Let events happen, until there are none, the process ends or is killed; return those that did."""
    happened: list[str] = []
    while events and process.poll() is None:
        time.sleep(random.uniform(0, pause))
        if process.poll() is not None:
            break
        if events[0] == "driver":
            process.kill()
            if process.wait() == 0:  # it was done a moment before
                break
        elif not nodes(events[0]):
            continue  # there is nothing to kill yet
        happened.append(events.pop(0))
        if happened[-1] == "driver":
            break
        if happened[-1] == "remove":
            nodes("add")
    return happened


def assert_tables_of_one_machine(output: str, single: Path) -> None:
    place = open_place(output)
    for name in ("predictions.csv", "failures.csv"):
        assert place.get(name) == Folder(single).get(name), name
    record = json.loads(place.get("run.json") or b"")
    assert sum(worker["pieces"] for worker in record["workers"]) == record["pieces"]
    assert {worker["engine"]["backend"] for worker in record["workers"]} == {"onnx-cpu"}


@pytest.mark.slow
def test_a_killed_worker_a_removed_node_and_a_killed_driver_lose_nothing(
    s3: str, nodes: Nodes, model_path: Path, tmp_path: Path
) -> None:
    photos = upload_photographs(600)
    code, _, err = finish(start(tmp_path / "one", model_path, photos, "--exit-zero-on-failures"))
    assert code == 0, err
    done = chaos(nodes, model_path, photos, "s3://results/out", 20, 3)
    print(done)
    assert_tables_of_one_machine("s3://results/out", tmp_path / "one")


# Read by every Python process of a cluster; only Ray's workers do what it says.
_IN_WORKERS = """
import os, sys, time
_stat = os.stat
def stat(path, *args, **kwargs):
    if isinstance(path, str) and path.endswith(".png") and sys.argv[0].endswith("default_worker.py"):
        {what}
    return _stat(path, *args, **kwargs)
os.stat = stat
"""


@pytest.fixture
def in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """What workers of `--cluster local` do before they read an image; returns the folder of the cluster's files."""
    pytest.importorskip("ray")
    folder = tmp_path / "patch"
    folder.mkdir()
    before = os.environ.get("PYTHONPATH")  # an empty one would add the current folder
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{before}" if before else str(folder))
    sockets = Path(tempfile.mkdtemp(prefix="ray"))  # a socket's path must be short
    monkeypatch.setenv("RAY_TMPDIR", str(sockets))

    def patch(what: str) -> Path:
        (folder / "sitecustomize.py").write_text(_IN_WORKERS.format(what=what))
        return sockets

    yield patch
    shutil.rmtree(sockets, ignore_errors=True)


@pytest.mark.slow
def test_a_picture_that_kills_workers_is_found(
    in_workers: Callable[[str], Path], album: Path, model_path: Path, tmp_path: Path
) -> None:
    in_workers("path.endswith('05.png') and os._exit(9)")
    options = [album, "--cluster", "local", "--piece-images", 4, "--workers", 1]
    code, out, err = finish(start(tmp_path / "out", model_path, *options))
    assert code == 3, err
    assert "10 images" in out
    code, _, err = finish(start(tmp_path / "one", model_path, album))
    assert code == 0, err
    rows = (tmp_path / "one/predictions.csv").read_text().splitlines()
    assert (tmp_path / "out/predictions.csv").read_text().splitlines() == [row for row in rows if "05.png" not in row]
    assert "05.png,decode" in (tmp_path / "out/failures.csv").read_text()


@pytest.mark.slow
def test_ctrl_c_leaves_the_pieces_in_hand_and_no_process(
    in_workers: Callable[[str], Path], album: Path, model_path: Path, tmp_path: Path
) -> None:
    psutil = pytest.importorskip("psutil")
    folder = in_workers("time.sleep(1)")
    options = [album, "--cluster", "local", "--piece-images", 2, "--workers", 1, "--log-format", "json"]
    process = start(tmp_path / "out", model_path, *options)
    assert process.stderr is not None
    while '"event": "piece"' not in (line := process.stderr.readline()):
        assert line, "it ended before the first piece"
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130, err
    assert "Rerun the same command to resume" in err
    assert not [
        one.pid for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or [])
    ]
    done = len(list((tmp_path / "out/parts").iterdir()))
    assert 1 <= done < 6
    in_workers("pass")
    code, out, err = finish(start(tmp_path / "out", model_path, *options))
    assert code == 0, err
    assert "already done by an earlier run" in out
    code, _, err = finish(start(tmp_path / "one", model_path, album))
    assert code == 0, err
    assert (tmp_path / "out/predictions.csv").read_bytes() == (tmp_path / "one/predictions.csv").read_bytes()


# The command with less patience with a silent head than 35 seconds.
_IMPATIENT = """
from mineral_batch.cluster.connection import Head
Head.__init__.__kwdefaults__.update(patience=1.0, every=0.5)
from mineral_batch.cli import main
main()
"""


@pytest.mark.slow
def test_two_commands_share_a_cluster_and_an_output_and_a_lost_head_is_one_line(
    in_workers: Callable[[str], Path], album: Path, model_path: Path, tmp_path: Path
) -> None:
    pytest.importorskip("grpc", reason="the Ray Client needs the package grpcio")
    in_workers("time.sleep(0.1)")
    nodes = Nodes(1, cpus=2)
    try:
        share_an_output(nodes, album, model_path, tmp_path)
        in_workers("time.sleep(1)")
        lose_the_head(nodes, album, model_path, tmp_path)
    finally:
        nodes.close()


def share_an_output(nodes: Nodes, album: Path, model: Path, folder: Path) -> None:
    """Two commands at once, on a machine of the cluster and through a Ray Client, beside files named as modules are."""
    beside = folder / "beside"
    beside.mkdir()
    for module in ("json", "numpy"):
        (beside / f"{module}.py").write_text("raise SystemExit('imported by its place')")
    here = {"cwd": beside, "env": {**os.environ, "PYTHONSAFEPATH": "1"}}
    options = [album, "--piece-images", 2, "--workers", 1, "--worker-cpus", 1]
    addresses = (nodes.address, nodes.client)
    both = [start(folder / "both", model, *options, "--cluster", address, **here) for address in addresses]
    ended = [finish(process) for process in both]  # both, also when the first fails
    for code, _, err in ended:
        assert code == 0, err
    assert finish(start(folder / "one", model, album))[0] == 0
    assert_tables_of_one_machine(str(folder / "both"), folder / "one")


def lose_the_head(nodes: Nodes, album: Path, model: Path, folder: Path) -> None:
    """Kill the head after the first piece; afterwards another cluster would do the rest."""
    options = ["-m", model, "--backend", "onnx-cpu", "--piece-images", 2, "--workers", 1, "--worker-cpus", 1]
    words = ["predict", album, "-o", folder / "lost", *options, "--cluster", nodes.address, "--log-format", "json"]
    command = [sys.executable, "-c", _IMPATIENT, *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while '"event": "piece"' not in (line := process.stderr.readline()):
        assert line, "it ended before the first piece"
    assert nodes("head") == 1
    code, _, err = finish(process)
    assert code == 1
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert f"the head of the Ray cluster at {nodes.address} does not answer any more; what is done is safe" in last
    assert 1 <= len(list((folder / "lost/parts").iterdir())) < 6


@pytest.mark.slow
def test_what_prometheus_reads_is_what_run_json_says(
    album: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("opencensus", "prometheus_client", "aiohttp"):
        pytest.importorskip(package, reason="Ray exports metrics with its extra ray[default]")
    (album / "04.png").write_bytes(b"damaged")
    sockets = Path(tempfile.mkdtemp(prefix="ray"))
    monkeypatch.setenv("RAY_TMPDIR", str(sockets))
    nodes = Nodes(1, cpus=2)
    try:
        options = ["--cluster", nodes.address, "--piece-images", 2, "--workers", 2, "--worker-cpus", 1]
        code, _, err = finish(start(tmp_path / "out", model_path, album, *options))
        assert code == 3, err
        host = nodes.address.rpartition(":")[0]
        with urllib.request.urlopen(f"http://{host}:{nodes.metrics}/metrics") as page:
            found = counters(page.read().decode())
    finally:
        nodes.close()
        shutil.rmtree(sockets, ignore_errors=True)
    record = json.loads((tmp_path / "out/run.json").read_text("utf-8"))
    assert found["pieces_total"] == record["pieces"] == 6
    assert (found["images_total"], found["failed_images_total"]) == (11, 1)
    stages = {name.partition(":")[2]: value for name, value in found.items() if ":" in name}
    assert stages == pytest.approx({name: value for name, value in record["stage_seconds"].items() if value}, abs=1e-3)


def counters(page: str) -> Counter[str]:
    """Our counters on a page for Prometheus, summed over the workers; of seconds those of each stage."""
    found: Counter[str] = Counter()
    for name, labels, value in re.findall(r"^ray_mineral_batch_(\w+)\{([^}]*)\} (\S+)", page, re.MULTILINE):
        stage = re.search(r'stage="(\w+)"', labels)
        found[f"{name}:{stage[1]}" if stage else name] += float(value)
    return found


@pytest.mark.soak
def test_an_autoscaler_gives_as_many_nodes_as_workers_and_takes_them_back(
    in_workers: Callable[[str], Path], album: Path, model_path: Path, tmp_path: Path
) -> None:
    """A minute on an idle machine: the cluster begins without a CPU, may grow to three nodes, and gets two workers."""
    in_workers("time.sleep(1)")
    program = [sys.executable, str(Path(__file__).with_name("ray_autoscaler.py")), "3"]
    cluster = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    options = [album, "--workers", "2-2", "--worker-cpus", 1, "--piece-images", 1]
    try:
        process = start(tmp_path / "out", model_path, *options, "--cluster", cluster.stdout.readline().strip())
        counts: list[int] = []
        while process.poll() is None or counts[-1]:
            cluster.stdin.write("nodes\n")
            cluster.stdin.flush()
            counts.append(int(cluster.stdout.readline().split()[1]))
            time.sleep(0.5)
        code, out, err = finish(process)
    finally:
        cluster.stdin.close()
        cluster.stdout.close()
        cluster.wait(60)
    assert code == 0, err
    assert "2 workers on 2 machines" in out
    assert max(counts) == 2


@pytest.mark.soak
@pytest.mark.parametrize("attempt", range(10))
def test_nothing_is_lost_or_double_ten_times_over(
    s3: str, nodes: Nodes, model_path: Path, tmp_path: Path, attempt: int
) -> None:
    """5,000 photographs; `MINERAL_SOAK_IMAGES` names another number."""
    photos = upload_photographs(int(os.environ.get("MINERAL_SOAK_IMAGES", "5000")))
    code, _, err = finish(start(tmp_path / "one", model_path, photos, "--exit-zero-on-failures"))
    assert code == 0, err
    random.seed(attempt)
    clock = time.monotonic()
    done = chaos(nodes, model_path, photos, "s3://results/out", 100, 10)
    assert_tables_of_one_machine("s3://results/out", tmp_path / "one")
    print(f"attempt {attempt}: {', '.join(done)}; {time.monotonic() - clock:.0f} s")
