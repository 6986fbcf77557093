"""Web servers: objects by https, with one pool of connections."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.request import getproxies, proxy_bypass

from mineral_batch.storage.errors import DeniedError, NoSuchObjectError, StoreError, UnreachableError
from mineral_batch.storage.interface import RETRIES, RETRY_SECONDS, TIMEOUT, Check, Entry
from mineral_batch.storage.urls import redact

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

_CONNECTIONS = 256
_REDIRECTS = 10
_AGAIN = (429, 500, 502, 503, 504)
_NOT_THERE, _DENIED = (404, 410), (401, 403)


class WebStore:
    """A web server; see `mineral_batch.storage.interface.Store`. It lists and writes nothing.

    Args:
        root: `https://host`, perhaps with `user:password@`, which are sent as basic authentication.
    """

    def __init__(self, root: str) -> None:
        import urllib3

        self.root = redact(root)
        host = urllib3.util.parse_url(root)
        auth = host.auth
        self._url = root.replace(f"{auth}@", "", 1) if auth else root
        self._headers = {"User-Agent": "mineral-batch"}
        if auth:
            self._headers |= urllib3.util.make_headers(basic_auth=auth)
        self._pool: Any = _pool(host.scheme or "https", host.host or "", os.getpid())

    def get(self, key: str, check: Check | None = None) -> bytes:
        """Return the body of the answer, whole."""
        response = self._request("GET", key)
        if check is not None:
            check(_entry(key, response.headers))
        return bytes(response.data)

    def open(self, key: str, check: Check | None = None) -> AbstractContextManager[BinaryIO]:
        """Open the body of the answer, to be read as it comes."""
        from mineral_batch.storage.stream import Stream

        response = self._request("GET", key, preload_content=False)
        if check is not None:
            try:
                check(_entry(key, response.headers))
            except BaseException:
                response.close()  # not drained: it may be large
                raise
        return Stream(response.stream(2**20), lambda error: self._explained(error, key))

    def head(self, key: str) -> Entry:
        """Return what the server says of a file; a server that answers to no HEAD says nothing."""
        try:
            return _entry(key, self._request("HEAD", key).headers)
        except (DeniedError, _RefusedError):  # a presigned URL is signed for GET alone
            return Entry(key, -1, 0, "")

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Entry]:
        """Raise `StoreError`: a web server has no listing."""
        del after
        raise StoreError(f"{self.root}/{redact(prefix)}: a web server lists nothing; name its files in a --list")

    def put(self, key: str, content: bytes, *, create_only: bool = False) -> bool:
        """Raise `StoreError`: nothing is written to web servers."""
        del content, create_only
        raise StoreError(f"{self._shown(key)}: web servers are only read; write to s3://, gs:// or az://")

    def put_file(self, key: str, file: Path) -> None:
        """Raise `StoreError`: nothing is written to web servers."""
        del file
        self.put(key, b"")

    def delete(self, key: str) -> None:
        """Raise `StoreError`: nothing is deleted from web servers."""
        self.put(key, b"")

    def _request(self, method: str, key: str, **options: Any) -> Any:
        try:
            response = self._pool.request(method, f"{self._url}/{key}", headers=self._headers, **options)
        except Exception as error:
            raise self._explained(error, key) from None
        if response.status < 300:
            return response
        response.drain_conn()
        if response.status in _NOT_THERE:
            raise NoSuchObjectError(f"no such object: {self._shown(key)} ({response.status})")
        if response.status in _DENIED:
            raise DeniedError(f"{self._shown(key)}: access denied ({response.status})")
        if response.status in _AGAIN:
            raise UnreachableError(f"{self._shown(key)}: answered {response.status}, after {RETRIES} more tries")
        raise _RefusedError(f"{self._shown(key)}: the server answered {response.status}")

    def _explained(self, error: Exception, key: str) -> StoreError:
        reason = getattr(error, "reason", None) or error
        if "redirect" in str(reason):
            return _RefusedError(f"{self._shown(key)}: redirected more than {_REDIRECTS} times")
        kind = type(reason).__name__.removesuffix("Error")
        return UnreachableError(f"{self._shown(key)}: no answer from the server ({kind}), after {RETRIES} more tries")

    def _shown(self, key: str) -> str:
        return redact(f"{self.root}/{key}")


def _entry(key: str, headers: Any) -> Entry:
    length, modified = headers.get("Content-Length", ""), 0
    with suppress(TypeError, ValueError):
        modified = int(parsedate_to_datetime(headers.get("Last-Modified")).timestamp()) * 10**9
    # The length of a compressed body is not the size of the file, which urllib3 unpacks.
    is_plain = headers.get("Content-Encoding", "identity").lower() == "identity"
    size = int(length) if length.isdecimal() and is_plain else -1
    is_delimited = length.isdecimal() or "chunked" in headers.get("Transfer-Encoding", "").lower()
    return Entry(key, size, modified, headers.get("ETag", ""), is_delimited)


class _RefusedError(StoreError):
    """An answer that no other try changes."""


@cache
def _pool(scheme: str, host: str, process: int) -> Any:
    """One pool of connections for all servers, in each process; through the proxy that the environment names."""
    import urllib3

    del process
    retries = urllib3.Retry(
        RETRIES + _REDIRECTS,
        connect=RETRIES,
        read=RETRIES,
        status=RETRIES,
        other=RETRIES,
        redirect=_REDIRECTS,
        backoff_factor=0.1,
        backoff_jitter=0.1,
        backoff_max=RETRY_SECONDS / RETRIES,
        status_forcelist=_AGAIN,
        raise_on_status=False,
    )
    options: dict[str, Any] = {
        "maxsize": _CONNECTIONS,
        "retries": retries,
        "timeout": urllib3.Timeout(connect=10, read=TIMEOUT),
    }
    proxy = getproxies().get(scheme)
    if proxy and not proxy_bypass(host):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)
