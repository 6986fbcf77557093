"""A worker of a cluster in this process, and what is said when it or the cluster cannot work."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from mineral_batch.cli import main
from mineral_batch.cluster.connection import connected
from mineral_batch.cluster.crew import Crew
from mineral_batch.cluster.merge import merge
from mineral_batch.cluster.place import Folder
from mineral_batch.cluster.run import make_plan, work_on_cluster
from mineral_batch.cluster.sizes import ClusterOptions, sized
from mineral_batch.cluster.worker import Opened, Refusal, Worker, WorkerOptions
from mineral_batch.errors import BackendError, DataError
from mineral_batch.results.inputs import check_inputs

pytest.importorskip("onnxruntime")
pytest.importorskip("pyarrow")

ENGINE = {"backend": "onnx-cpu"}


class Here:
    """Workers in this process; calls are done when they are waited for."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._calls: dict[int, Callable[[], Any]] = {}
        self._number = 0

    def start(self) -> Worker:
        return Worker(self._options)

    def call(self, worker: Any, method: str, *arguments: Any) -> int:
        self._number += 1
        self._calls[self._number] = partial(getattr(worker, method), *arguments)
        return self._number

    def wait(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        return calls[:1]

    def result(self, call: Any) -> Any:
        return self._calls.pop(call)()

    def end(self, worker: Any) -> None:
        pass

    def room(self) -> str:
        return "this process"


def run(album: Path, output: Path, model: Path, **options: Any) -> Any:
    """A whole run on two workers of this process; returns the summary."""
    crew_options = WorkerOptions(str(output), str(Path.cwd()), [str(album)], str(model), ENGINE, **options)
    with Crew(Here(crew_options), 2, waits=()) as crew:
        first = crew.open()
        assert first is not None

        def identify(sources: Iterator[Any], earlier: str | None = None) -> Any:
            return first.identity, sources

        plan = make_plan(
            identify, Folder(output), check_inputs([album]), piece_images=3, mixed=options.get("mixed", False)
        )
        return work_on_cluster(crew, Folder(output), plan)


def command(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def test_workers_make_the_table_of_one_machine(album: Path, tmp_path: Path, model_path: Path) -> None:
    (album / "04.png").write_bytes(b"damaged")
    summary = run(album, tmp_path / "out", model_path)
    assert (summary.images, summary.failed, summary.missing) == (11, 1, 0)
    assert summary.who == "2 workers on 1 machine"
    merge(Folder(tmp_path / "out"))
    assert command(album, "-o", tmp_path / "one", "-m", model_path, "--backend", "onnx-cpu").exit_code == 3
    for name in ("predictions.csv", "failures.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_run_of_shards_is_finished_on_a_cluster_and_a_deleted_part_made_again(
    album: Path, tmp_path: Path, model_path: Path
) -> None:
    options = [album, "-o", tmp_path / "out", "-m", model_path, "--backend", "onnx-cpu", "--piece-images", 3]
    assert command(*options, "--shard", "1/2").exit_code == 0
    assert run(album, tmp_path / "out", model_path).reused == 6
    next((tmp_path / "out/parts").iterdir()).unlink()
    again = run(album, tmp_path / "out", model_path)
    assert again.missing == 0
    assert again.images in (2, 3)


def test_a_worker_that_would_give_other_probabilities_is_refused(album: Path, tmp_path: Path, model_path: Path) -> None:
    options = [album, "-o", tmp_path / "out", "-m", model_path, "--backend", "onnx-cpu", "--piece-images", 3]
    assert command(*options, "--exact", "--shard", "1/2").exit_code == 0
    with pytest.raises(DataError, match="decoder was"):
        run(album, tmp_path / "out", model_path)
    assert run(album, tmp_path / "out", model_path, mixed=True).missing == 0


def test_what_a_machine_lacks_is_said_with_its_name(album: Path, tmp_path: Path, model_path: Path) -> None:
    def opened(**changes: Any) -> Opened | Refusal:
        options = {"output": str(tmp_path / "out"), "folder": str(tmp_path), "model": str(model_path), "engine": ENGINE}
        return Worker(WorkerOptions(**{**options, **changes})).open()

    for changes, message in (
        ({"inputs": [str(tmp_path / "elsewhere")]}, "every machine of a cluster must see the inputs"),
        ({"model": str(tmp_path / "absent.onnx")}, "every machine of a cluster must have the model"),
        ({"engine": {"backend": "no such engine"}}, "no such engine"),
    ):
        refused = opened(**changes)
        assert isinstance(refused, Refusal)
        assert message in refused.message
        assert len(refused.message.splitlines()) == 1
    worker = Worker(WorkerOptions(str(tmp_path / "out"), str(tmp_path), [], str(model_path), ENGINE))
    assert isinstance(worker.open(), Opened)
    refused = worker.work(SimpleNamespace(id="000000-00"))  # type: ignore[arg-type]
    assert isinstance(refused, Refusal)
    assert "must see the output under the same path" in refused.message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cluster", "nonsense"], "is not an address of a Ray cluster"),
        (["--cluster", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1: "),
        (["--workers", "2"], "--workers is for a run on a cluster"),
        (["--cluster", "local", "--workers", "9-2"], "is not a number of workers"),
        (["--cluster", "local", "--worker-gpus", "1.5"], "1.5 is no number of GPUs: write a share below 1"),
        (["--cluster", "local", "--shard", "1/2"], "--shard is for machines without a cluster"),
        (["--cluster", "local", "--decode", "auto"], "measures on one machine"),
        (["--cluster", "local", "--devices", "1"], "hands out GPUs by --worker-gpus"),
        (["--cluster", "local", "--damaged", "predict"], "is not possible with --shard, --cluster"),
    ],
)
def test_what_cannot_be_meant_is_one_line(album: Path, tmp_path: Path, options: list[str], message: str) -> None:
    refused = command(album, "-o", tmp_path / "out", *options)
    assert refused.exit_code in (1, 2)
    assert message in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_ray_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"which is not installed: pip install .*\[ray\]'"), connected("local"):
        pass


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_a_port_where_something_else_answers_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 505 Version not supported\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BackendError, match="something else answers there"), connected(address):
            pass
        thread.join()


MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.41.0
    Python: 3.10.4
This process on node 10.0.0.7 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
@pytest.mark.parametrize(
    ("address", "raised", "written", "message"),
    [
        ("", RuntimeError(MISMATCH), "", "has Ray 2.41.0 and Python 3.10.4, this machine Ray 2.60.0 and Python 3.11.7"),
        ("", ConnectionError("Failed to connect to Ray cluster"), "", "a server answers at ADDRESS, but not as a Ray"),
        ("", ConnectionError("Failed to connect"), "RPC error: Unauthenticated", "wants a token that this process"),
        ("ray://", ConnectionError("ray client connection timeout"), "", "a server answers at ADDRESS, but not as"),
        (
            "ray://",
            ConnectionError("Initialization failure:\n  no disk"),
            "",
            "ADDRESS: Initialization failure: no disk",
        ),
        ("auto", ConnectionError("Could not find any running Ray instance"), "", "no Ray cluster runs on this machine"),
    ],
)
def test_a_cluster_that_takes_nobody_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    address: str,
    raised: Exception,
    written: str,
    message: str,
) -> None:
    def init(*arguments: object, **options: object) -> None:
        os.write(2, f"{written}\n".encode())
        raise raised

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    jobs = SimpleNamespace(JobConfig=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, job_config=jobs, __spec__=SimpleNamespace()))
    with grpc_server() as port:
        address = address if address == "auto" else f"{address}127.0.0.1:{port}"
        with pytest.raises(BackendError) as refused, connected(address):
            pass
    assert message.replace("ADDRESS", address) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert capfd.readouterr().err in ("", "\n")


# Ray ends the process by itself on a machine that is no node of the cluster.
_ENDING = """
import os, sys
from types import SimpleNamespace
jobs = SimpleNamespace(JobConfig=SimpleNamespace)
end = lambda *args, **options: os.write(2, b"C++") and os._exit(1)
sys.modules["ray"] = SimpleNamespace(init=end, job_config=jobs, __spec__=jobs)
from mineral_batch.cluster.connection import connected
connected(sys.argv[1]).__enter__()
"""


