"""A Ray cluster of several nodes on this machine, in a process of its own. Commands come on standard input, one a line.

The first line of output has its address, that for a Ray Client, and the port of the first node's metrics.

| command | what happens |
|---|---|
| kill | a worker of `mineral-batch` is killed with SIGKILL |
| remove | a node other than the first is removed without warning |
| add | a node is added |
| head | the process that leads the cluster is killed |
| workers | prints how many workers there are |

Each command is answered by one line. When the input ends the cluster does.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


def workers() -> list[psutil.Process]:
    """The processes of actors."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("RayWorker" in word for word in process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(word: str = "") -> int:
    """Kill this process's descendants whose name has a word in it; return how many."""
    found = [one for one in psutil.Process().children(recursive=True) if word in one.name()]
    for process in found:
        process.kill()
    return len(found)


def ports(count: int) -> list[int]:
    """Ports that are free now."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def add(cluster: Cluster) -> bool:
    """Add a node; Ray gives up after 30 s, which a busy machine may need."""
    for _ in range(3):
        try:
            cluster.add_node(wait=False, **NODE)
        except Exception as error:
            print(error, file=sys.stderr)
        else:
            return True
    return False


def obey(cluster: Cluster, command: str) -> str:
    """Do one command."""
    if command == "kill":
        there = workers()
        if there:
            random.choice(there).kill()
        return f"killed {min(1, len(there))}"
    if command == "remove":
        nodes = sorted(cluster.worker_nodes, key=lambda node: node.node_id)
        if nodes:
            cluster.remove_node(random.choice(nodes), allow_graceful=False)
        return f"removed {min(1, len(nodes))}"
    if command == "head":
        return f"killed {kill('gcs_server')}"
    if command == "add":
        return f"added {int(add(cluster))}"
    return f"workers {len(workers())}"


def main(nodes: int, cpus: int) -> None:
    """Serve until the input ends."""
    folder = tempfile.mkdtemp(prefix="ray")
    Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray").mkdir(parents=True, exist_ok=True)  # where it notes its address
    client, metrics = ports(2)
    head = {"include_dashboard": False, "temp_dir": folder, **NODE, "num_cpus": cpus}
    head |= {"ray_client_server_port": client, "metrics_export_port": metrics}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(nodes - 1):
        add(cluster)
    host = cluster.address.rpartition(":")[0]
    print(cluster.address, f"ray://{host}:{client}", metrics, flush=True)
    has_head = True
    for line in sys.stdin:
        has_head = has_head and line.strip() != "head"
        print(obey(cluster, line.strip()), flush=True)
    if has_head:
        cluster.shutdown()
    kill()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)  # what Ray does at the end of a process waits for a head that is gone


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
