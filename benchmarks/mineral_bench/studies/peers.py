"""The same model and the same pictures by the ways that people take, each in a process of its own.

Every peer reads files and gives probabilities, (N, L), in the order of the files; their answers are compared, so that
none is fast by doing something else.
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch import pipeline
from mineral_batch.cuda.libraries import load_cuda_libraries
from mineral_batch.cuda.probe import first_gpu
from mineral_batch.engines.onnx_cuda import CUDA
from mineral_batch.engines.onnx_session import CPU
from mineral_batch.engines.openvino import precision_of
from mineral_batch.engines.registry import open_backend
from mineral_batch.errors import BackendError, DataError
from mineral_batch.images.decode import load_image, open_rgb
from mineral_batch.images.discover import find_images, find_sources
from mineral_batch.images.geometry import resize
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure, Result
from mineral_bench import comparison
from mineral_bench.comparison import Comparison, compare
from mineral_bench.engine_alone import answer, fill
from mineral_bench.process.isolated import Isolated, IsolatedError
from mineral_bench.report import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import torch

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels, Probabilities
    from mineral_bench.measure import Plan
    from mineral_bench.subject import Subject

EAGER, COMPILED, TIMM = "torch eager, DataLoader", "torch.compile, DataLoader", "timm's loader, torch eager"
ONNX, OPENVINO = "ONNX Runtime, defaults, one by one", "OpenVINO, defaults, one by one"


class Peer:
    """A way to answer for photographs.

    Attributes:
        spec: the model's input.
        paths: N files, once `prepare` was called.
        pixels: (N, H, W, 3) uint8, decoded once in full for `from_pixels`.
    """

    spec: InputSpec

    def prepare(self, paths: Sequence[str]) -> None:
        """Say which files `from_files` and `from_pixels` are about."""
        self.paths = list(paths)
        self.pixels = np.stack([_in_full(path, self.spec) for path in paths])

    def rest(self) -> None:
        """Do nothing: for whoever wants to know of the process."""

    def describe(self) -> str:
        """What it computes on and how exactly, once it has answered."""
        raise NotImplementedError

    def from_files(self) -> Probabilities:
        """Read, decode and answer: (N, L) float32."""
        raise NotImplementedError

    def from_pixels(self) -> Probabilities:
        """The engine alone: (N, L) float32."""
        raise NotImplementedError


def _in_full(path: str, spec: InputSpec) -> Pixels:
    return resize(open_rgb(path), spec)


class TorchPeer(Peer):
    """PyTorch, its DataLoader with one worker per processor, a batch at a time on the GPU if there is one.

    Args:
        checkpoint: the folder.
        batch: pictures at a time.
        compiled: through torch.compile.
        workers: processes that decode.
    """

    def __init__(self, checkpoint: Path, batch: int, *, compiled: bool = False, workers: int | None = None) -> None:

        from mineral_train.model.normalise import Normalise
        from mineral_train.training.checkpoint import load_checkpoint

        # Back from `Isolated`'s way of starting processes to the one that a script of its own would have.
        multiprocessing.set_start_method(None, force=True)
        self.device, self._computes_on = torch_device()
        model, contract = load_checkpoint(checkpoint)
        self.spec, self.batch = contract.input, batch
        self.workers = cpu_count() if workers is None else workers
        self.model = model.to(self.device)
        self.normalise = Normalise(self.spec).to(self.device)
        if compiled:
            self.model.compile()

    def describe(self) -> str:
        """Processor or GPU."""
        return self._computes_on

    def prepare(self, paths: Sequence[str]) -> None:
        """Start the loader's processes, which stay."""
        super().prepare(paths)
        self.loader: Iterable[Any] = self.make_loader()

    def make_loader(self) -> Iterable[Any]:
        """Of (n, 3, H, W) uint8 batches."""
        from torch.utils.data import DataLoader

        files: Any = _Files(self.paths, self.spec)
        return DataLoader(
            files,
            self.batch,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def from_files(self) -> Probabilities:
        """One pass over the loader."""
        return self._answers(self.normalise(batch.to(self.device)) for batch in self.loader)

    def from_pixels(self) -> Probabilities:
        """Batches that are in memory."""
        import torch

        planes = torch.from_numpy(self.pixels).permute(0, 3, 1, 2)
        return self._answers(self.normalise(batch.to(self.device)) for batch in torch.split(planes, self.batch))

    def _answers(self, batches: Iterator[torch.Tensor]) -> Probabilities:
        import torch

        with torch.inference_mode():
            answers: Probabilities = torch.cat([self.model(batch).sigmoid().cpu() for batch in batches]).numpy()
        return answers


def torch_device() -> tuple[str, str]:
    """Torch's name of the device to measure on, and in words; on a GPU its products may then be in TF32.

    As they come from torch they are in float32, unlike those of ONNX Runtime and ours: that would be another task.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu", "CPU, float32"
    torch.set_float32_matmul_precision("high")
    return "cuda", f"GPU ({torch.cuda.get_device_name()}), TF32 allowed"


class _Files:
    """A dataset as everybody writes it, but for the photographs' being turned upright."""

    def __init__(self, paths: Sequence[str], spec: InputSpec) -> None:
        self._paths, self._spec = list(paths), spec

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        import torch

        return torch.from_numpy(_in_full(self._paths[index], self._spec).transpose(2, 0, 1).copy())


class TimmPeer(TorchPeer):
    """timm's own dataset, transform and loader, as in its inference.py."""

    def make_loader(self) -> Iterable[Any]:
        """Normalised float32 batches, from links whose names have the order of the files."""
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
        """One pass; its loader has normalised already."""
        return self._answers(batch.to(self.device) for batch, _ in self.loader)


class OnnxRuntimePeer(Peer):
    """A session with nothing set, one picture after the other: the first example of every tutorial."""

    def __init__(self, model: Path) -> None:
        import onnxruntime

        self.spec = read_contract(model).input
        # Azure's calls web services and computes nothing of a model, but would be named first.
        self._wanted = [name for name in onnxruntime.get_available_providers() if name != "AzureExecutionProvider"]
        if CUDA in self._wanted:
            load_cuda_libraries(onnxruntime)
        self._session = onnxruntime.InferenceSession(str(model), providers=self._wanted)
        self._input = self._session.get_inputs()[0].name

    def describe(self) -> str:
        """The first provider of the session.

        Raises:
            BackendError: if that is the processor where there is a GPU that it was to use: it would look slow.
        """
        provider = str(self._session.get_providers()[0])
        if provider == CPU and CUDA in self._wanted and first_gpu():
            raise BackendError(
                "ONNX Runtime has a GPU and ran on the processor: check that the CUDA and cuDNN libraries of "
                "onnxruntime-gpu load (mineral-batch doctor)"
            )
        may_round = self._session.get_provider_options().get(provider, {}).get("use_tf32") == "1"
        return f"{provider}, TF32 allowed" if may_round else provider

    def from_files(self) -> Probabilities:
        """Decode in full, answer, next."""
        return np.concatenate([self._answer(_in_full(path, self.spec)) for path in self.paths])

    def from_pixels(self) -> Probabilities:
        """Answer, next."""
        return np.concatenate([self._answer(pixels) for pixels in self.pixels])

    def _answer(self, pixels: Pixels) -> Probabilities:
        answer: Probabilities = self._session.run(None, {self._input: pixels[None]})[0]
        return answer


class OpenVinoPeer(OnnxRuntimePeer):
    """The same with OpenVINO, which computes in bfloat16 where the processor can."""

    def __init__(self, model: Path) -> None:
        openvino = importlib.import_module("openvino")
        self.spec = read_contract(model).input
        self._compiled = openvino.Core().compile_model(str(model), "CPU")

    def describe(self) -> str:
        """The processor, and in what OpenVINO chose to compute."""
        return f"CPU, {precision_of(self._compiled)}"

    def _answer(self, pixels: Pixels) -> Probabilities:
        answer: Probabilities = self._compiled(pixels[None])[0].copy()
        return answer


class OurPeer(Peer):
    """This project's pipeline on one of its backends."""

    def __init__(self, model: Path, backend: str, batch: int | None = None) -> None:
        self._backend = open_backend(model, backend, batch_size=batch)
        self._batch = batch or self._backend.batch_size
        self.spec = self._backend.contract.input

    def describe(self) -> str:
        """As the backend says."""
        return self._backend.device

    def prepare(self, paths: Sequence[str]) -> None:
        """Decode to where the pipeline would."""
        super().prepare(paths)
        self._batches = fill(self._backend, self.pixels, self._batch)

    def from_files(self) -> Probabilities:
        """Through the pipeline."""
        with closing(pipeline.run(find_sources(self.paths), self._backend, batch_size=self._batch)) as results:
            return np.stack([_probabilities(result) for result in results])

    def from_pixels(self) -> Probabilities:
        """On as many threads as the backend wants."""
        return answer(self._backend, self._batches)


def _probabilities(result: Result) -> Probabilities:
    if isinstance(result, Failure):
        raise DataError(f"{result.path}: {result.reason}")
    return result.probabilities


@dataclass(frozen=True)
class Options:
    """Which peers to ask.

    Attributes:
        batch: of the peers that take batches.
        compiled: torch.compile, too.
        backends: of ours.
        engines_only: on pictures decoded before.
        workers: processes of the DataLoaders; None for one per processor.
    """

    batch: int = 8
    compiled: bool = False
    backends: tuple[str, ...] = ("onnx-cuda", "openvino", "onnx-cpu")
    engines_only: bool = False
    workers: int | None = None


def candidates(subject: Subject, options: Options) -> dict[str, Callable[[], Peer]]:
    """Name -> what makes the peer in its process; the reference, to which ratios refer, comes first."""
    found: dict[str, Callable[[], Peer]] = {}
    if subject.checkpoint:
        torch_peer = partial(TorchPeer, subject.checkpoint, options.batch, workers=options.workers)
        found[EAGER] = torch_peer
        if options.compiled:
            found[COMPILED] = partial(torch_peer, compiled=True)
        if not options.engines_only:
            found[TIMM] = partial(TimmPeer, subject.checkpoint, options.batch, workers=options.workers)
    found[ONNX] = partial(OnnxRuntimePeer, subject.model)
    found[OPENVINO] = partial(OpenVinoPeer, subject.model)
    for name in options.backends:
        found[f"mineral-batch, {name}"] = partial(OurPeer, subject.model, name)
    return found


def photographs(inputs: Sequence[Path], spec: InputSpec, count: int) -> list[str]:
    """The first so many files that can be read.

    Raises:
        DataError: if there is none.
    """
    named = (path for path in find_images(inputs) if not isinstance(path, Failure))
    readable = (str(path) for path in named if not isinstance(load_image(path, spec), Failure))
    found = list(itertools.islice(readable, count))
    if not found:
        raise DataError(f"no readable photograph under {', '.join(map(str, inputs))}")
    return found


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        comparison: of the peers that work here.
        computes_on: peer -> device and precision, in words.
    """

    comparison: Comparison
    computes_on: Mapping[str, str]


def measure(subject: Subject, paths: Sequence[str], options: Options, plan: Plan) -> Measured:
    """Ask every peer that works here in interleaved rounds, after one answer each that is compared.

    Raises:
        DataError: if none works.
    """
    method = "from_pixels" if options.engines_only else "from_files"
    with ExitStack() as stack:
        answering, absent = _open(candidates(subject, options), paths, method, stack)
        peers = {name: one.peer for name, one in answering.items()}
        first = {name: one.first for name, one in answering.items()}
        compared = replace(compare(peers, first, method, len(paths), plan), absent=absent)
    return Measured(compared, {name: one.computes_on for name, one in answering.items()})


@dataclass(frozen=True)
class _Answering:
    """A peer that works here.

    Attributes:
        peer: open.
        first: (N, L) that it answered.
        computes_on: device and precision, in words.
    """

    peer: Isolated
    first: Probabilities
    computes_on: str


def _open(
    makers: Mapping[str, Callable[[], Peer]], paths: Sequence[str], method: str, stack: ExitStack
) -> tuple[dict[str, _Answering], dict[str, str]]:
    """The peers that answer here, and of the others why they do not."""
    answering, absent = {}, {}
    for name, make in makers.items():
        try:
            peer = stack.enter_context(Isolated(make))
            peer.call("prepare", list(paths))
            first = np.asarray(peer.call(method).value)
            answering[name] = _Answering(peer, first, peer.call("describe").value)
        except IsolatedError as error:
            absent[name] = str(error)
    if not answering:
        raise DataError("no peer works here: " + "; ".join(f"{name}: {why}" for name, why in absent.items()))
    return answering, absent


def table(found: Measured, title: str) -> Table:
    """One row per peer, with its ratio to the first one and to ONNX Runtime's defaults."""
    plain = comparison.table(found.comparison, title, references=(ONNX,))
    rows = [(name, found.computes_on[str(name)], *values) for name, *values in plain.rows]
    columns = [plain.columns[0], "computes on", *plain.columns[1:]]
    return Table(title, columns, rows, [*plain.notes, "Memory without the processes of a DataLoader."])


def figures(found: Measured) -> dict[str, Any]:
    """For JSON."""
    return {**comparison.figures(found.comparison), "computes_on": dict(found.computes_on)}
