"""One answer on every road: where no label is sure but their union is (0.65), the broader name is given."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
from click.testing import CliRunner
from lxml import etree
from PIL import ExifTags, Image

from mineral_batch import Levels, Predictor
from mineral_batch.cli import main
from mineral_batch.deliver.xmp import DC, RDF
from mineral_batch.minerals.table import LEVELS, Level, lineage, load_table
from mineral_batch.model.contract import InputSpec, ModelContract
from mineral_batch.model.onnx_file import write_contract
from mineral_batch.report.groups import find_groups
from mineral_batch.results.read import read_results
from mineral_batch.review.decisions import Decisions
from mineral_batch.review.session import Review

onnx = pytest.importorskip("onnx", reason="the model of this test is built with the onnx package")
pytest.importorskip("onnxruntime")

LABELS = ("ruby", "sapphire", "quartz", "elbaite", "schorl")
CUT = 0.9
SPEC = InputSpec(height=8, width=8, interpolation="bilinear")
#: Red, green and blue are the probabilities of ruby and elbaite, of sapphire and schorl, and of quartz, times 255.
COLORS = {
    "a-0.640": (102, 102, 0),
    "b-0.649": (104, 104, 0),
    "c-0.652": (104, 105, 0),
    "d-0.661": (107, 106, 0),
    "e-oxides-0.656": (62, 62, 102),
    "f-sure": (240, 0, 0),
}
CORUNDUM, TOURMALINE = "corundum", "tourmaline supergroup"
EXPECTED: dict[Level, dict[str, set[str]]] = {
    "variety": {"f-sure": {"ruby", "elbaite"}},
    "species": {"c-0.652": {CORUNDUM}, "d-0.661": {CORUNDUM}, "f-sure": {"ruby", "elbaite"}},
    "group": {name: {CORUNDUM, TOURMALINE} for name in ("c-0.652", "d-0.661")} | {"f-sure": {"ruby", "elbaite"}},
    "class": {name: {CORUNDUM, TOURMALINE} for name in ("c-0.652", "d-0.661")}
    | {"e-oxides-0.656": {"Oxides"}, "f-sure": {"ruby", "elbaite"}},
}
Answers = dict[str, set[str]]


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def model() -> Any:
    """The mean color of an image as the probabilities of five labels."""
    helper, kind = onnx.helper, onnx.TensorProto
    numbers = onnx.numpy_helper.from_array
    nodes = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=kind.FLOAT),
        helper.make_node("ReduceMean", ["cast", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "most"], ["rgb"]),
        helper.make_node("Gather", ["rgb", "channels"], ["probabilities"], axis=1),
    ]
    constants = {
        "axes": np.array([1, 2], np.int64),
        "most": np.float32(255),
        "channels": np.array([0, 1, 2, 0, 1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "colors",
        [helper.make_tensor_value_info("pixels", kind.UINT8, ["N", SPEC.height, SPEC.width, 3])],
        [helper.make_tensor_value_info("probabilities", kind.FLOAT, ["N", len(LABELS)])],
        [numbers(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


class World:
    """The photographs, the model, and a run of each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = folder / "photos"
        self.model = folder / "colors.onnx"
        onnx.save(model(), str(self.model))
        write_contract(self.model, ModelContract(labels=LABELS, thresholds=(CUT,) * len(LABELS), input=SPEC))
        for name, color in COLORS.items():
            (self.photos / name).mkdir(parents=True)
            exif = Image.Exif()
            exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (46.0, 30.0, 0.0), 3: "E", 4: (7.0, 54.0, 0.0)})
            Image.new("RGB", (16, 16), color).save(self.photos / name / "1.webp", lossless=True, exif=exif)

    def predict(self, output: Path, *words: object, photos: bool = True) -> None:
        inputs = [self.photos] if photos else []
        run("predict", *inputs, "-m", self.model, "--backend", "onnx-cpu", "-q", "-o", output, *words)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("levels"))
    made.predict(made.folder / "plain", "--columns", "gps")
    return made


