"""What was brought along: unpack it, say what is missing, compile sources."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mineral_bench.gpu import packages, unpack
from mineral_bench.gpu.native_backend import native_backend
from mineral_bench.gpu.packages import is_there
from mineral_bench.gpu.record import first_line

if TYPE_CHECKING:
    from mineral_bench.gpu.record import Record
    from mineral_bench.gpu.settings import Settings


def install(settings: Settings, record: Record) -> None:
    """Unpack what was brought along into OUT/site, download nothing, and say what is missing.

    Raises:
        RuntimeError: naming what other stages need and do not find.
    """
    installed = [name for name in record.values.get("installed", []) if unpack.is_unpacked(settings, name)]
    broken: dict[str, str] = {}
    record.save(installed=installed, failed=broken)  # before the folder exists again, empty
    settings.site.mkdir(exist_ok=True)
    for name in unpack.brought(settings):
        if name in installed:
            continue
        try:
            unpack.unpack(settings, name)
        except unpack.ERRORS as error:
            record.count_failure(name, error)
            broken[name] = first_line(error)
        else:
            installed.append(name)
        record.save(installed=installed, failed=broken)
    importlib.invalidate_caches()
    missing = packages.missing(is_dry=settings.sizes.dry)
    record.save(installed=installed, failed=broken, missing=missing, left_out=packages.left_out())
    record.save(onnxruntime=packages.imported_onnxruntime())
    if missing:
        raise RuntimeError(f"bring these along in --wheels (see benchmarks/GPU.md): {', '.join(missing)}")


def pycuda(settings: Settings, record: Record) -> None:
    """Compile what was brought along as source, which takes minutes; then check the native backend through pycuda."""
    settings.site.mkdir(exist_ok=True)
    for source in unpack.sources(settings):
        if not (record.has(source.name) and settings.is_compiled(record.values[source.name])):
            try:
                record.save(**{source.name: {"compiled": unpack.build(source, settings.site)}})
            except unpack.ERRORS as error:
                record.failed(source.name, RuntimeError(unpack.reason(error)))
    importlib.invalidate_caches()
    if is_there("pycuda"):
        native_backend(settings.sizes, record, through="pycuda")
    else:
        record.left_out("native_backend_through_pycuda", "pycuda is not installed")
