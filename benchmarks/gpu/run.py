"""Everything that a GPU can show of this project, by one command on a bare CUDA machine.

    python benchmarks/gpu/run.py --wheels DIR --out DIR [--photos DIR] [--dry-run]

The machine needs Python 3.12, PyTorch with CUDA, timm, onnx and onnxscript; it reaches no package index, so what else
is measured (onnxruntime-gpu, tensorrt, tensorrt-rtx, torch-tensorrt, pycuda, ...) is brought along in DIR, as README.md
lists. What is absent is left out and said so.

Each stage is a process of its own with its own time limit, and writes its result after each measurement: one that
fails or is killed leaves the others and its own beginning alone. The same command goes on where the last one stopped,
also within a stage, and tries again what did not work; `--redo STAGE` does one from its beginning. OUT/results.json and
OUT/results.md hold what there is after every stage.

`--dry-run` walks through all of it on the CPU with tiny sizes, in OUT/dry-run. Its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import machine
import packages
import report
import stages

if TYPE_CHECKING:
    from common import Settings

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("runtime", "train", "export", "benchmarks")
#: Kinds of files there that figures depend on, and the one file that may be mended without measuring again.
_SOURCES, _PAGE = (".py", ".ptx", ".onnx"), Path("benchmarks", "gpu", "report.py")
_LAST_LINES, _WIDEST = 15, 500
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ONNX_RUNTIME = re.compile(r"\[[EW]:onnxruntime")


@dataclass(frozen=True)
class Limits:
    """Of one stage.

    Attributes:
        seconds: that it may take beside what earlier ones have left over.
        needs: stages that must be done before it.
        uses: stages whose files it takes if they are done.
        has_pictures: it compares answers, or calibrates, on photographs where they are given.
    """

    seconds: int
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    has_pictures: bool = False


#: In this order; together they fit ten minutes, and with more --minutes each has more. What may take longest is last.
STAGES = {
    "install": Limits(45),
    "chip": Limits(30),
    "photographs": Limits(20),
    "models": Limits(100),
    "attention": Limits(45, ("models",)),
    "verify": Limits(25, ("models",), ("attention",), has_pictures=True),
    "engines": Limits(75, ("models",), ("attention",)),
    "end_to_end": Limits(45, ("models", "photographs"), ("attention",)),
    "peers": Limits(50, uses=("models", "photographs")),
    "compiled": Limits(60, uses=("photographs",)),
    "kernels": Limits(20, ("models",), ("attention",)),
    "starter": Limits(20, uses=("photographs",), has_pictures=True),
    "decoding": Limits(20, ("models", "photographs")),
    "rtx": Limits(10, ("models",), ("photographs",), has_pictures=True),
    "quantised": Limits(15, ("models",), has_pictures=True),
    "pycuda": Limits(20),
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
    parser.add_argument("--where", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=[*STAGES], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run all stages, or the one that this process is for; 1 if one of them failed."""
    options = arguments()
    given = settings(options)
    given.out.mkdir(parents=True, exist_ok=True)
    if options.stage:
        machine.end_with_parent()
        return stages.run(options.stage, given)
    begun, share = time.monotonic(), 0
    for name, limits in STAGES.items():
        share += limits.seconds
        # A dry run is for machines of any speed.
        until = begun + (60 * options.minutes if options.dry_run else share * options.minutes / 10)
        if name in options.redo or outcome(given, name)["status"] == "not done":
            _begin_anew(given, name)
        if outcome(given, name)["status"] != "done":
            one(name, given, until)
        _report(given)
        ended = outcome(given, name)
        print(": ".join(filter(None, (name, ended["status"], ended.get("error")))), flush=True)  # noqa: T201
    return int(any(outcome(given, name)["status"] != "done" for name in STAGES))


def _report(given: Settings) -> None:
    """What the stages have measured does not depend on the page."""
    try:
        report.write(given.out, [*STAGES])
    except Exception:
        traceback.print_exc()


def settings(options: argparse.Namespace) -> Settings:
    """What a stage is told; a dry run has a folder of its own, so that it can neither spoil nor pass for a real one."""
    sizes = common.TINY if options.dry_run else common.FULL
    out = options.out.resolve() / "dry-run" if options.dry_run else options.out.resolve()
    try:
        where = options.where or machine.where(is_dry=options.dry_run)
    except TimeoutError as error:
        sys.exit(str(error))
    return common.Settings(out, options.wheels, options.photos, sizes, where)


def for_stage(given: Settings, name: str) -> Settings:
    """With all that a stage's figures belong to: where something of it is another one now, the stage is done anew.

    That is the GPU and PyTorch, and for all that measures also this project's sources, the ONNX Runtime that is
    imported, the photographs, and each stage before it whose files it takes, by when that one was done.
    """
    limits, where = STAGES[name], dict(given.where)
    if name != "install":
        paths = [str(given.site), *(str(ROOT / room) for room in ROOMS), *sys.path]
        where |= {"project": project(ROOT), "onnxruntime": packages.onnxruntime_at(paths)}
    if limits.has_pictures:
        where["pictures"] = pictures(given.photos)
    for other in (*limits.needs, *limits.uses):
        found = outcome(given, other)
        if found["status"] == "done":  # what is not there for the moment leaves what was measured with it alone
            where[f"{other} of"] = found.get("made", "")
    return replace(given, where=where)