def image_of(path: str) -> str:
    return next(name for name in COLORS if name in path)


def answers(rows: Any, path: Callable[[Any], str], names: Callable[[Any], Any]) -> Answers:
    found: Answers = {}
    for row in rows:
        found.setdefault(image_of(path(row)), set()).update(name for name in names(row) if name)
    return {name: several for name, several in found.items() if several}


def rows_of(text: str, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.lstrip("\ufeff")), delimiter=delimiter))


def members(path: Path) -> dict[str, list[dict[str, str]]]:
    with zipfile.ZipFile(path) as package:
        return {n.removesuffix(".csv"): rows_of(package.read(n).decode()) for n in package.namelist() if ".csv" in n}


def cells(row: Mapping[str, str], column: str = "answer") -> list[str]:
    return row[column].split(";")


# --- the roads: each gives the answers of every image -----------------------------------------------------------


def csv_table(world: World, level: Level, out: Path) -> Answers:
    world.predict(out, "--level", level)
    return answers(rows_of((out / "predictions.csv").read_text()), lambda row: row["path"], cells)


def csv_excel(world: World, level: Level, out: Path) -> Answers:
    world.predict(out, "--level", level, "--format", "csv-excel")
    text = (out / "predictions.excel.csv").read_text("utf-8-sig")
    return answers(rows_of(text, ";"), lambda row: row["path"], cells)


def json_lines(world: World, level: Level, out: Path) -> Answers:
    world.predict(out, "--level", level, "--format", "jsonl")
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return answers(rows, lambda row: row["path"], lambda row: as_list(row["answer"]))


def parquet(world: World, level: Level, out: Path) -> Answers:
    table = pytest.importorskip("pyarrow.parquet")
    world.predict(out, "--level", level, "--format", "parquet")
    rows = table.read_table(out / "predictions.parquet").to_pylist()
    return answers(rows, lambda row: row["path"], lambda row: as_list(row["answer"]))


def as_list(value: Any) -> list[str]:
    return value.split(";") if isinstance(value, str) else list(value or ())


def specimens(world: World, level: Level, out: Path) -> Answers:
    world.predict(out, "--level", level, "--specimen", "folder")
    return answers(rows_of((out / "specimens.csv").read_text()), lambda row: row["specimen"], cells)


def shards(world: World, level: Level, out: Path) -> Answers:
    for shard in ("1/2", "2/2"):
        world.predict(out, "--shard", shard, "--level", level)
    run("merge", out, "--level", level)
    return answers(rows_of((out / "predictions.csv").read_text()), lambda row: row["path"], cells)


def python(world: World, level: Level, out: Path) -> Answers:
    with Predictor(world.model, backend="onnx-cpu") as predictor:
        levels = Levels(predictor.contract.labels, level)
        return answers(predictor.predict([str(world.photos)]), lambda one: one.path, levels.answer)


def report(world: World, level: Level, out: Path) -> Answers:
    results = read_results(world.folder / "plain")
    groups = find_groups(results, level)
    table = results.predictions
    rows = [
        (path, [label for label, is_there in zip(LABELS, table.called[row], strict=True) if is_there])
        for row, path in enumerate(table.paths)
    ]
    broader = [(table.paths[row], [groups.broader[n].name for n in added]) for row, added in groups.answers.items()]
    return answers([*rows, *broader], lambda row: row[0], lambda row: row[1])


def review(world: World, level: Level, out: Path) -> Answers:
    results = read_results(world.folder / "plain")
    out.mkdir()
    with Decisions(out) as decisions:
        session = Review(results, decisions, world.folder, "Ada", levels=Levels(LABELS, level))
        try:
            items = [session.item(row) for row in range(len(results.predictions.paths))]
        finally:
            session.close()
    return answers(items, lambda item: item["name"], lambda item: item["machine"])


