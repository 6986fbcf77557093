"""The connection to a Ray cluster, and the watch over its head.

Ray itself tries for minutes to reach a cluster, and when it loses the head in the middle of a run it ends this process
after a minute, with messages for its developers. A probe that takes a millisecond turns both into an error like any
other.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import urlsplit

from mineral_batch.errors import BackendError, DataError
from mineral_batch.system import pip_install

#: Starts a cluster on this machine, for the time of the run.
LOCAL = "local"
# Finds the cluster that runs on this machine, or that RAY_ADDRESS names.
_AUTO = "auto"
# How the address of a Ray Client begins: this machine need not be part of the cluster.
_CLIENT = "ray://"
# The smallest object store that Ray accepts is 75 MB; nothing passes through it.
_OBJECT_STORE = 80_000_000
_STANDARD_ERROR = 2
_SECONDS_TO_ANSWER = 5.0
# Seconds that a head that is gone has to come back. Ray ends this process 60 seconds after it lost the head.
_PATIENCE, _PROBE_EVERY = 35.0, 5.0
# RFC 9113, 3.4: what a client sends first, with an empty SETTINGS frame; the server answers with a SETTINGS frame. Ray
# speaks gRPC, which is HTTP/2.
_HTTP2_SETTINGS = b"\x04"
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _HTTP2_SETTINGS + bytes(5)
# Ends with its standard input; speaks if nothing came by it.
_EXECUTOR = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"
_NOT_SERVED = "Initialization failure from server"
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")


class HeadLostError(BackendError):
    """The head of the cluster does not answer any more, so nothing more can be asked of the cluster."""


class Head:
    """Watches whether the head of a cluster still answers.

    Args:
        probe: raises `BackendError` if it does not.
        lost: what to say then.
        patience: seconds in which a head that is gone may come back.
        every: seconds between two probes.
    """

    def __init__(
        self, probe: Callable[[], object], lost: str, *, patience: float = _PATIENCE, every: float = _PROBE_EVERY
    ) -> None:
        self._probe, self._lost, self._patience, self._every = probe, lost, patience, every
        self._asked = time.monotonic()
        self._silent_since: float | None = None
        #: Whether it was given up.
        self.is_lost = False

    def check(self) -> None:
        """Ask the head, if it is time to; costs nothing otherwise.

        Raises:
            HeadLostError: if it has been silent for too long.
        """
        if time.monotonic() - self._asked >= self._every and not self.is_lost:
            self.answers()
        if self.is_lost:
            raise self.give_up()

    def answers(self) -> bool:
        """Ask now; what Ray itself asks of a head that is gone never returns."""
        now = self._asked = time.monotonic()
        try:
            self._probe()
        except BackendError:
            self._silent_since = now if self._silent_since is None else self._silent_since
            self.is_lost = self.is_lost or now - self._silent_since >= self._patience
            return False
        self._silent_since = None
        return True

    def give_up(self) -> HeadLostError:
        """Note that it is lost, and return the error that says so."""
        self.is_lost = True
        return HeadLostError(self._lost)


class _NoFolders(list[str]):
    """Takes none of the folders that Ray has the workers import from first.

    They are those of this command: a json.py or numpy.py beside the photographs would take the place of the real one.
    """

    def extend(self, folders: Iterable[str]) -> None:
        """Leave them out."""


@dataclass(frozen=True)
class Connection:
    """A connection to a Ray cluster.

    Attributes:
        ray: the module, connected.
        head: of the cluster.
    """

    ray: Any
    head: Head


@contextmanager
def connected(address: str) -> Iterator[Connection]:
    """Connect to a cluster, or start one.

    Raises:
        DataError: if Ray is not installed.
        BackendError: if the cluster does not answer, or is of another version.
    """
    if find_spec("ray") is None:
        raise DataError(f"--cluster needs Ray, which is not installed: {pip_install('ray')}")
    if address != LOCAL:
        _check_address(address)
    # Read when Ray is imported: hide GPUs from actors that ask for none, as its next release does.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    before = signal.getsignal(signal.SIGTERM)
    ray = _init(address)
    head = Head(_head_probe(ray, address), _lost(address))
    try:
        yield Connection(ray, head)
    finally:
        if head.is_lost:
            atexit.register(_exit)
        else:
            ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _exit() -> None:
    """End this process before Ray's own exit handler, which waits for the head in vain."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _init(address: str) -> Any:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    import ray

    if not address.startswith(_CLIENT):
        options["job_config"] = job = ray.job_config.JobConfig()
        job._py_driver_sys_path = _NoFolders()
    with TemporaryFile("w+", errors="replace") as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with nullcontext() if address == LOCAL else _quiet(said.fileno(), _ended(address)):
                _connect(ray, address, options)
        except Exception as error:  # whatever Ray raises for a bad address, an old version, a missing package
            said.seek(0)
            raise BackendError(_no_cluster(address, error, said.read())) from None
    with suppress(AttributeError):  # what the raylets print, such as the death of a worker, is told in our words
        ray._private.worker._worker_logs_enabled = False
    return ray


