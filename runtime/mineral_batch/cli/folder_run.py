"""`mineral-batch predict` on one machine into a folder: a run that resumes, and what it says at its end."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mineral_batch.cli.asked import Asked
from mineral_batch.cli.console import EXIT_SOME_IMAGES_FAILED, say, tables_line
from mineral_batch.cli.opening import describe_predictor
from mineral_batch.cli.progress import Progress
from mineral_batch.cli.signals import Stop
from mineral_batch.cluster.run import refuse_pieces
from mineral_batch.errors import ContractError, DataError
from mineral_batch.images.discover import NOT_THERE
from mineral_batch.minerals.table import Table, load_table
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.familiarity import UNFAMILIAR
from mineral_batch.predictor import Predictor
from mineral_batch.results import run as runs
from mineral_batch.results.attempt import RunSummary
from mineral_batch.results.corrections import check_prevalence
from mineral_batch.results.csv import listed, open_csv
from mineral_batch.results.inputs import Inputs
from mineral_batch.results.manifest import other_thresholds
from mineral_batch.results.schema import BEST, FAILURES, PARTIAL
from mineral_batch.results.write import Tables
from mineral_batch.words import counted

_OTHER_THRESHOLDS = "The thresholds are not those of the earlier run: the column minerals was written anew by them\n"
_SHOWN = 10


class FolderRun(Asked):
    """Calling it with a model does the run and returns the exit code."""

    def __call__(self, model: Path | str | None, engine: Mapping[str, Any]) -> int:
        """Predict what is not done yet and write the tables."""
        refuse_pieces(self.output)
        given, _ = runs.check_run(self.named, self.output, self.tables)
        for warning in given.warnings():
            self.log.line(f"Warning: {warning}")
        with Predictor(model, **engine) as predictor:
            check_prevalence(predictor.contract, predictor.model, self.tables)
            changed = _OTHER_THRESHOLDS if other_thresholds(self.output, predictor.contract) else ""
            for line in describe_predictor(predictor, quiet=self.quiet):
                self.log.line(line)
            stop = Stop()
            summary = self._predict(predictor, given, stop)
        if summary is None or not summary.complete:
            self.log.line(_stopped(summary, self.output))
            return 128 + (stop.signal or signal.SIGINT)
        self.log.run_finished(summary, self.output)
        if summary.predicted and not self.quiet:
            say(changed + _closing(summary, self.output, predictor.contract, self.tables))
        _refuse_nothing(summary, given, self.output)
        return EXIT_SOME_IMAGES_FAILED if summary.failed and not self.exit_zero_on_failures else 0

    def _predict(self, predictor: Predictor, given: Inputs, stop: Stop) -> RunSummary | None:
        """Run until the end or a signal; None if a second signal cut it short."""
        with stop, Progress(given.existing, self.log_every, self.quiet, log=self.log.progress) as progress:
            try:
                return runs.run(
                    predictor,
                    given,
                    self.output,
                    self.tables,
                    restart=self.restart,
                    prune=self.prune,
                    options=self.options,
                    seen=progress,
                    stop=stop,
                    stopped=stop.finished,
                )
            except KeyboardInterrupt:
                return None


def _refuse_nothing(summary: RunSummary, given: Inputs, output: Path) -> None:
    """Raise if there is not one prediction: something is wrong with the model or with all images."""
    if summary.is_model_at_fault:
        raise ContractError(
            f"the model's output is not a probability for any of {summary.failed} images: the images were read, "
            f"the model is at fault (was it exported by mineral-export?)"
        )
    if not summary.predicted and not summary.failed:
        raise DataError(f"no images in {listed(given.first_named(_SHOWN))}: the files are empty")
    if not summary.predicted:
        raise DataError(_nothing_read(summary, output))


def _nothing_read(summary: RunSummary, output: Path) -> str:
    """One line with the first reason, so that a single bad image needs no look into failures.csv."""
    with open_csv(output / FAILURES) as table:
        _, (path, _, reason) = next(iter(table))
    subject = "the image" if summary.failed == 1 else f"none of {summary.failed} images"
    verb = "cannot" if summary.failed == 1 else "can"
    return f"{subject} {verb} be read: {path}: {reason} (see {output / FAILURES})"


def _stopped(summary: RunSummary | None, output: Path) -> str:
    done = f" after {counted(summary.predicted + summary.failed)}" if summary else ""
    partial = f" (so far: {output / PARTIAL})" if summary and summary.predicted else ""
    return f"Stopped{done}. Results saved in {output}{partial}; rerun the same command to resume."


def _closing(summary: RunSummary, output: Path, contract: ModelContract, tables: Tables) -> str:
    new, reused = summary.new - summary.new_failed, summary.reused
    lines = (
        [f"{counted(new)} predicted in {summary.seconds:.1f} s ({new / summary.seconds:.1f} images/s)"] if new else []
    )
    if reused:
        failed = 0 if summary.kept else summary.failed - summary.new_failed
        of_these = f" ({failed:,} of them could not be read)" if failed > 0 else ""
        lines.append(f"{counted(reused, 'more image' if new else 'image')} already done by an earlier run{of_these}")
    if summary.damaged:
        lines.append(f"{counted(summary.damaged, 'saved result')} damaged on disk; predicted again")
    if summary.kept:
        lines.append(f"{counted(summary.kept, 'row')} of earlier runs, not of these inputs (--prune removes them)")
    if summary.failed:
        lines.append(f"{counted(summary.failed)} could not be read: {output / FAILURES}")
    if summary.counts and summary.counts.damaged:
        what = counted(summary.counts.damaged, "damaged image")
        lines.append(f"Warning: {what} predicted from what could be decoded (column damaged)")
    lines += [summary.not_read] if summary.not_read else []
    lines += [summary.counts.further_line()] if summary.counts and summary.counts.further else []
    # Missing names were told at the start, and are rows of failures.csv.
    lines += [f"Warning: {warning}" for warning in summary.warnings if not warning.startswith(NOT_THERE)]
    minerals = summary.counts.minerals if summary.counts else Counter()
    lines += [f"  {name:<20} in {counted(n)}" for name, n in minerals.most_common(_SHOWN)]
    if len(minerals) > _SHOWN:
        lines.append(f"  and {counted(len(minerals) - _SHOWN, 'more mineral')}")
    lines += _hazard_lines(minerals, load_table(tables.minerals))
    if summary.counts and summary.counts.blank:
        where = "column best has" if BEST in tables.columns else "--columns best shows"
        lines.append(
            f"  {summary.counts.blank} of {summary.counts.predicted} images have no mineral at or above its threshold "
            f"({where} the most probable)"
        )
    if summary.counts and summary.counts.familiar:
        lines.append(
            f"  {summary.counts.unfamiliar} of {summary.counts.familiar} images look like nothing the model was "
            f"trained on (familiarity below {UNFAMILIAR:g})"
        )
    lines += [] if contract.is_calibrated else ["The probabilities are not calibrated: see the warning above."]
    if specimens := summary.counts.specimens_line() if summary.counts else "":
        lines.append(specimens)
    return "\n".join([*lines, tables_line(output, summary.files)])


def _hazard_lines(minerals: Counter[str], table: Table) -> list[str]:
    """One line for the minerals found that need care, most frequent first."""
    found = [name for name, _ in minerals.most_common() if name in table and table[name].danger]
    named = ", ".join(f"{name} ({table[name].danger})" for name in found)
    return [f"  Handle with care: {named}; see mineral-batch minerals NAME"] if found else []
