"""Forms of one model side by side: what is timed, that answers are compared, what is refused."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from mineral_batch import ModelContract
from mineral_batch.engines.registry import open_backend
from mineral_batch.errors import ContractError, DataError
from mineral_batch.model.onnx_file import read_contract, write_contract
from mineral_bench.cli import main
from mineral_bench.comparison import Comparison
from mineral_bench.engine_only import fill, infer_all
from mineral_bench.measure import Plan, Rounds
from mineral_bench.process.isolated import IsolatedError
from mineral_bench.studies import engines
from mineral_export.verify.samples import synthetic_images

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.types import Pixels, Probabilities

SHORT = Plan(least=2, most=2, seconds=0, warm_up=1)
INTERVAL = re.compile(r"[\d.]+ \([\d.]+ to [\d.]+\)")


@pytest.fixture(scope="module")
def damaged(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the signs of its weights turned round."""
    onnx = pytest.importorskip("onnx", reason="the damage is done with the onnx package")
    model = onnx.load(model_path)
    weights = next(one for one in model.graph.initializer if one.name == "weights")
    weights.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weights), "weights"))
    path = tmp_path_factory.mktemp("damaged") / "damaged.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def other_model(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's graph with other labels."""
    path = tmp_path_factory.mktemp("other") / "other.onnx"
    path.write_bytes(model_path.read_bytes())
    write_contract(path, replace(read_contract(model_path), labels=("agate", "gold", "opal")))
    return path


def test_each_form_is_a_row_against_the_first(model_path: Path, tmp_path: Path) -> None:
    saved = tmp_path / "engines.json"
    names = [str(model_path), f"{model_path}@onnx-cpu:float32", str(model_path)]
    done = CliRunner().invoke(
        main, ["engines", *names, "--batch", "3", "--images", "100", "--seconds", "0", "--json", str(saved)]
    )
    assert done.exit_code == 0, done.output
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in done.output.splitlines() if line[:1] == "|"
    ]
    labels = ["tiny.onnx", "tiny.onnx@onnx-cpu:float32", "tiny.onnx (2)"]
    assert [row[0] for row in rows] == labels
    assert rows[0][head.index("times tiny.onnx")] == "1"
    for column in ("times tiny.onnx", "CPU, times tiny.onnx"):
        assert all(INTERVAL.fullmatch(row[head.index(column)]) for row in rows[1:])
    assert {row[head.index("largest difference")] for row in rows} == {"0"}

    record = json.loads(saved.read_text("utf-8"))
    figures = record["figures"]
    assert record["benchmark"] == "engines"
    assert "102 different synthetic images" in record["conditions"]["data"]
    assert [one["artifact"] for one in figures["artifacts"]] == labels
    assert {one["batch"] for one in figures["artifacts"]} == {3}
    assert figures["artifacts"][0]["size"] == model_path.stat().st_size
    assert figures["pictures"] == 102, "whole batches"
    assert [len(figures[what][label]) for what in ("seconds", "cpu_seconds") for label in labels] == [5] * 6
    assert figures["doubts"] == []


def test_answers_are_compared_on_the_same_pictures(model_path: Path, damaged: Path) -> None:
    found = engines.measure([str(model_path), str(damaged)], engines.Load(images=16), SHORT)
    contract = read_contract(model_path)
    images = synthetic_images(contract.input, 16)
    sides = [open_backend(path, "onnx-cpu").infer(images) for path in (model_path, damaged)]
    difference = found.comparison.differences["damaged.onnx"]
    assert difference == pytest.approx(float(np.abs(sides[0] - sides[1]).max()), abs=1e-6)
    assert difference > 0.01
    (doubt,) = engines.doubts(found)
    assert doubt.startswith("The output of damaged.onnx differs from the first")
    assert doubt in engines.table(found).markdown()