def delivered(form: str, read: Callable[[Path], Answers], *words: str) -> Callable[[World, Level, Path], Answers]:
    def road(world: World, level: Level, out: Path) -> Answers:
        run("deliver", world.folder / "plain", "--as", form, "-o", out, "--level", level, *words)
        return read(out)

    road.__name__ = f"deliver_{form}"
    return road


def read_semicolons(path: Path) -> Answers:
    return answers(
        rows_of(path.read_text("utf-8-sig"), ";"), lambda row: row["image"], lambda row: cells(row, "minerals")
    )


def read_workbook(path: Path) -> Answers:
    sheet = openpyxl.load_workbook(io.BytesIO(path.read_bytes()))["Images"]
    header, *rows = sheet.iter_rows(values_only=True)
    at = header.index("minerals")
    return answers(rows, lambda row: str(row[0]), lambda row: str(row[at] or "").split(";"))


def read_package(path: Path) -> Answers:
    tables = members(path)
    title = {row["media_pk"]: row["title"] for row in tables["media"]}
    rows = tables["identification"]
    return answers(rows, lambda row: title[row["media_fk"]], lambda row: row["geologicalMaterialNames"].split(" | "))


def read_archive(path: Path) -> Answers:
    tables = members(path)
    title = {row["coreid"]: row["title"] for row in tables["multimedia"]}
    rows = tables["identification"]
    return answers(rows, lambda row: title[row["coreid"]], lambda row: row["verbatimIdentification"].split(" | "))


def read_tree(path: Path) -> Answers:
    files = [file for file in path.rglob("*.webp") if file.parent.name not in ("_none", "_unsure")]
    return answers(files, lambda file: file.resolve().as_posix(), lambda file: [file.relative_to(path).parts[0]])


def read_sidecars(path: Path) -> Answers:
    def subjects(file: Path) -> list[str]:
        found = etree.fromstring(file.read_bytes()).findall(f".//{{{DC}}}subject/{{{RDF}}}Bag/{{{RDF}}}li")
        known = {*LABELS, CORUNDUM, TOURMALINE, "Oxides"}
        own = [item.text for item in found if item.text in known]
        return [name for name in own if not any(name in lineage(other) for other in own)]  # keywords have the lineage

    return answers(path.rglob("*.xmp"), lambda file: file.as_posix(), subjects)


def read_features(path: Path) -> Answers:
    rows = [feature["properties"] for feature in json.loads(path.read_text())["features"]]
    assert all(row["probabilities"][name] is not None for row in rows for name in row["minerals"])
    return answers(rows, lambda row: row["path"], lambda row: row["minerals"])


def read_database(path: Path) -> Answers:
    import sqlite3

    rows = sqlite3.connect(path).execute("SELECT path, minerals FROM photographs").fetchall()
    return answers(rows, lambda row: row[0], lambda row: row[1].split(";"))


def read_tasks(path: Path) -> Answers:
    tasks = [task for file in path.rglob("tasks*.json") for task in json.loads(file.read_text())]

    def choices(task: Any) -> list[str]:
        return [name for part in task["predictions"][0]["result"] for name in part["value"]["choices"]]

    return answers(tasks, lambda task: task["data"]["path"], choices)


def read_tags(path: Path) -> Answers:
    images = etree.fromstring((path / "annotations.xml").read_bytes()).findall("image")
    return answers(images, lambda one: one.get("path"), lambda one: [tag.get("label") for tag in one.findall("tag")])


