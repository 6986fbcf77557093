"""Run the stages one after another, each as a process with its own time limit, and write the results after each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mineral_bench.gpu import machine, packages, page
from mineral_bench.gpu.plan import MINUTES, STAGES, Deadlines
from mineral_bench.gpu.record import ENDINGS, read_record, write_record
from mineral_bench.gpu.settings import FULL, TINY, Settings
from mineral_bench.gpu.state import for_stage, import_roots, outcome, start_over

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

_LAST_LINES, _WIDEST = 15, 500
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_ONNX_RUNTIME = re.compile(r"\[[EW]:onnxruntime")
# The results travel back in few and small files.
_LOG_BYTES = 8 << 20


def make_settings(out: Path, wheels: Path | None, photos: Path | None, *, is_dry: bool) -> Settings:
    """Make the settings of a run; a dry run has a folder of its own, so that it cannot pass for a real one.

    Raises:
        TimeoutError: if nvidia-smi does not say which GPU this is.
    """
    folder = out.resolve() / "dry-run" if is_dry else out.resolve()
    sizes = TINY if is_dry else FULL
    return Settings(folder, _absolute(wheels), _absolute(photos), sizes, machine.where(is_dry=is_dry))


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.resolve()


def run_all(
    settings: Settings, minutes: float = MINUTES, redo: Collection[str] = (), show: Callable[[str], object] = print
) -> bool:
    """Run every stage that is not done; returns whether all of them are.

    Args:
        settings: of the run.
        minutes: the run takes at most this long.
        redo: stages to run from their beginning.
        show: called with one line for each stage.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    deadlines = Deadlines(time.monotonic(), minutes)
    for name in STAGES:
        if name in redo or outcome(settings, name)["status"] == "not done":
            start_over(settings, name)
        if outcome(settings, name)["status"] != "done":
            # A dry run is for machines of any speed.
            until = deadlines.end if settings.sizes.dry else deadlines.of(name, time.monotonic())
            run_one(name, settings, until)
        _write_results(settings)
        ended = outcome(settings, name)
        show(": ".join(filter(None, (name, ended["status"], ended.get("error")))))
    return all(outcome(settings, name)["status"] == "done" for name in STAGES)


def _write_results(settings: Settings) -> None:
    """Write OUT/results.json, results.md and logs.txt; a fault in the page must not cost a measurement."""
    try:
        page.write(settings.out, [*STAGES])
        logs = sorted((settings.out / "logs").glob("*.txt"))
        text = b"".join(f"=== {log.stem}\n".encode() + log.read_bytes()[-_LOG_BYTES // len(STAGES) :] for log in logs)
        (settings.out / "logs.txt").write_bytes(text)
    except Exception:
        traceback.print_exc()


def run_one(name: str, settings: Settings, until: float) -> None:
    """Run a stage as a process that ends at `until`, and write into its record how it ended."""
    missing = [need for need in STAGES[name].needs if outcome(settings, need)["status"] != "done"]
    settings, started = for_stage(settings, name), time.monotonic()
    if missing or not Deadlines.is_enough(until, started):
        why = f"needs {', '.join(missing)}" if missing else "no time was left: run the same command again"
        ending: dict[str, Any] = {"status": "skipped", "error": why}
    else:
        ending = _run_process(name, until - started, settings)
    measured = {key: value for key, value in read_record(settings.out, name).items() if key not in ENDINGS}
    ending |= {"seconds": round(time.monotonic() - started, 1), "dry_run": settings.sizes.dry, "where": settings.where}
    if ending["status"] == "done":
        ending["made"] = f"{time.time():.3f}"
    write_record(settings.out, name, {**measured, **ending})


def _run_process(name: str, seconds: float, settings: Settings) -> dict[str, Any]:
    """Run a stage; returns how it ended, the end of its output, and the GPU's clocks meanwhile."""
    logs = settings.out / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{name}.txt"
    command = [sys.executable, "-m", "mineral_bench.gpu.stage", json.dumps(settings.to_words()), name]
    # A session of its own, so that what it starts (compilers, loaders) ends with it.
    options: dict[str, Any] = {"env": stage_environment(settings), "start_new_session": True}
    with (
        log.open("wb") as file,
        machine.Watch(is_dry=settings.sizes.dry) as watch,
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **options) as child,  # noqa: S603
    ):
        try:
            code: int | None = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    lines = log_lines(log.read_text("utf-8", "replace"))
    return {
        **_ending(name, code, seconds, settings, lines),
        "log": "\n".join(lines),
        "gpu": machine.summary(watch.readings),
    }


def log_lines(log: str) -> list[str]:
    """Return the end of a stage's output, and before it ONNX Runtime's first messages: why a library did not load."""
    lines = [line[:_WIDEST] for line in _COLOR.sub("", log).strip().splitlines()]
    last = lines[-_LAST_LINES:]
    return [*[line for line in lines[:-_LAST_LINES] if _ONNX_RUNTIME.search(line)][:3], *last]


def _ending(name: str, code: int | None, seconds: float, settings: Settings, lines: list[str]) -> dict[str, str]:
    if code is None:
        return {"status": "out of time", "error": f"stopped after {seconds:.0f} s; its measurements are kept"}
    if code == 0:
        return {"status": "done"}
    # One that crashed could not record why.
    crash = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    error = read_record(settings.out, name).get("error") or ": ".join([crash, *lines[-1:]])
    return {"status": "failed", "error": error[:500]}


def stage_environment(settings: Settings) -> dict[str, str]:
    """Return a stage's environment: OUT/site and this project come first, and CUDA's libraries are found."""
    roots = [str(settings.site), *import_roots()]
    paths = _parts("PYTHONPATH")
    libraries = [*_parts("LD_LIBRARY_PATH"), *packages.library_folders([*roots, *paths, *sys.path])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*roots, *paths]), "PYTHONUNBUFFERED": "1"}
    return {**environment, "LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else environment


def _parts(variable: str) -> list[str]:
    return [part for part in os.environ.get(variable, "").split(os.pathsep) if part]
