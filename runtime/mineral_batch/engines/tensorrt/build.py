"""From an ONNX graph to a plan, alike for TensorRT 10.12+, TensorRT 11 and TensorRT for RTX.

The network is strongly typed: each layer computes in the type that the graph gives it. It is the only kind that all
three know (11 has no precision flags any more), and the only one whose precision is a fact and not a wish. What came
out is read back: by the engine inspector where there is a GPU to load the engine on, else from the typed network.
"""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mineral_batch.engines.tensorrt.layers import engine_layers, network_layers, type_name
from mineral_batch.engines.tensorrt.options import Options
from mineral_batch.engines.tensorrt.plan import Profile
from mineral_batch.engines.tensorrt.targets import require_buildable, set_targets
from mineral_batch.errors import BackendError
from mineral_batch.files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mineral_batch.engines.tensorrt.layers import Layers
    from mineral_batch.engines.tensorrt.library import Library, Messages

    #: Called with the name of a phase, the steps done and all of them.
    Progress = Callable[[str, int, int], None]

# Opset 23 has it as one operator, which TensorRT knows from 10.14 on.
_ATTENTION = "(export the model again without --opset 23)"
_GIB = 1 << 30
_log = logging.getLogger("mineral_batch")


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
        _drop_other_outputs(self._network)

    def layers(self) -> Layers:
        """Count the network's layers by precision."""
        return network_layers(self._network)

    def build(self, options: Options, progress: Progress | None = None) -> Built:
        """Build the plan; minutes for a large model on a GPU, where kernels are timed.

        Raises:
            BackendError: if TensorRT does not, or not such an engine (see `require_buildable`).
            KeyboardInterrupt: after Ctrl-C, at the next step of the build.
        """
        require_buildable(self._library, options)
        with _interruptible() as interrupted:
            config, kept = self._configured(options, progress, interrupted)
            serialized = self._builder.build_serialized_network(self._network, config)
            del kept  # TensorRT only borrowed it
        if serialized is None:
            raise BackendError(f"{self._library.name} {self._library.version} builds no engine: {self._reason()}")
        if options.timing_cache:
            _keep_timings(config, options.timing_cache)
        plan = bytes(serialized)
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
            config.clear_flag(trt.BuilderFlag.TF32)  # TensorRT sets it by default
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
            set_targets(trt, config, options.compute_capabilities)
        return config, kept

    def _profile(self, batches: Profile) -> Any:
        """The first axis of each input is the batch."""
        profile = self._builder.create_optimization_profile()
        for index in range(self._network.num_inputs):
            tensor = self._network.get_input(index)
            image = tuple(tensor.shape)[1:]
            sizes = (batches.smallest, batches.optimum, batches.largest)
            profile.set_shape(tensor.name, *((size, *image) for size in sizes))
        return profile

    def _reason(self) -> str:
        """The parser's first error, or the first one logged, as one line."""
        words = self._parser.get_error(0).desc() if self._parser.num_errors else self._messages.first()
        reason = " ".join(words.split()) or "it gives no reason"
        return f"{reason} {_ATTENTION}" if "Attention" in reason else reason


def _drop_other_outputs(network: Any) -> None:
    """Leave the probabilities, a graph's first output, as the only one: no engine computes maps or familiarity."""
    for index in reversed(range(1, network.num_outputs)):
        network.unmark_output(network.get_output(index))


def _let_decompose(trt: Any, network: Any) -> None:
    """An attention may become several kernels where there is none for all of it, as in float32."""
    attention = getattr(trt, "IAttentionInputLayer", None)
    for index in range(network.num_layers if attention else 0):
        layer = network.get_layer(index)
        if layer.type.name == "ATTENTION_INPUT":
            layer.__class__ = attention  # the bindings give every layer as its base
            layer.attention.decomposable = True


def _make_builder(library: Library, messages: Messages) -> Any:
    if library.name == "tensorrt":
        require_buildable(library, Options(Profile(1, 1, 1)))  # without a driver it crashes
    try:
        return library.module.Builder(messages.logger)
    except TypeError:  # what its bindings make of a null pointer
        why = messages.last() or "it gives no reason"
        raise BackendError(f"{library.name} {library.version} does not start: {why}") from None


def _set_timings(config: Any, path: Path) -> Any:
    """Earlier measurements, or none yet."""
    try:
        known = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise BackendError(f"cannot read the timing cache {path}: {error.strerror}") from None
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        raise BackendError(
            f"{path} is not a timing cache of this TensorRT and GPU: delete it, or name another with --timing-cache"
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
    report = progress or (lambda phase, step, steps: None)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps
                report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                report(phase_name, step + 1, self.steps[phase_name])
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            steps = self.steps.pop(phase_name, 0)
            if steps:
                report(phase_name, steps, steps)

    return Monitor()


def _described(tensor: Any) -> tuple[str, str]:
    return tensor.name, f"{type_name(tensor)} ({', '.join(map(str, tensor.shape))})"