def test_photographs_are_taken_from_the_first_again_where_they_are_few(model_path: Path, photos: Path) -> None:
    found = engines.measure([str(model_path)] * 2, engines.Load(images=30, photos=photos), SHORT)
    assert found.what == "12 different photographs"
    assert found.comparison.images == 30
    assert list(found.comparison.differences.values()) == [0, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{model}@abacus", "no engine is called 'abacus'; there are: "),
        ("{model}@onnx-cpu:float8", "no precision is called 'float8'; there are: "),
        ("absent.onnx", "there is no model absent.onnx: name a checkpoint folder"),
        ("{model}@onnx-cpu:float16", "{model}@onnx-cpu:float16: onnx-cpu does not compute in float16: choose"),
        ("{other}", "differ in their labels: they are not two forms of one model"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(
    wrong: str, message: str, model_path: Path, other_model: Path
) -> None:
    names = [name.format(model=model_path, other=other_model) for name in ("{model}", wrong)]
    done = CliRunner().invoke(main, ["engines", *names, "--seconds", "0"])
    assert done.exit_code == 1
    assert message.format(model=model_path) in done.output
    assert len(done.output.splitlines()) == 1


def test_one_artifact_has_nothing_to_be_compared_with(model_path: Path) -> None:
    done = CliRunner().invoke(main, ["engines", str(model_path)])
    assert done.exit_code == 2
    assert "two artifacts or more" in done.output


def test_files_of_one_name_are_told_apart_by_their_folders(model_path: Path, tmp_path: Path) -> None:
    paths = [tmp_path / run / "export" / "model.onnx" for run in ("a", "b")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(model_path.read_bytes())
    names = [str(paths[0]), f"{paths[1]}@onnx-cpu", str(model_path), str(paths[0])]
    found = engines.measure(names, engines.Load(images=8), SHORT)
    expected = ["a/export/model.onnx", "b/export/model.onnx@onnx-cpu", "tiny.onnx", "a/export/model.onnx (2)"]
    assert list(found.entries) == expected


def test_a_wrong_name_is_said_before_anything_is_opened(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.onnx"
    nonsense.write_bytes(b"no model")
    with pytest.raises(ContractError, match=r"there is no model absent\.onnx"):
        engines.measure([str(nonsense), "absent.onnx"], engines.Load(), SHORT)
    with pytest.raises(IsolatedError, match=re.escape(f"{nonsense}: ")):
        engines.measure([str(nonsense)] * 2, engines.Load(), SHORT)


def entry(batch: int = 1, workers: int = 2, precision: str = "float32", name: str = "one") -> engines.Entry:
    contract = ModelContract(("agate", "gold"), (0.5, 0.5), name="tiny")
    return engines.Entry(name, f"abacus, {precision}", precision, contract, batch, workers, 5_000_000, "00")


def test_a_round_has_whole_batches_for_all_threads() -> None:
    assert engines.images_in_round([entry()], None) == 32
    assert engines.images_in_round([entry(), entry(batch=64)], None) == 2048
    assert engines.images_in_round([entry(), entry(batch=64)], 130) == 192
    assert engines.images_in_round([entry(batch=4), entry(batch=6, workers=1)], 13) == 24
    with pytest.raises(DataError, match=r"plan takes batches of 64, 2 at once: .* use 128 or more, or a smaller"):
        engines.images_in_round([entry(), entry(batch=64, name="plan")], 127)


def measured(difference: float, precision: str) -> engines.EngineComparison:
    times = {"one": np.array([4.0, 8.0]), "other": np.array([1.0, 2.0])}
    found = Comparison(Rounds(times, times, 1, True), 8, {"one": 0.0, "other": difference}, dict.fromkeys(times, 100.0))
    return engines.EngineComparison(
        {"one": entry(), "other": entry(precision=precision, name="other")}, found, "8 different photographs"
    )


def test_the_budget_is_that_of_the_less_exact_form() -> None:
    assert engines.doubts(measured(0.2, "int8")) == []
    (doubt,) = engines.doubts(measured(0.2, "float16"))
    assert "verify allows float16" in doubt


def test_what_is_not_a_number_is_doubted_and_null_in_json() -> None:
    found = measured(math.nan, "int8")
    assert len(engines.doubts(found)) == 1
    assert engines.figures(found)["largest_difference"] == {"one": 0.0, "other": None}


def test_ratios_are_within_rounds_and_the_files_are_named() -> None:
    table = engines.table(measured(0.001, "int8"))
    first, other = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (first["times one"], other["times one"]) == ("1", "4.00 (4.00 to 4.00)")
    assert other["engine"] == "abacus, int8; batches of 1, 2 at once"
    assert other["file, MB"] == "5.0"


def test_a_checkpoint_runs_on_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="checkpoints need torch")
    from mineral_train.model.network import ModelConfig, build_model, input_spec
    from mineral_train.training.checkpoint import WEIGHTS, save_checkpoint

    config = ModelConfig("test_vit", image_size=64, width=32, heads=2, ffn=48, labels=("agate", "gold"))
    contract = ModelContract(("agate", "gold"), (0.5, 0.5), input_spec(config))
    save_checkpoint(tmp_path / "run", build_model(config, seed=1), contract)
    engine = engines.EngineProcess(str(tmp_path / "run"))
    found = engine.describe()
    assert found.engine.startswith("torch ")
    assert (found.batch, found.workers) == (8, 1)
    assert found.size == (tmp_path / "run" / WEIGHTS).stat().st_size
    engine.prepare(synthetic_images(contract.input, 8), 16)
    engine.round()
    assert engine.predict().shape == (8, 2)


class Reusing:
    """A backend that answers with the first pixel of each picture, always in the same memory."""

    name = device = version = "reusing"
    workers = 1
    batch_size = 2
    contract = ModelContract(("agate",), (0.5,))

    def __init__(self) -> None:
        self.filled: list[int] = []
        self._answers = np.zeros((2, 1), np.float32)

    def buffer(self, pictures: int) -> Pixels:
        self.filled.append(pictures)
        return np.zeros((pictures, 4, 4, 3), np.uint8)

    def infer(self, pixels: Pixels) -> Probabilities:
        self._answers[: len(pixels), 0] = pixels[:, 0, 0, 0]
        return self._answers[: len(pixels)]

    def close(self) -> None:
        pass


def test_batches_lie_in_the_backends_memory_and_answers_outlive_the_next_call() -> None:
    backend, pixels = Reusing(), np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    batches = fill(backend, pixels, 2)
    assert backend.filled == [2, 2, 1]
    assert infer_all(backend, batches)[:, 0].tolist() == pixels[:, 0, 0, 0].tolist()
