"""A server in front of a store that answers as S3 does, which fails where a test says so."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from .web_server import address, serving


@dataclass
class Faults:
    """What to answer in place of the store.

    Attributes:
        address: of the server.
        method: that fails, such as `PUT`.
        path: a pattern of what fails.
        spared: how many of these requests still pass.
        status: of the answer.
        code: of the error, in S3's words; empty while nothing fails.
    """

    address: str = ""
    method: str = ""
    path: str = ""
    spared: int = 0
    status: int = 0
    code: str = ""
    lock: Any = field(default_factory=threading.Lock)

    def set(self, method: str, path: str, status: int, code: str, *, spared: int = 0) -> None:
        """Fail these requests from now on."""
        self.method, self.path, self.status, self.code, self.spared = method, path, status, code, spared

    def clear(self) -> None:
        """Let everything pass."""
        self.code = ""

    def answers(self, method: str, path: str) -> bool:
        """Return whether a request fails."""
        if not self.code or method != self.method or not re.search(self.path, path):
            return False
        with self.lock:
            self.spared -= 1
            return self.spared < 0


@contextmanager
def faulty_store(behind: str) -> Iterator[Faults]:
    """Serve what the store at an address has, through a server whose failures can be set."""
    import urllib3

    faults, pool = Faults(), urllib3.PoolManager(maxsize=64)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if faults.answers(self.command, self.path):
                message = f"a secret word {faults.address}"
                text = f"<?xml version='1.0'?><Error><Code>{faults.code}</Code><Message>{message}</Message></Error>"
                self._answer(faults.status, {"Content-Type": "application/xml"}, text.encode())
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            answer = pool.request(
                self.command, f"{behind}{self.path}", body=body, headers=headers, redirect=False, retries=False
            )
            self._answer(answer.status, dict(answer.headers), answer.data)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            size = headers.get("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", size or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as server:
        faults.address = address(server)
        try:
            yield faults
        finally:
            pool.clear()
