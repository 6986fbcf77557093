"""Two nodes, each with its own torchrun, train as one process does: to the end, stopped, and after a kill."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mineral_train.training.checkpoint import load_state
from mineral_train.training.run_folder import STATE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers of torchrun in /proc"),
]

# At this learning rate the weights stand still, and Adam's first moment is a mean of the steps' gradients. Without
# mixup, whose pairs are found within a process.
_FIT = [
    "-m", "mineral_train", "fit", "--backbone", "test_vit", "--image-size", "64", "--width", "32", "--ffn", "48",
    "--dropout", "0", "--no-pretrained", "--epochs", "40", "--batch", "5", "--freeze-epochs", "1", "--lr", "1e-9",
    "--ema", "0.5", "--set", "mixup=0", "--workers", "0", "--quiet", "--device", "cpu",
]  # fmt: skip


def _free_port() -> int:
    """A port below those that the system hands out by itself, so that nobody else gets it before the nodes do."""
    while True:
        port = random.SystemRandom().randint(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class _Nodes:
    """The torchruns of two nodes."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        port = _free_port()
        self._logs = [folder / f"node{node}.txt" for node in (0, 1)]
        self.processes = [self._start(node, port, arguments) for node in (0, 1)]

    def _start(self, node: int, port: int, arguments: list[str]) -> subprocess.Popen[bytes]:
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"]
        launcher += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        with self._logs[node].open("wb") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            return subprocess.Popen([sys.executable, *launcher, *arguments], stdout=log, stderr=log, env=environment)

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 900
        while text not in self.said(0):
            assert self.processes[0].poll() is None, self.said(0)
            assert time.monotonic() < end, self.said(0)
            time.sleep(0.05)

    def end(self) -> list[int]:
        try:
            return [process.wait(900) for process in self.processes]
        finally:
            for process in self.processes:
                with suppress(ProcessLookupError):
                    process.kill()

    def worker(self, node: int) -> int:
        parent = self.processes[node].pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])

    def said(self, node: int) -> str:
        return self._logs[node].read_text(errors="replace")


def test_two_nodes_equal_one_process_after_a_stop_and_a_kill(colored_manifest, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("agate\ngold\npyrite\nquartz\n", encoding="utf-8")
    common = [*_FIT, str(colored_manifest), "--labels", str(labels), "-o"]
    alone = [sys.executable, *common, str(tmp_path / "one")]
    subprocess.run(alone, check=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    arguments = [*common, str(tmp_path / "two")]

    nodes = _Nodes(tmp_path, arguments)
    nodes.wait_for("Epoch 3/40")
    nodes.processes[1].send_signal(signal.SIGTERM)  # as a scheduler does to one node of the two
    assert 0 not in nodes.end()
    assert nodes.said(0).count("Stopped; the state is saved in") == 1
    assert "Stopped;" not in nodes.said(1)

    nodes = _Nodes(tmp_path, arguments)
    nodes.wait_for("Epoch 12/40")
    os.kill(nodes.worker(1), signal.SIGKILL)
    assert 0 not in nodes.end()
    assert nodes.said(0).count("Error: another process of this run has ended") == 1
    assert "RuntimeError" not in nodes.said(0)
    assert "resuming after epoch" in nodes.said(0)

    nodes = _Nodes(tmp_path, arguments)
    assert nodes.end() == [0, 0]
    assert nodes.said(0).count("Epoch 40/40") == 1
    (one, its_record), (two, other_record) = (load_state(tmp_path / name / STATE) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    histories = (record["progress"]["history"] for record in (its_record, other_record))
    for mine, theirs in zip(*histories, strict=True):
        for key in ("lr", "train_loss", "val_loss", "val_map"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5)


def test_nodes_that_do_not_see_one_folder_are_told_before_they_train(colored_manifest, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("agate\ngold\npyrite\nquartz\n", encoding="utf-8")
    program = "import os, sys; os.chdir(sys.argv.pop(1) + os.environ['RANK']); sys.argv[0] = 'mineral-train'\n"
    program += "from mineral_train.cli import main; main()"
    for rank in "01":
        (tmp_path / f"node{rank}").mkdir()
    script = tmp_path / "elsewhere.py"
    script.write_text(program)
    arguments = [str(script), str(tmp_path / "node"), *_FIT[2:], str(colored_manifest), "--labels", str(labels)]
    nodes = _Nodes(tmp_path, [*arguments, "-o", "run"])
    assert 0 not in nodes.end()
    for node in (0, 1):
        assert "the processes of this run do not see the same" in nodes.said(node)
    assert "Epoch 1/" not in nodes.said(0)