def read_annotations(path: Path) -> Answers:
    content = json.loads((path / "annotations" / "labels_default.json").read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    paths = {one["id"]: one["path"] for one in content["images"]}
    rows = content["annotations"]
    return answers(rows, lambda row: paths[row["image_id"]], lambda row: [names[row["category_id"]]])


def read_samples(path: Path) -> Answers:
    content = json.loads((path / "predictions.json").read_text())["labels"]
    assert all(one["confidence"] >= 0.65 for several in content.values() for one in several)
    return answers(content.items(), lambda row: row[0], lambda row: [one["label"] for one in row[1]])


ROADS: list[Callable[[World, Level, Path], Answers]] = [
    csv_table,
    csv_excel,
    json_lines,
    parquet,
    specimens,
    shards,
    python,
    report,
    review,
    delivered("csv-excel", read_semicolons),
    delivered("excel", read_workbook),
    delivered("darwin-core", read_package),
    delivered("dwca", read_archive),
    delivered("folders", read_tree),
    delivered("xmp", read_sidecars),
    delivered("geojson", read_features),
    delivered("gpkg", read_database),
    delivered("label-studio", read_tasks),
    delivered("cvat", read_tags),
    delivered("coco", read_annotations),
    delivered("fiftyone", read_samples),
]


@pytest.mark.parametrize("road", ROADS, ids=lambda road: road.__name__)
def test_every_road_gives_the_same_answers(road: Callable[..., Answers], world: World, tmp_path: Path) -> None:
    """At the level of a class, which has answers of every level above; the others where they are made, below."""
    assert road(world, "class", tmp_path / "out") == EXPECTED["class"]


@pytest.mark.parametrize("level", LEVELS[:-1])
@pytest.mark.parametrize("road", [csv_table, review])
def test_every_level(road: Callable[..., Answers], level: Level, world: World, tmp_path: Path) -> None:
    assert road(world, level, tmp_path / "out") == EXPECTED[level]


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS[:-1])
@pytest.mark.parametrize("road", ROADS, ids=lambda road: road.__name__)
def test_every_road_at_every_level(road: Callable[..., Answers], level: Level, world: World, tmp_path: Path) -> None:
    assert road(world, level, tmp_path / "out") == EXPECTED[level]


@pytest.mark.slow
def test_a_cluster_gives_the_same_answers(world: World, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    world.predict(tmp_path / "out", "--cluster", "local", "--workers", "1", "--level", "class")
    rows = rows_of((tmp_path / "out" / "predictions.csv").read_text())
    assert answers(rows, lambda row: row["path"], cells) == EXPECTED["class"]


@pytest.mark.parametrize("level", LEVELS[1:])
def test_evaluate_calls_the_names_that_the_answers_stand_for(level: Level, world: World, tmp_path: Path) -> None:
    """Every label is read at the level there: corundum at the level of classes is Oxides."""
    labels = tmp_path / "labels.csv"
    labels.write_text("path,labels\n" + "".join(f"{name}/1.webp,ruby\n" for name in COLORS))
    figures = tmp_path / "figures.json"
    run("evaluate", world.folder / "plain", labels, "--level", level, "--bootstrap", "0", "--json", figures)
    called = {row["mineral"]: row["called"] for row in json.loads(figures.read_text())["minerals"]}
    table = load_table()

    def at_level(name: str) -> str:
        if name in table and name in LABELS:
            return table[name].at(level)
        broader = (name, *lineage(name))
        return next((one for one in reversed(broader) if one in called), name)

    expected = Counter(name for names in EXPECTED[level].values() for name in {at_level(one) for one in names})
    assert {name: count for name, count in called.items() if count} == dict(expected)


@pytest.mark.parametrize("digits", [(0.5, 0.3), (0.3, 0.5), (0.35, 0.4615384615)])
def test_a_table_answers_as_its_reader_does_at_the_bar(digits: tuple[float, float]) -> None:
    """Near 0.65 the seven digits of the table decide, so that reading it back changes nothing."""
    levels = Levels(("ruby", "sapphire"), "species")
    near = np.array(digits, np.float32).astype(np.float64) + np.linspace(-3e-7, 3e-7, 61)[:, np.newaxis]
    read_back = np.array([[float(f"{value:.7g}") for value in row] for row in near.tolist()])
    absent = np.zeros(near.shape, bool)
    found = levels.answers(near, absent)
    assert found == levels.answers(read_back, absent)
    assert len(set(found)) == 2, "some are below the bar, some are not"
