"""How a TensorRT engine is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.engines.tensorrt.plan import Profile


@dataclass(frozen=True)
class Options:
    """How an engine is built.

    Attributes:
        profile: how many images at once.
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
        """The options of `mineral-export trt` that build the same engine."""
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
