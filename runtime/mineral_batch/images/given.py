"""What a caller gives to predict, by name or in memory, as sources of images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from PIL import Image as PILImage

from mineral_batch.arguments import shown
from mineral_batch.errors import OptionError, one_line
from mineral_batch.images.discover import find_sources
from mineral_batch.images.lists import NameList
from mineral_batch.types import Failure, Pixels, Source

#: What can be predicted: names of folders and files, and lists of names; images in memory, as the bytes of a file, a
#: binary file object, a PIL image or an array (H, W, 3) of uint8, RGB; sources; failures, which are passed on.
Input = str | Path | NameList | bytes | BinaryIO | PILImage.Image | Pixels | Source | Failure

_EXPECTED = "give a path, bytes, a binary file, a PIL image or an array (H, W, 3) of uint8, RGB"


def sources_given(inputs: Iterable[Input], *, keep_missing: bool = False) -> Iterator[Source | Failure]:
    """Yield a source for each image, or a failure in its place.

    Names are looked up in the stretches between images in memory, so that each file still comes once. Images in memory
    are named `picture 0`, `picture 1`, ...

    Args:
        inputs: of any mix of the types.
        keep_missing: yield a failure for a name that does not exist.

    Raises:
        OptionError: if an input is of none of the types of `Input`.
        DataError: if an input does not exist, unless `keep_missing`, or a glob matches nothing.
    """
    numbers = itertools.count()
    for are_names, stretch in itertools.groupby(inputs, key=lambda value: isinstance(value, (str, Path, NameList))):
        if are_names:
            yield from find_sources(cast("Iterator[str | Path | NameList]", stretch), keep_missing=keep_missing)
            continue
        for value in stretch:
            yield value if isinstance(value, (Source, Failure)) else _in_memory(f"picture {next(numbers)}", value)


def _in_memory(name: str, value: object) -> Source | Failure:
    """An image in memory; what is in the bytes is not looked at yet."""
    try:
        content = value.read() if hasattr(value, "read") else value
    except (OSError, ValueError) as error:  # a closed file is a ValueError
        return Failure(name, "read", one_line(error))
    if isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.ndim == 3 and content.shape[2] == 3:
        content = PILImage.fromarray(content)
    if isinstance(content, (bytearray, memoryview)):
        content = bytes(content)
    if isinstance(content, (bytes, PILImage.Image)):
        return Source(name, 0, 0, partial(_given, content))
    raise OptionError(f"{name}: {_kind(content)} is not an image: {_EXPECTED}")


def _given(content: bytes | PILImage.Image) -> bytes | PILImage.Image:
    return content


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    return shown(value)
