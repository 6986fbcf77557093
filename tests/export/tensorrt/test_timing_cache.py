"""TensorRT itself needs a GPU; these calls it shares with TensorRT for RTX."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from .graphs import (
    ONE_CHIP,
    built,
    refused,
)

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has wheels for Linux and Windows on x86-64")


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_tensorrt_builds_for_the_gpu_of_the_machine_with_a_timing_cache(
    product: Path, plan: Path, timing_gpu: None
) -> None:
    timings = plan.with_name("timings")
    words = (product, "-o", plan, "--timing-cache", timings, "--hardware-compatible", "--batch", 2, "--force")
    record = built(*words)
    assert (record.runtime, record.version) == ("tensorrt", "10.16.1.11")
    assert (record.gpu, record.cuda, record.compute_capabilities) == ("NVIDIA L4", "13.0", ("8.9",))
    assert record.hardware_compatible
    assert timings.stat().st_size > 0
    assert built(*words).precision == "float16"
    assert "leave out --compute-capability" in refused(product, *ONE_CHIP)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_that_tensorrt_refuses_is_not_overwritten(
    product: Path, plan: Path, timing_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings = plan.with_name("timings")
    timings.write_bytes(b"of another GPU")
    original = tensorrt_rtx.Builder.create_builder_config

    class Strict:
        """Its configuration with TensorRT's answer to a cache of another GPU; TensorRT for RTX takes any."""

        def __init__(self, config: Any) -> None:
            object.__setattr__(self, "_config", config)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._config, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(self._config, name, value)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            return False

    monkeypatch.setattr(tensorrt_rtx.Builder, "create_builder_config", lambda self: Strict(original(self)))
    message = refused(product, "-o", plan, "--timing-cache", timings)
    assert f"{timings} is not a timing cache of this TensorRT and GPU: delete it" in message
    assert timings.read_bytes() == b"of another GPU"
    assert not plan.exists()


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_that_cannot_be_written_costs_a_warning(
    product: Path, plan: Path, timing_gpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="mineral_batch"):  # whatever a library has done to the root's level
        built(product, "-o", plan, "--timing-cache", plan.parent / "nowhere" / "timings", "--force")
    assert "cannot write the timing cache" in caplog.text
