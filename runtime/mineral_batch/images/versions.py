"""Whether an object is still the one that was listed: by its ETag, or its size and time where there is none."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mineral_batch.errors import ImageError
from mineral_batch.images.archives import signed_64_bits

if TYPE_CHECKING:
    from mineral_batch.storage.interface import Check, Entry
    from mineral_batch.storage.urls import Url

_CHANGED = "it has changed since it was listed"


def version_of(entry: Entry) -> int:
    """Return a number that changes with the content: of the ETag, or the time where there is none; 0 if unknown."""
    if not entry.etag:
        return signed_64_bits(entry.modified)
    digest = hashlib.sha256(entry.etag.removeprefix("W/").strip('"').encode()).digest()
    return signed_64_bits(int.from_bytes(digest[:8], "big"))


def same_version(url: Url, size: int, version: int) -> Check:
    """Return a check for `Store.get` and `Store.open`, which refuses an object that is not the listed one any more.

    Without it new content would be answered under the identity of the old. Of a web server without ETags only the size
    counts: pages made on request are as old as the request.

    Args:
        url: of the object.
        size: bytes when it was listed; 0 or less if not known.
        version: see `version_of`; 0 if not known.

    Raises:
        ImageError: by the check, if the object has changed.
    """

    def check(now: Entry) -> None:
        known = {version_of(now), signed_64_bits(now.modified)}  # an answer to HEAD may lack the ETag
        is_other = version != 0 and version not in known and (bool(now.etag) or not url.is_web)
        if is_other or (size > 0 and now.size not in (-1, size)):
            raise ImageError(_CHANGED)

    return check
