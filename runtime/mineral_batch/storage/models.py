"""Models and tables at URLs: copied once into the user's cache, checked, and used from there."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_batch.files import atomic_file, write_errors, write_file
from mineral_batch.storage import cache
from mineral_batch.storage.download import download
from mineral_batch.storage.errors import NoSuchObjectError, UnreachableError
from mineral_batch.storage.store import open_store
from mineral_batch.storage.urls import Url, is_url, local_path, parse, restored
from mineral_batch.system import pip_install

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.storage.interface import Entry

_log = logging.getLogger("mineral_batch")
_HUB = re.compile(r"hf://([^/@\s]+/[^/@\s]+)(?:@([^/\s]+))?(?:/(.+))?")
#: The file of a repository on the Hub that is taken where none is named.
HUB_FILE = "model.onnx"
_HUB_SCHEME = "hf://"
#: The suffixes of engines of TensorRT.
ENGINES = (".plan", ".engine")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST_SUFFIX = ".sha256"
_STALE_SECONDS = 24 * 3600


def fetch(name: str | os.PathLike[str]) -> Path:
    """Return a file on this machine with the content that a path or URL names.

    A path stays one. A URL's content is copied into the user's cache if what the store says of it (ETag, size, time) is
    new; without an answer from the store, the copy that was made last is used. The copy's SHA-256 is compared at each
    use. Copies that were not used for long are removed when new ones need the room, see `mineral_batch.storage.cache`.
    `hf://OWNER/NAME[@REVISION][/FILE]` is a file of the Hugging Face Hub, in its own cache. An engine of TensorRT comes
    with its description, the .json beside it.

    Raises:
        DataError: if it is not there, may not be read, is damaged in transit, or the extra `cloud` is not installed.
    """
    if not is_url(name):
        return Path(name)
    text = restored(name)
    if local := local_path(text):
        return local
    if text.endswith(ENGINES):
        return _with_description(text)
    return _copied(text)


def _copied(text: str) -> Path:
    return _from_hub(text) if text.startswith(_HUB_SCHEME) else _from_store(parse(text))


def _with_description(text: str) -> Path:
    """An engine of TensorRT, which is of no use without the .json beside it."""
    folder, _, name = text.rpartition("/")
    return fetch_folder(folder, [name, f"{name}.json"]) / name


def fetch_folder(name: str | os.PathLike[str], files: Sequence[str], optional: Sequence[str] = ()) -> Path:
    """Return a folder on this machine with the files of a folder that a path or URL names.

    A path stays one, unchecked. Files of a URL are copied as `fetch` does, and belong together: a changed one is in
    another folder.

    Args:
        name: of the folder.
        files: that it must have.
        optional: that it may have.

    Raises:
        DataError: as `fetch` does.
    """
    if not is_url(name):
        return Path(name)
    text = restored(name).rstrip("/")
    if local := local_path(text):
        return local
    copies = [_copied(f"{text}/{file}") for file in files]
    for file in optional:
        with suppress(NoSuchObjectError):
            copies.append(_copied(f"{text}/{file}"))
    digest = hashlib.sha256("|".join(map(str, copies)).encode()).hexdigest()[:16]
    folder = cache.copies_folder() / digest / Path(text).name
    cache.hold(folder)
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for copy in copies:
            link = folder / copy.name
            if not (link.exists() and link.samefile(copy)):
                _link(copy, link)
    return folder


def _link(copy: Path, link: Path) -> None:
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.hardlink_to(copy)
    except OSError:  # a file system without hard links
        shutil.copyfile(copy, temporary)
    temporary.replace(link)


def is_copy(path: Path) -> bool:
    """Return whether a file is a copy of what a URL names: nothing is written into it."""
    return cache.copies_folder() in path.parents or "huggingface" in path.parts


def _from_store(url: Url) -> Path:
    folder = cache.copies_folder() / hashlib.sha256(str(url).encode()).hexdigest()[:16]
    name = Path(url.path).name
    if not name:
        raise DataError(f"{url} names no file")
    try:
        store = open_store(url)
        entry = store.head(url.key)
        target = folder / _version(entry) / name
        cache.hold(target.parent)
        if not _is_whole(target):
            _copy(url, entry, target)
            cache.prune()
    except UnreachableError as error:
        copies = [file for file in folder.glob(f"*/{name}") if _is_whole(file)]
        if not copies:
            raise
        _log.warning("%s; using the copy made earlier", error)
        target = max(copies, key=lambda file: file.stat().st_mtime)
        cache.hold(target.parent)
    return target


def _version(entry: Entry) -> str:
    return hashlib.sha256(f"{entry.etag}|{entry.size}|{entry.modified}".encode()).hexdigest()[:16]


def _copy(url: Url, entry: Entry, target: Path) -> None:
    """Copy an object whole or not at all."""
    with write_errors(target, fix="free some space, or set XDG_CACHE_HOME to another folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        with atomic_file(target) as file:
            digest = download(url, file, entry)
    write_file(target.with_name(name_of_digest(target)), digest)


def _remove_stale(folder: Path) -> None:
    """Remove what downloads that were killed left; a younger one may be another process's."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink()


def name_of_digest(target: Path) -> str:
    """The name of the file with a copy's SHA-256, beside the copy."""
    return f"{target.name}{_DIGEST_SUFFIX}"


def _is_whole(file: Path) -> bool:
    try:
        return _sha256(file) == file.with_name(name_of_digest(file)).read_text("ascii")
    except OSError:
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _from_hub(text: str) -> Path:
    match = _HUB.fullmatch(text)
    if match is None:
        raise DataError(f"not a file on the Hub: {text}; write it as hf://OWNER/NAME[@REVISION][/FILE]")
    repository, revision, file = match[1], match[2], match[3] or HUB_FILE
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise DataError(f"{text} needs an optional package: {pip_install('cloud')}") from None
    disable_progress_bars()
    try:
        path = Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:
        raise _hub_error(error, text, file) from None
    # The cache names a large file by its SHA-256.
    digest = path.resolve().name
    if _SHA256.fullmatch(digest) and _sha256(path) != digest:
        raise DataError(f"the copy of {text} is damaged: delete {path.resolve()} and try again")
    return path


# Of the Hub's errors, by name, the subclasses first.
_HUB_ERRORS = {
    "GatedRepoError": "access must be requested on its page, and a token given (hf auth login, or HF_TOKEN)",
    "RepositoryNotFoundError": "no such repository, or a private one: give a token (hf auth login, or HF_TOKEN)",
    "RevisionNotFoundError": "no such revision",
    "LocalEntryNotFoundError": "the Hub does not answer, and there is no copy from earlier",
    "EntryNotFoundError": "the repository has no such file",
    "HFValidationError": "not a valid name of a repository",
    "OSError": "the Hub does not answer, or the copy cannot be written",
}


def _hub_error(error: Exception, text: str, file: str) -> DataError:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    reason = next((why for name, why in _HUB_ERRORS.items() if name in kinds), f"the Hub failed ({kinds[0]})")
    return DataError(f"cannot get {file} of {text}: {reason}")
