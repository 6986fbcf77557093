"""A Ray cluster of several nodes on this machine, in a process of its own. Commands come on standard input, one a line.

| command | what happens |
|---|---|
| kill | a worker of `mineral-batch` is killed with SIGKILL |
| remove | a node other than the first is removed without warning |
| add | a node is added |
| workers | prints how many workers there are |

Each command is answered by one line. When the input ends the cluster does.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile

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
    if command == "add":
        return f"added {int(add(cluster))}"
    return f"workers {len(workers())}"


def main(nodes: int) -> None:
    """Serve until the input ends."""
    folder = tempfile.mkdtemp(prefix="ray")
    head = {"include_dashboard": False, "temp_dir": folder, **NODE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(nodes - 1):
        add(cluster)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        print(obey(cluster, line.strip()), flush=True)
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
