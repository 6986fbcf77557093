"""Each way to run a model: a context manager (settings, batch, ...) -> what computes one batch while it lasts."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import subjects
from clock import Way, has_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from common import Settings

    from mineral_batch.engines.onnx_cuda import Provider

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# The shared memory that DataLoader's processes hand batches over in.
_SHARED = Path("/dev/shm")  # noqa: S108
# Batches that each of its processes works ahead.
_AHEAD = 2
# Of a kernel's name, most of which are its template's arguments.
_LONGEST = 120


# ONNX Runtime.


@contextmanager
def onnx_runtime(settings: Settings, batch: int, model: Path) -> Iterator[Way]:
    """The session of `predict --backend onnx-cuda`, its input and output on the GPU; nothing else is copied."""
    from mineral_batch.engines.onnx_cuda import cuda_options

    options = {} if settings.sizes.dry else cuda_options(0, is_exact=False)
    with _bound(settings, batch, model, [(_CPU if settings.sizes.dry else _CUDA, options)]) as way:
        yield way


@contextmanager
def onnx_tensorrt(settings: Settings, batch: int, model: Path) -> Iterator[Way]:
    """ONNX Runtime's TensorRT provider on the same graph, in the types of the file."""
    from mineral_batch.engines.onnx_tensorrt import require_engine, tensorrt_providers, tensorrt_version

    version = tensorrt_version()  # loads its libraries
    folder = settings.models / f"{model.stem}-{batch}-onnx-tensorrt"
    folder.mkdir(exist_ok=True)
    with _bound(settings, batch, model, tensorrt_providers(folder, 0, is_half=False)) as way:
        require_engine(folder)
        yield replace(way, says=f"TensorRT {version}, {way.says}")


@contextmanager
def _bound(settings: Settings, batch: int, model: Path, providers: list[Provider]) -> Iterator[Way]:
    """A session on torch's stream, so that CUDA events bracket it; without torch's CUDA each run is waited for."""
    import onnxruntime

    runs = onnxruntime.RunOptions()
    with ExitStack() as stack:
        if has_events(settings.sizes):
            # Otherwise the GPU would idle between two batches; the clock waits for the stream itself.
            runs.add_run_config_entry("disable_synchronize_execution_providers", "1")
            stream = str(stack.enter_context(_side_stream()).cuda_stream)
            providers = [(name, {**options, "user_compute_stream": stream}) for name, options in providers]
        yield _with_or_without_graph(settings, batch, model, providers, runs)


def _with_or_without_graph(settings: Settings, batch: int, model: Path, providers: list[Provider], runs: Any) -> Way:
    """As `predict` opens it: as one CUDA graph, or, where the model cannot be one, without; it has run once."""
    from mineral_batch.cuda.errors import clear_frames, is_about_graphs
    from mineral_batch.engines.onnx_session import first_line, nodes_elsewhere

    why = ""
    try:
        session, run = _ran(settings, batch, model, providers, runs, has_graph=True)
    except Exception as error:
        if not is_about_graphs(error):
            raise
        why = f" ({first_line(error.__cause__ or error)})"
        clear_frames(error)
    if why:
        session, run = _ran(settings, batch, model, providers, runs, has_graph=False)
    graph = f"no CUDA graph{why}" if why or settings.sizes.dry else "one CUDA graph"
    return Way(run, says="; ".join(filter(None, (graph, nodes_elsewhere(session)))))


def _ran(
    settings: Settings, batch: int, model: Path, providers: list[Provider], runs: Any, *, has_graph: bool
) -> tuple[Any, Callable[[], Any]]:
    """A session, and what runs it on noise; its first run may be what fails."""
    import onnxruntime

    from mineral_batch.engines.base import Tuning
    from mineral_batch.engines.onnx_cuda import fixed_session

    session = fixed_session(onnxruntime, model, providers, Tuning(), batch, has_graph)
    binding, kept = _binding(settings, batch, session)

    def run() -> Any:
        session.run_with_iobinding(binding, runs)
        return kept

    run()
    return session, run


