"""Files that are written in several steps and appear only when the last one is done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mineral_batch.files import staging_folder, write_errors


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a path with the target's name in a folder beside it; it becomes the target if the block succeeds.

    Raises:
        DataError: if the target cannot be written; it is then as it was.
    """
    with write_errors(target):
        real = target.resolve()
        with staging_folder(real.parent, "writing") as folder:
            staged = folder / real.name
            yield staged
            if real.exists():
                shutil.copymode(real, staged)
            staged.replace(real)
