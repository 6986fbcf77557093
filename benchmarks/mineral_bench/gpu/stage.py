"""One stage in a process of its own: `python -m mineral_bench.gpu.stage SETTINGS NAME`, SETTINGS as JSON."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from contextlib import suppress

from mineral_bench.gpu import machine
from mineral_bench.gpu.plan import STAGES
from mineral_bench.gpu.record import Record
from mineral_bench.gpu.settings import Settings


def run_stage(name: str, settings: Settings) -> int:
    """Run one stage in this process; returns 1 if it, or anything that it measures, failed."""
    if name != "install":
        with suppress(ImportError, OSError):
            import torch  # noqa: F401 - loads CUDA and cuDNN, which ONNX Runtime needs too
    record = Record(settings, name)
    module, function = STAGES[name].work.split(":")
    try:
        getattr(importlib.import_module(f"mineral_bench.gpu.stages.{module}"), function)(settings, record)
        record.require_success()
    except Exception as error:
        traceback.print_exc()
        record.end(error)
        return 1
    return 0


def main() -> int:
    """Run the stage that the arguments name."""
    machine.end_with_parent()
    settings, name = sys.argv[1:]
    return run_stage(name, Settings.from_words(json.loads(settings)))


if __name__ == "__main__":
    sys.exit(main())
