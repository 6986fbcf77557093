"""`mineral-batch predict` with --shard, --cluster or into a URL: a run in pieces."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import click

from mineral_batch.cli.asked import Asked
from mineral_batch.cli.console import EXIT_SOME_IMAGES_FAILED, say, tables_line
from mineral_batch.cli.progress import Progress
from mineral_batch.cli.signals import Stop
from mineral_batch.cluster.changes import can_relist, changes_since
from mineral_batch.cluster.identity import Identify, identify
from mineral_batch.cluster.merge import MergeSummary, merge
from mineral_batch.cluster.place import Folder, Place, open_place
from mineral_batch.cluster.plan import Plan, read_plan
from mineral_batch.cluster.run import PiecesSummary, discard, make_plan, refuse_single_run, work
from mineral_batch.cluster.shards import Shard, parse_shard
from mineral_batch.errors import DataError
from mineral_batch.predictor import Predictor
from mineral_batch.results.corrections import check_prevalence
from mineral_batch.results.inputs import Inputs, check_inputs, expand_lists
from mineral_batch.results.schema import FAILURES
from mineral_batch.results.write import require
from mineral_batch.storage.urls import redact
from mineral_batch.words import counted

# Of more shards only the first lists the images again: for a thousand it would cost as much as the predictions.
_MOST_RELISTING = 100


@dataclass(frozen=True)
class PiecesRun(Asked):
    """Calling it with workers does the run and returns the exit code.

    Attributes:
        shard: `I/N`, or where to find it; None for all of the run.
        piece_images: images in a piece; None: see `write_pieces`.
        mixed: workers may have different engines.
    """

    shard: str | None
    piece_images: int | None
    mixed: bool

    def __call__(self, workers: Workers) -> int:
        """Predict this shard's pieces; write the tables if it is the only one."""
        place, shard = self._checked()
        given = check_inputs(self.named)
        _refuse_signed(given)
        for warning in given.warnings():
            self.log.line(f"Warning: {warning}")
        stop = Stop()
        summary = workers(self, place, shard, given, stop)
        self.log.event("shard", shard=str(shard), **vars(summary))
        if summary.stopped:
            self.log.line(f"Stopped after {counted(summary.images)}. Rerun the same command to resume.")
            return 128 + (stop.signal or signal.SIGINT)
        if summary.left:
            piece, reason = next(iter(summary.left.items()))
            raise DataError(
                f"{counted(len(summary.left), 'piece')} could not be read now (piece {piece}: {reason}); everything "
                f"else is saved: rerun the same command"
            )
        return self._finish(place, shard, summary, given)

    def _checked(self) -> tuple[Place, Shard]:
        shard = Shard(1, 1) if self.shard is None else parse_shard(self.shard, os.environ)
        if self.prune:
            raise click.UsageError("--prune is for a run on one machine, into a folder")
        if self.restart and self.shard is not None:
            raise click.UsageError(
                "--restart would discard what other shards have done: remove the output first, then start all shards"
            )
        require(self.tables)
        place = open_place(self.output)
        refuse_single_run(place)
        return place, shard

    def plan(self, identify: Identify, place: Place, given: Inputs, workers: int) -> Plan:
        """Make the plan for a number of workers, or read the one that is there."""
        if self.restart:
            discard(place)
        return make_plan(
            identify,
            place,
            given,
            self.tables,
            piece_images=self.piece_images,
            workers=workers,
            options=self.options,
            mixed=self.mixed,
            relist=self.shard is None,
        )

    def progress(self, total: int) -> Progress:
        """Return the bar, or what stands for it, of a number of images."""
        return Progress((), self.log_every, self.quiet, total=total, log=self.log.progress)

    def _finish(self, place: Place, shard: Shard, summary: PiecesSummary, given: Inputs) -> int:
        if not self.quiet:
            say(_closing(summary, shard, place))
        if self.shard is not None:
            self._refuse_additions(place, shard, given)
            return 0 if self.exit_zero_on_failures or not summary.failed else EXIT_SOME_IMAGES_FAILED
        merged = merge(place, mixed=self.mixed)
        return say_merged(merged, place, quiet=self.quiet, exit_zero_on_failures=self.exit_zero_on_failures)

    def _refuse_additions(self, place: Place, shard: Shard, given: Inputs) -> None:
        """Compare the plan with the images that are there now, once this shard's pieces are saved.

        Raises:
            DataError: if there are images that the run lacks: nobody else would notice.
        """
        plan = read_plan(place)
        if plan is None:
            return
        if not can_relist(given) or (shard.count > _MOST_RELISTING and shard.number > 1):
            if not self.quiet:
                say(f"{planned_line(plan.started, plan.images)}; images added since then are not in this run")
            return
        changes = changes_since(plan, place, given)
        if changes is None:
            return
        line = changes.describe(place, plan)
        if changes.is_incomplete:
            raise DataError(
                f"{line}; all planned images of this shard are saved. To include the others, choose another output "
                f"with -o, or remove {place.name} and start all shards again"
            )
        self.log.line(f"Warning: {line}")


