"""Runs in the interpreter that has onnxruntime-gpu: `child.py TASK JSON` prints its answer as one line of JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def facts() -> dict[str, Any]:
    """What is installed, and why the providers do not load, if they do not."""
    import onnxruntime

    from mineral_batch.cuda.libraries import why_provider_does_not_load

    providers = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
    reasons = {provider: why_provider_does_not_load(onnxruntime, provider) for provider in providers}
    return {"version": onnxruntime.__version__, "cuda": onnxruntime.cuda_version, "reasons": reasons}


def option(model: str, provider: str, options: dict[str, str]) -> str:
    """Whether a provider accepts these options: empty, or its refusal. TensorRT's dies of a signal if it does."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.add_free_dimension_override_by_name("N", 1)
    try:
        session = onnxruntime.InferenceSession(model, settings, providers=[(provider, options)], enable_fallback=0)
    except Exception as error:  # onnxruntime's own classes have no common base
        return str(error).strip().splitlines()[-1]
    return "" if session.get_providers()[0] == provider else "another provider"


def graph(model: str, optimized: str, batch: int, deterministic: bool, nhwc: bool) -> dict[str, Any]:
    """Open a model as `onnx-cuda` does, as one CUDA graph on a stream, and describe the optimized graph."""
    import onnx
    import onnxruntime

    from mineral_batch.engines.base import Tuning
    from mineral_batch.engines.onnx_cuda import CUDA, cuda_options, fixed_session
    from mineral_batch.engines.onnx_session import nodes_elsewhere

    make_options = onnxruntime.SessionOptions

    def saving_options() -> Any:
        options = make_options()
        options.optimized_model_filepath = optimized
        return options

    onnxruntime.SessionOptions = saving_options
    tuning = Tuning(deterministic=deterministic, nhwc=nhwc)
    providers = [(CUDA, cuda_options(0, is_exact=False, tuning=tuning))]
    try:
        session = fixed_session(onnxruntime, Path(model), providers, tuning, batch, has_graph=True, stream=4096)
    except Exception as error:
        return {"refused": str(error)}
    operators = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    return {"elsewhere": nodes_elsewhere(session), "operators": operators, "nodes": operators.total()}


def resize(shape: list[int], target: list[int]) -> dict[str, Any]:
    """Resize an image on the second GPU of the driver in C through the real cuda-core, twice by a CUDA graph."""
    import numpy as np

    from mineral_batch.cuda.core import CoreContext
    from mineral_batch.cuda.pinned import pinned_array
    from mineral_batch.cuda.probe import gpus
    from mineral_batch.images.gpu.resize import Resizer

    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    height, width, _ = shape
    new_width, new_height = target
    context = CoreContext(gpus()[1])
    with context.current():
        free = context.free_memory()
        stream = context.stream()
        source, result = context.allocate(pixels.nbytes), context.allocate(new_width * new_height * 3)
        context.keep_freed(5 << 32)
        pinned = [pinned_array((new_height, new_width, 3), gpus()[1])]
        was_zero = not pinned[0].any()
        resizer = Resizer(context, stream, 32)
        context.to_gpu(source, pixels, stream)
        box = (0.0, 0.0, float(width), float(height))
        resizer.enqueue(source.address, (width, height), box, (new_width, new_height), "bicubic", result.address)
        graph = context.capture(stream, lambda: context.from_gpu(pinned[0], result, stream))
        graph.launch()
        stream.synchronize()
        answer = pinned[0].tolist()
        graph.close()
        resizer.close()
        for memory in (source, result):
            memory.close()
        stream.close()
    pinned.clear()
    context.close()
    return {"pixels": pixels.tolist(), "answer": answer, "free": free, "was_zero": was_zero}


def failures() -> list[str]:
    """What the driver's errors become, one after the other."""
    import os

    from mineral_batch.cuda.core import CoreContext
    from mineral_batch.cuda.probe import DriverError, gpus

    found = []
    try:
        CoreContext(gpus()[0])
    except DriverError as error:
        found.append(str(error))
    context = CoreContext(gpus()[1])
    with context.current():
        stream = context.stream()
        for failure in (ValueError("it allocates"), None):

            def work(failure: Exception | None = failure) -> None:
                if failure:
                    raise failure

            try:
                context.capture(stream, work).close()
            except ValueError as error:
                found.append(str(error))
        os.environ["LOST"] = "1"
        try:
            stream.synchronize()
        except DriverError as error:
            found.append(f"{error.code} {error}")
    return found


def compiled(arch: str) -> dict[str, Any]:
    """The resize kernel compiled by NVRTC, and its version."""
    from importlib import resources

    from cuda.bindings import nvrtc

    source = resources.files("mineral_batch.images.gpu").joinpath("resample.cu").read_text("ascii")
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"resample.cu", 0, [], [])
    (code,) = nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture={arch}".encode()])
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = b" " * size
    nvrtc.nvrtcGetPTX(program, ptx)
    return {"code": int(code), "ptx": ptx.rstrip(b"\0 ").decode(), "version": list(nvrtc.nvrtcVersion()[1:])}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))))
