"""From an ONNX graph to a plan, alike for TensorRT 10.12+, TensorRT 11 and TensorRT for RTX.

The network is strongly typed: each layer computes in the type that the graph gives it. It is the only kind that all
three know (11 has no precision flags any more), and the only one whose precision is a fact and not a wish. What came
out is read back: by the engine inspector where there is a GPU to load the engine on, else from the typed network.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mineral_batch.cuda.probe import DriverError, gpus
from mineral_batch.engines.tensorrt.plan import Profile
from mineral_batch.errors import BackendError
from mineral_batch.files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mineral_batch.engines.tensorrt.library import Library, Messages

    #: Called with the name of a phase, the steps done and all of them.
    Progress = Callable[[str, int, int], None]

# TensorRT's names of its types, and its inspector's words for them, as this project names precisions.
_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "FP8": "float8", "FP4": "float4"}
_WORDS = {"float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bf16": "bfloat16"}
_WORDS |= {"bfloat16": "bfloat16", "int8": "int8", "fp8": "float8", "fp4": "float4"}
_PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION_INPUT")
# Layers that give the same numbers in another shape.
_RESHAPES = ("SHUFFLE", "SQUEEZE", "UNSQUEEZE", "IDENTITY")
# Opset 23 has it as one operator, which TensorRT knows from 10.14 on.
_ATTENTION = "(export the model again without --opset 23)"
MIXED = "mixed"
_GIB = 1 << 30
_log = logging.getLogger("mineral_batch")


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
        tf32: products of float32 numbers may be computed in TF32, of 10 bits of mantissa, on chips that have it.
    """

    profile: Profile
    compute_capabilities: tuple[str, ...] = ()
    workspace: float | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None
    tf32: bool = False

    def arguments(self) -> list[str]:
        """The same as words for `mineral-export trt`."""
        batches = self.profile
        words = ["--min", batches.smallest, "--opt", batches.optimum, "--max", batches.largest]
        if batches.smallest == batches.largest:
            words = ["--batch", batches.largest]
        for chip in self.compute_capabilities:
            words += ["--compute-capability", chip]
        if self.workspace is not None:
            words += ["--workspace", self.workspace]
        if self.timing_cache is not None:
            words += ["--timing-cache", self.timing_cache]
        words += ["--version-compatible"] * self.version_compatible
        words += ["--hardware-compatible"] * self.hardware_compatible
        return [str(word) for word in words]


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
        self._messages = library.messages()
        self._builder = _make_builder(library, self._messages)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(typed)
        self._parser = trt.OnnxParser(self._network, self._messages.logger)
        if not self._parser.parse_from_file(str(source)):
            raise BackendError(f"{library.name} {library.version} does not take {source}: {self._reason()}")
        _let_decompose(trt, self._network)

    def layers(self) -> Layers:
        """Counted by the types of the network.

        A product of what was dequantised just before is one in the quantised type: TensorRT fuses the two.
        """
        every: Counter[str] = Counter()
        products: Counter[str] = Counter()
        quantised: dict[str, str] = {}
        for index in range(self._network.num_layers):
            layer = self._network.get_layer(index)
            kind = layer.type.name
            given = layer.get_input(0) if layer.num_inputs else None  # an optional one is None, too
            taken = quantised.get(given.name, _type(given)) if given else ""
            if kind in _PRODUCTS:
                products[taken] += 1
            if kind == "DEQUANTIZE" or (kind in _RESHAPES and given and given.name in quantised):
                quantised[layer.get_output(0).name] = taken
            if layer.num_outputs and layer.get_output(0).dtype.name in _TYPES and kind != "CONSTANT":
                every[_type(layer.get_output(0))] += 1
        return Layers(dict(products), dict(every))

    def build(self, options: Options, progress: Progress | None = None) -> Built:
        """Build the plan; minutes for a large model on a GPU, where kernels are timed.

        Raises:
            BackendError: if TensorRT does not, or not such an engine (see `require_buildable`).
            KeyboardInterrupt: after Ctrl-C, at the next step of the build.
        """
        require_buildable(self._library, options)
        with _interruptible() as interrupted:
            config, kept = self._configured(options, progress, interrupted)
            serialised = self._builder.build_serialized_network(self._network, config)
            del kept  # TensorRT only borrowed it
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

    def _configured(
        self, options: Options, progress: Progress | None, interrupted: threading.Event
    ) -> tuple[Any, list[Any]]:
        """The configuration, and what must be kept until the engine is built."""
        trt, config = self._library.module, self._builder.create_builder_config()
        kept: list[Any] = []
        config.add_optimization_profile(self._profile(options.profile))
        # So that the inspector can tell each layer's type.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * _GIB))
        if not options.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)  # TensorRT sets it without being asked
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.timing_cache:
            kept.append(_set_timings(config, options.timing_cache))
        if hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = monitor = _monitor(trt, progress, interrupted)
            kept.append(monitor)
        if options.compute_capabilities:
            _target(trt, config, options.compute_capabilities)
        return config, kept

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
        """The parser's first error, or the first one logged, as one line."""
        told = self._parser.get_error(0).desc() if self._parser.num_errors else self._messages.first()
        reason = " ".join(told.split()) or "it gives no reason"
        return f"{reason} {_ATTENTION}" if "Attention" in reason else reason


