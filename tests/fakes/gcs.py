"""A server that answers as the XML API of Google Cloud Storage does, as far as object stores are used here.

After https://cloud.google.com/storage/docs/xml-api/reference-methods: objects with generations,
`x-goog-if-generation-match`, multipart uploads, listings in pages.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree.ElementTree import fromstring
from xml.sax.saxutils import escape

from .web_server import address, serving

MODIFIED = 1_790_000_000


@dataclass
class Bucket:
    """Objects, uploads that are not complete, and what was asked.

    Attributes:
        address: of the server.
        objects: key -> content and generation.
        uploads: identifier -> number -> content of a part.
        asked: method and target of every request.
        page: keys in a page of a listing.
    """

    address: str = ""
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    page: int = 2
    generations: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def write(self, key: str, content: bytes, match: str | None) -> bool:
        """Write an object; False if `x-goog-if-generation-match` names another generation than its own."""
        with self.lock:
            if match is not None and int(match) != self.objects.get(key, (b"", 0))[1]:
                return False
            self.generations += 1
            self.objects[key] = content, self.generations
            return True


class _Handler(BaseHTTPRequestHandler):
    bucket: Bucket
    name: str

    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        target = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(target.query, keep_blank_values=True).items()}
        self.bucket.asked.append(f"{self.command} {self.path}")
        found, _, key = target.path[1:].partition("/")
        if unquote(found) != self.name:
            self._error(404, "NoSuchBucket", "The specified bucket does not exist.")
        elif not key:
            self._list(query)
        else:
            getattr(self, f"_{self.command.lower()}")(unquote(key), query, body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any

    def _get(self, key: str, query: dict[str, str], body: bytes) -> None:
        del query, body
        if key not in self.bucket.objects:
            self._error(404, "NoSuchKey", "The specified key does not exist.")
            return
        content, generation = self.bucket.objects[key]
        headers = {
            "ETag": _etag(content),
            "x-goog-generation": str(generation),
            "Last-Modified": formatdate(MODIFIED, usegmt=True),
        }
        status, part = 200, content
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            status, part = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(status, part, headers)

    _head = _get

    def _put(self, key: str, query: dict[str, str], body: bytes) -> None:
        if "uploadId" in query:
            self.bucket.uploads[query["uploadId"]][int(query["partNumber"])] = body
            self._answer(200, b"", {"ETag": _etag(body)})
        elif self.bucket.write(key, body, self.headers.get("x-goog-if-generation-match")):
            self._answer(200, b"", {"ETag": _etag(body), "x-goog-generation": str(self.bucket.objects[key][1])})
        else:
            self._error(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")

    def _post(self, key: str, query: dict[str, str], body: bytes) -> None:
        if "uploads" in query:
            upload = f"upload-{len(self.bucket.uploads)}"
            self.bucket.uploads[upload] = {}
            self._xml(f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>")
            return
        parts = self.bucket.uploads.pop(query["uploadId"])
        stated = [(int(one.findtext("PartNumber") or 0), one.findtext("ETag")) for one in fromstring(body)]
        contents = [parts[number] for number, etag in stated if _etag(parts[number]) == etag]
        content = b"".join(contents)
        if not contents or len(contents) < len(stated) or any(len(part) < 5 * 2**20 for part in contents[:-1]):
            self._error(400, "InvalidPart", "One or more of the specified parts could not be found.")
        elif self.bucket.write(key, content, self.headers.get("x-goog-if-generation-match")):
            self._xml(f"<CompleteMultipartUploadResult><ETag>{_etag(content)}</ETag></CompleteMultipartUploadResult>")
        else:
            self._error(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")

    def _delete(self, key: str, query: dict[str, str], body: bytes) -> None:
        del body
        if "uploadId" in query:
            self.bucket.uploads.pop(query["uploadId"], None)
        elif self.bucket.objects.pop(key, None) is None:
            self._error(404, "NoSuchKey", "The specified key does not exist.")
            return
        self._answer(204, b"", {})

    def _list(self, query: dict[str, str]) -> None:
        after = query.get("continuation-token") or query.get("start-after", "")
        keys = sorted(key for key in self.bucket.objects if key.startswith(query.get("prefix", "")) and key > after)
        shown, more = keys[: self.bucket.page], keys[self.bucket.page :]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Generation>{self.bucket.objects[key][1]}</Generation>"
            f"<LastModified>2026-09-21T14:13:20.000Z</LastModified><ETag>{_etag(self.bucket.objects[key][0])}</ETag>"
            f"<Size>{len(self.bucket.objects[key][0])}</Size></Contents>"
            for key in shown
        )
        token = f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if more else ""
        self._xml(f"<ListBucketResult><Name>{self.name}</Name>{entries}{token}</ListBucketResult>")

    def _xml(self, text: str) -> None:
        self._answer(200, f"<?xml version='1.0' encoding='UTF-8'?>{text}".encode(), {"Content-Type": "application/xml"})

    def _error(self, status: int, code: str, message: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self._answer(status, text.encode(), {"Content-Type": "application/xml"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def cloud_storage(name: str) -> Iterator[Bucket]:
    """Serve one empty bucket."""
    bucket = Bucket()
    handler = type("Handler", (_Handler,), {"bucket": bucket, "name": name})
    with serving(handler) as server:
        bucket.address = address(server)
        yield bucket


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
