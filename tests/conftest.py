"""What holds for all tests: one thread each, nothing that depends on speed; and a store that answers as S3 does."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault(
    "MKL_NUM_THREADS", "1"
)  # read by torch when it is imported; OMP_NUM_THREADS would limit our own threads, too

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--decode-processes N`: predictors that the tests open without saying how to decode use N processes."""
    parser.addoption("--decode-processes", type=int, default=None, help="decode in so many processes by default")


def pytest_configure(config: pytest.Config) -> None:
    """Apply it, and let what the tests start be interrupted.

    A shell has its background jobs ignore SIGINT, and their children inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    wanted = config.getoption("--decode-processes")
    if wanted is not None:
        from mineral_batch import predictor

        chosen = predictor._process_count
        predictor._process_count = lambda count, backend: chosen(wanted if count is None else count, backend)


@pytest.fixture(autouse=True)
def heard_logger() -> None:
    """Undo what libraries do to logging in this process, so that a test hears our warnings whatever ran before it.

    NNCF raises the level of every handler of the root logger, pytest's among them; others turn existing loggers off.
    """
    for handler in logging.root.handlers:
        handler.setLevel(logging.NOTSET)
    logger = logging.getLogger("mineral_batch")
    logger.disabled, logger.propagate = False, True


@pytest.fixture(autouse=True)
def plain_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have hints say `pip`, as in an activated environment, however the tests were started."""
    from mineral_batch import system

    monkeypatch.setattr(system, "_is_own_pip_on_path", lambda: True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server on this machine that answers as S3 does."""
    server = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same, with two empty buckets, `photos` and `results`; the environment leads there."""
    urllib3 = pytest.importorskip("urllib3")
    store = pytest.importorskip("mineral_batch.storage.store")
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
        for bucket in ("photos", "results"):
            pool.request("PUT", f"{s3_server}/{bucket}")
    yield s3_server
    store._cloud_store.cache_clear()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """How a worker that died ended, which pytest-xdist does not say: a negative number is a signal's."""
    process: subprocess.Popen[bytes] | None = getattr(getattr(node.gateway, "_io", None), "popen", None)
    if not error or process is None:
        return
    try:
        ended = f"exit code {process.wait(10)}"
    except subprocess.TimeoutExpired:
        ended = "it still runs, and does not answer"
    node.config.get_terminal_writer().line(f"\nworker {node.gateway.id}, process {process.pid}: {ended}")