class Workers(Protocol):
    """Do the pieces of a run: this process, or a cluster."""

    def __call__(self, run: PiecesRun, place: Place, shard: Shard, given: Inputs, stop: Stop) -> PiecesSummary:
        """Make or read the plan and work on it; `stop` is not entered yet."""
        ...


@dataclass(frozen=True)
class ThisProcess:
    """Works on pieces with one engine, here.

    Attributes:
        open_predictor: opens it.
        opening: returns lines about it for the user.
    """

    open_predictor: Callable[[], Predictor]
    opening: Callable[[Predictor], list[str]]

    def __call__(self, run: PiecesRun, place: Place, shard: Shard, given: Inputs, stop: Stop) -> PiecesSummary:
        """See `Workers`."""
        with stop, self.open_predictor() as predictor:
            check_prevalence(predictor.contract, predictor.model, run.tables)
            for line in self.opening(predictor):
                run.log.line(line)
            plan = run.plan(partial(identify, predictor), place, given, shard.count)
            total = sum(piece.images for piece in shard.of(plan.pieces))
            with run.progress(total) as progress:
                return work(
                    predictor,
                    place,
                    plan,
                    shard,
                    mixed=run.mixed,
                    seen=progress,
                    finished=run.log.piece,
                    stop=stop,
                )


def _refuse_signed(given: Inputs) -> None:
    """A plan holds the names of all images, for others to read."""
    signed = next((name for name in expand_lists(given.named) if "://" in name and redact(name) != name), None)
    if signed is not None:
        raise click.UsageError(
            f"{redact(signed)} has a password or a signature, which a plan that others read must not hold: give the "
            f"rights by the environment"
        )


def _closing(summary: PiecesSummary, shard: Shard, place: Place) -> str:
    predicted = summary.images - summary.failed
    rate = predicted / summary.seconds if summary.seconds else 0.0
    who = f"Cluster ({summary.who})" if summary.who else f"Shard {shard}"
    # The parts of earlier runs are not read for it, so failures in them are told by the merge.
    earlier = f"{counted(summary.reused)} already done by an earlier run, failures included"
    if summary.images:
        lines = [f"{who}: {counted(predicted)} predicted in {summary.seconds:.1f} s ({rate:.1f} images/s)"]
        lines += [earlier] if summary.reused else []
    else:
        lines = [f"{who}: {earlier if summary.reused else 'no images'}"]
    if summary.failed:
        lines.append(f"{counted(summary.failed)} could not be read")
    if summary.missing:
        verb = "is" if summary.missing == 1 else "are"
        lines.append(f"{counted(summary.missing, 'piece')}, assigned to other shards, {verb} not done yet")
    elif shard.count > 1:
        name = place.name if not isinstance(place, Folder) else str(place.folder)
        lines.append(f"All pieces are done. To write the tables: mineral-batch merge {name}")
    return "\n".join(lines)


def planned_line(started: str, images: int) -> str:
    """Return when a run was planned and for how many images."""
    return f"Planned on {started}: {counted(images)}"


def say_merged(summary: MergeSummary, place: Place, *, quiet: bool, exit_zero_on_failures: bool) -> int:
    """Print what a merge wrote and return the exit code."""
    counts = summary.counts
    for warning in summary.warnings:
        say(f"Warning: {warning}", err=True)
    if not quiet:
        failed = f", {counted(counts.failed)} could not be read: {place.name}/{FAILURES}" if counts.failed else ""
        say(f"Merged {counted(summary.parts, 'part')} in {summary.seconds:.1f} s: {counted(counts.predicted)}{failed}")
        if summary.not_read:
            say(summary.not_read)
        if counts.further:
            say(counts.further_line())
        if counts.specimens:
            say(counts.specimens_line())
        say(tables_line(place.name, summary.files))
    if not counts.predicted and not counts.failed:
        raise DataError(f"the run in {place.name} has no images: its inputs are empty")
    if not counts.predicted:
        raise DataError(f"none of {counts.failed} images could be read: see {place.name}/{FAILURES}")
    return EXIT_SOME_IMAGES_FAILED if counts.failed and not exit_zero_on_failures else 0
