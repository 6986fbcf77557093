"""The same model and photographs by the ways that people use, each in a process of its own.

Their output is compared, so that none is fast by computing something else.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.engines.registry import engine_names
from mineral_batch.errors import DataError
from mineral_batch.images.decode import load_image
from mineral_batch.storage.urls import is_url
from mineral_batch.types import Failure
from mineral_bench import comparison
from mineral_bench.baselines.ours import MineralBatch
from mineral_bench.baselines.pytorch import TimmBaseline, TorchBaseline
from mineral_bench.baselines.runtimes import OnnxRuntimeBaseline, OpenVinoBaseline
from mineral_bench.comparison import Comparison, compare
from mineral_bench.process.isolated import Isolated, IsolatedError
from mineral_bench.report import Table
from mineral_export.verify.samples import image_files
from mineral_train.model.fetched import fetch_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Probabilities
    from mineral_bench.baselines.base import Baseline
    from mineral_bench.measure import Plan
    from mineral_bench.subject import Subject

    #: Called with a line about what happens next.
    Show = Callable[[str], object]

EAGER, COMPILED, TIMM = "torch eager, DataLoader", "torch.compile, DataLoader", "timm's loader, torch eager"
ONNX, OPENVINO = "ONNX Runtime, defaults, one by one", "OpenVINO, defaults, one by one"


@dataclass(frozen=True)
class PeerOptions:
    """Which baselines to measure, and how.

    Attributes:
        batch: of the baselines that take batches.
        compiled: include torch.compile.
        backends: of ours.
        also: `FILE[@ENGINE]`, further files of the same model for ours, such as one in INT8; the default engine is
            onnx-cpu.
        engines_only: predict decoded images.
        workers: processes of the DataLoaders; None for one per CPU.
    """

    batch: int = 8
    compiled: bool = False
    backends: tuple[str, ...] = ("onnx-cuda", "openvino", "onnx-cpu")
    also: tuple[str, ...] = ()
    engines_only: bool = False
    workers: int | None = None


def baselines(subject: Subject, options: PeerOptions) -> dict[str, Callable[[], Baseline]]:
    """Return name -> what makes the baseline in its process; the reference of the ratios comes first."""
    makers: dict[str, Callable[[], Baseline]] = {}
    if subject.checkpoint:
        eager = partial(TorchBaseline, subject.checkpoint, options.batch, workers=options.workers)
        makers[EAGER] = eager
        if options.compiled:
            makers[COMPILED] = partial(eager, compiled=True)
        if not options.engines_only:
            makers[TIMM] = partial(TimmBaseline, subject.checkpoint, options.batch, workers=options.workers)
    makers[ONNX] = partial(OnnxRuntimeBaseline, subject.model)
    makers[OPENVINO] = partial(OpenVinoBaseline, subject.model)
    for name in options.backends:
        makers[f"mineral-batch, {name}"] = partial(MineralBatch, subject.model, name)
    for name in options.also:
        file, engine = _file_and_engine(name)
        makers[f"mineral-batch, {engine}, {file.name}"] = partial(MineralBatch, file, engine)
    return makers


def _file_and_engine(name: str) -> tuple[Path, str]:
    """Take `FILE[@ENGINE]` apart; a file whose own name has an `@` is taken as it is."""
    file, _, engine = name.rpartition("@")
    is_whole = not file or Path(name).exists() or (is_url(name) and engine not in engine_names())
    return (fetch_model(name), "onnx-cpu") if is_whole else (fetch_model(file), engine)


def photographs(inputs: Sequence[Path], spec: InputSpec, count: int) -> list[str]:
    """Return the first `count` files that can be read.

    Raises:
        DataError: if there is none.
    """
    readable = (str(path) for path in image_files(inputs) if not isinstance(load_image(path, spec), Failure))
    paths = list(itertools.islice(readable, count))
    if not paths:
        raise DataError(f"no readable image under {', '.join(map(str, inputs))}")
    return paths


@dataclass(frozen=True)
class PeerComparison:
    """The result.

    Attributes:
        comparison: of the baselines that work here.
        computes_on: baseline -> device and precision, in words.
    """

    comparison: Comparison
    computes_on: Mapping[str, str]


def measure(
    subject: Subject, paths: Sequence[str], options: PeerOptions, plan: Plan, show: Show = lambda _: None
) -> PeerComparison:
    """Time every baseline that works here in interleaved rounds; before that each predicts once, for comparison.

    Args:
        subject: the model.
        paths: image files.
        options: which baselines.
        plan: how long to measure; starting the baselines and their first prediction come on top.
        show: called before each baseline is started, and before the rounds.

    Raises:
        DataError: if none works.
    """
    method = "from_pixels" if options.engines_only else "from_files"
    with ExitStack() as stack:
        opened, absent = _open(baselines(subject, options), paths, method, stack, show)
        processes = {name: one.process for name, one in opened.items()}
        first = {name: one.first for name, one in opened.items()}
        show(f"Measuring {len(opened)} ways in interleaved rounds, for at most {plan.seconds:g} s")
        compared = replace(compare(processes, first, method, len(paths), plan), absent=absent)
    return PeerComparison(compared, {name: one.computes_on for name, one in opened.items()})


@dataclass(frozen=True)
class _Opened:
    """A baseline that works here.

    Attributes:
        process: in which it runs.
        first: (N, L), its first prediction.
        computes_on: device and precision, in words.
    """

    process: Isolated
    first: Probabilities
    computes_on: str


def _open(
    makers: Mapping[str, Callable[[], Baseline]], paths: Sequence[str], method: str, stack: ExitStack, show: Show
) -> tuple[dict[str, _Opened], dict[str, str]]:
    """Start the baselines; returns those that work here, and why the others do not."""
    opened, absent = {}, {}
    for name, make in makers.items():
        show(f"Starting {name}")
        try:
            process = stack.enter_context(Isolated(make))
            process.call("prepare", list(paths))
            first = np.asarray(process.call(method).value)
            opened[name] = _Opened(process, first, process.call("describe").value)
        except IsolatedError as error:
            absent[name] = str(error)
    if not opened:
        raise DataError(
            "no way to run the model works here: " + "; ".join(f"{name}: {why}" for name, why in absent.items())
        )
    return opened, absent


def table(result: PeerComparison, title: str) -> Table:
    """Return one row per baseline, with its ratio to the first one and to ONNX Runtime's defaults."""
    plain = comparison.table(result.comparison, title, references=(ONNX,))
    rows = [(name, result.computes_on[str(name)], *values) for name, *values in plain.rows]
    columns = [plain.columns[0], "computes on", *plain.columns[1:]]
    return Table(title, columns, rows, [*plain.notes, "Memory without the processes of a DataLoader."])


def figures(result: PeerComparison) -> dict[str, Any]:
    """Return the figures for JSON."""
    return {**comparison.figures(result.comparison), "computes_on": dict(result.computes_on)}