def test_a_machine_that_is_no_node_is_told_so_although_ray_ends_the_process() -> None:
    with grpc_server() as port:
        command = [sys.executable, "-c", _ENDING, f"127.0.0.1:{port}"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert f"the cluster at 127.0.0.1:{port}: auto and HOST:PORT are for machines of the cluster" in ended.stderr


@contextmanager
def grpc_server() -> Iterator[int]:
    """Something that greets as gRPC does; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(bytes(3) + b"\x04" + bytes(5))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield server.getsockname()[1]
    # A thread of an address that nobody asked is a daemon: closing the socket does not wake it.


def cluster_of(*nodes: dict[str, float]) -> Any:
    return SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": node} for node in nodes])


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        # One CPU of a machine is left over, and of the cluster the last one.
        ([{"CPU": 4.0}], ClusterOptions(), (1, 3, 0)),
        ([{"CPU": 1.0}] * 3, ClusterOptions(), (2, 1, 0)),
        ([{"CPU": 64.0}, {"CPU": 64.0}], ClusterOptions(), (15, 8, 0)),
        # A share of the CPUs for each GPU; the head has none and gets no worker.
        ([{"CPU": 8.0}, {"CPU": 33.0, "GPU": 8.0}], ClusterOptions(), (8, 4, 1)),
        ([{"CPU": 16.0, "GPU": 1.0}], ClusterOptions(gpus=0.5), (2, 7, 0.5)),
        ([{"CPU": 16.0, "GPU": 1.0}], ClusterOptions(gpus=0, cpus=2), (7, 2, 0)),
        ([{"CPU": 4.0}], ClusterOptions(most=20, cpus=1), (20, 1, 0)),
    ],
)
def test_workers_fill_a_cluster_but_for_a_cpu(
    nodes: list[dict[str, float]], asked: ClusterOptions, expected: tuple[float, float, float]
) -> None:
    found = sized(cluster_of(*nodes), asked)
    assert (found.most, found.cpus, found.gpus) == expected


def test_a_worker_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(BackendError, match=r"no machine .* worker of 8 CPUs \(the cluster has 6 CPUs on 2 machines\)"):
        sized(cluster_of({"CPU": 4.0}, {"CPU": 2.0}), ClusterOptions(cpus=8))


def test_two_clusters_on_one_output_do_nothing_double(album: Path, tmp_path: Path, model_path: Path) -> None:
    output = tmp_path / "out"
    options = WorkerOptions(str(output), str(Path.cwd()), [str(album)], str(model_path), ENGINE)
    with Crew(Here(options), 1, waits=()) as late:
        first = late.open()
        assert first is not None
        plan = make_plan(lambda sources, earlier=None: (first.identity, sources), Folder(output), check_inputs([album]))
        to_do = plan.to_do(Folder(output))
        assert run(album, output, model_path).images == 11
        parts = {path: path.stat().st_ino for path in (output / "parts").iterdir()}
        reports: list[Any] = []
        late.work(Folder(output), to_do, reports.append)
    assert [report.left for report in reports] == [""] * len(to_do)
    assert {path: path.stat().st_ino for path in (output / "parts").iterdir()} == parts
    assert merge(Folder(output)).counts.predicted == 11


@pytest.mark.parametrize("reason", ["the store is full or its quota is used up", "access denied"])
def test_an_output_that_takes_no_more_ends_the_run_and_keeps_what_is_done(
    album: Path, tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    output, real = tmp_path / "out", Folder.put

    def put(place: Folder, key: str, content: bytes, *, create_only: bool = True) -> bool:
        if key.startswith("parts/") and len(list(place.keys("parts/"))) == 2:
            raise DataError(f"{place.name}/{key}: {reason}")
        return real(place, key, content, create_only=create_only)

    monkeypatch.setattr(Folder, "put", put)
    with pytest.raises(DataError, match=f"out/parts/.*: {reason}"):
        run(album, output, model_path)
    assert len(list((output / "parts").iterdir())) == 2
    assert not [file for file in (output / "attempts").rglob("*") if file.is_file()]
    monkeypatch.setattr(Folder, "put", real)
    again = run(album, output, model_path)
    assert (again.missing, again.reused) == (0, 6)
