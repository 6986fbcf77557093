"""URLs of objects: recognized, taken apart, and shown without what is secret in them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from mineral_batch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: The schemes that are read, besides `hf://` for models.
SCHEMES = ("s3", "gs", "az", "https", "http", "file")
_WEB = ("https", "http")
_ALIASES = {"s3a": "s3", "gcs": "gs", "azure": "az"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# What pathlib makes of a URL: it takes two slashes for one.
_ONE_SLASH = re.compile(rf"({'|'.join((*SCHEMES, *_ALIASES, 'hf'))}):/(?!/)")
_USER = re.compile(r"(?<=://)[^/\s@]*@")
_QUERY = re.compile(r"(?<=[\w/.%~-])\?([^\s'\")>]+)")
# Parameters that give rights, of AWS, Google, Azure and others; what else is in a query may tell files apart.
_SECRET = re.compile(
    r"x-(amz|goog|ms|oss|cos)-.*|awsaccesskeyid|googleaccessid|key-pair-id|policy|expires|sig|se|sp|sv|sr|st|spr|sip|"
    r"sk(oid|tid|t|e|s|v)|.*(signature|token|secret|password|passwd|credential|auth|key).*",
    re.IGNORECASE,
)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 1_000_000


@dataclass(frozen=True)
class Url:
    """A URL, taken apart.

    Attributes:
        scheme: of `SCHEMES`.
        root: where the store begins: `s3://bucket`, `https://user:password@host:port`; no slash at its end.
        key: of the object below the root, not quoted, without a slash at its beginning; of a web server, quoted and
            with its query, as it was given. Empty for the root itself.
    """

    scheme: str
    root: str
    key: str

    def __str__(self) -> str:
        """The URL without what is secret: user, password, signature."""
        return redact(f"{self.root}/{self.key}")

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server, which lists nothing."""
        return self.scheme in _WEB

    @property
    def path(self) -> str:
        """The key without a query: what tells a suffix."""
        return urlsplit(f"//host/{self.key}").path[1:] if self.is_web else self.key


def restored(name: str | os.PathLike[str]) -> str:
    """Return a URL as it was before pathlib took its second slash, without spaces before it; other names unchanged."""
    text = os.fspath(name)
    if text[:1].isspace() and _SCHEME.match(text.lstrip()):
        text = text.lstrip()
    match = _ONE_SLASH.match(text)
    return f"{match[1]}://{text[match.end() :]}" if match and not os.path.lexists(text) else text


def is_url(name: str | os.PathLike[str]) -> bool:
    """Return whether a name is a URL of any scheme, also one that a `Path` was made of."""
    return _SCHEME.match(restored(name)) is not None


def parse(name: str | os.PathLike[str]) -> Url:
    """Take a URL apart.

    Raises:
        DataError: if its scheme is not known, or it names no bucket or host.
    """
    text = restored(name)
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    scheme = _ALIASES.get(scheme, scheme)
    if match is None or scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise DataError(f"unknown kind of URL: {redact(text)}; known are {known}")
    if scheme == "file":
        return Url(scheme, "file://", unquote(text[match.end() :]).lstrip("/"))
    host, _, key = text[match.end() :].partition("/")
    _check_host(scheme, host, text)
    return Url(scheme, f"{scheme}://{host}", key)


def _check_host(scheme: str, host: str, text: str) -> None:
    try:
        parts = urlsplit(f"{scheme}://{host}")
        is_good = bool(parts.hostname) and not re.search(r"[\s?#]", host) and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if not is_good:
        what = "host" if scheme in _WEB else "bucket"
        example = "https://example.org/a.jpg" if scheme in _WEB else f"{scheme}://bucket/photos"
        raise DataError(f"no {what} in the URL {redact(text)}: write it as {example}")


def local_path(name: str | os.PathLike[str]) -> Path | None:
    """Return the path that a `file://` URL names; None for other URLs.

    Raises:
        DataError: if it names another machine.
    """
    text = restored(name)
    if not text.lower().startswith("file://"):
        return None
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise DataError(f"{text} names another machine: write file:///PATH")
    return Path(url2pathname(parts.path))


def redact(text: str) -> str:
    """Return a text without the users, passwords, signatures and keys of the URLs in it."""
    return _QUERY.sub(_without_secrets, _USER.sub("", text)) if "://" in text else text


def _without_secrets(query: re.Match[str]) -> str:
    kept = [pair for pair in query[1].split("&") if not _SECRET.fullmatch(pair.partition("=")[0])]
    return f"?{'&'.join(kept)}" if kept else ""


def expand_ranges(name: str) -> Iterator[str]:
    """Return the names that `{000000..000099}` stands for, as WebDataset writes its shards; else the name itself.

    Raises:
        DataError: if the range runs backwards or is of more than a million names.
    """
    match = _RANGE.search(name)
    if match is None or os.path.lexists(name):
        yield name
        return
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < _MOST_SHARDS:
        raise DataError(f"the range {match[0]} in {redact(name)} must rise, by at most {_MOST_SHARDS:,} names")
    for number in range(first, last + 1):
        yield from expand_ranges(f"{name[: match.start()]}{number:0{len(match[1])}}{name[match.end() :]}")


def without_secrets(names: Iterable[str]) -> list[str]:
    """Return names as they may be shown and written."""
    return [redact(name) for name in names]