def _let_decompose(trt: Any, network: Any) -> None:
    """An attention may become several kernels where there is none for all of it, as in float32."""
    attention = getattr(trt, "IAttentionInputLayer", None)
    for index in range(network.num_layers if attention else 0):
        layer = network.get_layer(index)
        if layer.type.name == "ATTENTION_INPUT":
            layer.__class__ = attention  # the bindings give every layer as its base
            layer.attention.decomposable = True


def require_buildable(library: Library, options: Options) -> None:
    """What can be told before minutes of work: whether this TensorRT builds such an engine here.

    Raises:
        BackendError: if it needs a GPU and there is none, has no target for a chip, or would ignore an option.
    """
    if library.name == "tensorrt":
        _require_driver(
            "tensorrt builds an engine by timing kernels on the GPU",
            "use --runtime tensorrt-rtx, which builds for a chip that is not there",
        )
    else:
        _require_known_to_rtx(library, options)
    if options.compute_capabilities:
        _require_targets(library, options.compute_capabilities)
    elif library.name == "tensorrt-rtx":
        _require_driver(
            "an engine is built for the GPU of this machine", "name the chip to build for: --compute-capability 8.9"
        )


def _require_known_to_rtx(library: Library, options: Options) -> None:
    """Options that TensorRT for RTX accepts in silence: the plan is the same as without them."""
    here = f"{library.name} {library.version}"
    if options.hardware_compatible:
        raise BackendError(
            f"{here} ignores --hardware-compatible: name every chip that the engine is for with --compute-capability"
        )
    if options.version_compatible:
        raise BackendError(f"{here} has no runtime for engines of other versions: leave out --version-compatible")
    if options.timing_cache:
        raise BackendError(f"{here} times no kernels while it builds: leave out --timing-cache")


def _require_driver(why: str, otherwise: str) -> None:
    try:
        gpus()
    except DriverError as error:
        raise BackendError(f"{why}, and here is {error}: use a machine with one, or {otherwise}") from None


def _require_targets(library: Library, capabilities: tuple[str, ...]) -> None:
    if not hasattr(library.module, "ComputeCapability"):
        raise BackendError(
            f"{library.name} {library.version} builds for the GPU that it runs on: leave out --compute-capability, "
            f"or use --runtime tensorrt-rtx"
        )
    known = chips(library.module)
    for capability in capabilities:
        if capability not in known:
            raise BackendError(
                f"{library.name} {library.version} has no target for compute capability {capability}; "
                f"it has {', '.join(known)}"
            )


def _make_builder(library: Library, messages: Messages) -> Any:
    if library.name == "tensorrt":
        require_buildable(library, Options(Profile(1, 1, 1)))  # without a driver it crashes
    try:
        return library.module.Builder(messages.logger)
    except TypeError:  # what its bindings make of a null pointer
        why = messages.last() or "it gives no reason"
        raise BackendError(f"{library.name} {library.version} does not start: {why}") from None


def _target(trt: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    """Which chips the engine is for."""
    known = chips(trt)
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        if not config.set_compute_capability(known[capability], index):
            raise BackendError(f"TensorRT refuses compute capability {capability} beside the others: build for fewer")


def chips(trt: Any) -> dict[str, Any]:
    """`8.9` -> TensorRT's own value, for all targets it can build for from another machine."""
    members = trt.ComputeCapability.__members__.items()
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members if name.startswith("SM")}


def _set_timings(config: Any, path: Path) -> Any:
    """Earlier measurements, or none yet."""
    try:
        known = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise BackendError(f"cannot read the timing cache {path}: {error.strerror}") from None
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        raise BackendError(
            f"{path} is no timing cache of this TensorRT and GPU: delete it, or name another with --timing-cache"
        )
    return cache


def _keep_timings(config: Any, path: Path) -> None:
    """A cache that cannot be written costs time at the next build, nothing else."""
    try:
        with atomic_file(path) as file:
            file.write(bytes(config.get_timing_cache().serialize()))
    except OSError as error:
        _log.warning("cannot write the timing cache %s (%s): the next build takes as long", path, error.strerror)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """In the block, Ctrl-C sets the event: an exception inside of TensorRT's callbacks would be printed and lost.

    Raises:
        KeyboardInterrupt: at the end of the block, if the event is set.
    """
    interrupted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield interrupted
        return
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted.is_set():
        raise KeyboardInterrupt


def _monitor(trt: Any, progress: Progress | None, interrupted: threading.Event) -> Any:
    """TensorRT's callbacks as calls of `progress`, nested phases left out; ends the build once it is interrupted."""
    told = progress or (lambda phase, step, steps: None)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps
                told(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                told(phase_name, step + 1, self.steps[phase_name])
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            steps = self.steps.pop(phase_name, 0)
            if steps:
                told(phase_name, steps, steps)

    return Monitor()


def engine_layers(library: Library, plan: bytes, network: Layers) -> Layers | None:
    """The layers of the engine as the inspector tells them; None where there is no GPU to load it on, or it tells none.

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
    try:
        runtime = trt.Runtime(library.messages().logger)
    except TypeError:  # it does not start: what its bindings make of a null pointer
        return None
    runtime.engine_host_code_allowed = True  # a version compatible plan brings a runtime of its own
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:  # built for another chip
        return None
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    counts = inspected(told)
    return Layers(network.products, counts, "engine") if counts else None


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


def _type(tensor: Any) -> str:
    name: str = tensor.dtype.name
    return _TYPES.get(name, name.lower())


def _described(tensor: Any) -> tuple[str, str]:
    return tensor.name, f"{_type(tensor)} ({', '.join(map(str, tensor.shape))})"
