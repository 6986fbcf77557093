"""Whether a TensorRT can build an engine here, and the GPUs that it can build for from another machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mineral_batch.cuda.probe import DriverError, gpus
from mineral_batch.errors import BackendError

if TYPE_CHECKING:
    from mineral_batch.engines.tensorrt.library import Library
    from mineral_batch.engines.tensorrt.options import Options


def require_buildable(library: Library, options: Options) -> None:
    """Refuse, before minutes of work, an engine that this TensorRT cannot build here.

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


def set_targets(trt: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    """Set the GPUs that the engine is for."""
    known = chips(trt)
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        if not config.set_compute_capability(known[capability], index):
            raise BackendError(f"TensorRT refuses compute capability {capability} beside the others: build for fewer")


def chips(trt: Any) -> dict[str, Any]:
    """`8.9` -> TensorRT's own value, for all targets it can build for from another machine."""
    members = trt.ComputeCapability.__members__.items()
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members if name.startswith("SM")}
