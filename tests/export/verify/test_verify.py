"""Parity of two forms of a model: the figures, the budget, the command."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from PIL import Image

from mineral_batch.errors import ContractError, DataError
from mineral_batch.model.calibration import Calibration, ProbabilityScores
from mineral_batch.model.contract import ModelContract, Numerics
from mineral_batch.model.onnx_file import read_contract, write_contract
from mineral_export.cli import main
from mineral_export.verify.artifacts import open_artifact, parse_artifact
from mineral_export.verify.budget import BUDGETS
from mineral_export.verify.parity import ParityError, compare, compare_probabilities
from mineral_export.verify.samples import Samples, load_samples, synthetic_images
from mineral_train.training.checkpoint import save_checkpoint

CONTRACT = ModelContract(("quartz", "gold"), (0.5, 0.5))
PIXELS = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)


def by_row(table):
    """An artifact that answers row i of `table` (N, L) to the picture whose first pixel is PIXELS[i]'s."""
    rows = {int(picture[0, 0, 0]): np.array(row, np.float32) for picture, row in zip(PIXELS, table, strict=True)}
    return lambda pixels: np.stack([rows[int(picture[0, 0, 0])] for picture in pixels])


def parity(one, other, truth=None):
    truth = None if truth is None else np.array(truth, bool)
    return compare(by_row(one), by_row(other), Samples("pictures", [(PIXELS, truth)]), CONTRACT)


ONE = [[0.9, 0.1], [0.8, 0.2], [0.6, 0.3], [0.2, 0.7], [0.1, 0.6]]
TRUTH = [[1, 0], [1, 0], [0, 0], [0, 1], [0, 1]]


def test_the_differences_and_the_decisions_are_counted():
    found = parity(ONE, [[0.9, 0.1], [0.8, 0.2], [0.4, 0.3], [0.2, 0.7], [0.1, 0.6]])
    assert found.largest == pytest.approx(0.2)
    assert found.mean == pytest.approx(0.2 / 10)
    assert (found.images, found.flips, found.changed) == (5, 1, 1)
    assert found.lost is None


def test_the_map_lost_is_that_of_the_definition():
    """Gold's positives fall behind the three others: AP from 1 to (1/4 + 2/5) / 2; quartz keeps its 1."""
    found = parity(ONE, [[0.9, 0.9], [0.8, 0.9], [0.6, 0.9], [0.2, 0.2], [0.1, 0.1]], TRUTH)
    assert found.lost == pytest.approx(100 * (1 - (0.25 + 0.4) / 2) / 2)
    assert [row[0] for row in found.minerals()] == ["gold", "quartz"], "the largest loss first"


def test_a_gain_is_within_every_budget_and_labels_decide_over_differences():
    worse = [[0.9, 0.9], [0.8, 0.9], [0.6, 0.9], [0.2, 0.2], [0.1, 0.1]]
    assert parity(worse, ONE, TRUTH).beyond(BUDGETS["float32"]) == ()
    assert parity(ONE, worse, TRUTH).beyond(BUDGETS["int8"])[0].startswith("mAP lost, in points, 34")
    assert len(parity(ONE, worse).beyond(BUDGETS["int8"])) == 3


def test_a_calibrated_model_may_not_lose_its_calibration():
    """All probabilities 0.08 higher: the same ranking, so no mAP is lost."""
    scores = ProbabilityScores(0, 0, 0)
    calibration = Calibration("Platt", "val", 5, "2026-01-01", (1, 1), (0, 0), (2, 2), scores, scores)
    one = np.array([[0.95, 0.05], [0.85, 0.15], [0.05, 0.15], [0.05, 0.85], [0.05, 0.75]])
    other, truth = one + 0.08 * (one < 0.5), np.array(TRUTH, bool)
    plain = compare_probabilities(one, other, truth, "images", CONTRACT)
    assert plain.drift is None
    assert plain.beyond(BUDGETS["float16"]) == ()
    found = compare_probabilities(one, other, truth, "images", replace(CONTRACT, calibration=calibration))
    assert found.lost == 0
    assert found.drift == pytest.approx(0.08 * 6 / 10)
    assert found.beyond(BUDGETS["int8"]) == ("rise of the calibration error 0.048 exceeds 0.01",)
    assert found.record()["calibration_drift"] == found.drift


