"""The paper's Tables 3, 4 and 5 for the user's own manifest: each row a run, beside the paper's figures.

Wu et al. 2022, Minerals 12(11), 1338. Rows that are the same training in two tables are trained once.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from mineral_batch.errors import DataError
from mineral_batch.evaluation.metrics import EQUATION_6
from mineral_batch.files import atomic_file, write_file
from mineral_batch.results.written import replacing, require_unedited
from mineral_batch.storage.models import fetch
from mineral_train.data.manifest import write_table
from mineral_train.model.presets import PAPER_PARAMETERS, PRESETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from mineral_train.model.presets import ModelConfig
    from mineral_train.training.config import RunOptions, TrainConfig

RESULT = "test.json"
#: In the folder of all runs.
TABLES = ("tables.md", "tables.csv")
_MISSING = "–"
_CHECKED_SIZE = (64, 64)  # pixels, to which the images are decoded to see whether they can be
_TITLES = {
    3: "Table 3: backbones",
    4: "Table 4: losses",
    5: "Table 5: methods",
}


@dataclass(frozen=True)
class Row:
    """One row of the paper.

    Attributes:
        table: 3, 4 or 5.
        name: as the paper calls it.
        preset: which model it is here.
        loss: which loss.
        paper_map: the paper's test mAP in percent; words where it has no figure.
        paper_memory: its training memory, MB.
    """

    table: int
    name: str
    preset: str
    loss: str
    paper_map: float | str
    paper_memory: float | None = None

    @property
    def run(self) -> str:
        """Name of the run's folder."""
        return f"{self.preset}-{self.loss}"

    @property
    def paper_parameters(self) -> float | None:
        """The paper's number of parameters, millions; Table 3 has that column only."""
        return PAPER_PARAMETERS.get(self.preset) if self.table == 3 else None


ROWS: tuple[Row, ...] = (
    Row(3, "MobileNet-V2", "mobilenet-v2", "asymmetric", 72.38, 678.59),
    Row(3, "Big Transfer-m (BiT-M R101x1)", "bit-m-r101x1", "asymmetric", 79.55, 2002.74),
    Row(3, "ResNet-101", "resnet-101", "asymmetric", 81.76, 1527.08),
    Row(3, "ViT-B/16 (384)", "vit-b16-384", "asymmetric", 85.26, 1847.14),
    Row(3, "Swin Transformer", "swin-b-384", "asymmetric", "tried; did not fit their GPU"),
    Row(4, "binary cross-entropy", "vit-b16-384", "bce", 84.52),
    Row(4, "focal loss", "vit-b16-384", "focal", 84.79),
    Row(4, "asymmetric loss", "vit-b16-384", "asymmetric", 85.26),
    Row(5, "ResNet-50 + feature fusion (Jia et al. 2021)", "resnet50-fusion", "asymmetric", 72.13),
    Row(5, "this paper's method", "vit-b16-384", "asymmetric", 85.26),
)


@dataclass(frozen=True)
class RowResult:
    """The result of a row's run.

    Attributes:
        backbone: timm's name of the backbone that was trained.
        test_map: mAP on the test split by equation 6, 0..1.
        test_images: in the test split.
        best_epoch: chosen by the validation split.
        parameters: of the whole model.
        parameters_like_the_paper: see `model.parameters_like_the_paper`.
        peak_memory_mib: of the training.
        peak_memory_name: how it was measured.
    """

    backbone: str
    test_map: float
    test_images: int
    best_epoch: int
    parameters: int
    parameters_like_the_paper: int
    peak_memory_mib: float
    peak_memory_name: str


def choose_rows(tables: Sequence[int], runs: Sequence[str]) -> list[Row]:
    """Choose rows by table and run (empty: all), in the paper's order.

    Raises:
        DataError: if there is no such run in these tables.
    """
    rows = [row for row in ROWS if not tables or row.table in tables]
    unknown = sorted(set(runs) - {row.run for row in rows})
    if unknown:
        names = ", ".join(dict.fromkeys(row.run for row in rows))
        raise DataError(f"no row {unknown[0]!r}; the rows are {names}")
    return [row for row in rows if not runs or row.run in runs]


