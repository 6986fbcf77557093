"""`mineral-batch review`: confirm and correct in the browser what a run predicted."""

from __future__ import annotations

import getpass
import socket
import threading
import webbrowser
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mineral_batch.cli.edited import say_edited
from mineral_batch.cli.paths import LOCAL
from mineral_batch.cli.shared_options import SHOWN, level_options, photos_option
from mineral_batch.errors import DataError, MineralError
from mineral_batch.minerals.table import LEVELS, load_table
from mineral_batch.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mineral_batch.minerals.levels import Levels
    from mineral_batch.minerals.table import Level
    from mineral_batch.results.read import Results
    from mineral_batch.review.features import FeatureStore
    from mineral_batch.review.labels import GivenLabels

_MOST_CONNECTIONS = 256


@click.command()
@click.argument("results", type=LOCAL)
@click.option(
    "--labels", type=LOCAL, metavar="FILE", help="Existing labels (CSV: path,labels, or a labeling tool's file)."
)
@click.option(
    "--explained",
    type=LOCAL,
    metavar="DIR",
    help="Output folder of mineral-batch explain: shows maps of where the model looks.",
)
@photos_option
@click.option(
    "-m", "--model", type=LOCAL, help="Model whose features order the photographs. [default: the model of the run]"
)
@level_options(SHOWN)
@click.option("--reviewer", metavar="NAME", help="Your name, saved with your decisions. [default: your user name]")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the page. [default: any that is free]")
@click.option("--no-browser", is_flag=True, help="Print the address without opening it.")
@click.option(
    "--export", "export", type=LOCAL, metavar="CSV", help="Write the labels decided so far to this file, and exit."
)
def review(
    results: Path,
    labels: Path | None,
    explained: Path | None,
    photos: Path | None,
    model: Path | None,
    level: Level | None,
    minerals: Path | None,
    reviewer: str | None,
    port: int,
    no_browser: bool,
    export: Path | None,
) -> None:
    """Confirm and correct the predictions in RESULTS in your browser.

    The page is served to this machine only, under a secret address. Every decision is saved at once in
    RESULTS/review.sqlite, with your name and the time. Stop with Ctrl-C: that writes RESULTS/labels.csv, for training
    and for evaluate, with all columns of the table of --labels. --export writes it at any time.
    """
    say_edited(results, "the edited table is reviewed")
    if export is not None:
        _export(results, labels, export)
        return
    from mineral_batch.report.explained import read_explained
    from mineral_batch.report.thumbnails import find_base
    from mineral_batch.results.read import read_results
    from mineral_batch.review.decisions import Decisions
    from mineral_batch.review.labels import LABELS, GivenLabels, read_given
    from mineral_batch.review.session import Review

    read = read_results(results)
    given = read_given(labels, read) if labels else GivenLabels()
    maps = read_explained(explained, read) if explained else None
    base = photos or find_base(read.predictions.paths, [Path(), results, results.parent])
    with Decisions(results) as decisions:
        if maps is not None:
            click.echo(f"Maps of {len(maps.overlays)} of {counted(len(read.predictions.paths), 'image')}", err=True)
        features, note = _features(read, base, model)
        levels = _levels(read, level, minerals)
        session = Review(read, decisions, base, reviewer or _user(), given, maps, features, levels)
        try:
            _serve(session, port, note, is_opened=not no_browser)
        finally:
            session.close()
        rows = session.label_table()
        rows.write(results / LABELS, decisions.recorded_labels())
        click.echo("\n".join(_closing(decisions.counts, given, rows.kept, results / LABELS)), err=True)


def _levels(read: Results, level: Level | None, minerals: Path | None) -> Levels | None:
    """The broader names up to the level that was asked for, else up to that of the run."""
    from mineral_batch.minerals.levels import Levels

    of_run = read.manifest.get("level")
    broadest = level or (of_run if of_run in LEVELS else None)
    return Levels(read.predictions.labels, broadest, load_table(minerals)) if broadest else None


def _export(results: Path, labels: Path | None, table: Path) -> None:
    """Write the decided labels, with the existing ones of the images that nobody decided."""
    from mineral_batch.results.read import read_results
    from mineral_batch.review.decisions import read_decisions, read_recorded_labels
    from mineral_batch.review.labels import GivenLabels, LabelTable, read_given

    given = read_given(labels, read_results(results)) if labels else GivenLabels()
    decisions = read_decisions(results)
    rows = LabelTable(decisions, given)
    rows.write(table, read_recorded_labels(results))
    click.echo("\n".join(_closing(Counter(one.status for one in decisions), given, rows.kept, table)))


def _closing(counts: Mapping[str, int], given: GivenLabels, kept: int, table: Path) -> Iterator[str]:
    """What was decided, what the table has besides and why it lacks some, and what it is good for."""
    left_out = [f"{counts[status]} {status}" for status in ("unsure", "rejected") if counts.get(status)]
    decided = f"{counted(sum(counts.values()), 'image')} decided"
    line = f"{decided}; {counted(kept, 'existing label')} kept: {table}" if kept else f"{decided}; labels: {table}"
    yield f"{line} ({' and '.join(left_out)}: not in this table)" if left_out else line
    if given.elsewhere:
        rows = counted(len(given.elsewhere), "row")
        yield f"{rows} of --labels about images that are not in this run: kept in the table as they were"
    if counts.get("labeled"):
        yield f"next: mineral-train adapt {table} -o mine.onnx   (ten photographs of each mineral are a start)"


def _features(read: Results, base: Path, model: Path | None) -> tuple[FeatureStore | None, str]:
    """The features of the run's model; None, with a line that says why, where it is not there or has none."""
    from mineral_batch.review.features import FeatureExtractor, FeatureStore, model_of

    found = model or model_of(read, base)
    try:
        if found is None:
            raise DataError("the model of this run is not here as it was; name it with --model")
        extractor = FeatureExtractor(found)
    except MineralError as error:
        if model is not None:
            raise
        return None, f"The order goes by the model's answers, not by its features: {error}"
    return FeatureStore(read.table.parent, extractor), ""


def _serve(session: object, port: int, note: str, *, is_opened: bool) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    from mineral_batch.review.connections import TimedConnection
    from mineral_batch.review.server import HOST, make_app, new_token
    from mineral_batch.review.session import Review

    assert isinstance(session, Review)
    with socket.socket() as listening:
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((HOST, port))
            listening.listen(64)  # the page may ask before the server runs
        except OSError as error:
            raise DataError(f"cannot serve on port {port}: {error.strerror}; leave out --port") from None
        port, token = listening.getsockname()[1], new_token()
        address = f"http://{HOST}:{port}/{token}/"
        click.echo(f"Review {len(session.paths)} images at {address} (Ctrl-C stops)", err=True)
        if note:
            click.echo(note, err=True)
        if is_opened:
            threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
        config = uvicorn.Config(
            make_app(session, token, port),
            http=TimedConnection,
            ws="none",
            log_level="error",  # a request that is refused is no news for the terminal
            timeout_keep_alive=5,
            limit_concurrency=_MOST_CONNECTIONS,
        )
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "reviewer"