@cache
def project(root: Path) -> str:
    """Digest of the files that figures depend on."""
    files = sorted(file for room in ROOMS for file in (root / room).rglob("*") if file.suffix in _SOURCES)
    kept = [file for file in files if file != root / _PAGE]
    return _digest([[str(file.relative_to(root)), sha256(file.read_bytes()).hexdigest()] for file in kept])


@cache
def pictures(folder: Path | None) -> str:
    """Which photographs were given, wherever they lie; `synthetic` if none."""
    if folder is None:
        return "synthetic"
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return f"{len(files)} files, {_digest([[str(file.relative_to(folder)), file.stat().st_size] for file in files])}"


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def outcome(given: Settings, name: str) -> dict[str, Any]:
    """What is known of a stage; what belongs to something else, or whose files are gone, is not done."""
    found = common.read(given.out, name)
    is_lost = found.get("status") == "done" and not given.has_files_of(name)
    if not found or is_lost or _is_other(found, for_stage(given, name)):
        return {"status": "not done"}
    return {**found, "status": "cut off"} if found.get("status") == "done" and _has_more(given, name, found) else found


def _is_other(found: dict[str, Any], stage: Settings) -> bool:
    return any(found.get("where", {}).get(key) != value for key, value in stage.where.items())


def _has_more(given: Settings, name: str, found: dict[str, Any]) -> bool:
    """Whether more was brought along than a stage has unpacked or compiled."""
    if name == "install":
        return not set(packages.brought(given)) <= set(found.get("installed", ()))
    return name == "pycuda" and any(source.name not in found for source in packages.sources(given))


def _begin_anew(given: Settings, name: str) -> None:
    """Leave nothing of a stage to go on with; what belongs to something else is kept as NAME.DIGEST.json."""
    found, file = common.read(given.out, name), common.path(given.out, name)
    if found.keys() - set(common.ENDINGS) and _is_other(found, for_stage(given, name)):
        file.replace(common.path(given.out, f"{name}.{_digest(found.get('where'))}"))
    file.unlink(missing_ok=True)
    given.remove_files_of(name)


def one(name: str, given: Settings, until: float) -> None:
    """Run a stage as a process, and write how it ended into its file."""
    missing = [need for need in STAGES[name].needs if outcome(given, need)["status"] != "done"]
    given, started = for_stage(given, name), time.monotonic()
    if missing or until - started < 5:
        why = f"needs {', '.join(missing)}" if missing else "no time was left: give the same command again"
        ended: dict[str, Any] = {"status": "skipped", "error": why}
    else:
        ended = _process(name, until - started, given)
    found = common.read(given.out, name)
    kept = {key: value for key, value in found.items() if key not in common.ENDINGS}
    ended |= {"seconds": round(time.monotonic() - started, 1), "dry_run": given.sizes.dry, "where": given.where}
    if ended["status"] == "done":
        ended["made"] = f"{time.time():.3f}"
    common.write(given.out, name, {**kept, **ended})


def _process(name: str, seconds: float, given: Settings) -> dict[str, Any]:
    """How it ended, the end of what it said, and the GPU's clocks meanwhile."""
    logs = given.out / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{name}.txt"
    command = [sys.executable, *sys.argv, "--where", json.dumps(given.where), "--stage", name]
    with log.open("wb") as file, machine.Watch(is_dry=given.sizes.dry) as watch:
        said: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT, "env": _environment(given)}
        # A session of its own, so that what it has started (compilers, loaders) ends with it.
        with subprocess.Popen(command, **said, start_new_session=True) as child:  # noqa: S603
            try:
                code: int | None = child.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
    lines = _told(log.read_text("utf-8", "replace"))
    return {
        **_ending(name, code, seconds, given, lines),
        "log": "\n".join(lines),
        "gpu": machine.summary(watch.readings),
    }


def _told(log: str) -> list[str]:
    """The end of what a stage printed, and before it what ONNX Runtime said first: why a library did not load."""
    lines = [line[:_WIDEST] for line in _COLOUR.sub("", log).strip().splitlines()]
    last = lines[-_LAST_LINES:]
    return [*[line for line in lines[:-_LAST_LINES] if _ONNX_RUNTIME.search(line)][:3], *last]


def _ending(name: str, code: int | None, seconds: float, given: Settings, lines: list[str]) -> dict[str, str]:
    if code is None:
        return {"status": "out of time", "error": f"stopped after {seconds:.0f} s; what it had measured is kept"}
    if code == 0:
        return {"status": "done"}
    # One that crashed has not written down why.
    crashed = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    told = common.read(given.out, name).get("error") or ": ".join([crashed, *lines[-1:]])
    return {"status": "failed", "error": told[:500]}


def _environment(given: Settings) -> dict[str, str]:
    """Of a stage: this project and OUT/site before what is installed, and where CUDA's libraries lie."""
    roots = [str(given.site), *(str(ROOT / room) for room in ROOMS)]
    kept = _parts("PYTHONPATH")
    libraries = [*_parts("LD_LIBRARY_PATH"), *packages.library_folders([*roots, *kept, *sys.path])]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([*roots, *kept]), "PYTHONUNBUFFERED": "1"}
    return {**found, "LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else found


def _parts(variable: str) -> list[str]:
    return [part for part in os.environ.get(variable, "").split(os.pathsep) if part]


if __name__ == "__main__":
    sys.exit(main())
