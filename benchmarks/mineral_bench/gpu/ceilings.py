"""What the chip can do at most: matrix products and copies."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mineral_bench.gpu.clock import seconds_per_call
from mineral_bench.gpu.record import first_line

if TYPE_CHECKING:
    from mineral_bench.gpu.record import Record
    from mineral_bench.gpu.settings import Sizes

# How the matrix units add FP8 products: in fewer bits than FP32, or copied to FP32 every few products.
_SUMS = {"float8_sums_in_fewer_bits": True, "float8_sums_in_float32": False}


def matrix_products(sizes: Sizes, record: Record) -> None:
    """Measure square matrix products in each type that the chip multiplies, in TFLOP/s."""
    for name, product in _products(sizes).items():
        if record.has(f"matrix_{name}_tflops"):
            continue
        try:
            record.save(**{f"matrix_{name}_tflops": 2 * sizes.matrix**3 / seconds_per_call(product(), sizes) / 1e12})
        except Exception as error:  # the others are still measured
            if name.startswith(("int8", "float8")):  # not every chip or PyTorch multiplies these
                record.left_out(f"matrix_{name}_tflops", first_line(error))
            else:
                record.failed(f"matrix_{name}_tflops", error)
    eight = [record.values[f"matrix_{name}_tflops"] for name in _SUMS if record.has(f"matrix_{name}_tflops")]
    if eight:  # the bound of an FP8 row is the larger: its engine may add either way
        record.save(matrix_float8_tflops=max(eight))


def _products(sizes: Sizes) -> dict[str, Any]:
    import torch

    def filled(kind: Any) -> Any:
        numbers = torch.randn(sizes.matrix, sizes.matrix, device=sizes.device)
        return (numbers * 30).to(kind) if kind == torch.int8 else numbers.to(kind)

    def plain(kind: Any) -> Any:
        left, right = filled(kind), filled(kind)
        return lambda: left @ right

    def eight_bits() -> Any:
        left, right = filled(torch.int8), filled(torch.int8).t()
        return lambda: torch._int_mm(left, right)

    def float8(is_fast: bool) -> Any:
        left, right = filled(torch.float8_e4m3fn), filled(torch.float8_e4m3fn).t()
        one = torch.ones((), device=sizes.device)
        options: dict[str, Any] = {"out_dtype": torch.bfloat16, "use_fast_accum": is_fast}
        return lambda: torch._scaled_mm(left, right, one, one, **options)

    kinds = ("float16", "bfloat16", "float32")
    halves = {name: partial(plain, getattr(torch, name)) for name in kinds}
    return {**halves, "int8": eight_bits, **{name: partial(float8, is_fast) for name, is_fast in _SUMS.items()}}


def copies(sizes: Sizes, record: Record) -> None:
    """Measure copies to, from and on the GPU, in GB/s."""
    count = sizes.copy_mib << 20
    for name, make in {"to_gpu": _to_gpu, "from_gpu": _from_gpu, "on_gpu_read_and_written": _on_gpu}.items():
        row = f"copy_{name}_gb_per_s"
        if record.has(row):
            continue
        try:
            seconds = seconds_per_call(make(count, sizes), sizes)
        except Exception as error:  # the others are still measured
            record.failed(row, error)
        else:
            record.save(**{row: count * (2 if make is _on_gpu else 1) / seconds / 1e9})


def _to_gpu(count: int, sizes: Sizes) -> Any:
    device, host = _device(count, sizes), _host(count, sizes)
    return lambda: device.copy_(host, non_blocking=True)


def _from_gpu(count: int, sizes: Sizes) -> Any:
    device, host = _device(count, sizes), _host(count, sizes)
    return lambda: host.copy_(device, non_blocking=True)


def _on_gpu(count: int, sizes: Sizes) -> Any:
    device, other = _device(count, sizes), _device(count, sizes)
    return lambda: other.copy_(device)


def _device(count: int, sizes: Sizes) -> Any:
    import torch

    return torch.zeros(count, dtype=torch.uint8, device=sizes.device)


def _host(count: int, sizes: Sizes) -> Any:
    import torch

    return torch.zeros(count, dtype=torch.uint8, pin_memory=not sizes.dry)
