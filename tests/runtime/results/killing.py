"""A run that is killed again and again: `killing.py COUNT SEED OUTPUT [arguments of mineral-batch predict]`.

Prints how many of the kills met a run at work. Everything is imported before the first fork, so that a run costs
milliseconds to start and the kills fall into its work rather than into Python's start.

    COUNT > 0    so many kills at random moments, then one run to the end
    COUNT == 0   a kill before each operation that makes, names or removes a file, one after the other, each followed by
                 a run to the end in a fresh folder OUTPUT/N
"""

from __future__ import annotations

import importlib
import itertools
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime

from mineral_batch.cli import main
from mineral_batch.cli import predict as predict_module
from mineral_batch.results import journal

if TYPE_CHECKING:
    from collections.abc import Callable

with suppress(ImportError):
    importlib.import_module("pyarrow.parquet")
assert onnxruntime
assert predict_module
journal._SECONDS_BETWEEN_COMMITS = 0.01


def start(arguments: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Fork a run; gives its process number."""
    child = os.fork()
    if child:
        return child
    prepare()
    code: Any = 1
    try:
        main(arguments)
    except SystemExit as end:
        code = end.code
    os._exit(int(code or 0))


def finish(child: int) -> int:
    """The exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(arguments: list[str]) -> float:
    """To the end; gives the seconds."""
    begun = time.monotonic()
    code = finish(start(arguments))
    assert code in (0, 3), code
    return time.monotonic() - begun


def kill_at_random(count: int, output: Path, arguments: list[str]) -> int:
    """Over one run; a run that ends first is simply started again, as a user would."""
    whole = run(["predict", "-o", str(output / "reference"), *arguments])
    killed = 0
    while killed < count:
        child = start(["predict", "-o", str(output / "killed"), *arguments])
        time.sleep(random.uniform(0, min(whole, 0.1 + 3 * whole / count)))
        os.kill(child, signal.SIGKILL)
        killed += finish(child) == -signal.SIGKILL
    run(["predict", "-o", str(output / "killed"), *arguments])
    return killed


def kill_at_each_file(output: Path, arguments: list[str]) -> int:
    """Whatever touches the names in the output folder is a moment to die at."""
    run(["predict", "-o", str(output / "reference"), *arguments])
    for last in itertools.count():
        folder = ["predict", "-o", str(output / str(last)), *arguments]
        code = finish(start(folder, lambda last=last: die_before(last)))
        assert code in (0, 3, -signal.SIGKILL), code
        run(folder)
        if code != -signal.SIGKILL:
            return last
    raise AssertionError


def die_before(last: int) -> None:
    """Replace the operations on files by ones that count, and end the process at the given count."""
    counter = itertools.count()

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            if next(counter) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return operation

    for name in ("mkdir", "rename", "replace", "unlink"):
        setattr(Path, name, dying(getattr(Path, name)))
    os.fsync = dying(os.fsync)


if __name__ == "__main__":
    count, seed, output = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    random.seed(seed)
    killed = kill_at_random(count, output, sys.argv[4:]) if count else kill_at_each_file(output, sys.argv[4:])
    print(killed)
