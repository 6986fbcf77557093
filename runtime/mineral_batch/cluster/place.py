"""Where a run in pieces keeps its plan and its parts: a folder that every worker sees, or a prefix in an object store.

An object there appears whole or not at all, and `put` can leave one that exists as it is. Nothing else is needed for
any number of workers to share a run.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mineral_batch.errors import DataError
from mineral_batch.files import atomic_file, cannot_write, write_errors
from mineral_batch.storage.errors import NoSuchBucketError, NoSuchObjectError
from mineral_batch.storage.store import open_store
from mineral_batch.storage.urls import is_url, local_path, parse, redact, restored

_TEMPORARY = ".part-"
_BLOCK = 1 << 20


class Place(Protocol):
    """Objects below one root; keys use `/`. Every method raises `DataError`, in one line, if the place does not answer.

    Attributes:
        name: as the user named it, without secrets.
    """

    name: str

    def get(self, key: str) -> bytes | None:
        """Return an object's content; None if there is no such object."""
        ...

    def digest(self, key: str) -> str | None:
        """Return the SHA-256 of an object, which need not fit into memory; None if there is no such object."""
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Return the keys below a prefix that ends with `/`, in any order."""
        ...

    def put(self, key: str, content: bytes, *, create_only: bool = True) -> bool:
        """Write an object whole; return False if it existed and `create_only` left it as it is."""
        ...

    def put_file(self, key: str, file: Path) -> None:
        """Write an object from a file, in chunks, in place of one that exists."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object; one that does not exist is no error."""
        ...


class Folder:
    """A folder, perhaps on a network file system that several machines have mounted; see `Place`.

    Args:
        folder: made when the first object is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = str(folder)

    def get(self, key: str) -> bytes | None:
        """Read a file."""
        try:
            return (self.folder / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise DataError(f"cannot read {self.folder / key}: {error.strerror or error}") from None

    def digest(self, key: str) -> str | None:
        """Read a file."""
        try:
            with (self.folder / key).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise DataError(f"cannot read {self.folder / key}: {error.strerror or error}") from None

    def keys(self, prefix: str) -> Iterator[str]:
        """List one folder; what a killed writer left half written is not an object."""
        try:
            with os.scandir(self.folder / prefix) as entries:
                names = [entry.name for entry in entries if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise DataError(f"cannot list {self.folder / prefix}: {error.strerror or error}") from None
        yield from (prefix + name for name in names)

    def put(self, key: str, content: bytes, *, create_only: bool = True) -> bool:
        """Write beside the file, then link or rename: both are atomic, also on NFS."""
        target = self.folder / key
        temporary = target.with_name(f".{target.name}{_TEMPORARY}{secrets.token_hex(8)}")
        with write_errors(target, fix="the parts so far are safe: free some space and rerun the same command"):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                return _publish(temporary, target, create_only=create_only)
            finally:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def put_file(self, key: str, file: Path) -> None:
        """Copy a file."""
        target = self.folder / key
        with write_errors(target), file.open("rb") as source:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target) as copy:
                shutil.copyfileobj(source, copy)

    def delete(self, key: str) -> None:
        """Remove a file."""
        try:
            (self.folder / key).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.folder / key, error) from None


def _publish(temporary: Path, target: Path, *, create_only: bool) -> bool:
    if create_only:
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: parts of the same piece have the same rows
            if target.exists():
                return False
        else:
            return True
    temporary.replace(target)
    return True


class Prefix:
    """A prefix in an object store; see `Place`.

    Args:
        url: such as `s3://bucket/results`.
    """

    def __init__(self, url: str) -> None:
        parsed = parse(url)
        self._store = open_store(parsed)
        self._prefix = f"{parsed.key.rstrip('/')}/" if parsed.key.strip("/") else ""
        self.name = f"{self._store.root}/{self._prefix}".rstrip("/")

    def get(self, key: str) -> bytes | None:
        """Read an object."""
        try:
            return self._store.get(self._prefix + key)
        except NoSuchBucketError:
            raise
        except NoSuchObjectError:
            return None

    def digest(self, key: str) -> str | None:
        """Read an object in chunks."""
        digest = hashlib.sha256()
        try:
            with self._store.open(self._prefix + key) as content:
                while block := content.read(_BLOCK):
                    digest.update(block)
        except NoSuchBucketError:
            raise
        except NoSuchObjectError:
            return None
        except OSError as error:
            raise DataError(f"cannot read {self.name}/{key}: {error.strerror or error}") from None
        return digest.hexdigest()

    def keys(self, prefix: str) -> Iterator[str]:
        """List objects, a page at a time."""
        for entry in self._store.list(self._prefix + prefix):
            yield entry.key.removeprefix(self._prefix)

    def put(self, key: str, content: bytes, *, create_only: bool = True) -> bool:
        """Write an object; a store without conditional writes overwrites with the same rows."""
        return self._store.put(self._prefix + key, content, create_only=create_only)

    def put_file(self, key: str, file: Path) -> None:
        """Write an object in chunks."""
        self._store.put_file(self._prefix + key, file)

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._store.delete(self._prefix + key)


def open_place(output: str | Path) -> Place:
    """Open the folder or the URL that a run is written to.

    Raises:
        DataError: if it is a URL that cannot be written to.
    """
    if not is_url(output):
        return Folder(output)
    local = local_path(output)
    if local is not None:
        return Folder(local)
    if parse(output).is_web:
        raise DataError(f"{redact(restored(output))} cannot be written to: name a folder, s3://, gs:// or az://")
    return Prefix(restored(output))
