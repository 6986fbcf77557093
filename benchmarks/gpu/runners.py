"""Each way to run a model: a function (settings, batch, ...) -> what computes one batch on torch's stream."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from common import deployable, noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from common import Settings

    Work = Callable[[], Any]


def eager(settings: Settings, batch: int) -> Work:
    """PyTorch as it comes, in automatic mixed precision."""
    model, pixels = _on_device(settings, batch)

    def work() -> Any:
        with torch.inference_mode(), _amp(settings):
            return model(pixels)

    return work


def compiled(settings: Settings, batch: int) -> Work:
    """torch.compile with CUDA graphs (`reduce-overhead`); a dry run only traces."""
    model, pixels = _on_device(settings, batch)
    options = {"backend": "eager"} if settings.sizes.dry else {"mode": "reduce-overhead"}
    faster = torch.compile(model, **options)

    def work() -> Any:
        with torch.inference_mode(), _amp(settings):
            return faster(pixels)

    return work


def torch_tensorrt(settings: Settings, batch: int) -> Work:
    """torch.compile with TensorRT behind it, where torch-tensorrt is installed."""
    import torch_tensorrt  # noqa: F401 - registers the backend

    model, pixels = _on_device(settings, batch)
    faster = torch.compile(model, backend="tensorrt", options={"enabled_precisions": {torch.float16}})

    def work() -> Any:
        with torch.inference_mode():
            return faster(pixels)

    return work


def onnx_runtime(settings: Settings, batch: int, model: Path) -> Work:
    """ONNX Runtime's CUDA provider on an FP16 graph, input and output bound on the GPU, as one CUDA graph."""
    options = {"use_tf32": "1", "enable_cuda_graph": "1", "cudnn_conv_algo_search": "HEURISTIC"}
    return _bound(settings, batch, model, "CUDAExecutionProvider", options)


def onnx_tensorrt(settings: Settings, batch: int, model: Path) -> Work:
    """ONNX Runtime's TensorRT provider on the same graph."""
    if settings.sizes.dry:
        raise RuntimeError("not run: there is no GPU in a dry run")
    options = {"trt_cuda_graph_enable": "1", "trt_fp16_enable": "1"}
    options["trt_int8_enable"] = str(int(model.stem.endswith("int8")))
    return _bound(settings, batch, model, "TensorrtExecutionProvider", options)


def _bound(settings: Settings, batch: int, model: Path, provider: str, options: dict[str, str]) -> Work:
    import onnxruntime

    is_dry = settings.sizes.dry
    wanted = "CPUExecutionProvider" if is_dry else provider
    # Its graphs are captured on a stream of their own, which the default stream is not.
    stream = None if is_dry else _side_stream()
    given = {} if is_dry else {**options, "user_compute_stream": str(stream.cuda_stream)}
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 4
    session_options.add_free_dimension_override_by_name("N", batch)
    session = onnxruntime.InferenceSession(str(model), session_options, providers=[(wanted, given)])
    if session.get_providers()[0] != wanted:
        raise RuntimeError(f"{wanted} is not there: the session would run on {session.get_providers()[0]}")
    pixels, answers = _buffers(settings, batch, session)
    binding = session.io_binding()
    for tensor, name, kind, bind in (
        (pixels, session.get_inputs()[0].name, "uint8", binding.bind_input),
        (answers, session.get_outputs()[0].name, "float32", binding.bind_output),
    ):
        bind(name, settings.sizes.device, 0, kind, tuple(tensor.shape), tensor.data_ptr())

    without_waiting = onnxruntime.RunOptions()
    # The clock waits for the stream itself; otherwise the GPU would idle between two batches.
    without_waiting.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def work() -> Any:
        session.run_with_iobinding(binding, without_waiting)
        return answers, pixels

    return work


def _side_stream() -> Any:
    """A stream that this process's measurements run on from now on."""
    stream = torch.cuda.Stream()
    torch.cuda.set_stream(stream)
    return stream


def _buffers(settings: Settings, batch: int, session: Any) -> tuple[Any, Any]:
    _, height, width, _ = session.get_inputs()[0].shape
    pixels = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, device=settings.sizes.device)
    labels = session.get_outputs()[0].shape[-1]
    return pixels, torch.zeros((batch, labels), dtype=torch.float32, device=settings.sizes.device)


def tensorrt(settings: Settings, batch: int, model: Path) -> Work:
    """A TensorRT engine of this batch, run by TensorRT's own runtime on torch's memory and stream."""
    import tensorrt as trt

    from mineral_batch.backends.tensorrt_build import Options
    from mineral_batch.backends.tensorrt_engine import Profile
    from mineral_export.engine import export_engine

    target = model.with_name(f"{model.stem}-{batch}.plan")
    options = Options(Profile(batch, batch, batch), timing_cache=settings.models / "timings")
    # An INT8 or FP8 graph has layers in other types, too.
    precision = "fp16" if model.stem.endswith("float16") else "as-is"
    made = export_engine(model, target, options, precision=precision, runtime="tensorrt")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(target.read_bytes())
    context = engine.create_execution_context()
    shape = made.record.contract.input.shape
    pixels = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, device="cuda")
    answers = torch.zeros((batch, len(made.record.contract.labels)), device="cuda")
    context.set_input_shape("pixels", tuple(pixels.shape))
    context.set_tensor_address("pixels", pixels.data_ptr())
    context.set_tensor_address("probabilities", answers.data_ptr())
    stream = _side_stream()  # on the default one TensorRT synchronises more than it must

    def work() -> Any:
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT did not start the engine")
        return runtime, engine, pixels, answers  # kept alive with the function

    return work


def data_loader(settings: Settings, folder: Path) -> dict[str, Any]:
    """Files to probabilities as PyTorch's tutorials do it: a DataLoader with a worker per processor, eager, AMP."""
    from torch.utils.data import DataLoader

    from mineral_batch.pipeline import processors

    is_dry = settings.sizes.dry
    model, pixels = _on_device(settings, 1)
    dataset = _Folder(sorted(folder.iterdir()), pixels.shape[1:3])
    workers = 0 if is_dry else processors()
    loader = DataLoader(dataset, batch_size=64, num_workers=workers, pin_memory=not is_dry)
    done, start = 0, time.perf_counter()
    with torch.inference_mode(), _amp(settings):
        for batch in loader:
            done += len(model(batch.to(settings.sizes.device, non_blocking=True)).cpu())
    return {"pictures_per_s": done / (time.perf_counter() - start), "pictures": done, "workers": workers}


class _Folder(torch.utils.data.Dataset[torch.Tensor]):
    """Pictures as (H, W, 3) uint8."""

    def __init__(self, paths: list[Path], size: tuple[int, int]) -> None:
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        import numpy as np
        from PIL import Image

        with Image.open(self._paths[index]) as picture:
            small = picture.convert("RGB").resize((self._size[1], self._size[0]), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small))


#: The model on the device by preset: built once for all batches.
_MODELS: dict[str, tuple[Any, Any]] = {}


def _on_device(settings: Settings, batch: int) -> tuple[Any, Any]:
    sizes = settings.sizes
    if sizes.preset not in _MODELS:
        model, contract = deployable(sizes)
        _MODELS[sizes.preset] = model.to(sizes.device), contract
    model, contract = _MODELS[sizes.preset]
    return model, noise(contract, batch, sizes.device)


def _amp(settings: Settings) -> Any:
    """Half precision where there is a GPU."""
    return torch.autocast("cuda", torch.float16, enabled=not settings.sizes.dry)
