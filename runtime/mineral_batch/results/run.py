"""A run into an output folder: resumable, one at a time, with a manifest of what was done.

Rows of an earlier run never leave the tables on their own: a run with other inputs adds its rows to those that are
there, and an image that is no longer found keeps its row until a run with `prune`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mineral_batch.errors import DataError, MineralError
from mineral_batch.images.lists import NameList
from mineral_batch.images.names import formula_safe
from mineral_batch.predictor import Predictor
from mineral_batch.results.attempt import Attempt, RunSummary
from mineral_batch.results.corrections import check_prevalence
from mineral_batch.results.csv import listed
from mineral_batch.results.fingerprint import DECODER, fingerprint
from mineral_batch.results.inputs import Inputs, check_inputs
from mineral_batch.results.journal import JOURNAL, Journal, made_with
from mineral_batch.results.prevalence import ESTIMATE, require_prevalences
from mineral_batch.results.write import CSV_ONLY, Tables, require
from mineral_batch.results.written import refuse_edited_tables, refuse_foreign_tables
from mineral_batch.types import Failure, Result, Source


def run(
    predictor: Predictor,
    inputs: Sequence[str | Path | NameList] | Inputs,
    folder: Path,
    tables: Tables = CSV_ONLY,
    *,
    restart: bool = False,
    prune: bool = False,
    options: Mapping[str, Any] | None = None,
    seen: Callable[[Result | None], object] = lambda result: None,
    stop: Callable[[], bool] = lambda: False,
    stopped: Callable[[], object] = lambda: None,
) -> RunSummary:
    """Predict everything under `inputs` and write the tables, doing only what earlier runs into `folder` did not.

    Stopped at any moment, even by a kill, and started again, it ends with the same tables as one that was not.

    Args:
        predictor: the open model.
        inputs: see `mineral_batch.images.discover.find_sources`, or what `check_run` made of them; one that does not
            exist is a row of failures.csv.
        folder: where the tables go; made if absent.
        tables: which ones; those that an earlier run left are brought up to date, too.
        restart: do everything again and forget the rows of earlier runs.
        prune: remove the rows of images that are not among these inputs.
        options: of the command, for run.json.
        seen: called with each new result, and with None for each image that an earlier run had done.
        stop: called before each image; once it returns True the batches in flight are finished and the run ends.
        stopped: called when they are finished, before the partial table is written.

    Raises:
        DataError: if there is nothing to do, another run is writing there, an input has vanished, a table was edited,
            the disk is full, or an earlier run was made with another model or other options.
        BackendError: if the engine fails. What was predicted before is saved.
    """
    given, tables = check_run(inputs, folder, tables)
    check_prevalence(predictor.contract, predictor.model, tables)
    # The decoder is part of the fingerprint; a run that goes on keeps the one that it began with.
    earlier = None if restart else made_with(folder).get(DECODER)
    decoder, sources = predictor.choose_decoder(given.sources(), earlier)
    attempt = Attempt(predictor, decoder, given, folder, tables)
    with Journal(
        folder,
        fingerprint(predictor, decoder),
        restart=restart,
        with_exif=tables.needs_exif,
        with_familiarity=tables.needs_familiarity,
        keep_damaged=predictor.keeps_damaged,
        max_pixels=predictor.max_pixels,
    ) as journal:
        _refuse_vanished(given, journal)
        try:
            complete = attempt.predict(journal, _not_kept(sources, given, journal), seen, stop)
        except MineralError:
            with suppress(MineralError):
                attempt.write_partial(journal)
            raise
        if not complete:
            stopped()
            attempt.write_partial(journal)
            return attempt.summary(journal)
        if prune:
            journal.prune()
        return attempt.write(journal, options or {})


def check_run(inputs: Sequence[str | Path | NameList] | Inputs, folder: Path, tables: Tables) -> tuple[Inputs, Tables]:
    """Find before a model is opened what would stop a run; return the inputs, and the tables to write.

    Raises:
        DataError: as `run` does.
    """
    given = inputs if isinstance(inputs, Inputs) else check_inputs(inputs)
    tables = tables.including(folder)
    require(tables)
    if tables.prevalence is not None and tables.prevalence != ESTIMATE:
        require_prevalences(tables.prevalence)
    refuse_edited_tables(folder)
    refuse_foreign_tables(folder, tables.replaced, "predict", has_begun=(folder / JOURNAL).exists())
    return given, tables


def _refuse_vanished(inputs: Inputs, journal: Journal) -> None:
    """An input that an earlier run had images from, and that now gives none, is most likely not mounted."""
    vanished = [name for name in (*inputs.empty, *inputs.missing) if journal.has_results_below(formula_safe(name))]
    if vanished:
        raise DataError(
            f"no images in {listed(vanished)} now, but an earlier run into {journal.folder} had some from there: "
            f"bring it back, or leave it out of the command (its rows stay in the tables)"
        )


def _not_kept(sources: Iterator[Source | Failure], inputs: Inputs, journal: Journal) -> Iterator[Source | Failure]:
    """The sources without the missing files whose rows an earlier run wrote: those rows stay."""
    missing = len(inputs.missing)
    for index, source in enumerate(sources):
        if index >= missing or not isinstance(source, Failure) or not journal.has_prediction(source.path):
            yield source
