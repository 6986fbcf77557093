"""Output files that appear under their name only after they were checked."""

from __future__ import annotations

import errno
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_batch.files import cannot_write, staging_folder, write_errors
from mineral_batch.model.onnx_file import require_model_or_nothing

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIX = "choose another place with -o"

# What a disk, a quota or a limit on file sizes refuses in the middle of writing.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def staged_output(target: Path) -> Iterator[Path]:
    """Yield a path with the target's name in a folder beside it; it becomes the target if the block succeeds.

    Nothing is left beside the target if the block fails or is interrupted.

    Raises:
        DataError: if the target is a folder or a file that is no model, or cannot be written.
    """
    require_model_or_nothing(target)
    with _folder_beside(target) as folder:
        path = folder / target.name
        try:
            yield path
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
            raise cannot_write(target, error, fix=_FIX) from None
        with write_errors(target, fix=_FIX):
            path.replace(target)


def require_writable(target: Path, *, is_onnx: bool = True) -> None:
    """Refuse before a long conversion what `staged_output` would refuse after it.

    Raises:
        DataError: as `staged_output`.
    """
    if is_onnx:
        require_model_or_nothing(target)
    with _folder_beside(target):
        pass


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """Yield an empty folder in the target's folder, removed when the block ends."""
    with write_errors(target, fix=_FIX):  # a name that is too long
        is_folder = target.is_dir()
    if is_folder:
        raise DataError(f"{target} is a folder: name a file with -o, such as {target / 'model.onnx'}")
    if not target.parent.is_dir():
        raise DataError(f"no such folder: {target.parent}; create it first, or choose another with -o")
    with ExitStack() as stack:
        with write_errors(target, fix=_FIX):
            folder = stack.enter_context(staging_folder(target.parent, "exporting"))
        yield folder
