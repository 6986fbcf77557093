"""A Ray cluster whose autoscaler adds and removes nodes on this machine, as `ray_nodes` is one of a fixed size.

The head has no CPU. The line that answers each line of input says how many nodes with a CPU there are; when the input
ends the cluster does. `ray.cluster_utils.AutoscalingCluster` would end every other cluster of the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

SMALL = 80_000_000
# What the fake provider of nodes calls the head.
_HEAD = f"{'f' * 51}00000"
_PROVIDER = {
    "type": "fake_multinode",
    "launch_multiple": True,
    "head_node_id": _HEAD,
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
_NOTHING = ("auth", "docker", "file_mounts")
_NO_COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)


def config(address: str, most: int) -> dict[str, Any]:
    """A cluster of up to `most` nodes of one CPU, which leave when they had nothing to do for two seconds."""
    node = {"resources": {"CPU": 1, "object_store_memory": SMALL}, "node_config": {}, "min_workers": 0}
    return {
        "cluster_name": "fake_multinode",
        "max_workers": most,
        "idle_timeout_minutes": 2 / 60,
        "upscaling_speed": 10.0,
        "provider": {**_PROVIDER, "gcs_address": address},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "small": {**node, "max_workers": most},
        },
        "file_mounts_sync_continuously": False,
        **{key: {} for key in _NOTHING},
        **{key: [] for key in _NO_COMMANDS},
    }


def raylets(folder: str) -> list[psutil.Process]:
    """The processes that stand for nodes, the head's included."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet" and folder in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


def main(most: int) -> None:
    """Serve until the input ends."""
    folder = tempfile.mkdtemp(prefix="ray")
    with socket.create_server(("", 0)) as server, socket.create_server(("", 0)) as other:
        port, client = server.getsockname()[1], other.getsockname()[1]
    host = socket.gethostbyname(socket.gethostname())
    file = Path(folder, "autoscaler.json")
    file.write_text(json.dumps(config(f"{host}:{port}", most)))
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--include-dashboard=false"),
        *(f"--port={port}", f"--node-ip-address={host}", f"--temp-dir={folder}", f"--autoscaling-config={file}"),
        *("--num-cpus=0", f"--object-store-memory={SMALL}", f"--ray-client-server-port={client}"),
    ]
    environment = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    with Path(folder, "log").open("w") as log:
        head = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
        )
    while not raylets(folder):
        if head.poll() is not None:
            sys.exit(Path(folder, "log").read_text())
        time.sleep(0.2)
    print(f"{host}:{port}", flush=True)
    for _ in sys.stdin:
        print(f"nodes {len(raylets(folder)) - 1}", flush=True)
    family = [
        process for process in psutil.process_iter(["cmdline"]) if folder in " ".join(process.info["cmdline"] or [])
    ]
    head.send_signal(signal.SIGTERM)
    for process in family:
        with suppress(psutil.Error):
            process.kill()
    head.wait(300)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
