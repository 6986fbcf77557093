"""Everything that a GPU can show of this project, by one command on a bare CUDA machine.

    python benchmarks/gpu/run.py --wheels DIR --out DIR [--dry-run]

The machine needs Python 3.12, PyTorch with CUDA, timm, onnx and onnxscript; it reaches no package index, so what else
is measured (onnxruntime-gpu, tensorrt, tensorrt-rtx, torch-tensorrt, pycuda, ...) is brought along in DIR, as README.md
lists. What is absent is left out and said so.

Each stage is a process of its own with its own time limit, and writes its result after each measurement: one that
fails or is killed leaves the others and its own beginning alone. The same command goes on where the last one stopped,
also within a stage; `--redo STAGE` does one from its beginning. OUT/results.json and OUT/results.md hold what there is
after every stage.

`--dry-run` walks through all of it on the CPU with tiny sizes. Its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import report
import stages

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("runtime", "train", "export", "benchmarks")


@dataclass(frozen=True)
class Limits:
    """Of one stage: seconds it may take, and what must be there before it."""

    seconds: int
    needs: tuple[str, ...] = ()


#: In this order; together they fit ten minutes, and with more --minutes each has more. What may take longest is last.
STAGES = {
    "install": Limits(100),
    "chip": Limits(30),
    "models": Limits(80),
    "verify": Limits(30, ("models",)),
    "engines": Limits(70, ("models",)),
    "end_to_end": Limits(50, ("models",)),
    "starter": Limits(30, ("models",)),
    "decoding": Limits(30, ("models",)),
    "rtx": Limits(20, ("models",)),
    "peers": Limits(70),
    "quantised": Limits(80, ("models",)),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of wheels, sdists, .tar.xz and their pieces NAME.part00...")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; also what is resumed")
    parser.add_argument("--photos", type=Path, help="folder of photographs to verify on; default: synthetic ones")
    parser.add_argument("--minutes", type=float, default=10, help="all of it takes at most this long (default: 10)")
    parser.add_argument("--redo", action="append", default=[], choices=[*STAGES], help="a stage to do again")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--stage", choices=[*STAGES], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run all stages, or the one that this process is for; 1 if one of them failed."""
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage:
        stages.run(options.stage, settings(options))
        return 0
    deadline = time.monotonic() + 60 * options.minutes
    for name, limits in STAGES.items():
        if name in options.redo or outcome(options, name).get("status") == "not done":
            common.path(options.out, name).unlink(missing_ok=True)
        if outcome(options, name).get("status") != "done":
            one(name, limits, options, deadline)
        report.write(options.out, [*STAGES])
        print(f"{name}: {outcome(options, name)['status']}", flush=True)  # noqa: T201
    return int(any(outcome(options, name)["status"] != "done" for name in STAGES))


def settings(options: argparse.Namespace) -> common.Settings:
    """What a stage is told."""
    sizes = common.TINY if options.dry_run else common.FULL
    return common.Settings(options.out.resolve(), options.wheels, options.photos, sizes)


def outcome(options: argparse.Namespace, name: str) -> dict[str, object]:
    """What is known of a stage; one of the other kind of run (dry or not), or killed with this script, is not done."""
    found = common.read(options.out, name)
    return found if found.get("dry_run") == options.dry_run else {"status": "not done"}


def one(name: str, limits: Limits, options: argparse.Namespace, deadline: float) -> None:
    """Run a stage as a process, and write how it ended into its file."""
    missing = [need for need in limits.needs if outcome(options, need).get("status") != "done"]
    left = deadline - time.monotonic()
    started = time.monotonic()
    if missing or left < 5:
        why = f"needs {', '.join(missing)}" if missing else "no time was left: give the same command again"
        ended = {"status": "skipped", "error": why}
    else:
        # A dry run is for machines of any speed.
        ended = _process(name, left if options.dry_run else min(limits.seconds * options.minutes / 10, left), options)
    kept = {key: value for key, value in common.read(options.out, name).items() if key not in common.ENDINGS}
    seconds = round(time.monotonic() - started, 1)
    common.write(options.out, name, {**kept, **ended, "seconds": seconds, "dry_run": options.dry_run})


def _process(name: str, seconds: float, options: argparse.Namespace) -> dict[str, str]:
    roots = [str(options.out.resolve() / "site"), *(str(ROOT / room) for room in ROOMS)]
    kept = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*roots, *kept]), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, *sys.argv, "--stage", name]
    given: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    # A session of its own, so that what it has started (compilers, loaders) ends with it.
    with subprocess.Popen(command, **given, text=True, errors="replace", start_new_session=True) as child:  # noqa: S603
        try:
            _, said = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"status": "out of time", "error": f"stopped after {seconds:.0f} s; what it had measured is kept"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode:
        lines = said.strip().splitlines() or [f"exit code {child.returncode}"]
        return {"status": "failed", "error": lines[-1][:500], "log": "\n".join(lines[-15:])}
    return {"status": "done"}


if __name__ == "__main__":
    sys.exit(main())
