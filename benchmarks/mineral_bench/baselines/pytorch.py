"""PyTorch with its DataLoader, and timm's loader."""

from __future__ import annotations

import importlib
import multiprocessing
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mineral_batch.system import cpu_count
from mineral_bench.baselines.base import Baseline, decode_in_full

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Probabilities


class TorchBaseline(Baseline):
    """PyTorch with a DataLoader, a batch at a time, on the GPU if there is one.

    Args:
        checkpoint: the folder.
        batch: images in a batch.
        compiled: use torch.compile.
        workers: processes that decode; None for one per CPU.
    """

    def __init__(self, checkpoint: Path, batch: int, *, compiled: bool = False, workers: int | None = None) -> None:
        from mineral_train.model.normalize import Normalize
        from mineral_train.training.checkpoint import load_checkpoint

        # Undo `Isolated`'s start method: the loader starts its workers as in a script of its own.
        multiprocessing.set_start_method(None, force=True)
        self.device, self._computes_on = torch_device()
        model, contract = load_checkpoint(checkpoint)
        self.spec, self.batch = contract.input, batch
        self.workers = cpu_count() if workers is None else workers
        self.model = model.to(self.device)
        self.normalize = Normalize(self.spec).to(self.device)
        if compiled:
            self.model.compile()

    def describe(self) -> str:
        """Return the CPU or the GPU's name, and the precision."""
        return self._computes_on

    def prepare(self, paths: Sequence[str]) -> None:
        """Start the loader's processes, which persist."""
        super().prepare(paths)
        self.loader: Iterable[Any] = self.make_loader()

    def make_loader(self) -> Iterable[Any]:
        """Return a loader of (n, 3, H, W) uint8 batches."""
        from torch.utils.data import DataLoader

        files: Any = _Files(self.paths, self.spec)
        return DataLoader(
            files,
            self.batch,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def from_files(self) -> Probabilities:
        """Predict one pass over the loader."""
        return self._predict(self.normalize(batch.to(self.device)) for batch in self.loader)

    def from_pixels(self) -> Probabilities:
        """Predict batches that are in memory."""
        import torch

        planes = torch.from_numpy(self.pixels).permute(0, 3, 1, 2)
        return self._predict(self.normalize(batch.to(self.device)) for batch in torch.split(planes, self.batch))

    def _predict(self, batches: Iterator[torch.Tensor]) -> Probabilities:
        import torch

        with torch.inference_mode():
            probabilities: Probabilities = torch.cat([self.model(batch).sigmoid().cpu() for batch in batches]).numpy()
        return probabilities


def torch_device() -> tuple[str, str]:
    """Return torch's name of the device, and the device in words; on a GPU this allows TF32.

    Torch's default on a GPU is float32 products, while ONNX Runtime's and ours may use TF32: that is not comparable.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu", "CPU, float32"
    torch.set_float32_matmul_precision("high")
    return "cuda", f"GPU ({torch.cuda.get_device_name()}), TF32 allowed"


class _Files:
    """A dataset as everybody writes it, with EXIF orientation applied."""

    def __init__(self, paths: Sequence[str], spec: InputSpec) -> None:
        self._paths, self._spec = list(paths), spec

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        import torch

        return torch.from_numpy(decode_in_full(self._paths[index], self._spec).transpose(2, 0, 1).copy())


class TimmBaseline(TorchBaseline):
    """timm's dataset, transform and loader, as in its inference.py."""

    def make_loader(self) -> Iterable[Any]:
        """Return a loader of normalized float32 batches; links to the files keep their order."""
        from mineral_train.model.backbones import import_timm

        import_timm()
        data = importlib.import_module("timm.data")
        self._links = tempfile.TemporaryDirectory()
        for index, path in enumerate(self.paths):
            Path(self._links.name, f"{index:06d}{Path(path).suffix.lower()}").symlink_to(Path(path).absolute())
        loader: Iterable[Any] = data.create_loader(
            data.ImageDataset(self._links.name),
            input_size=(3, self.spec.height, self.spec.width),
            batch_size=self.batch,
            is_training=False,
            interpolation=self.spec.interpolation,
            mean=self.spec.mean,
            std=self.spec.std,
            crop_pct=1.0,
            crop_mode="squash" if self.spec.resize == "squash" else "center",
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            device=importlib.import_module("torch").device(self.device),
        )
        return loader

    def from_files(self) -> Probabilities:
        """Predict one pass; the loader has normalized already."""
        return self._predict(batch.to(self.device) for batch, _ in self.loader)
