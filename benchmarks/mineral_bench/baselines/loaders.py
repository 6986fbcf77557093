"""Other ways to turn files into batches of (N, H, W, 3) uint8."""

from __future__ import annotations

import importlib
import multiprocessing
import tempfile
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from mineral_batch.errors import BackendError
from mineral_batch.images.decode import load_image
from mineral_batch.model.contract import InputSpec
from mineral_batch.system import pip_command, pip_install
from mineral_batch.types import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import torch

    from mineral_batch.types import Pixels

    #: (files, side of the input, batch, workers) -> batches, to be iterated over repeatedly.
    Loader = Callable[[Sequence[str], int, int, int], Iterable[Pixels]]


class _Decoded:
    """A dataset for PyTorch's DataLoader with mineral-batch's decoder."""

    def __init__(self, paths: Sequence[str], side: int) -> None:
        self._paths, self._spec = list(paths), InputSpec(side, side)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        import torch

        image = load_image(self._paths[index], self._spec)
        if isinstance(image, Failure):
            raise OSError(f"{image.path}: {image.reason}")
        return torch.from_numpy(image.pixels.copy())


class _TorchLoader:
    def __init__(self, paths: Sequence[str], side: int, batch: int, workers: int) -> None:
        from torch.utils.data import DataLoader

        # Undo `Isolated`'s start method: the loader starts its workers as in a script of its own.
        multiprocessing.set_start_method(None, force=True)
        dataset: Any = _Decoded(paths, side)
        self._loader = DataLoader(dataset, batch, num_workers=workers, persistent_workers=True)

    def __iter__(self) -> Iterator[Pixels]:
        for batch in self._loader:
            yield batch.numpy()


class _Threads(ABC):
    """Batches (B, side, side, 3) uint8 whose images are decoded in threads."""

    def __init__(self, paths: Sequence[str], side: int, batch: int, workers: int) -> None:
        self._batches = [paths[start : start + batch] for start in range(0, len(paths), batch)]
        self._side, self._pool = side, ThreadPoolExecutor(workers)

    def __iter__(self) -> Iterator[Pixels]:
        for paths in self._batches:
            yield np.stack(list(self._pool.map(self._load, paths)))

    @abstractmethod
    def _load(self, path: str) -> Pixels:
        """Decode one image: (side, side, 3) uint8."""


class _SimpleJpeg(_Threads):
    """simplejpeg: libjpeg-turbo without Pillow, scaled by the decoder, then resized."""

    def __init__(self, paths: Sequence[str], side: int, batch: int, workers: int) -> None:
        try:
            self._decode = importlib.import_module("simplejpeg").decode_jpeg
        except ImportError:
            raise BackendError(f"simplejpeg does not load: {pip_install('cpu')}") from None
        super().__init__(paths, side, batch, workers)

    def _load(self, path: str) -> Pixels:
        pixels: Pixels = self._decode(Path(path).read_bytes(), min_height=self._side, min_width=self._side)
        if pixels.shape[:2] == (self._side, self._side):
            return pixels
        small = PILImage.fromarray(pixels).resize((self._side, self._side), PILImage.Resampling.BICUBIC)
        return np.asarray(small)


class _Torchvision(_Threads):
    """torchvision's own JPEG decoder and antialiased resize."""

    def __init__(self, paths: Sequence[str], side: int, batch: int, workers: int) -> None:
        try:
            self._io = importlib.import_module("torchvision.io")
            self._functional = importlib.import_module("torchvision.transforms.v2.functional")
        except ImportError:
            raise BackendError(f"torchvision is not installed: {pip_command()} install torchvision") from None
        importlib.import_module("torch").set_num_threads(1)  # one thread for each image
        super().__init__(paths, side, batch, workers)

    def _load(self, path: str) -> Pixels:
        image = self._io.decode_jpeg(self._io.read_file(path), self._io.ImageReadMode.RGB)
        image = self._functional.resize(image, [self._side, self._side], antialias=True)
        pixels: Pixels = image.permute(1, 2, 0).numpy()
        return pixels


class _DecodedBefore:
    """Pixels that were decoded and resized once, in one memory-mapped file, as FFCV keeps them without JPEG.

    The batches are copied, as any engine's input is. Making the file is not counted.
    """

    def __init__(self, paths: Sequence[str], side: int, batch: int, workers: int) -> None:
        del workers
        self._folder = tempfile.TemporaryDirectory()
        spec, shape = InputSpec(side, side), (len(paths), side, side, 3)
        self._pixels = np.lib.format.open_memmap(Path(self._folder.name, "pixels.npy"), "w+", np.uint8, shape)
        for row, path in zip(self._pixels, paths, strict=True):
            image = load_image(path, spec)
            if isinstance(image, Failure):
                raise BackendError(f"{image.path}: {image.reason}")
            row[...] = image.pixels
        self._batch = batch

    def __iter__(self) -> Iterator[Pixels]:
        for start in range(0, len(self._pixels), self._batch):
            yield np.array(self._pixels[start : start + self._batch])


#: Name of the row -> loader.
LOADERS: dict[str, Loader] = {
    "PyTorch DataLoader, the same decoder": _TorchLoader,
    "simplejpeg in threads": _SimpleJpeg,
    "torchvision in threads": _Torchvision,
    "decoded before, memory-mapped": _DecodedBefore,
}
