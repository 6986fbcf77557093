"""`mineral-train adapt`: a table of photographs becomes a model of one's own, and is judged before it is written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from mineral_batch import InputSpec, ModelContract, Predictor
from mineral_batch.cli import main as runtime
from mineral_batch.model.onnx_calibration import calibrate_graph
from mineral_batch.model.onnx_file import read_contract, write_contract
from mineral_train.adapt import compare, features
from mineral_train.adapt import run as adapting
from mineral_train.adapt.head import fit_head
from mineral_train.adapt.photos import old_labels
from mineral_train.cli import main
from mineral_train.data.splits import stratified_folds

BASE_LABELS = ("agate", "gold", "quartz")
COLORS = {"gold": 0, "agate": 1, "my rock": 2}


def _save(graph_nodes, constants, outputs, path):
    graph = helper.make_graph(
        graph_nodes,
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 16, 16, 3])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    write_contract(path, ModelContract(BASE_LABELS, (0.5,) * 3, InputSpec(16, 16), name="base", license="CC0-1.0"))


@pytest.fixture
def base(tmp_path) -> Path:
    """The mean color and one linear layer that confuses gold and agate."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "w", "b"], ["z"], transB=1),
        helper.make_node("Sigmoid", ["z"], ["probabilities"]),
    ]
    weights = np.array([[0.01, 0.005, 0], [0.005, 0.01, 0], [0, 0, 0]], np.float32)
    constants = {"w": weights, "b": np.full(3, -1, np.float32), "axes": np.array([1, 2])}
    path = tmp_path / "base.onnx"
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])
    _save(nodes, constants, [output], path)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    """60 images: each of three colors is one label, and some show none."""
    rng = np.random.default_rng(0)
    lines = ["path,labels"]
    for number in range(60):
        shown = rng.random(3) < 0.4
        pixels = 150 * shown + rng.integers(0, 90, (24, 20, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{';'.join(name for name, k in COLORS.items() if shown[k])}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def adapt(table, base, output, *options, code=0):
    arguments = ["adapt", str(table), "-o", str(output), "--from", str(base), *map(str, options)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_a_table_becomes_a_model_that_knows_its_labels(photos, base, tmp_path):
    out = adapt(photos, base, tmp_path / "mine.onnx")
    contract = read_contract(tmp_path / "mine.onnx")
    assert contract.labels == ("agate", "gold", "my rock")
    assert contract.name == "mine"
    assert contract.license == "CC0-1.0"
    assert contract.provenance["adapted_from"] == "base"
    assert contract.calibration.images == contract.measured.images == 60
    assert "1 of them new to the model: my rock" in out
    assert "will not know 1 label of the old one" in out
    assert "The new model is better than the old one" in out
    with Predictor(tmp_path / "mine.onnx") as predictor:
        paths = [tmp_path / f"{number}.png" for number in range(60)]
        answers = np.stack([result.probabilities for result in predictor.predict(paths)])
    truth = [line.split(",")[1] for line in photos.read_text().splitlines()[1:]]
    for k, label in enumerate(contract.labels):
        present = np.array([label in names for names in truth])
        assert answers[present, k].min() > answers[~present, k].max()


def test_it_needs_no_torch(photos, base, tmp_path):
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'timm'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from mineral_train.cli import main\n"
        "main()\n"
    )
    arguments = ["adapt", str(photos), "-o", str(tmp_path / "mine.onnx"), "--from", str(base)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.onnx").exists()


def test_features_are_computed_once(photos, base, tmp_path, monkeypatch):
    adapt(photos, base, tmp_path / "a.onnx", "--features", tmp_path / "f")
    monkeypatch.setattr(features, "load_image", lambda *_: pytest.fail("decoded again"))
    adapt(photos, base, tmp_path / "b.onnx", "--features", tmp_path / "f")
    first, second = (read_contract(tmp_path / name) for name in ("a.onnx", "b.onnx"))
    assert first.measured == second.measured


def test_a_long_fit_says_how_far_it_is(photos, base, tmp_path, monkeypatch):
    assert "folds\n" not in adapt(photos, base, tmp_path / "short.onnx")
    monkeypatch.setattr(adapting, "_LINE_EVERY", 0.0)
    lines = adapt(photos, base, tmp_path / "long.onnx").splitlines()
    assert [line for line in lines if line.startswith(("Compared", "Fitted"))] == [
        *(f"Compared {n} of 6 penalties" for n in range(1, 7)),
        *(f"Fitted {n} of 5 folds" for n in range(1, 6)),
    ]


def test_a_killed_run_goes_on_with_the_features_it_has(photos, base, tmp_path, monkeypatch):
    """A file cut off in a record, and a record that was damaged, cost those photographs and no others."""
    adapt(photos, base, tmp_path / "a.onnx", "--features", tmp_path / "f")
    (kept,) = (tmp_path / "f").iterdir()
    content = bytearray(kept.read_bytes())
    content[200] ^= 1  # in the first record
    kept.write_bytes(content[:-30])
    decoded = []
    plain = features.load_image
    monkeypatch.setattr(features, "load_image", lambda path, spec: (decoded.append(path.name), plain(path, spec))[1])
    adapt(photos, base, tmp_path / "b.onnx", "--features", tmp_path / "f")
    assert decoded == ["0.png", "59.png"]
    assert read_contract(tmp_path / "a.onnx").measured == read_contract(tmp_path / "b.onnx").measured


@pytest.mark.parametrize("phase", ["extract", "adapt_head", "finish", "write"])
def test_ctrl_c_says_how_to_go_on(photos, base, tmp_path, monkeypatch, phase):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mineral_train.adapt.run.{phase}", interrupted)
    out = adapt(photos, base, tmp_path / "a.onnx", code=130)
    assert not (tmp_path / "a.onnx").exists()
    assert f"Stopped; the same command goes on with the features kept in {tmp_path / 'a.onnx.features'}" in out


def test_each_model_has_its_own_features(photos, base, tmp_path):
    adapt(photos, base, tmp_path / "a.onnx", "--features", tmp_path / "f")
    adapt(photos, tmp_path / "a.onnx", tmp_path / "b.onnx", "--features", tmp_path / "f")
    assert len(list((tmp_path / "f").iterdir())) == 2


def test_a_file_in_the_place_of_the_features_is_left_alone(photos, base, tmp_path):
    (tmp_path / "f").write_bytes(b"of the user")
    assert "is a file; name a folder" in adapt(photos, base, tmp_path / "a.onnx", "--features", tmp_path / "f", code=1)
    assert (tmp_path / "f").read_bytes() == b"of the user"


def test_a_damaged_head_of_the_features_is_begun_again(photos, base, tmp_path):
    adapt(photos, base, tmp_path / "a.onnx", "--features", tmp_path / "f")
    (kept,) = (tmp_path / "f").iterdir()
    kept.write_bytes(b"not whole")
    adapt(photos, base, tmp_path / "b.onnx", "--features", tmp_path / "f")
    assert read_contract(tmp_path / "a.onnx").measured == read_contract(tmp_path / "b.onnx").measured


def _with_split(table, test):
    """Add a column `split`; the photographs in `test` are held out."""
    header, *lines = table.read_text().splitlines()
    rows = [f"{line},{'test' if n in test else 'train'}" for n, line in enumerate(lines)]
    table.write_text("\n".join([f"{header},split", *rows]) + "\n")


def test_test_photographs_judge_and_are_not_fitted_on(photos, base, tmp_path):
    _with_split(photos, range(40, 60))
    out = adapt(photos, base, tmp_path / "mine.onnx")
    assert "; 20 are held out as a test" in out
    assert "On 20 held-out test photographs of labels.csv:" in out
    contract = read_contract(tmp_path / "mine.onnx")
    assert contract.measured.images == 20
    assert contract.provenance["images"] == contract.calibration.images == 40
    lines = photos.read_text().splitlines()
    for number in range(41, 61):  # wrong labels in the test rows change the figures, not the model
        name, _, split = lines[number].split(",")
        lines[number] = f"{name},{'gold' if number % 2 else ''},{split}"
    photos.write_text("\n".join(lines) + "\n")
    adapt(photos, base, tmp_path / "again.onnx", "--force")
    again = read_contract(tmp_path / "again.onnx")
    assert again.measured.mean_ap < contract.measured.mean_ap
    assert again.calibration.scale == contract.calibration.scale
    adapt(photos, base, tmp_path / "all.onnx", "--split-column", "none", "--force")
    assert read_contract(tmp_path / "all.onnx").provenance["images"] == 60


def test_photographs_like_a_test_photograph_are_not_fitted_on(photos, base, tmp_path):
    _with_split(photos, range(40, 60))
    image = Image.open(tmp_path / "59.png").resize((48, 40), Image.Resampling.BICUBIC)
    image.save(tmp_path / "again.png")
    photos.write_text(photos.read_text() + "again.png,gold,train\n")
    out = adapt(photos, base, tmp_path / "mine.onnx")
    assert "1 photograph not fitted on" in out
    assert read_contract(tmp_path / "mine.onnx").provenance["images"] == 40


def test_a_share_is_held_out(photos, base, tmp_path):
    out = adapt(photos, base, tmp_path / "mine.onnx", "--test-share", 0.25)
    contract = read_contract(tmp_path / "mine.onnx")
    assert 12 <= contract.measured.images <= 18
    assert contract.provenance["images"] == 60 - contract.measured.images
    assert "held-out test photographs" in out


def test_rows_without_a_split_are_fitted_on_and_the_test_stays_one(photos, base, tmp_path):
    """As in labels.csv of a review, in which photographs appear that the table before did not have."""
    _with_split(photos, range(40, 60))
    text = photos.read_text().replace(",train", ",", 10)
    photos.write_text(text)
    out = adapt(photos, base, tmp_path / "mine.onnx")
    assert "; 20 are held out as a test" in out
    assert read_contract(tmp_path / "mine.onnx").provenance["images"] == 40


def test_the_column_specimen_is_used_without_being_named(photos, base, tmp_path):
    _with_split(photos, range(40, 60))
    header, *lines = photos.read_text().splitlines()
    rows = [f"{line},{'S-1' if n in (0, 59) else ''}" for n, line in enumerate(lines)]
    photos.write_text("\n".join([f"{header},specimen", *rows]) + "\n")
    out = adapt(photos, base, tmp_path / "mine.onnx")
    assert "Photographs of one specimen stay together (column specimen" in out
    assert "1 photograph not fitted on" in out
    out = adapt(photos, base, tmp_path / "mine.onnx", "--group-column", "none")
    assert "specimen stay together" not in out
    assert "not fitted on" not in out


def test_a_table_in_another_folder_finds_its_photographs_and_says_where(photos, base, tmp_path):
    (tmp_path / "sub").mkdir()
    moved = tmp_path / "sub" / "labels.csv"
    moved.write_text(photos.read_text())
    out = adapt(moved, base, tmp_path / "mine.onnx")
    assert f"Relative paths start in {tmp_path}; they lead nowhere from {moved.parent}" in out
    assert "Relative paths start" not in adapt(moved, base, tmp_path / "mine.onnx", "--root", tmp_path)
    (tmp_path / "1.png").unlink()  # not all are there, so they may be meant to be elsewhere
    out = adapt(moved, base, tmp_path / "mine.onnx", code=1)
    assert "none of its 60 photographs were found; there is no" in out
    assert f"{tmp_path / 'sub' / '0.png'}" in out
    assert f"this photograph is in {tmp_path}: --root {tmp_path}" in out
    away = adapt(photos, base, tmp_path / "mine.onnx", "--root", tmp_path / "nowhere", code=1)
    assert "Relative paths start in" in away


def test_names_that_mean_a_label_are_said(photos, base, tmp_path):
    photos.write_text(photos.read_text().replace("gold;agate", "Gold|agate").replace("agate", "Achat"))
    out = adapt(photos, base, tmp_path / "mine.onnx")
    assert "Read as: Achat = agate, " in out
    assert "(--labels FILE keeps your names)" in out
    assert "3 labels" in out


def test_a_name_of_ones_own_for_an_old_label_keeps_the_old_answer(photos, base, tmp_path):
    """Quartz under the name that --labels gives it: compared, and where nothing shows it, kept."""
    photos.write_text(photos.read_text().replace("my rock", "rock crystal"))
    own = tmp_path / "own.txt"
    own.write_text("agate\ngold\nrock crystal\n")
    out = adapt(photos, base, tmp_path / "mine.onnx", "--labels", own)
    assert "Known to the old model under another name: rock crystal = quartz" in out
    assert "of them new to the model" not in out
    assert "will not know" not in out
    (row,) = (line for line in out.splitlines() if line.startswith("rock crystal "))
    assert row.split()[3] != "-", "AP before"
    assert read_contract(tmp_path / "mine.onnx").labels == ("agate", "gold", "rock crystal")


@pytest.mark.parametrize(
    ("labels", "old"),
    [
        (("fluorspar", "my rock"), {"fluorspar": "fluorite"}),
        (("fluorspar", "fluorite"), {"fluorite": "fluorite"}),
        (("amethyst", "citrine"), {}),
    ],
)
def test_one_label_may_be_another_name_of_an_old_one(labels, old):
    assert old_labels(labels, ("fluorite", "quartz")) == old


def test_images_whose_label_is_not_known_are_no_label_of_their_own(photos, base, tmp_path):
    lines = photos.read_text().splitlines()
    lines[1:4] = [
        f"{line.split(',')[0]},{name}" for line, name in zip(lines[1:4], ("?", "Unknown", "gold;?"), strict=True)
    ]
    photos.write_text("\n".join(lines) + "\n")
    out = adapt(photos, base, tmp_path / "mine.onnx")
    assert "57 photographs, 3 labels" in out


def test_missing_and_damaged_photographs_are_told_apart(photos, base, tmp_path):
    (tmp_path / "7.png").write_bytes(b"not an image")
    (tmp_path / "8.png").unlink()
    out = adapt(photos, base, tmp_path / "mine.onnx", code=3)
    assert out.index("1 photograph could not be found and will be left out; the first: ") < out.index(
        "Fitting 3 labels"
    )
    assert "1 photograph could not be found and left out; the first: " in out
    assert "1 photograph could not be read and left out; the first: " in out
    for number in range(60):
        (tmp_path / f"{number}.png").write_bytes(b"not an image %d" % number)
    out = adapt(photos, base, tmp_path / "again.onnx", code=1)
    assert "60 of 60 photographs cannot be read" in out


def test_the_figures_say_for_what_they_hold(photos, base, tmp_path):
    out = adapt(photos, base, tmp_path / "mine.onnx")
    assert "These figures are valid only if the old model was not trained on these photographs" in out
    assert "mineral-batch evaluate results LABELS.csv" in out
    info = CliRunner().invoke(runtime, ["info", str(tmp_path / "mine.onnx")]).output
    ece, loss = re.search(r"calibration error (\S+), log loss (\S+) \(cross-validated\)", out).groups()
    assert "(chosen by the highest F1):" in info
    column = re.search(r"^name +(?=mine$)", info, re.M).end()
    (digest,) = (line for line in info.splitlines() if line.startswith("adapted from graph SHA-256"))
    assert re.fullmatch("[0-9a-f]{64}", digest[column:]), "in the column of the other facts"
    assert re.search(rf"error \S+ before, {ece} after; log loss \S+ before, {loss} after", info), "the same figures"
    assert "on 60 images of labels.csv, cross-validated in 5 folds" in info


def test_a_column_split_of_other_words_is_only_a_column(photos, base, tmp_path):
    _with_split(photos, ())
    photos.write_text(photos.read_text().replace(",train", ",left half"))
    out = adapt(photos, base, tmp_path / "mine.onnx")
    assert "The column split is not used: 'left half' is none of train, val, test" in out
    assert "split must be one of" in adapt(photos, base, tmp_path / "mine.onnx", "--split-column", "split", code=1)


def test_a_calibrated_model_is_adapted_from_its_calibrated_logits(photos, base, tmp_path):
    """Also where the calibration stands behind the layer as Mul and Add; they are folded away."""
    model = onnx.load(base)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    sigmoid = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    place = list(model.graph.node).index(sigmoid)
    for name, value in (("calibration/scale", [2, 3, 4]), ("calibration/bias", [1, 0, -1])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    model.graph.node.insert(place, helper.make_node("Mul", [gemm.output[0], "calibration/scale"], ["s"]))
    model.graph.node.insert(place + 1, helper.make_node("Add", ["s", "calibration/bias"], ["c"]))
    sigmoid.input[0] = "c"
    onnx.save(model, base)
    adapt(photos, base, tmp_path / "mine.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "mine.onnx").graph.node}
    assert operators == {"Cast", "ReduceMean", "Gemm", "Sigmoid"}
    calibrate_graph(tmp_path / "mine.onnx", tmp_path / "again.onnx", [1, 1, 1], [0, 0, 0])


def test_other_spellings_mean_the_old_models_label(photos, base, tmp_path):
    photos.write_text(photos.read_text().replace("agate", "Agates").replace("my rock", "rock crystal"))
    adapt(photos, base, tmp_path / "mine.onnx")
    assert read_contract(tmp_path / "mine.onnx").labels == ("agate", "gold", "quartz")


@pytest.mark.slow
def test_the_reading_of_varieties_is_said_and_can_be_the_other(photos, base, tmp_path):
    photos.write_text(photos.read_text().replace("my rock", "quartz"))
    rows = [line.split(",")[1].split(";") for line in photos.read_text().splitlines()[1:]]
    agates = [names for names in rows if "agate" in names]
    both = sum("quartz" in names for names in agates)
    said = f"{len(agates) - both} images are labeled agate but not quartz; they count as not quartz"
    assert said in adapt(photos, base, tmp_path / "written.onnx")
    said = "Every image labeled agate is labeled quartz, too\n"
    assert said in adapt(photos, base, tmp_path / "implied.onnx", "--imply-parents", "--force")
    support = {name: read_contract(tmp_path / f"{name}.onnx").measured.support for name in ("written", "implied")}
    assert support["written"]["quartz"] == sum("quartz" in names for names in rows)
    assert support["implied"]["quartz"] == sum("quartz" in names or "agate" in names for names in rows)


def test_a_folder_of_folders_with_none(photos, base, tmp_path):
    for line in photos.read_text().splitlines()[1:]:
        name, _, label = line.partition(",")
        folder = tmp_path / "sorted" / (label.partition(";")[0] or "none")
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).rename(folder / name)
    adapt(tmp_path / "sorted", base, tmp_path / "mine.onnx")
    assert read_contract(tmp_path / "mine.onnx").labels == ("agate", "gold", "my rock")


def test_a_model_that_got_worse_is_not_written(photos, base, tmp_path, monkeypatch):
    worse = compare.LabelComparison("mean of 2 labels", 40, 0.9, 0.5, -0.5, -0.3)
    monkeypatch.setattr("mineral_train.adapt.run.compare", lambda *_, **__: ([worse], worse))
    out = adapt(photos, base, tmp_path / "mine.onnx", code=1)
    assert "WORSE" in out
    assert "--force writes it" in out
    assert not (tmp_path / "mine.onnx").exists()
    adapt(photos, base, tmp_path / "mine.onnx", "--force")
    assert (tmp_path / "mine.onnx").exists()


def test_photographs_that_cannot_be_read_are_left_out_and_named(photos, base, tmp_path):
    (tmp_path / "7.png").write_bytes(b"not an image")
    out = adapt(photos, base, tmp_path / "mine.onnx", code=3)
    assert "1 photograph could not be read" in out
    assert "7.png" in out
    assert read_contract(tmp_path / "mine.onnx").measured.images == 59


def test_contradictory_duplicates_are_counted(photos, base, tmp_path):
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    photos.write_text(photos.read_text() + "copy.png,gold;agate;my rock\n")
    out = adapt(photos, base, tmp_path / "mine.onnx")
    assert "1 rows are the same photograph as another" in out
    assert "Warning: 1 photographs are listed with different labels" in out


def test_a_label_with_one_photograph_is_kept_and_said(photos, base, tmp_path):
    photos.write_text(photos.read_text().replace("\n3.png,", "\n3.png,rarity;"))
    out = adapt(photos, base, tmp_path / "mine.onnx")
    assert "Fewer than 5 photographs, too few to learn much: rarity" in out
    assert "new label, too few to judge" in out


def test_one_label_only(photos, base, tmp_path):
    photos.write_text(photos.read_text().replace("agate", "").replace("my rock", ""))
    adapt(photos, base, tmp_path / "mine.onnx")
    assert read_contract(tmp_path / "mine.onnx").labels == ("gold",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,labels\n1.png,gold\n", "adapting needs at least 10"),
        ("path,labels\n" + "".join(f"{n}.png,gold\n" for n in range(12)), "every photograph shows gold"),
        ("path,labels\n" + "".join(f"{n}.png,\n" for n in range(12)), "label|none of the labels"),
        ("path,names\n1.png,gold\n", "no column 'labels', only path, names"),
        ("path,labels\n" + "".join(f"{n}.png,a{n % 2}\n" for n in range(12)) + "13.png,A1\n", "looks like label"),
    ],
)
def test_mistakes_are_one_line(photos, base, tmp_path, text, message):
    photos.write_text(text)
    out = adapt(photos, base, tmp_path / "mine.onnx", code=1)
    assert any(part in out for part in message.split("|"))
    assert out.strip().splitlines()[-1].startswith("Error: ")
    assert not (tmp_path / "mine.onnx").exists()


def test_places_and_models_that_cannot_be_used(photos, base, tmp_path):
    assert "no folder" in adapt(photos, base, tmp_path / "no" / "mine.onnx", code=1)
    assert "no such folder or CSV" in adapt(tmp_path / "none.csv", base, tmp_path / "mine.onnx", code=1)
    assert "there is no model file" in adapt(photos, tmp_path / "none.onnx", tmp_path / "mine.onnx", code=1)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["z"], keepdims=0),
        helper.make_node("Sigmoid", ["z"], ["probabilities"]),
    ]
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])
    _save(nodes, {"axes": np.array([1, 2])}, [output], base)
    assert "cannot be adapted: its labels do not come from one linear layer" in adapt(
        photos, base, tmp_path / "mine.onnx", code=1
    )


def test_with_little_data_the_old_layer_stays_with_much_it_gives_way():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 20)).astype(np.float32)
    truth = x[:, 0] + x[:, 1] > 0
    old = (np.eye(20)[0], 0.0)  # knows half of it
    few, many = (fit_head(x[:n], truth[:n, None], [old], c).weights[0] for n, c in ((20, 1e-3), (4000, 1.0)))
    assert abs(few[0]) > 5 * abs(few[1])
    assert many[1] == pytest.approx(many[0], rel=0.5)


def test_folds_share_no_specimen_and_every_label_alike():
    rng = np.random.default_rng(0)
    y, groups = rng.random((200, 3)) < 0.2, np.repeat(np.arange(50), 4)
    folds = stratified_folds(y, groups, 5, seed=0)
    assert all(len(set(folds[groups == g])) == 1 for g in range(50))
    assert all(30 <= (folds == fold).sum() <= 50 for fold in range(5))
