"""From an ONNX graph to a plan, alike for TensorRT 10.12+, TensorRT 11 and TensorRT for RTX.

The network is strongly typed: each layer computes in the type that the graph gives it. It is the only kind that all
three know (11 has no precision flags any more), and the only one whose precision is a fact and not a wish. What came
out is read back: by the engine inspector where there is a GPU to load the engine on, else from the typed network.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mineral_batch.backends.cuda_driver import DriverError, gpus
from mineral_batch.errors import BackendError
from mineral_batch.files import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mineral_batch.backends.tensorrt_engine import Profile
    from mineral_batch.backends.tensorrt_library import Library

    #: Called with the name of a phase, the steps done and all of them.
    Progress = Callable[[str, int, int], None]

# TensorRT's names of its types, and its inspector's words for them, as this project names precisions.
_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "FP8": "float8", "FP4": "float4"}
_WORDS = {"float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bf16": "bfloat16"}
_WORDS |= {"bfloat16": "bfloat16", "int8": "int8", "fp8": "float8", "fp4": "float4"}
_PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION_INPUT")
MIXED = "mixed"
_GIB = 1 << 30


@dataclass(frozen=True)
class Options:
    """How an engine is built.

    Attributes:
        profile: how many pictures at once.
        compute_capabilities: of the GPUs to build for, such as `8.9`; empty for the one in this machine.
        workspace: GiB of GPU memory that a layer may use; None for all there is.
        version_compatible: also for later releases of TensorRT.
        hardware_compatible: also for every GPU since Ampere.
        timing_cache: a file of earlier measurements, read if it is there, and written.
    """

    profile: Profile
    compute_capabilities: tuple[str, ...] = ()
    workspace: float | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Layers:
    """How many layers there are of each precision.

    Attributes:
        products: convolutions and matrix products, where the time goes.
        all: layers with a floating point or quantised output.
        of: `engine` or `typed network`.
    """

    products: dict[str, int]
    all: dict[str, int] = field(default_factory=dict)
    of: str = "typed network"

    @property
    def precision(self) -> str:
        """Of the products, if they agree, else `mixed`."""
        return next(iter(self.products)) if len(self.products) == 1 else MIXED


@dataclass(frozen=True)
class Built:
    """A plan and what is known of it.

    Attributes:
        plan: the bytes that TensorRT loads.
        layers: read back.
        inputs: name -> dtype and shape; -1 is the batch.
        outputs: likewise.
    """

    plan: bytes
    layers: Layers
    inputs: dict[str, str]
    outputs: dict[str, str]


class Network:
    """A parsed ONNX graph, strongly typed, not built yet.

    Args:
        library: a TensorRT.
        source: the ONNX file.

    Raises:
        BackendError: with TensorRT's words, if it does not take the graph.
    """

    def __init__(self, library: Library, source: Path) -> None:
        trt = library.module
        self._library = library
        self._logger = library.logger()
        self._builder = _make_builder(library, self._logger)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(typed)
        self._parser = trt.OnnxParser(self._network, self._logger)
        if not self._parser.parse_from_file(str(source)):
            raise BackendError(f"{library.name} {library.version} does not take {source}: {self._reason()}")

    def layers(self) -> Layers:
        """Counted by the types of the network."""
        every: Counter[str] = Counter()
        products: Counter[str] = Counter()
        for index in range(self._network.num_layers):
            layer = self._network.get_layer(index)
            kind = layer.type.name
            if kind in _PRODUCTS:
                products[_TYPES.get(name := layer.get_input(0).dtype.name, name)] += 1
            if layer.num_outputs and layer.get_output(0).dtype.name in _TYPES and kind != "CONSTANT":
                every[_TYPES[layer.get_output(0).dtype.name]] += 1
        return Layers(dict(products), dict(every))

    def build(self, options: Options, progress: Progress | None = None) -> Built:
        """Build the plan; minutes for a large model on a GPU, where kernels are timed.

        Raises:
            BackendError: if TensorRT does not, or cannot target the GPU asked for.
        """
        config = self._configured(options, progress)
        serialised = self._builder.build_serialized_network(self._network, config)
        if serialised is None:
            raise BackendError(f"{self._library.name} {self._library.version} builds no engine: {self._reason()}")
        if options.timing_cache:
            _keep_timings(config, options.timing_cache)
        plan = bytes(serialised)
        layers = engine_layers(self._library, plan, self.layers()) or self.layers()
        network = self._network
        inputs = (network.get_input(index) for index in range(network.num_inputs))
        outputs = (network.get_output(index) for index in range(network.num_outputs))
        return Built(plan, layers, dict(map(_described, inputs)), dict(map(_described, outputs)))

    def _configured(self, options: Options, progress: Progress | None) -> Any:
        trt, config = self._library.module, self._builder.create_builder_config()
        config.add_optimization_profile(self._profile(options.profile))
        # So that the inspector can tell each layer's type.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * _GIB))
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.timing_cache:
            known = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(known), False)
        if progress is not None and hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = _monitor(trt, progress)
        _target(self._library, config, options.compute_capabilities)
        return config

    def _profile(self, batches: Profile) -> Any:
        """The first axis of each input is the batch."""
        profile = self._builder.create_optimization_profile()
        for index in range(self._network.num_inputs):
            tensor = self._network.get_input(index)
            picture = tuple(tensor.shape)[1:]
            sizes = (batches.smallest, batches.optimum, batches.largest)
            profile.set_shape(tensor.name, *((size, *picture) for size in sizes))
        return profile

    def _reason(self) -> str:
        """The parser's first error, or the last one logged, as one line."""
        told = [self._parser.get_error(index).desc() for index in range(self._parser.num_errors)] or self._logger.errors
        return " ".join(told[0].split()) if told else "it gives no reason"