def _binding(settings: Settings, batch: int, session: Any) -> tuple[Any, tuple[Any, ...]]:
    """Noise (N, H, W, 3) uint8 in, (N, L) float32 out, both on the device, and what must outlive them."""
    import onnxruntime

    entry, answer = session.get_inputs()[0], session.get_outputs()[0]
    make, device = onnxruntime.OrtValue, settings.sizes.device
    pixels = make.ortvalue_from_numpy(_noise((batch, *entry.shape[1:])), device, 0)
    answers = make.ortvalue_from_shape_and_type([batch, answer.shape[-1]], np.float32, device, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(entry.name, pixels)
    binding.bind_ortvalue_output(answer.name, answers)
    return binding, (pixels, answers)


def _noise(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@contextmanager
def _side_stream() -> Iterator[Any]:
    """A stream that this process's measurements run on: CUDA graphs cannot be captured on the default one."""
    import torch

    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        yield stream
    stream.synchronize()


@contextmanager
def as_it_comes(settings: Settings, batch: int, model: Path) -> Iterator[Way]:
    """ONNX Runtime as its guide's first example: default options, arrays in and out.

    Raises:
        RuntimeError: if it would run on the processor.
    """
    import onnxruntime

    wanted = _CPU if settings.sizes.dry else _CUDA
    session = onnxruntime.InferenceSession(str(model), providers=[wanted], enable_fallback=0)
    if session.get_providers()[0] != wanted:
        raise RuntimeError(f"{wanted} is not there: the session would run on {session.get_providers()[0]}")
    entry = session.get_inputs()[0]
    pixels = _noise((batch, *entry.shape[1:]))
    yield Way(lambda: session.run(None, {entry.name: pixels}))


@contextmanager
def backend_alone(settings: Settings, batch: int, model: Path, engine: str) -> Iterator[Way]:
    """What `predict` feeds: its engine with all that it copies, from batches that lie in memory."""
    from mineral_batch.engines.registry import open_backend
    from mineral_bench.engine_alone import LEAST_BATCHES, answer, fill

    backend = open_backend(model, engine, batch_size=batch)
    try:
        batches = fill(backend, _noise((4 * batch, *backend.contract.input.shape)), batch)
        rounds = 1 if settings.sizes.dry else LEAST_BATCHES // 4
        yield Way(lambda: answer(backend, batches * rounds), pictures=4 * batch * rounds, says=backend.device)
    finally:
        backend.close()


# What a session spends its time on.


def kernels(settings: Settings, batch: int, model: Path, most: int = 12) -> dict[str, str]:
    """Share of the GPU's time by kernel, the longest first, of the session of `onnx_runtime`."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with onnx_runtime(settings, batch, model) as way:
        for _ in range(3):
            way.run()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(3):
                way.run()
            torch.cuda.synchronize()
    return shares({event.key: event.self_device_time_total for event in seen.key_averages()}, most)


def shares(spent: dict[str, float], most: int) -> dict[str, str]:
    """Of the whole, the largest first; what is beyond `most` as one; names that begin alike for long count as one."""
    alike: Counter[str] = Counter()
    for name, time_spent in spent.items():
        alike[name[:_LONGEST]] += time_spent  # type: ignore[assignment]  # of floats, too
    order, total = [name for name, time_spent in alike.most_common() if time_spent], sum(spent.values())
    found = {name: f"{alike[name] / total:.1%}" for name in order[:most]}
    rest = sum(alike[name] for name in order[most:])
    return {**found, f"{len(order) - most} others": f"{rest / total:.1%}"} if rest else found


# TensorRT.


@contextmanager
def tensorrt(settings: Settings, batch: int, model: Path) -> Iterator[Way]:
    """A TensorRT engine of this batch, run by TensorRT's own runtime on torch's memory and stream."""
    import tensorrt as trt
    import torch

    from mineral_batch.engines.tensorrt.build import Options
    from mineral_batch.engines.tensorrt.plan import Profile
    from mineral_export.tensorrt import export_engine

    target = model.with_name(f"{model.stem}-{batch}.plan")
    options = Options(Profile(batch, batch, batch), timing_cache=settings.models / "timings")
    # An INT8 or FP8 graph has layers in other types, too.
    precision: Any = "fp16" if model.stem.endswith("float16") else "as-is"
    made = export_engine(model, target, options, precision=precision, runtime="tensorrt", force=True)
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(target.read_bytes())
    context = engine.create_execution_context()
    contract = made.record.contract
    pixels = subjects.noise(contract, batch, "cuda")
    answers = torch.zeros((batch, len(contract.labels)), device="cuda")
    context.set_input_shape("pixels", tuple(pixels.shape))
    context.set_tensor_address("pixels", pixels.data_ptr())
    context.set_tensor_address("probabilities", answers.data_ptr())
    with _side_stream() as stream:  # on the default one TensorRT synchronises more than it must

        def run() -> Any:
            if not context.execute_async_v3(stream.cuda_stream):
                raise RuntimeError("TensorRT did not start the engine")
            return runtime, engine, pixels, answers  # kept alive with the function

        yield Way(run, says=str(made.parity or f"not compared: {made.why_not}"))


@contextmanager
def torch_tensorrt(settings: Settings, batch: int) -> Iterator[Way]:
    """torch.compile with TensorRT behind it."""
    import torch
    import torch_tensorrt  # type: ignore[import-not-found, unused-ignore]  # noqa: F401 - registers the backend

    torch._dynamo.reset()
    model, contract = _on_device(settings, is_half=False)
    options: dict[str, Any] = {"enabled_precisions": {torch.float16}}
    faster = torch.compile(model, backend="tensorrt", dynamic=False, options=options)
    pixels = subjects.noise(contract, batch, settings.sizes.device)
    with torch.inference_mode():
        yield Way(lambda: faster(pixels))


# PyTorch.


@contextmanager
def on_device(settings: Settings, batch: int, *, is_half: bool, is_compiled: bool = False) -> Iterator[Way]:
    """PyTorch, the pictures on the device; see `opened`."""
    with opened(settings, is_half=is_half, is_compiled=is_compiled) as model:
        pixels = subjects.noise(_on_device(settings, is_half=is_half)[1], batch, settings.sizes.device)
        yield Way(lambda: model(pixels))


@contextmanager
def opened(settings: Settings, *, is_half: bool, is_compiled: bool = False) -> Iterator[Callable[[Any], Any]]:
    """The model with FP16 weights, or with float32 ones in automatic mixed precision.

    Automatic mixed precision is entered once for all batches: it casts the weights again whenever it is entered.

    Args:
        settings: of the run.
        is_half: FP16 weights.
        is_compiled: for one shape, with CUDA graphs; a dry run only traces.
    """
    import torch

    model, _ = _on_device(settings, is_half=is_half)
    if is_compiled:
        torch._dynamo.reset()  # what it has compiled for another batch would make it compile for any
        options: dict[str, Any] = {"backend": "eager"} if settings.sizes.dry else {"mode": "reduce-overhead"}
        model = torch.compile(model, dynamic=False, **options)
    with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=not (is_half or settings.sizes.dry)):
        yield model


#: What `_on_device` has built, by the kind of the weights.
_MODELS: dict[bool, tuple[Any, Any]] = {}


def _on_device(settings: Settings, *, is_half: bool) -> tuple[Any, Any]:
    """The model and its contract; built once for all batches."""
    if False not in _MODELS:
        model, contract = subjects.deployable(settings.sizes)
        _MODELS[False] = model.to(settings.sizes.device), contract
    if is_half and True not in _MODELS:
        model, contract = _MODELS[False]
        _MODELS[True] = _half(model), contract
    return _MODELS[is_half]


def _half(model: Any) -> Any:
    """A copy with FP16 weights; the pictures' normalisation and the last sigmoid stay float32, as in our graphs."""
    import torch

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normalise = copy.deepcopy(model.normalise)
            self.net = copy.deepcopy(model.model).half()
            self.start = [tensor.half() for tensor in model.start]

        def forward(self, pixels: Any) -> Any:
            planes = self.normalise(pixels.float().permute(0, 3, 1, 2)).half()
            return torch.sigmoid(self.net.classify(self.net.features(planes), self.start).float())

    return Half().eval()


def data_loader(settings: Settings, name: str, *, is_half: bool, is_compiled: bool = False) -> dict[str, Any]:
    """Files to probabilities as PyTorch's tutorials do it: a DataLoader with a process per processor.

    Its processes stay, and have worked before the clock starts.

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
        answers = _pass(model, loader, sizes.device)
        seconds = time.perf_counter() - start
    if not torch.isfinite(answers).all():
        raise ValueError("a probability is not a number")
    found = {"pictures_per_s": len(answers) / seconds, "pictures": len(answers), "workers": workers}
    return {**found, "batch_size": batch}


def _pass(model: Callable[[Any], Any], loader: Any, device: str) -> Any:
    """(N, L) for all files; a compiled model overwrites its answers."""
    import torch

    return torch.cat([model(batch.to(device, non_blocking=True)).clone() for batch in loader]).cpu()


def _workers_and_batch(settings: Settings, files: int, picture: int) -> tuple[int, int]:
    """A process per processor, and batches that give each several, and fit into the memory that they share."""
    from mineral_batch.system import cpu_count

    if settings.sizes.dry:
        return 1, 2
    workers = cpu_count()
    fit = shutil.disk_usage(_SHARED).free // (2 * picture * workers * _AHEAD) if _SHARED.is_dir() else 64
    return workers, max(1, min(64, files // (4 * workers), fit))


class _Files:
    """Pictures as (H, W, 3) uint8: a dataset as everybody writes it."""

    def __init__(self, paths: list[Path], size: tuple[int, int]) -> None:
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        import torch
        from PIL import Image

        with Image.open(self._paths[index]) as picture:
            small = picture.convert("RGB").resize((self._size[1], self._size[0]), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small))
