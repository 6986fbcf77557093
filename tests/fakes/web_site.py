"""A web server that answers as a test says: without a length, in chunks, compressed, broken off, redirecting."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from .web_server import address, serving


@dataclass
class Site:
    """What is served.

    Attributes:
        address: of the server.
        files: path -> content.
        asked: method and path of every request.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    """The first part of a path says how to answer: plain, chunked, endless (no length), half, gzip, again, round."""

    site: Site

    def do_GET(self) -> None:
        self.site.asked.append(f"{self.command} {self.path}")
        how, _, name = self.path[1:].partition("/")
        if how == "again":  # another place, so many times
            count, _, rest = name.partition("/")
            self._redirect(f"/again/{int(count) - 1}/{rest}" if int(count) else f"/plain/{rest}")
        elif how == "round":
            self._redirect(self.path)
        elif name not in self.site.files:
            self.send_error(404)
        else:
            self._send(how, self.site.files[name])

    do_HEAD = do_GET

    def _redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, how: str, content: bytes) -> None:
        self.protocol_version = "HTTP/1.1" if how == "chunked" else "HTTP/1.0"
        self.send_response(200)
        body = gzip.compress(content) if how == "gzip" else content
        if how == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if how == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        elif how != "endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if how == "half" else body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def web_site() -> Iterator[Site]:
    """Serve nothing yet."""
    site = Site()
    with serving(type("Handler", (_Handler,), {"site": site})) as server:
        site.address = address(server)
        yield site