def _make_builder(library: Library, logger: Any) -> Any:
    if library.name == "tensorrt":
        _require_driver(
            "tensorrt builds an engine by timing kernels on the GPU",
            "use --runtime tensorrt-rtx, which builds for a chip that is not there",
        )
    return library.module.Builder(logger)


def _require_driver(why: str, otherwise: str) -> None:
    try:
        gpus()
    except DriverError as error:
        raise BackendError(f"{why}, and here is {error}: use a machine with one, or {otherwise}") from None


def _target(library: Library, config: Any, capabilities: tuple[str, ...]) -> None:
    """Which chips the engine is for."""
    trt = library.module
    if not capabilities and library.name == "tensorrt-rtx":
        _require_driver(
            "an engine is built for the GPU of this machine", "name the chip to build for: --compute-capability 8.9"
        )
    if not capabilities:
        return
    if not hasattr(trt, "ComputeCapability"):
        raise BackendError(
            f"{library.name} {library.version} builds for the GPU that it runs on: leave out --compute-capability, "
            f"or use --runtime tensorrt-rtx"
        )
    known = chips(trt)
    for capability in capabilities:
        if capability not in known:
            raise BackendError(
                f"{library.name} {library.version} has no target for compute capability {capability}; "
                f"it has {', '.join(known)}"
            )
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(known[capability], index)


def chips(trt: Any) -> dict[str, Any]:
    """`8.9` -> TensorRT's own value, for all targets it can build for from another machine."""
    members = trt.ComputeCapability.__members__.items()
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members if name.startswith("SM")}


def _keep_timings(config: Any, path: Path) -> None:
    """A cache that cannot be written costs time at the next build, nothing else."""
    cache = config.get_timing_cache()
    with suppress(OSError), whole_file(path) as file:
        file.write(bytes(cache.serialize()))


def _monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's callbacks as calls of `progress`; nested phases are left out."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps
                progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                progress(phase_name, step + 1, self.steps[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            steps = self.steps.pop(phase_name, 0)
            if steps:
                progress(phase_name, steps, steps)

    return Monitor()


def engine_layers(library: Library, plan: bytes, network: Layers) -> Layers | None:
    """The layers of the engine as the inspector tells them; None where there is no GPU to load it on.

    Args:
        library: that built it.
        plan: the engine.
        network: that it was built from: a fused layer has no name by which to tell a product, so these stay.
    """
    try:
        gpus()
    except DriverError:
        return None
    trt = library.module
    runtime = trt.Runtime(library.logger())
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:  # built for another chip
        return None
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return Layers(network.products, inspected(told), "engine")


def inspected(told: str) -> dict[str, int]:
    """The inspector's JSON -> layers by the precision of their first output.

    Each output has a `Format/Datatype`, whose words differ between releases: `Half`, `Row major linear FP16 format`.
    """
    counts: Counter[str] = Counter()
    for layer in json.loads(told).get("Layers", []):
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        words = (
            str(outputs[0].get("Format/Datatype", outputs[0].get("Datatype", ""))).lower().split() if outputs else []
        )
        counts.update([precision for word in words if (precision := _WORDS.get(word))][:1])
    return dict(counts)


def _described(tensor: Any) -> tuple[str, str]:
    kind = _TYPES.get(tensor.dtype.name, tensor.dtype.name.lower())
    return tensor.name, f"{kind} ({', '.join(map(str, tensor.shape))})"
