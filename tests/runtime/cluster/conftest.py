"""A store on this machine that answers as S3 does, with a bucket `results`."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that is new; the environment leads there."""
    server = pytest.importorskip("moto.server")
    urllib3 = pytest.importorskip("urllib3")
    store = pytest.importorskip("mineral_batch.storage.store")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    address = f"http://{host}:{port}"
    environment = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    for name, value in {**environment, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    store._cloud_store.cache_clear()
    with urllib3.PoolManager() as pool:
        pool.request("POST", f"{address}/moto-api/reset")
        pool.request("PUT", f"{address}/results")
    yield address
    running.stop()
    store._cloud_store.cache_clear()