def test_how_often_the_minerals_differ_is_judged_on_photographs_only():
    """One of five images gets another mineral: more than int8 may, but rendered images do not show how often."""
    other = [*ONE[:2], [0.48, 0.3], *ONE[3:]]
    assert parity(ONE, other).beyond(BUDGETS["int8"]) == (
        "the minerals named differ in 20% of the images (the limit is 15%)",
    )
    samples = Samples("synthetic images", [(PIXELS, None)], are_synthetic=True)
    found = compare(by_row(ONE), by_row(other), samples, CONTRACT)
    assert (found.changed, found.beyond(BUDGETS["int8"])) == (1, ())
    assert str(found).endswith("the minerals named differ in 1 of 5 synthetic images")
    worse = compare(by_row(ONE), by_row(np.array(ONE) * 0.5), samples, CONTRACT)
    assert len(worse.beyond(BUDGETS["int8"])) == 2, "the probabilities are still judged"


@pytest.mark.parametrize("truth", [None, TRUTH])
def test_what_is_not_a_number_is_beyond_every_budget(truth):
    broken = [[np.nan, 0.1], *ONE[1:]]
    found = parity(ONE, broken, truth)
    assert found.beyond(BUDGETS["int8"]) == ("a probability is not a number",)
    with pytest.raises(ParityError, match=r"nothing was written: .* not a number"):
        found.require(BUDGETS["int8"])
    assert found.record()["largest"] is None
    json.dumps(found.record(), allow_nan=False)


def test_pictures_without_any_label_are_judged_by_their_differences():
    found = parity(ONE, np.array(ONE) + 0.05, np.zeros((5, 2)))
    assert found.lost is None
    assert any("largest difference" in reason for reason in found.beyond(BUDGETS["float16"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, exported):
    """A checkpoint, its ONNX file, the file with a damaged head, photographs and a table of labels."""
    root = tmp_path_factory.mktemp("verify")
    model, contract, path = exported(projection="linear")
    save_checkpoint(root / "run", model, contract)
    shutil.copyfile(path, root / "model.onnx")
    damaged = onnx.load(root / "model.onnx")
    bias = next(w for w in damaged.graph.initializer if w.name == "model.head.linear.bias")
    bias.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(bias) - 2, bias.name))
    onnx.save(damaged, root / "damaged.onnx")
    (root / "photos").mkdir()
    for index, pixels in enumerate(synthetic_images(contract.input, 6)):
        Image.fromarray(pixels).save(root / "photos" / f"{index}.png")
    (root / "photos" / "broken.jpg").write_bytes(b"")
    lines = ["path,labels,split"]
    lines += [f"{i}.png,{contract.labels[0] if i % 2 else ''},{'test' if i < 4 else 'val'}" for i in range(6)]
    (root / "photos" / "labels.csv").write_text("\n".join([*lines, "broken.jpg,,test"]), "utf-8")
    return root


def run(folder, *arguments):
    named = [str(folder / word) if (folder / word.split("@")[0]).exists() else word for word in arguments]
    return CliRunner().invoke(main, ["verify", *named])


def test_the_checkpoint_and_its_file_are_within_the_budget(folder):
    done = run(folder, "run", "model.onnx")
    assert done.exit_code == 0, done.output
    assert "8 synthetic images cannot show it; use --photos" in done.output
    assert "within the budget" in done.output


def test_a_damaged_file_is_beyond_it_and_the_exit_code_says_so(folder, tmp_path):
    done = run(folder, "run", "damaged.onnx", "--photos", "photos", "--json", str(tmp_path / "parity.json"))
    assert done.exit_code == 1
    assert "6 photographs of" in done.output
    record = json.loads((tmp_path / "parity.json").read_text("utf-8"))
    assert not record["within"]
    assert record["flips"] > 0
    assert record["largest"] > 0.02
    assert record["b"]["engine"].startswith("ONNX Runtime")


def test_labels_give_the_map_of_both(folder, tmp_path):
    where = ["--labels", "photos/labels.csv", "--split", "test", "--json", str(tmp_path / "parity.json")]
    done = run(folder, "run", "model.onnx", *where)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "parity.json").read_text("utf-8"))
    assert record["pictures"] == 4, "one of the five of the split cannot be read"
    assert record["mean_ap"][0] == record["mean_ap"][1]
    assert [row["support"] for row in record["minerals"]] == [2]
    assert "points of mAP lost" in done.output


