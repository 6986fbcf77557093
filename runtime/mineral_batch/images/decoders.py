"""Opens a decoder by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mineral_batch.images.decoder import CPU, CpuDecoder

if TYPE_CHECKING:
    from mineral_batch.images.decoder import DecodeOptions, Decoder


def open_decoder(name: str, options: DecodeOptions) -> Decoder:
    """Open the decoder that was chosen, never another one.

    Args:
        name: `cpu` or `gpu`.
        options: how to decode.

    Raises:
        BackendError: if it does not work on this machine.
    """
    cpu = CpuDecoder(
        options.spec, exact=options.exact, keep_damaged=options.keep_damaged, max_pixels=options.max_pixels
    )
    if name == CPU:
        return cpu
    from mineral_batch.images.gpu.decoder import GpuDecoder

    return GpuDecoder(options.spec, cpu, options.devices, options.max_pixels)