def _connect(ray: Any, address: str, options: dict[str, Any]) -> None:
    try:
        ray.init(address, **options)
    except ConnectionError as error:
        # The process that serves a Ray Client on the head at times dies while it starts.
        if _NOT_SERVED not in str(error):
            raise
        ray.init(address, **options)


@contextmanager
def _quiet(file: int, last_words: str) -> Iterator[None]:
    """Write what Ray's C++ says at every second of its tries into a file.

    Args:
        file: its descriptor.
        last_words: what a small process says if Ray ends this one, as it does on a machine that is no node.
    """
    sys.stderr.flush()
    command = [sys.executable, "-I", "-S", "-c", _EXECUTOR, last_words]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as executor:  # noqa: S603 - our own words
        before = os.dup(_STANDARD_ERROR)
        os.dup2(file, _STANDARD_ERROR)
        try:
            yield
        finally:
            os.dup2(before, _STANDARD_ERROR)
            os.close(before)
            executor.communicate(b"alive")


def _ended(address: str) -> str:
    return (
        f"Error: Ray could not work on this machine with the cluster at {address}: {_AUTO} and HOST:PORT are for "
        f"machines of the cluster (ray start --address=HOST:PORT makes this one of them), ray://HOST:10001 for others"
    )


def _no_cluster(address: str, error: Exception, said: str) -> str:
    """Say in one line why Ray could not connect."""
    text = f"{said}\n{error}"
    if len(versions := _VERSIONS.findall(str(error))) == 2:
        (their_ray, their_python), (ray, python) = versions
        return (
            f"the Ray cluster at {address} has Ray {their_ray} and Python {their_python}, this machine Ray {ray} and "
            f"Python {python}: install the cluster's versions here"
        )
    if address == _AUTO and isinstance(error, ConnectionError) and "Could not find" in text:
        return (
            "no Ray cluster runs on this machine: name the address of one, such as HOST:6379, start one with "
            "ray start --head, or use --cluster local"
        )
    if "authenticat" in text.lower():
        return (
            f"the Ray cluster at {address} wants a token that this process does not have: set RAY_AUTH_MODE=token, "
            f"and RAY_AUTH_TOKEN to what ray get-auth-token prints on the cluster"
        )
    if "Failed to connect" in text or "connection timeout" in text:
        return (
            f"a server answers at {address}, but not as a Ray cluster: it may be another port of Ray's (6379 is for "
            f"HOST:PORT, 10001 for ray://), another release, or want a token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN)"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"no Ray cluster at {address}: {' '.join(lines[:2]) or type(error).__name__}"


def _lost(address: str) -> str:
    which = "that this command started" if address == LOCAL else f"at {address}"
    return (
        f"the head of the Ray cluster {which} does not answer any more; what is done is safe: rerun the same command "
        f"when it is back"
    )


def _head_probe(ray: Any, address: str) -> Callable[[], object]:
    where = address if address.startswith(_CLIENT) else str(ray.get_runtime_context().gcs_address)
    return partial(_probe, address, *_host_and_port(where))


def _check_address(address: str) -> None:
    """Ask whether something that may be Ray answers at an address; Ray itself tries for minutes."""
    host, port = _host_and_port(os.environ.get("RAY_ADDRESS", _AUTO) if address == _AUTO else address)
    if port is not None:
        _probe(address, host, port)
    elif host != _AUTO:
        raise BackendError(
            f"'{address}' is not an address of a Ray cluster: write local, auto, HOST:6379 or ray://HOST:10001"
        )


def _host_and_port(address: str) -> tuple[str, int | None]:
    """Return the parts of an address; no port if it is none."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        return parts.hostname or "", parts.port
    except ValueError:
        return "", None


def _probe(address: str, host: str, port: int | None) -> None:
    """Ask whether something that speaks gRPC, as Ray does, answers.

    Raises:
        BackendError: if nothing does.
    """
    try:
        with socket.create_connection((host, port), timeout=_SECONDS_TO_ANSWER) as connection:
            connection.settimeout(_SECONDS_TO_ANSWER)
            connection.sendall(_HTTP2_PREFACE)
            answer = connection.recv(9)
    except OSError as error:
        raise BackendError(f"no Ray cluster at {address}: {error.strerror or error}") from None
    if answer[3:4] != _HTTP2_SETTINGS:
        raise BackendError(f"no Ray cluster at {address}: something else answers there; Ray's own port is 6379")
