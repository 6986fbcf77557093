"""A store on this machine that answers as S3 does."""

import logging

import pytest


@pytest.fixture(scope="session")
def s3_server():
    server = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path):
    """The address of the server, with a bucket `photos` that is empty; the environment leads there."""
    import urllib3

    from mineral_batch.storage import store

    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    store._cloud_store.cache_clear()
    with urllib3.PoolManager() as pool:
        pool.request("POST", f"{s3_server}/moto-api/reset")
        pool.request("PUT", f"{s3_server}/photos")
    return s3_server
