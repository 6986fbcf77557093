"""What is installed, what works here, and the command that fixes what does not.

Each engine is tried in a process of its own: one that crashes (a CUDA library without its driver does) is a finding,
not the end of the diagnosis. This process imports nothing but the base packages.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import features

from mineral_batch.cuda.probe import DriverError, Gpu, cuda_version, gpus
from mineral_batch.engines.registry import engine_names, open_backend
from mineral_batch.errors import MineralError
from mineral_batch.files import cache_folder
from mineral_batch.images.decoder import GPU, DecodeOptions
from mineral_batch.images.decoders import open_decoder
from mineral_batch.storage import cache
from mineral_batch.system import cpu_count, cpu_flags, cpu_name, pip_command, pip_install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mineral_batch.types import Pixels

# What can make a difference to a run; names on the package index.
_PACKAGES = (
    "mineral-batch", "numpy", "pillow", "pillow-heif",
    "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "pycuda", "torch",
)  # fmt: skip
# Linux's names of what makes a network fast on a processor.
_CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "amx_fp16", "bf16", "i8mm")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
_CODECS = ("jpg", "libjpeg_turbo", "zlib", "webp", "avif", "jpg_2000", "libtiff")
_SECONDS_FOR_AN_ENGINE = 600  # TensorRT builds for minutes
_TIMED_CALLS = 3


@dataclass(frozen=True)
class EngineTrial:
    """How one engine did in a trial.

    Attributes:
        name: as in `mineral_batch.engines.registry.engine_names()`.
        works: whether it opened the model and answered for an image.
        device: what it ran on, in words; empty if it does not work.
        seconds: for one image, the best of a few, on one worker; None if it does not work.
        difference: largest, between its probabilities and those of onnx-cpu; None where one of them does not work.
        reason: why it does not work, one line.
    """

    name: str
    works: bool
    device: str = ""
    seconds: float | None = None
    difference: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class GpuDecoding:
    """Whether a GPU decodes JPEGs (`predict --decode gpu`).

    Attributes:
        works: whether a known image was decoded correctly.
        version: of what decodes; empty if it does not work.
        reason: why it does not work, one line.
    """

    works: bool
    version: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Finding:
    """Something to fix or to gain, and the command that does it."""

    what: str
    fix: str


@dataclass(frozen=True)
class Machine:
    """What is installed, before any engine is tried.

    Attributes:
        python: version.
        system: in words.
        processor: the CPU's name.
        cpu_count: how many CPUs this process may use.
        cpu_features: those of `_CPU_FEATURES` that the CPU has.
        packages: name -> version, of those installed.
        codecs: of Pillow, name -> whether it is there; `heif` is a package of its own.
        driver: version of the NVIDIA driver; empty if there is none.
        cuda: newest CUDA that the driver runs; empty if there is none.
        gpus: that CUDA programs see.
        no_gpu: why there are none.
    """

    python: str
    system: str
    processor: str
    cpu_count: int
    cpu_features: tuple[str, ...]
    packages: Mapping[str, str]
    codecs: Mapping[str, bool]
    driver: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    no_gpu: str = ""


@dataclass(frozen=True)
class Cache:
    """The user's folder for what can be made or fetched again.

    Attributes:
        folder: where it is; it need not exist.
        copies: bytes of models and tables that were named by URL.
        most_copies: bytes that they may take, see `mineral_batch.storage.cache`.
        others: bytes of everything else, such as engines that were built here.
    """

    folder: str
    copies: int
    most_copies: int
    others: int


@dataclass(frozen=True)
class Diagnosis:
    """The whole diagnosis."""

    machine: Machine
    engines: Sequence[EngineTrial]
    gpu_decoding: GpuDecoding
    cache: Cache
    findings: Sequence[Finding] = field(default_factory=list)

    @property
    def works(self) -> bool:
        """Whether an image can be predicted here."""
        return any(engine.works for engine in self.engines)


def examine(model: Path | None) -> Diagnosis:
    """Examine the machine and try every engine.

    Args:
        model: ONNX file to try them with; None to try none.
    """
    machine = inspect_machine()
    tried = _with_differences([_try_engine(name, model) for name in engine_names()]) if model else []
    engines = [engine for engine, _ in tried]
    return Diagnosis(machine, engines, _try_decoding(), inspect_cache(), list(findings(machine, engines)))


def inspect_machine() -> Machine:
    """Return the machine and what is installed on it."""
    machine = Machine(
        python=platform.python_version(),
        system=platform.platform(),
        processor=cpu_name() or platform.processor() or platform.machine(),
        cpu_count=cpu_count(),
        cpu_features=tuple(name for name in _CPU_FEATURES if name in cpu_flags()),
        packages=_packages(),
        codecs={name: bool(features.check(name)) for name in _CODECS} | {"heif": find_spec("pillow_heif") is not None},
        driver=_nvidia_driver(),
    )
    try:
        return replace(machine, cuda=cuda_version(), gpus=tuple(gpus()))
    except DriverError as error:
        return replace(machine, no_gpu=str(error))


def inspect_cache() -> Cache:
    """Return what is in the user's cache.

    Raises:
        DataError: if its limit in the environment is no number.
    """
    folder, copies = cache_folder(), cache.size(cache.copies_folder())
    return Cache(str(folder), copies, cache.limit(), cache.size(folder) - copies)


def findings(machine: Machine, engines: Sequence[EngineTrial]) -> Iterator[Finding]:
    """Yield what to fix, each with the exact command, the most serious first."""
    pip = pip_command()
    yield from _onnxruntime_findings(machine, engines, pip)
    if engines and not any(engine.works for engine in engines):
        yield Finding("no engine works, so nothing can be predicted", pip_install("cpu"))
    has_openvino = any(engine.name == "openvino" and engine.works for engine in engines)
    if engines and not has_openvino and not machine.gpus and _BFLOAT16 & set(machine.cpu_features):
        yield Finding(
            "this CPU computes in bfloat16: OpenVINO (--backend openvino) is about twice as fast here, "
            "and slightly less accurate",
            f"{pip} install openvino",
        )
    yield from _pillow_findings(machine, pip)


def _onnxruntime_findings(machine: Machine, engines: Sequence[EngineTrial], pip: str) -> Iterator[Finding]:
    has_cpu, has_gpu = "onnxruntime" in machine.packages, "onnxruntime-gpu" in machine.packages
    wanted = "gpu" if machine.gpus else "cpu"
    uninstall_both = f"{pip} uninstall -y onnxruntime onnxruntime-gpu"
    cuda_works = any(engine.name == "onnx-cuda" and engine.works for engine in engines)
    if has_cpu and has_gpu:
        yield Finding(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            f"{uninstall_both} && {pip_install(wanted)}",
        )
    elif machine.gpus and not has_gpu:
        yield Finding(
            f"{machine.gpus[0].name} is not used: onnxruntime-gpu is not installed",
            f"{uninstall_both} && {pip_install('gpu')}",
        )
    elif machine.gpus and engines and not cuda_works:
        yield Finding(
            "onnxruntime-gpu does not run on the GPU; most often CUDA's or cuDNN's libraries are missing",
            f'{pip} install "onnxruntime-gpu[cuda,cudnn]"',
        )
    elif machine.driver and not machine.gpus:
        yield Finding(
            f"there is an NVIDIA driver but no GPU: {machine.no_gpu}", "nvidia-smi; echo $CUDA_VISIBLE_DEVICES"
        )


def _pillow_findings(machine: Machine, pip: str) -> Iterator[Finding]:
    others = ("libjpeg_turbo", "heif")
    absent = [name for name, is_there in machine.codecs.items() if not is_there and name not in others]
    renew = f"{pip} install --upgrade --force-reinstall --only-binary :all: pillow"
    if absent:
        yield Finding(f"this Pillow cannot read some files, because it lacks {', '.join(absent)}", renew)
    if not machine.codecs.get("libjpeg_turbo"):
        yield Finding("this Pillow was built without libjpeg-turbo: JPEGs decode several times slower", renew)
    if not machine.codecs.get("heif"):
        yield Finding("HEIC images, as phones take them, cannot be read", pip_install("heif"))


def _try_engine(name: str, model: Path) -> tuple[EngineTrial, list[float]]:
    """One engine in a process of its own, and its probabilities."""
    try:
        answer = _call_in_process("trial", name, str(model))
        probabilities = answer.pop("probabilities")
        return EngineTrial(name, **answer), probabilities
    except _NoAnswerError as error:
        return EngineTrial(name, works=False, reason=str(error)), []


def _try_decoding() -> GpuDecoding:
    try:
        return GpuDecoding(**_call_in_process("decoding_trial"))
    except _NoAnswerError as error:
        return GpuDecoding(works=False, reason=str(error))


class _NoAnswerError(Exception):
    """Why a process printed no answer, in one line."""


def _call_in_process(function: str, *arguments: str) -> dict[str, Any]:
    """Call a function of this module in a process of its own, and return what it printed."""
    code = f"import sys; from mineral_batch.doctor import {function}; {function}(*sys.argv[1:])"
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS_FOR_AN_ENGINE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _NoAnswerError(f"no answer within {_SECONDS_FOR_AN_ENGINE} seconds") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no error message"])[-1]
        raise _NoAnswerError(f"the process ended with code {done.returncode}: {last}") from None
    return answer


def trial(name: str, model: str) -> None:
    """Open a model on one engine, run one image, and print the result as one line of JSON."""
    answer: dict[str, Any] = {"works": False, "probabilities": []}
    try:
        # A batch of one for every engine: the least memory and the shortest build.
        backend = open_backend(model, name, batch_size=1)
        pixels = _test_image(backend.contract.input.shape)
        probabilities = backend.infer(pixels)[0].tolist()
        seconds = min(_timed(lambda: backend.infer(pixels)) for _ in range(_TIMED_CALLS))
        answer = {"works": True, "device": backend.device, "seconds": seconds, "probabilities": probabilities}
        backend.close()
    except MineralError as error:
        answer["reason"] = str(error)
    print(json.dumps(answer))  # noqa: T201 - read by the parent


def decoding_trial() -> None:
    """Open the decoder on the first GPU, which tries it on an image, and print the result as one line of JSON."""
    from mineral_batch.model.contract import InputSpec

    answer: dict[str, Any] = {"works": False}
    try:
        decoder = open_decoder(GPU, DecodeOptions(InputSpec()))
        answer = {"works": True, "version": decoder.version}
        decoder.close()
    except MineralError as error:
        answer["reason"] = str(error)
    print(json.dumps(answer))  # noqa: T201 - read by the parent


def _with_differences(tried: Sequence[tuple[EngineTrial, list[float]]]) -> list[tuple[EngineTrial, list[float]]]:
    """With each engine's difference from onnx-cpu."""
    reference = next((given for engine, given in tried if engine.name == "onnx-cpu"), [])
    return [
        (replace(engine, difference=float(np.abs(np.subtract(given, reference)).max())), given)
        if reference and given
        else (engine, given)
        for engine, given in tried
    ]


def _test_image(shape: tuple[int, int, int]) -> Pixels:
    """(1, H, W, 3): an image with edges, gradients and colors, the same everywhere."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    waves = np.stack([np.sin(x / (5 + c) + y / (11 - 2 * c)) for c in range(3)], axis=-1)
    pixels: Pixels = (127.5 + 127.5 * waves)[None].astype(np.uint8)
    return pixels


def _timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _packages() -> dict[str, str]:
    """Those of `_PACKAGES` that are installed, in its order; some packages have CUDA's version in their names."""
    installed = {str(one.name).lower(): one.version for one in metadata.distributions() if one.name}
    by_cuda = re.compile(r"(tensorrt|tensorrt-rtx|nvidia-nvimgcodec)-cu\d+")
    named = {name: version for name, version in installed.items() if by_cuda.fullmatch(name)}
    return {name: installed[name] for name in _PACKAGES if name in installed} | named


def _nvidia_driver() -> str:
    """The driver's version by `nvidia-smi`; empty without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        answer = subprocess.run(  # noqa: S603 - found on the user's own path
            [program, "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout.strip() else ""