def row_config(
    row: Row, recipe: TrainConfig, changes: Mapping[str, Any], stand_ins: Mapping[str, str], weights: Mapping[str, str]
) -> TrainConfig:
    """Make the recipe of one row.

    Args:
        row: of the paper.
        recipe: what the rows have in common; its model gives the labels.
        changes: fields of the model that are changed in every row.
        stand_ins: preset -> another timm backbone.
        weights: preset -> file with the backbone's weights.
    """
    model: ModelConfig = replace(PRESETS[row.preset], labels=recipe.model.labels, **changes)
    if row.preset in stand_ins:
        model = replace(model, backbone=stand_ins[row.preset])
    pretrained = weights.get(row.preset, recipe.pretrained)
    return replace(recipe, model=model, loss=row.loss, pretrained=pretrained)  # type: ignore[arg-type]


def finished_row(folder: Path, config: TrainConfig, manifest: Path | str) -> RowResult | None:
    """Read the result of a run that finished with this recipe on this manifest, None if there is none."""
    try:
        record = json.loads((folder / RESULT).read_text("utf-8"))
        if record["identity"] == _identity(config, manifest):
            return RowResult(**record["result"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def train_row(config: TrainConfig, manifest: Path | str, folder: Path, options: RunOptions) -> RowResult:
    """Train one row in its own process, so that peak memory is its own, and evaluate it on the test split.

    Raises:
        DoesNotFitError: if the GPU's memory is too small.
        DataError: if the process is killed.
        MineralError: as `fit`.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        try:
            return pool.submit(_train_here, config, manifest, folder, options).result()
        except BrokenProcessPool:
            raise DataError(
                f"the training in {folder} was killed, most likely for want of memory: free some, and rerun the command"
            ) from None


def _train_here(config: TrainConfig, manifest: Path | str, folder: Path, options: RunOptions) -> RowResult:
    from mineral_train.model.network import parameters_like_the_paper
    from mineral_train.training.fit import fit

    say = None if options.quiet else partial(click.echo, err=True)
    trained = fit(config, manifest, folder, options, say=say)
    test_map, images = _test(config, manifest, folder, options)
    result = RowResult(
        backbone=config.model.backbone,
        test_map=test_map,
        test_images=images,
        best_epoch=trained.best_epoch,
        parameters=trained.parameters,
        parameters_like_the_paper=parameters_like_the_paper(config.model),
        peak_memory_mib=trained.peak_memory_mib,
        peak_memory_name=trained.peak_memory_name,
    )
    record = {"identity": _identity(config, manifest), "result": asdict(result)}
    with atomic_file(folder / RESULT) as file:
        file.write(json.dumps(record, indent=1).encode())
    return result


def _test(config: TrainConfig, manifest: Path | str, folder: Path, options: RunOptions) -> tuple[float, int]:
    from mineral_batch.evaluation.metrics import mean_average_precision
    from mineral_train.data.dataset import PhotoDataset
    from mineral_train.data.images import undecodable
    from mineral_train.data.manifest import read_manifest
    from mineral_train.training.checkpoint import load_checkpoint
    from mineral_train.training.distributed import choose_device
    from mineral_train.training.evaluate import evaluate_model

    model, contract = load_checkpoint(folder)
    rows = read_manifest(manifest, contract.labels).select("test")
    if options.skip_damaged:
        damaged = {failure.path for failure in undecodable(rows, contract.input)}
        rows = [row for row in rows if str(row.path) not in damaged]
    dataset = PhotoDataset(rows, contract.labels, contract.input)
    device = choose_device(options.device)
    scores, truth = evaluate_model(model, dataset, device=device, batch=config.batch, workers=options.workers or 0)
    return mean_average_precision(scores, truth).mean, len(rows)


def require_usable(manifest: Path | str, labels: tuple[str, ...], *, skip_damaged: bool) -> None:
    """Refuse labels, a manifest or images that would end a row after hours of training.

    Args:
        manifest: with the three splits.
        labels: of the model, unchecked.
        skip_damaged: leave images out that cannot be decoded.

    Raises:
        DataError: naming all that is wrong; also if no image of the split `test` has a label.
    """
    from mineral_batch.model.contract import InputSpec
    from mineral_train.training.data import TrainingManifest

    TrainingManifest.read(manifest, labels, spec=None if skip_damaged else InputSpec(*_CHECKED_SIZE), is_tested=True)


def _identity(config: TrainConfig, manifest: Path | str) -> dict[str, Any]:
    from hashlib import sha256

    return {"train": config.to_json(), "manifest_sha256": sha256(fetch(manifest).read_bytes()).hexdigest()}


def write_tables(folder: Path, results: Mapping[Row, RowResult | str]) -> str:
    """Write `tables.md` and `tables.csv` into `folder`; returns the Markdown.

    Raises:
        DataError: if one of them was edited since it was written, or cannot be written.
    """
    text = markdown(results)
    require_unedited_tables(folder)
    with replacing(folder, *_files(folder)):
        page, table = _files(folder)
        write_file(page, text)
        write_table(table, _CSV_HEADER, (_csv_cells(row, result) for row, result in results.items()))
    return text


def require_unedited_tables(folder: Path) -> None:
    """Refuse to lose what somebody wrote into the tables.

    Raises:
        DataError: if one of them was edited since it was written.
    """
    for target in _files(folder):
        require_unedited(folder, target, "mineral-train tables")


def _files(folder: Path) -> tuple[Path, Path]:
    return folder / TABLES[0], folder / TABLES[1]


def markdown(results: Mapping[Row, RowResult | str]) -> str:
    """Format the tables, each measured column beside the paper's; a result that is text says why there is none."""
    tables = dict.fromkeys(row.table for row in results)
    return "\n".join(_markdown_table(table, [r for r in results.items() if r[0].table == table]) for table in tables)


def _markdown_table(table: int, results: list[tuple[Row, RowResult | str]]) -> str:
    header = [
        "row", "backbone here", "test mAP %", "paper", "parameters (M)", "paper",
        "all parameters (M)", "peak training memory (MiB)", "paper (MB)",
    ]  # fmt: skip
    lines = [header, ["---"] * 2 + ["---:"] * 7, *(_cells(row, result) for row, result in results)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {_TITLES[table]}\n\n{body}\n\n{_footnote(result for _, result in results)}\n"


def _footnote(results: Iterable[RowResult | str]) -> str:
    done = [result for result in results if isinstance(result, RowResult)]
    memory = " / ".join(dict.fromkeys(result.peak_memory_name for result in done)) or "not measured yet"
    images = " / ".join(dict.fromkeys(str(result.test_images) for result in done)) or "no"
    return (
        f"mAP: {EQUATION_6}, on {images} test images of this manifest, which are not the paper's. "
        "Parameters: counted as the paper counts (backbone and one linear layer); all: the whole model. "
        f"Memory: {memory}; the paper does not say how it measured."
    )


def _cells(row: Row, result: RowResult | str) -> list[str]:
    paper_map = row.paper_map if isinstance(row.paper_map, str) else f"{row.paper_map:.2f}"
    paper = paper_map, _number(row.paper_parameters), _number(row.paper_memory)
    if isinstance(result, str):
        return [row.name, _MISSING, result, paper[0], _MISSING, paper[1], _MISSING, _MISSING, paper[2]]
    return [
        row.name, result.backbone, f"{100 * result.test_map:.2f}", paper[0],
        _number(result.parameters_like_the_paper / 1e6), paper[1],
        _number(result.parameters / 1e6), _number(result.peak_memory_mib), paper[2],
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.2f}"


_CSV_HEADER = [
    "table", "row", "run", "status", "paper_map_percent", "paper_parameters_millions", "paper_memory_mb",
    *(f.name for f in fields(RowResult)), "map_definition",
]  # fmt: skip


def _csv_cells(row: Row, result: RowResult | str) -> list[object]:
    paper = [row.paper_map, row.paper_parameters, row.paper_memory]
    if isinstance(result, str):
        status, measured = result, [""] * len(fields(RowResult))
    else:
        status, measured = "done", list(asdict(result).values())
    return [row.table, row.name, row.run, status, *paper, *measured, EQUATION_6]
