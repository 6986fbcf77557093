"""ONNX Runtime: our session, its TensorRT provider, the defaults, and `predict`'s engine."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_bench.gpu.clock import Workload, has_events
from mineral_bench.gpu.runners.inputs import noise, side_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mineral_batch.engines.base import Tuning
    from mineral_batch.engines.onnx_cuda import Provider
    from mineral_bench.gpu.settings import Settings

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@contextmanager
def onnx_runtime(settings: Settings, batch: int, model: Path, tuning: Tuning | None = None) -> Iterator[Workload]:
    """Open the session of `predict --backend onnx-cuda`, input and output on the GPU; nothing is copied."""
    from mineral_batch.engines.onnx_cuda import cuda_options

    options = {} if settings.sizes.dry else cuda_options(0, is_exact=False, tuning=tuning)
    with _bound(settings, batch, model, [(_CPU if settings.sizes.dry else _CUDA, options)], tuning) as workload:
        yield workload


@contextmanager
def onnx_tensorrt(settings: Settings, batch: int, model: Path) -> Iterator[Workload]:
    """Open ONNX Runtime's TensorRT provider on the same graph, in the types of the file."""
    from mineral_batch.engines.onnx_tensorrt import require_engine, tensorrt_providers, tensorrt_version

    version = tensorrt_version()  # loads its libraries
    folder = settings.models / f"{model.stem}-{batch}-onnx-tensorrt"
    folder.mkdir(exist_ok=True)
    with _bound(settings, batch, model, tensorrt_providers(folder, 0, is_half=False)) as workload:
        require_engine(folder)
        yield replace(workload, notes=f"TensorRT {version}, {workload.notes}")


@contextmanager
def _bound(
    settings: Settings, batch: int, model: Path, providers: list[Provider], tuning: Tuning | None = None
) -> Iterator[Workload]:
    """Open a session on torch's stream, so that CUDA events bracket it; without torch's CUDA each run is waited for."""
    import onnxruntime

    runs = onnxruntime.RunOptions()
    with ExitStack() as stack:
        if has_events(settings.sizes):
            # Or the GPU would idle between two batches; the clock waits for the stream itself.
            runs.add_run_config_entry("disable_synchronize_execution_providers", "1")
            stream = str(stack.enter_context(side_stream()).cuda_stream)
            providers = [(name, {**options, "user_compute_stream": stream}) for name, options in providers]
        yield _with_or_without_graph(settings, batch, model, providers, runs, tuning)


def _with_or_without_graph(
    settings: Settings, batch: int, model: Path, providers: list[Provider], runs: Any, tuning: Tuning | None
) -> Workload:
    """Open it as `predict` does: as one CUDA graph, or without if the model cannot be one; it has run once."""
    from mineral_batch.cuda.errors import clear_frames, is_about_graphs
    from mineral_batch.engines.onnx_session import first_line, nodes_elsewhere

    why = ""
    try:
        session, run = _opened(settings, batch, model, providers, runs, tuning, has_graph=True)
    except Exception as error:
        if not is_about_graphs(error):
            raise
        why = f" ({first_line(error.__cause__ or error)})"
        clear_frames(error)
    if why:
        session, run = _opened(settings, batch, model, providers, runs, tuning, has_graph=False)
    graph = f"no CUDA graph{why}" if why or settings.sizes.dry else "one CUDA graph"
    return Workload(run, notes="; ".join(filter(None, (graph, nodes_elsewhere(session)))))


def _opened(
    settings: Settings,
    batch: int,
    model: Path,
    providers: list[Provider],
    runs: Any,
    tuning: Tuning | None,
    *,
    has_graph: bool,
) -> tuple[Any, Callable[[], Any]]:
    """Return a session and what runs it on noise; its first run may be what fails."""
    import onnxruntime

    from mineral_batch.engines.base import Tuning
    from mineral_batch.engines.onnx_cuda import fixed_session

    session = fixed_session(onnxruntime, model, providers, tuning or Tuning(), batch, has_graph)
    binding, kept = _binding(settings, batch, session)

    def run() -> Any:
        session.run_with_iobinding(binding, runs)
        return kept

    run()
    return session, run


def _binding(settings: Settings, batch: int, session: Any) -> tuple[Any, tuple[Any, ...]]:
    """Bind noise (N, H, W, 3) uint8 and room for (N, L) float32 on the device; also returns what must outlive them."""
    import onnxruntime

    entry, answer = session.get_inputs()[0], session.get_outputs()[0]
    make, device = onnxruntime.OrtValue, settings.sizes.device
    pixels = make.ortvalue_from_numpy(noise((batch, *entry.shape[1:])), device, 0)
    answers = make.ortvalue_from_shape_and_type([batch, answer.shape[-1]], np.float32, device, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(entry.name, pixels)
    binding.bind_ortvalue_output(answer.name, answers)
    return binding, (pixels, answers)


@contextmanager
def as_it_comes(settings: Settings, batch: int, model: Path) -> Iterator[Workload]:
    """Open ONNX Runtime as its guide's first example does: default options, arrays in and out.

    Raises:
        RuntimeError: if it would run on the CPU.
    """
    import onnxruntime

    wanted = _CPU if settings.sizes.dry else _CUDA
    session = onnxruntime.InferenceSession(str(model), providers=[wanted], enable_fallback=0)
    if session.get_providers()[0] != wanted:
        raise RuntimeError(f"{wanted} is not there: the session would run on {session.get_providers()[0]}")
    entry = session.get_inputs()[0]
    pixels = noise((batch, *entry.shape[1:]))
    yield Workload(lambda: session.run(None, {entry.name: pixels}))


@contextmanager
def backend_alone(settings: Settings, batch: int, model: Path, engine: str) -> Iterator[Workload]:
    """Open the engine that `predict` feeds, with all that it copies, on batches in memory."""
    from mineral_batch.engines.registry import open_backend
    from mineral_bench.engine_only import LEAST_BATCHES, fill, infer_all

    backend = open_backend(model, engine, batch_size=batch)
    try:
        batches = fill(backend, noise((4 * batch, *backend.contract.input.shape)), batch)
        rounds = 1 if settings.sizes.dry else LEAST_BATCHES // 4
        yield Workload(lambda: infer_all(backend, batches * rounds), images=4 * batch * rounds, notes=backend.device)
    finally:
        backend.close()