def test_the_calibration_errors_that_are_compared_are_printed(folder, tmp_path):
    """Both in the bins of A, so that the difference is that of the two errors beside it; B's own error differs."""
    contract = read_contract(folder / "model.onnx")
    zero, ones = ProbabilityScores(0, 0, 0), (1,) * len(contract.labels)
    found = Calibration("Platt", "val", 5, "2026-01-01", ones, (0,) * len(ones), ones, zero, zero)
    for name in ("model.onnx", "damaged.onnx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
        write_contract(tmp_path / name, replace(read_contract(tmp_path / name), calibration=found))
    done = run(
        folder, *(str(tmp_path / name) for name in ("model.onnx", "damaged.onnx")), "--labels", "photos/labels.csv"
    )
    (line,) = (line for line in done.output.splitlines() if line.startswith("calibration"))
    a, b, rise = re.fullmatch(
        r"calibration +error A (\S+), B (\S+): (\S+) \(both in the bins of A; B in its own: \S+\)", line
    ).groups()
    assert float(b) - float(a) == pytest.approx(float(rise), abs=1.5e-4)
    assert abs(float(rise)) > 0.01, "the head is damaged"


def test_labels_are_found_in_another_folder_by_the_end_of_their_paths(folder):
    contract = read_contract(folder / "model.onnx")
    found = load_samples(contract, folder / "photos", folder / "photos" / "labels.csv", "val")
    ((pixels, truth),) = list(found.batches)
    assert pixels.shape == (2, 64, 64, 3)
    assert truth.tolist() == [[False] * 3, [True, False, False]]


def test_the_engine_and_precision_are_part_of_the_name(folder):
    with open_artifact(f"{folder / 'model.onnx'}@onnx-cpu:float32") as artifact:
        assert artifact.precision == "float32"
        assert artifact.predict(synthetic_images(artifact.contract.input, 5)).shape == (5, 3)


def test_what_the_file_says_of_its_precision_chooses_the_budget(folder, tmp_path):
    path = tmp_path / "named.onnx"
    path.write_bytes((folder / "model.onnx").read_bytes())
    contract = read_contract(path)
    write_contract(path, replace(contract, numerics=Numerics("int8")))
    assert "budget         int8" in run(folder, "model.onnx", str(path)).output


def test_two_models_are_not_compared(folder, tmp_path):
    path = tmp_path / "other.onnx"
    path.write_bytes((folder / "model.onnx").read_bytes())
    contract = read_contract(path)
    write_contract(path, replace(contract, labels=("a", "b", "c")))
    done = run(folder, "model.onnx", str(path))
    assert done.exit_code == 1
    assert "differ in their labels" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.onnx", "model.onnx"], "there is no model nowhere.onnx"),
        (["model.onnx@gpu", "model.onnx"], "no engine is called 'gpu'; there are: "),
        (["model.onnx@onnx-cpu:int4", "model.onnx"], "no precision is called 'int4'"),
        (["run@onnx-cpu", "model.onnx"], "a checkpoint runs on torch"),
        (["run", "model.onnx", "--split", "test"], "add --labels"),
        (["run", "model.onnx", "--labels", "photos/labels.csv", "--split", "train"], "it has test, val"),
        (["run", "model.onnx", "--photos", "photos/broken.jpg"], "no readable image"),
        (["run", "model.onnx", "--json", "no/such/parity.json"], "cannot write no/such/parity.json"),
    ],
)
def test_a_mistake_is_one_line(folder, arguments, message):
    done = run(folder, *arguments)
    assert done.exit_code == (2 if "add --labels" in message else 1)
    assert message in done.output.splitlines()[-1]
    assert done.output.count("Error:") == 1


def test_labels_that_the_model_does_not_know_are_named(folder, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,labels\na.png,unobtainium\n", "utf-8")
    with pytest.raises(DataError, match="unobtainium"):
        load_samples(read_contract(folder / "model.onnx"), labels=table)


def test_a_name_says_what_runs_it_and_where_the_weights_are(folder):
    file, named, run = (parse_artifact(folder / name) for name in ("model.onnx", "model.onnx@openvino:bfloat16", "run"))
    assert [(one.engine, one.precision) for one in (file, named, run)] == [
        ("onnx-cpu", "auto"),
        ("openvino", "bfloat16"),
        ("torch", "auto"),
    ]
    assert file.weights == named.weights == folder / "model.onnx"
    assert run.weights.is_file()


@pytest.mark.parametrize(("name", "batch_size"), [("run", 3), ("model.onnx", 1)])
def test_an_open_artifact_gives_its_backend(folder, name, batch_size):
    """A checkpoint takes batches of any size, ONNX Runtime on the processor one picture at a time."""
    with open_artifact(folder / name, batch_size=3) as artifact:
        pixels = synthetic_images(artifact.contract.input, 3)
        assert artifact.backend.batch_size == batch_size
        assert artifact.backend.buffer(3).shape == pixels.shape
        assert artifact.backend.infer(pixels) == pytest.approx(artifact.predict(pixels), abs=1e-6)


def test_a_file_without_contract_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ContractError), open_artifact(Path(tmp_path / "model.onnx")):
        pass
