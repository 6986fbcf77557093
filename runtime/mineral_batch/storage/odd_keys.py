"""Keys that obstore cannot name: an empty part (`a//b`, `/a`), `.` and `..`, control characters.

Of S3, whose keys are any text, they are read through boto3. One such key must not keep the others of a bucket from
being listed.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from mineral_batch.storage.errors import NoSuchObjectError, StoreError, explained, shown
from mineral_batch.storage.interface import RETRIES, TIMEOUT, Check, Entry, nanoseconds
from mineral_batch.storage.stream import Stream

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_ODD = re.compile(r"(\A|/)\.{0,2}(/|\Z)|[\0-\x1f\x7f]")
_BLOCK = 2**20
_CODES = {"401": "401 Unauthorized", "403": "403 Forbidden", "AccessDenied": "403 Forbidden"}


def is_odd(key: str) -> bool:
    """Return whether obstore cannot name a key, or would take it for another: it strips slashes at both ends."""
    return _ODD.search(key) is not None


def is_odd_prefix(prefix: str) -> bool:
    """Return whether obstore cannot list what begins with a prefix."""
    return bool(prefix) and is_odd(prefix.removesuffix("/"))


class OddKeys:
    """Reads and lists a bucket of S3 by keys of any kind; see `mineral_batch.storage.interface.Store`.

    Args:
        root: `s3://bucket`.
    """

    def __init__(self, root: str) -> None:
        self._root, self._bucket = root, root.removeprefix("s3://")
        self._lock = threading.Lock()
        self._made: Any = None
        self._payer = {"RequestPayer": "requester"} if os.environ.get("AWS_REQUEST_PAYER") else {}

    @property
    def _client(self) -> Any:
        with self._lock:  # boto3 makes clients in one thread only; they may be used in many
            self._made = self._made or self._new_client()
        return self._made

    def _new_client(self) -> Any:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        options: dict[str, Any] = {"signature_version": UNSIGNED} if os.environ.get("AWS_SKIP_SIGNATURE") else {}
        retries = {"mode": "standard", "total_max_attempts": RETRIES + 1}
        config = Config(connect_timeout=10, read_timeout=TIMEOUT, retries=retries, **options)
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return boto3.Session().client(
            "s3", region_name=region, endpoint_url=os.environ.get("AWS_ENDPOINT"), config=config
        )

    def get(self, key: str, check: Check | None = None) -> bytes:
        """Return an object's content."""
        with self.open(key, check) as file:
            try:
                return file.read()
            except OSError as error:
                raise StoreError(str(error)) from None

    def open(self, key: str, check: Check | None = None) -> AbstractContextManager[BinaryIO]:
        """Open an object to be read from its beginning to its end."""
        answer = self._ask("get_object", key)
        if check is not None:
            try:
                check(_entry(key, answer, "ContentLength"))
            except BaseException:
                answer["Body"].close()
                raise
        return Stream(answer["Body"].iter_chunks(_BLOCK), lambda error: explained(error, f"{self._root}/{key}"))

    def head(self, key: str) -> Entry:
        """Return what the store says of an object."""
        return _entry(key, self._ask("head_object", key), "ContentLength")

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        """Return the objects whose keys begin with a prefix; keys that end with a slash stand for empty folders."""
        behind = {"StartAfter": after} if after else {}
        try:
            paginator = self._client.get_paginator("list_objects_v2")
            for page in paginator.paginate(Bucket=self._bucket, Prefix=prefix, **behind, **self._payer):
                for meta in page.get("Contents", ()):
                    if not meta["Key"].endswith("/"):
                        yield _entry(meta["Key"], meta, "Size")
        except Exception as error:
            raise _explained(error, f"{self._root}/{prefix}") from None

    def _ask(self, what: str, key: str) -> Any:
        try:
            return getattr(self._client, what)(Bucket=self._bucket, Key=key, **self._payer)
        except Exception as error:
            raise _explained(error, f"{self._root}/{key}") from None


def _entry(key: str, meta: Any, size: str) -> Entry:
    return Entry(key, meta[size], nanoseconds(meta["LastModified"]), meta.get("ETag") or "")


def _explained(error: Exception, where: str) -> StoreError:
    code = str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
    if code in ("404", "NoSuchKey"):
        return NoSuchObjectError(f"no such object: {shown(where)}")
    return explained(RuntimeError(_CODES.get(code, code)) if code else error, where)
