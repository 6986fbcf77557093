"""Files that end too early, told by what their containers declare, because decoders say it vaguely or not at all."""

from __future__ import annotations

from mineral_batch.errors import ImageError, one_line
from mineral_batch.images.boxes import is_cut_off
from mineral_batch.images.formats import JXL_SIGNATURES

# As Pillow begins it, and the parts of ours that do its work; it goes on with a count of bytes that says nothing.
_TRUNCATED = "image file is truncated"
_ENDS_EARLY = "damaged: the file ends early"
_JPEG2000_START, _JPEG2000_END = b"\xff\x4f\xff\x51", b"\xff\xd9"
_JPEG2000 = b"jP  "
_BOXES = (b"ftyp", _JPEG2000, b"JXL ")


def reason_of(error: Exception, content: object) -> str:
    """Return one line for a user: why an image could not be decoded.

    Args:
        error: what the decoder raised.
        content: the file's bytes; anything else tells nothing more.
    """
    reason = one_line(error)
    if reason.startswith(_TRUNCATED):
        return _ENDS_EARLY
    # What our own code says is clear, but for what it takes from Pillow.
    is_clear = isinstance(error, ImageError) and not reason.startswith("not an image")
    if is_clear or not isinstance(content, bytes):
        return reason
    if _is_truncated(content):
        return _ENDS_EARLY
    return "damaged: libjxl cannot decode it" if content.startswith(JXL_SIGNATURES) else reason


def _is_truncated(content: bytes) -> bool:
    if content.startswith(b"RIFF"):
        return int.from_bytes(content[4:8], "little") + 8 > len(content)
    if content.startswith(_JPEG2000_START):
        return not content.rstrip(b"\0").endswith(_JPEG2000_END)
    if content[4:8] not in _BOXES:
        return False
    is_jpeg2000 = content[4:8] == _JPEG2000 and _JPEG2000_START in content
    return is_cut_off(content) or (is_jpeg2000 and not content.rstrip(b"\0").endswith(_JPEG2000_END))
