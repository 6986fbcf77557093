"""One interface to object stores and web servers: `open_store(url)`.

Requests are tried again with exponential backoff and jitter where another try may help: timeouts, broken connections,
429 and 5xx. Credentials are found as the clouds' own tools find them: environment variables, the files of their
command lines, the machine's or container's role.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mineral_batch.errors import DataError
from mineral_batch.storage.errors import explained, odd_key_error
from mineral_batch.storage.interface import RETRIES, RETRY_SECONDS, TIMEOUT, Check, Entry, Store, nanoseconds
from mineral_batch.storage.odd_keys import OddKeys, is_odd, is_odd_prefix
from mineral_batch.storage.stream import Ranges, Stream
from mineral_batch.storage.urls import Url, local_path, parse, redact
from mineral_batch.system import pip_install

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_PAGE = 1000
# What names another server than the cloud's own; only there may a request go without TLS.
_ENDPOINTS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
    "GOOGLE_BASE_URL",
)
# Seconds between tries: from the first to the longest, doubling.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10
# The key in an error of obstore's.
_NAMED_KEY = re.compile(r'Path "(.+?)" contained')
# Bytes of the chunks in which a file is written, at least, and how many are on their way at once. S3 takes 10,000.
_CHUNK, _AT_ONCE, _MOST_CHUNKS = 8 * 2**20, 4, 9_000


def open_store(url: str | os.PathLike[str] | Url) -> Store:
    """Open the store that a URL is in; its methods take keys below the root (`parse(url).key`).

    Stores are kept open: the same root gives the same store.

    Raises:
        DataError: if the URL is not one, the store cannot be opened, or the extra `cloud` is not installed.
    """
    parsed = url if isinstance(url, Url) else parse(url)
    if parsed.is_web:
        from mineral_batch.storage.web import WebStore

        try:
            return WebStore(parsed.root)
        except ImportError:
            raise DataError(_missing(parsed.root)) from None
    if parsed.scheme == "file":
        return _folder_store(local_path("file:///") or Path("/"))
    return _cloud_store(parsed.root, os.getpid())


def _missing(root: str) -> str:
    return f"{redact(root)} needs an optional package: {pip_install('cloud')}"


def open_ranges(url: Url) -> BinaryIO:
    """Open an object of a bucket as a file that can be entered anywhere.

    Raises:
        StoreError: as the methods of a `Store` do; later, while it is read, as an `OSError`, also if the object has
            changed meanwhile.
    """
    import obstore

    store = open_store(url)
    assert isinstance(store, _CloudStore)
    entry = store.head(url.key)
    same: Any = {"if_match": entry.etag} if entry.etag else {}

    def read(start: int, length: int) -> bytes:
        try:
            options = same | {"range": (start, start + length)}
            return bytes(obstore.get(store.obstore, url.key, options=options).bytes())
        except Exception as error:
            raise OSError(str(explained(error, str(url)))) from None

    return io.BufferedReader(Ranges(entry.size, read), 2**20)


@cache
def _cloud_store(root: str, process: int) -> Store:
    """The store of a bucket; one in each process, because its threads do not survive a fork."""
    del process
    try:
        import obstore.store
    except ImportError:
        raise DataError(_missing(root)) from None
    from_url: Any = obstore.store.from_url  # its stubs know each cloud's options apart
    client: dict[str, Any] = {"timeout": timedelta(seconds=TIMEOUT), "connect_timeout": timedelta(seconds=10)}
    if any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS):
        client["allow_http"] = True
    retries = {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {
            "base": 2,
            "init_backoff": timedelta(seconds=_FIRST_WAIT),
            "max_backoff": timedelta(seconds=_LONGEST_WAIT),
        },
    }
    more: dict[str, Any] = {}
    if root.startswith("s3://"):
        more = _s3_options()
    try:
        return _CloudStore(from_url(root, client_options=client, retry_config=retries, **more), root)
    except Exception as error:
        raise explained(error, root) from None


def _s3_options() -> dict[str, Any]:
    """What obstore does not find by itself: the endpoint of newer tools, profiles, `aws sso`."""
    options: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3"):
        options["endpoint"] = endpoint
    has_keys = "AWS_ACCESS_KEY_ID" in os.environ and "AWS_PROFILE" not in os.environ
    if has_keys or os.environ.get("AWS_SKIP_SIGNATURE"):
        return options
    folder = Path("~/.aws").expanduser()
    named = os.environ.get("AWS_SHARED_CREDENTIALS_FILE"), os.environ.get("AWS_CONFIG_FILE")
    files = [Path(named[0] or folder / "credentials"), Path(named[1] or folder / "config")]
    if not any(file.is_file() for file in files):
        return options
    from boto3 import Session
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = Session()
    if session.region_name:
        options["region"] = session.region_name
    if session.get_credentials() is not None:
        options["credential_provider"] = Boto3CredentialProvider(session)
    return options


def _folder_store(folder: Path) -> Store:
    try:
        from obstore.store import LocalStore
    except ImportError:
        raise DataError(_missing("file://")) from None
    return _CloudStore(LocalStore(folder, automatic_cleanup=False), "file://")


@contextmanager
def _explaining(where: str) -> Iterator[None]:
    """Turn what obstore raises within into one line about an object: its errors have no common base class."""
    try:
        yield
    except Exception as error:
        raise explained(error, where) from None


class _CloudStore:
    """A bucket, by obstore; see `Store`."""

    def __init__(self, store: Any, root: str) -> None:
        self.root = redact(root)
        self.obstore = store
        self._is_conditional = True
        self._odd = OddKeys(root) if root.startswith("s3://") else None

    def _by_boto(self, key: str) -> OddKeys | None:
        """What reads a key that obstore cannot name; None of other keys.

        Raises:
            StoreError: of such a key, if only S3's are read.
        """
        if self.root == "file://" or not is_odd(key):
            return None
        if self._odd is None:
            raise odd_key_error(f"{self.root}/{key}")
        return self._odd

    def get(self, key: str, check: Check | None = None) -> bytes:
        if other := self._by_boto(key):
            return other.get(key, check)
        answer = self._answer(key, check)
        with _explaining(f"{self.root}/{key}"):
            return bytes(answer.bytes())

    def open(self, key: str, check: Check | None = None) -> AbstractContextManager[BinaryIO]:
        if other := self._by_boto(key):
            return other.open(key, check)
        chunks = self._answer(key, check).stream(min_chunk_size=2**20)
        return Stream(map(bytes, chunks), lambda error: explained(error, f"{self.root}/{key}"))

    def _answer(self, key: str, check: Check | None) -> Any:
        import obstore

        with _explaining(f"{self.root}/{key}"):
            answer = obstore.get(self.obstore, key)
        if check is not None:
            check(_entry(answer.meta))
        return answer

    def head(self, key: str) -> Entry:
        import obstore

        if other := self._by_boto(key):
            return other.head(key)
        with _explaining(f"{self.root}/{key}"):
            return _entry(obstore.head(self.obstore, key))

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Entry]:
        from obstore.exceptions import InvalidPathError

        last, is_odd_listing = after, self.root != "file://" and is_odd_prefix(prefix)
        if is_odd_listing and self._odd is None:
            raise odd_key_error(f"{self.root}/{prefix}")
        if not is_odd_listing:
            try:
                for entry in self._listed(prefix, after):
                    last = entry.key
                    yield entry
            except InvalidPathError as error:
                if self._odd is None:
                    named = _NAMED_KEY.search(str(error))
                    raise odd_key_error(f"{self.root}/{named[1] if named else prefix}") from None
            except Exception as error:
                raise explained(error, f"{self.root}/{prefix}") from None
            else:
                return
        # Among the keys that follow is one that obstore cannot name.
        assert self._odd is not None
        yield from self._odd.list(prefix, after=last)

    def _listed(self, prefix: str, after: str) -> Iterator[Entry]:
        import obstore

        # obstore's prefixes end at a slash; what is behind the last one is compared here.
        folder, _, rest = (prefix, "", "") if self.root == "file://" else prefix.rpartition("/")
        # Keys below the prefix come in order, so those before it are skipped by the store itself.
        offset = after or (prefix[:-1] + chr(ord(prefix[-1]) - 1) + "\U0010ffff" if rest else None)
        for page in obstore.list(self.obstore, folder or None, offset=offset, chunk_size=_PAGE):
            for meta in page:
                if not rest or meta["path"].startswith(prefix):
                    yield _entry(meta)
                elif rest and meta["path"] > prefix:
                    return

    def put(self, key: str, content: bytes, *, create_only: bool = False) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        self._refuse_odd(key)
        with _explaining(f"{self.root}/{key}"):
            if create_only and self._is_conditional:
                try:
                    obstore.put(self.obstore, key, content, mode="create", use_multipart=False)
                except (AlreadyExistsError, PreconditionError):
                    return False
                except (NotSupportedError, NotImplementedError):
                    self._is_conditional = False
                else:
                    return True
            obstore.put(self.obstore, key, content)
        return True

    def put_file(self, key: str, file: Path) -> None:
        import obstore

        self._refuse_odd(key)
        with _explaining(f"{self.root}/{key}"):
            size = file.stat().st_size
            chunk = max(_CHUNK, -(-size // _MOST_CHUNKS))
            # Without an upload id that a killed process leaves behind, where one request can do it.
            obstore.put(self.obstore, key, file, use_multipart=size > chunk, chunk_size=chunk, max_concurrency=_AT_ONCE)

    def _refuse_odd(self, key: str) -> None:
        """Obstore would write to another key."""
        if self.root != "file://" and is_odd(key):
            raise odd_key_error(f"{self.root}/{key}")

    def delete(self, key: str) -> None:
        import obstore

        self._refuse_odd(key)
        with _explaining(f"{self.root}/{key}"), suppress(FileNotFoundError):
            obstore.delete(self.obstore, key)


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], meta["size"], nanoseconds(meta["last_modified"]), meta.get("e_tag") or "")
