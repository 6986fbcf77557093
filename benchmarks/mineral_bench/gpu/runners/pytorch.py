"""PyTorch: eager and compiled, on the device and behind a DataLoader."""

from __future__ import annotations

import copy
import math
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_bench.gpu import subjects
from mineral_bench.gpu.clock import Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mineral_bench.gpu.settings import Settings

# The memory in which DataLoader's processes hand over batches.
_SHARED = Path("/dev/shm")  # noqa: S108
# Batches that each of its processes works ahead.
_AHEAD = 2


@contextmanager
def torch_tensorrt(settings: Settings, batch: int) -> Iterator[Workload]:
    """Compile with torch-tensorrt."""
    import torch
    import torch_tensorrt  # type: ignore[import-not-found, unused-ignore]  # noqa: F401 - registers the backend

    torch._dynamo.reset()
    model, contract = _on_device(settings, is_half=False)
    options: dict[str, Any] = {"enabled_precisions": {torch.float16}}
    faster: Any = torch.compile(model, backend="tensorrt", dynamic=False, options=options)
    pixels = subjects.device_noise(contract, batch, settings.sizes.device)
    with torch.inference_mode():
        yield Workload(lambda: faster(pixels))


@contextmanager
def on_device(settings: Settings, batch: int, *, is_half: bool, is_compiled: bool = False) -> Iterator[Workload]:
    """Run PyTorch, the images on the device; see `opened`."""
    with opened(settings, is_half=is_half, is_compiled=is_compiled) as model:
        pixels = subjects.device_noise(_on_device(settings, is_half=is_half)[1], batch, settings.sizes.device)
        yield Workload(lambda: model(pixels))


@contextmanager
def opened(settings: Settings, *, is_half: bool, is_compiled: bool = False) -> Iterator[Callable[[Any], Any]]:
    """Yield the model with FP16 weights, or with float32 ones in automatic mixed precision.

    Automatic mixed precision is entered once for all batches: it casts the weights whenever it is entered.

    Args:
        settings: of the run.
        is_half: FP16 weights.
        is_compiled: compile for one shape, with CUDA graphs; a dry run only traces.
    """
    import torch

    model, _ = _on_device(settings, is_half=is_half)
    if is_compiled:
        torch._dynamo.reset()  # after another batch it would compile for any batch
        options: dict[str, Any] = {"backend": "eager"} if settings.sizes.dry else {"mode": "reduce-overhead"}
        model = torch.compile(model, dynamic=False, **options)
    with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=not (is_half or settings.sizes.dry)):
        yield model


#: What `_on_device` has built: whether the weights are FP16 -> model and contract.
_MODELS: dict[bool, tuple[Any, Any]] = {}


def _on_device(settings: Settings, *, is_half: bool) -> tuple[Any, Any]:
    """Return the model and its contract, built once for all batches."""
    if False not in _MODELS:
        model, contract = subjects.paper_model(settings.sizes)
        _MODELS[False] = model.to(settings.sizes.device), contract
    if is_half and True not in _MODELS:
        model, contract = _MODELS[False]
        _MODELS[True] = _half(model), contract
    return _MODELS[is_half]


def _half(model: Any) -> Any:
    """Return a copy with FP16 weights; normalization and the last sigmoid stay float32, as in our graphs."""
    import torch

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normalize = copy.deepcopy(model.normalize)
            self.net = copy.deepcopy(model.model).half()
            self.start = [tensor.half() for tensor in model.start]

        def forward(self, pixels: Any) -> Any:
            planes = self.normalize(pixels.float().permute(0, 3, 1, 2)).half()
            return torch.sigmoid(self.net.classify(self.net.features(planes), self.start).float())

    return Half().eval()


def data_loader(settings: Settings, name: str, *, is_half: bool, is_compiled: bool = False) -> dict[str, Any]:
    """Measure files to probabilities as in PyTorch's tutorials: a DataLoader with one process per core.

    The processes stay, and have worked before the clock starts.

    Raises:
        ValueError: if a probability is not a number.
    """
    import torch
    from torch.utils.data import DataLoader

    sizes, paths = settings.sizes, sorted(settings.folder(name).iterdir())
    contract = _on_device(settings, is_half=is_half)[1]
    workers, batch = _workers_and_batch(settings, len(paths), math.prod(contract.input.shape))
    files: Any = _Files(paths, contract.input.shape[:2])
    loader = DataLoader(
        files,
        batch,
        num_workers=workers,
        pin_memory=not sizes.dry,
        persistent_workers=True,
        prefetch_factor=_AHEAD,
    )
    with opened(settings, is_half=is_half, is_compiled=is_compiled) as model:
        _pass(model, loader, sizes.device)
        start = time.perf_counter()
        probabilities = _pass(model, loader, sizes.device)
        seconds = time.perf_counter() - start
    if not torch.isfinite(probabilities).all():
        raise ValueError("a probability is not a number")
    found = {"pictures_per_s": len(probabilities) / seconds, "pictures": len(probabilities), "workers": workers}
    return {**found, "batch_size": batch}


def _pass(model: Callable[[Any], Any], loader: Any, device: str) -> Any:
    """Return (N, L) for all files; copied, because a compiled model overwrites its output."""
    import torch

    return torch.cat([model(batch.to(device, non_blocking=True)).clone() for batch in loader]).cpu()


def _workers_and_batch(settings: Settings, files: int, image: int) -> tuple[int, int]:
    """Return one process per core, and a batch that gives each several and fits into the memory that they share."""
    from mineral_batch.system import cpu_count

    if settings.sizes.dry:
        return 1, 2
    workers = cpu_count()
    fit = shutil.disk_usage(_SHARED).free // (2 * image * workers * _AHEAD) if _SHARED.is_dir() else 64
    return workers, max(1, min(64, files // (4 * workers), fit))


class _Files:
    """Images as (H, W, 3) uint8: a dataset as everybody writes it."""

    def __init__(self, paths: list[Path], size: tuple[int, int]) -> None:
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        import torch
        from PIL import Image

        with Image.open(self._paths[index]) as image:
            small = image.convert("RGB").resize((self._size[1], self._size[0]), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small))
