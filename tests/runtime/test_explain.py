"""Maps on photographs: the right place in the right picture, whatever its size, turn and cut; scores; the command."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mineral_batch.cli import main
from mineral_batch.engines.registry import open_backend
from mineral_batch.errors import ContractError, DataError
from mineral_batch.explain.maps import (
    MAPS_KEY,
    MapSpec,
    centre_first,
    deletion,
    enlarged,
    explain,
    insertion,
    open_explainer,
    peak,
    point,
    read_masks,
)
from mineral_batch.explain.overlay import colours, overlay
from mineral_batch.explain.run import Asked, run
from mineral_batch.images.discover import find_sources
from mineral_batch.model.contract import InputSpec, ModelContract
from mineral_batch.model.onnx_file import write_contract, write_metadata
from mineral_batch.model.starter import starter_path

onnx = pytest.importorskip("onnx", reason="the tiny model is built with the onnx package")

LABELS = ("cinnabar", "malachite/green", "azurite")
CHANNEL = {"cinnabar": 0, "malachite/green": 1, "azurite": 2}
SPEC = InputSpec(height=96, width=128, interpolation="bilinear")
GRID = (12, 16)


def looking_model():
    """ModelProto that knows red, green and blue: a label's map is where its colour outweighs the two others."""
    helper, kind = onnx.helper, onnx.TensorProto
    weights = np.full((3, 3, 1, 1), -0.5, np.float32)
    weights[range(3), range(3)] = 1
    constants = {
        "scale": np.float32(255),
        "weights": weights,
        "k": np.array([2]),
        "half": np.float32(0.4),
        "steep": np.float32(12),
        "tiny": np.float32(1e-9),
        "two": np.array([2]),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=kind.FLOAT),
        helper.make_node("Div", ["cast", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["patches"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Conv", ["patches", "weights"], ["outweighs"]),
        helper.make_node("Relu", ["outweighs"], ["heat"]),
        helper.make_node("GlobalMaxPool", ["heat"], ["largest"]),
        helper.make_node("Flatten", ["largest"], ["evidence"]),
        helper.make_node("Sub", ["evidence", "half"], ["above"]),
        helper.make_node("Mul", ["above", "steep"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
        helper.make_node("TopK", ["probabilities", "k"], ["values", "top_labels"]),
        helper.make_node("Max", ["largest", "tiny"], ["divisor"]),
        helper.make_node("Div", ["heat", "divisor"], ["normal"]),
        helper.make_node("Unsqueeze", ["top_labels", "two"], ["indices"]),
        helper.make_node("GatherND", ["normal", "indices"], ["maps"], batch_dims=1),
    ]
    outputs = [
        ("probabilities", kind.FLOAT, ["N", 3]),
        ("top_labels", kind.INT64, ["N", 2]),
        ("maps", kind.FLOAT, ["N", 2, *GRID]),
    ]
    graph = helper.make_graph(
        nodes,
        "looking",
        [helper.make_tensor_value_info("pixels", kind.UINT8, ["N", SPEC.height, SPEC.width, 3])],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def pooled_model(**gemm):
    """ModelProto of the same colours that ends as a CNN with mean pooling; the linear layer's attributes on request."""
    helper, kind = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(3)
    constants = {
        "scale": np.float32(255),
        "colours": rng.normal(size=(5, 3, 1, 1)).astype(np.float32),
        "flat": np.array([0, 5, -1]),
        "places": np.array([1]),
        "weights": rng.normal(0, 6, (3, 5)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=kind.FLOAT),
        helper.make_node("Div", ["cast", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["patches"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Conv", ["patches", "colours"], ["mixed"]),
        helper.make_node("Relu", ["mixed"], ["features"]),
        helper.make_node("Reshape", ["features", "flat"], ["lists"]),
        helper.make_node("Transpose", ["lists"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("ReduceMean", ["tokens", "places"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "weights", "bias"], ["logits"], transB=1, **gemm),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("pixels", kind.UINT8, ["N", SPEC.height, SPEC.width, 3])],
        [helper.make_tensor_value_info("probabilities", kind.FLOAT, ["N", 3])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), constants


def write_pooled(path, **gemm):
    model, constants = pooled_model(**gemm)
    onnx.save(model, str(path))
    write_contract(path, ModelContract(LABELS, (0.5, 0.5, 0.5), SPEC, name="pooled"))
    return constants


def write_model(path, spec=SPEC):
    onnx.save(looking_model(), str(path))
    write_contract(path, ModelContract(LABELS, (0.5, 0.5, 0.5), spec, name="looking"))
    write_metadata(path, {MAPS_KEY: MapSpec("grad-cam", GRID, 2).to_json()})
    return path


@pytest.fixture(scope="module")
def looking(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("looking") / "model.onnx")


def picture(size, *squares):
    """Grey, with coloured squares (label, left, top, side); RGB."""
    pixels = np.full((size[1], size[0], 3), 120, np.uint8)
    for label, left, top, side in squares:
        pixels[top : top + side, left : left + side] = 20
        pixels[top : top + side, left : left + side, CHANNEL[label]] = 240
    return Image.fromarray(pixels)


def square_mask(size, left, top, side):
    mask = np.zeros((size[1], size[0]), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def explained(model, path):
    with open_explainer(model) as explainer:
        (source,) = find_sources([path])
        return explain(explainer, source)


def invoke(*arguments):
    return CliRunner().invoke(main, ["explain", *map(str, arguments)])


def size_of(path):
    with Image.open(path) as opened:
        return opened.size


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def rows(folder):
    with (folder / "maps.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("size", [(640, 480), (900, 300), (300, 900), (128, 96)])
def test_the_peak_is_on_the_mineral(size, resize, tmp_path):
    spec = replace(SPEC, resize=resize)
    model = write_model(tmp_path / "model.onnx", spec)
    side = min(size) // 4
    left, top = size[0] // 2 + side // 3, size[1] // 2 - side  # right of and above the middle, inside any cut
    picture(size, ("azurite", left, top, side)).save(tmp_path / "a.png")
    found = explained(model, tmp_path / "a.png")
    assert found.maps[0].label == "azurite"
    at = peak(found.maps[0].heat, size, spec)
    assert left <= at[0] < left + side
    assert top <= at[1] < top + side
    assert point(found.maps[0].heat, square_mask(size, left, top, side), spec).hit


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_photograph_is_explained_upright(orientation, looking, tmp_path):
    upright = picture((640, 480), ("cinnabar", 480, 40, 120))
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    upright.transpose(undo).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    done = invoke(tmp_path / "turned.jpg", "-m", looking, "-o", tmp_path / "out", "-q")
    assert done.exit_code == 0, done.output
    (row,) = rows(tmp_path / "out")
    assert 480 <= float(row["peak_x"]) < 600
    assert 40 <= float(row["peak_y"]) < 160
    assert size_of(tmp_path / "out" / row["overlay"]) == (640, 480)


def test_a_batch_answers_as_its_pictures_do_alone(looking):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, *SPEC.shape), dtype=np.uint8)
    with open_explainer(looking) as explainer:
        together = explainer.infer(pixels)
        for index in range(5):
            alone = explainer.infer(pixels[index : index + 1])
            for one, other in zip(alone, together, strict=True):
                np.testing.assert_allclose(one[0], other[index], atol=1e-6)


def test_the_file_predicts_as_one_without_maps(looking):
    pixels = np.random.default_rng(1).integers(0, 256, (3, *SPEC.shape), dtype=np.uint8)
    with open_explainer(looking) as explainer:
        np.testing.assert_array_equal(open_backend(looking, "onnx-cpu").infer(pixels), explainer.infer(pixels)[0])


# Models whose maps follow from their last layers.


def test_a_model_that_pools_has_a_map_of_every_label(tmp_path):
    held = write_pooled(tmp_path / "pooled.onnx")
    pixels = np.random.default_rng(2).integers(0, 256, (3, *SPEC.shape), dtype=np.uint8)
    with open_explainer(tmp_path / "pooled.onnx") as explainer:
        answer = explainer.infer(pixels)
        assert explainer.maps == MapSpec("grad-cam", GRID, 3)
    np.testing.assert_array_equal(answer.labels, np.argsort(-answer.probabilities, axis=1))
    np.testing.assert_array_equal(
        open_backend(tmp_path / "pooled.onnx", "onnx-cpu").infer(pixels), answer.probabilities
    )
    # By the definition, in float64: the weights of the feature maps, their sum, what speaks for the label.
    patches = pixels.reshape(3, 12, 8, 16, 8, 3).mean(axis=(2, 4)) / 255
    features = np.maximum(patches @ held["colours"][:, :, 0, 0].T.astype(float), 0)
    for picture in range(3):
        for place, label in enumerate(answer.labels[picture]):
            heat = np.maximum(features[picture] @ held["weights"][label].astype(float), 0)
            expected = heat / heat.max() if heat.max() else heat
            np.testing.assert_allclose(answer.maps[picture, place], expected, atol=1e-5)


def test_a_last_layer_that_keeps_not_to_the_formula_is_refused(tmp_path):
    write_pooled(tmp_path / "scaled.onnx", alpha=0.5)
    with pytest.raises(ContractError, match="gives no maps of where it looks"):
        open_explainer(tmp_path / "scaled.onnx")


def test_the_starter_model_explains_without_a_word_about_models(album, tmp_path):
    done = invoke(album, "-o", tmp_path / "out", "--minimum", "0", "--top", "1")
    assert done.exit_code == 0, done.output
    assert "mineral-batch starter: 36 minerals, grad-cam maps of 16 x 16" in done.output
    assert len(rows(tmp_path / "out")) == 3


def test_the_starter_model_predicts_the_same_whether_it_explains_or_not():
    pixels = np.random.default_rng(5).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    with open_explainer(starter_path()) as explainer:
        np.testing.assert_array_equal(
            open_backend(starter_path(), "onnx-cpu").infer(pixels), explainer.infer(pixels).probabilities
        )


# The overlay.


def test_the_colour_map_grows_lighter_evenly():
    """Of the ends and the lightness of inferno: what reads alike in grey and for the colour-blind."""
    ramp = colours(np.linspace(0, 1, 101, dtype=np.float32)).astype(float)
    linear = np.where(ramp / 255 <= 0.04045, ramp / 255 / 12.92, ((ramp / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    assert ramp[0].tolist() == [0, 0, 4]
    assert ramp[-1].tolist() == [252, 255, 164]
    steps = np.diff(lightness)
    assert steps.min() > 0
    assert np.abs(np.diff(lightness[::20]) - 20).max() < 4


@settings(deadline=None)
@given(heat=hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(0, 1, width=32)))
def test_enlarging_keeps_the_range_and_the_middle_of_each_patch(heat):
    rows_, columns = heat.shape
    large = enlarged(heat, (columns * 5, rows_ * 5))
    assert large.shape == (rows_ * 5, columns * 5)
    assert large.min() >= heat.min() - 1e-6
    assert large.max() <= heat.max() + 1e-6
    np.testing.assert_allclose(large[2::5, 2::5], heat, atol=1e-5)


def test_what_the_model_did_not_see_stays_as_it_was():
    spec = replace(SPEC, resize="crop")
    wide = picture((900, 300))
    laid = np.asarray(overlay(wide, np.ones(GRID, np.float32), spec))
    changed = (laid != np.asarray(wide)).any(axis=2)
    assert changed[:, 250:650].all(), "of 900 x 300 the model sees the 400 in the middle"
    assert not changed[:, :250].any()
    assert not changed[:, 650:].any()


def test_the_overlay_is_lightest_where_the_map_is():
    heat = np.zeros(GRID, np.float32)
    heat[2, 13] = 1
    laid = np.asarray(overlay(picture((640, 480)), heat, SPEC).convert("L"))
    row, column = np.unravel_index(laid.argmax(), laid.shape)
    assert abs(row - 2.5 * 40) <= 20
    assert abs(column - 13.5 * 40) <= 20


# Scores.


def test_the_pointing_game_knows_a_hit_a_miss_and_chance():
    size = (640, 480)
    heat = np.zeros(GRID, np.float32)
    heat[0, 0] = 1
    corner, middle = square_mask(size, 0, 0, 160), square_mask(size, 280, 200, 80)
    assert point(heat, corner, SPEC) == (True, False, pytest.approx(160 * 160 / (640 * 480)))
    assert point(heat, middle, SPEC) == (False, True, pytest.approx(80 * 80 / (640 * 480)))
    assert not point(np.zeros(GRID, np.float32), np.ones((480, 640), bool), SPEC).hit, "no map points nowhere"


def test_deletion_and_insertion_prefer_the_map_that_is_right(looking, tmp_path):
    picture((640, 480), ("azurite", 20, 20, 150)).save(tmp_path / "a.png")
    found = explained(looking, tmp_path / "a.png")
    with open_explainer(looking) as explainer:

        def answer(pixels):
            return explainer.infer(pixels).probabilities

        arguments = answer, found.pixels
        right, uninformed = found.maps[0].heat, centre_first(GRID)
        gone, uninformed_gone = (deletion(*arguments, heat, 2, SPEC) for heat in (right, uninformed))
        back, uninformed_back = (insertion(*arguments, heat, 2, SPEC) for heat in (right, uninformed))
    assert gone < 0.2 < 0.7 < uninformed_gone
    assert back > 0.8
    assert back > uninformed_back


def test_the_middle_comes_first_where_nothing_is_known():
    heat = centre_first((3, 5))
    assert heat.argmax() == 7
    assert heat[0, 0] == heat[2, 4] == heat.min() > 0


def save_mask(path, size, *squares, names=("none", *LABELS)):
    values = np.zeros((size[1], size[0]), np.uint8)
    for label, left, top, side in squares:
        values[top : top + side, left : left + side] = names.index(label)
    mask = Image.fromarray(values, "L")
    palette = Image.frombytes("P", mask.size, mask.tobytes())
    palette.putpalette([0, 0, 0] * 40)
    text = PngInfo()
    text.add_text("Values", ";".join(f"{value}={name}" for value, name in enumerate(names)))
    palette.save(path, pnginfo=text)


def test_a_mask_is_read_by_the_names_in_it(tmp_path):
    save_mask(tmp_path / "m.png", (40, 30), ("azurite", 5, 6, 7))
    masks = read_masks(tmp_path / "m.png")
    assert list(masks) == ["azurite"]
    np.testing.assert_array_equal(masks["azurite"], square_mask((40, 30), 5, 6, 7))
    picture((40, 30)).save(tmp_path / "photo.png")
    with pytest.raises(DataError, match="not a mask of mineral-train synth"):
        read_masks(tmp_path / "photo.png")


# The command.


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "album"
    (folder / "deep").mkdir(parents=True)
    picture((640, 480), ("azurite", 40, 40, 150), ("cinnabar", 450, 300, 150)).save(folder / "both.png")
    picture((300, 400), ("malachite/green", 100, 30, 90)).save(folder / "deep" / "green.png")
    picture((200, 200)).save(folder / "grey.png")
    return folder


def test_every_mineral_of_every_picture_gets_an_overlay(album, looking, tmp_path):
    done = invoke(album, "-m", looking, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    table = rows(tmp_path / "out")
    assert {(Path(row["path"]).name, row["mineral"]) for row in table} == {
        ("both.png", "azurite"),
        ("both.png", "cinnabar"),
        ("green.png", "malachite/green"),
    }
    for row in table:
        assert size_of(tmp_path / "out" / row["overlay"]) == size_of(row["path"])
        assert float(row["probability"]) >= 0.5
        assert row["present"] == "1"
    assert "3 maps of 3 pictures" in done.output
    assert "1 of 3 pictures have nothing to show" in done.output
    assert not list((tmp_path / "out").glob(".*"))
    assert len(files(tmp_path / "out" / "overlays")) == 3


def test_a_run_replaces_what_an_earlier_one_left(album, looking, tmp_path):
    out = tmp_path / "out"
    assert invoke(album, "-m", looking, "-o", out, "--maps", "-q").exit_code == 0
    assert len(files(out / "maps")) == 2
    assert invoke(album / "deep", "-m", looking, "-o", out, "-q").exit_code == 0
    assert [Path(row["path"]).name for row in rows(out)] == ["green.png"]
    assert len(files(out / "overlays")) == 1
    assert not (out / "maps").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--top", "1"], {("both.png", 1), ("green.png", 1)}),
        (["--mineral", "cinnabar"], {("both.png", 1)}),
        (["--minimum", "0"], {("both.png", 2), ("green.png", 2), ("grey.png", 2)}),
        (["--minimum", "1"], set()),
    ],
)
def test_what_is_shown_can_be_chosen(options, expected, album, looking, tmp_path):
    done = invoke(album, "-m", looking, "-o", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    names = [Path(row["path"]).name for row in rows(tmp_path / "out")]
    assert {(name, names.count(name)) for name in names} == expected


def test_large_photographs_are_reduced_and_the_maps_can_be_had_as_numbers(album, looking, tmp_path):
    done = invoke(album / "both.png", "-m", looking, "-o", tmp_path / "out", "--side", "160", "--maps", "-q")
    assert done.exit_code == 0, done.output
    (first, _), out = rows(tmp_path / "out"), tmp_path / "out"
    assert size_of(out / first["overlay"]) == (160, 120)
    with np.load(next((out / "maps").rglob("both.png.npz"))) as saved:
        assert saved["labels"].tolist() == ["azurite", "cinnabar"] or saved["labels"].tolist() == [
            "cinnabar",
            "azurite",
        ]
        assert saved["maps"].shape == (2, *GRID)
        assert saved["size"].tolist() == [640, 480]
        assert saved["seen"].tolist() == [0, 0, 640, 480]


def test_archives_and_threads_change_nothing(album, looking, tmp_path):
    shutil.make_archive(str(tmp_path / "all"), "zip", album)
    tables = []
    for inputs, threads in ((album, 1), (album, 4), (tmp_path / "all.zip", 3)):
        with open_explainer(looking) as explainer:
            report = run(explainer, [inputs], tmp_path / "out", Asked(), threads=threads)
        tables.append([(row.mineral, row.probability, row.peak) for row in report.rows])
    assert tables[0] == tables[1]
    assert sorted(tables[0]) == sorted(tables[2])


def test_the_pictures_can_be_listed(album, looking, tmp_path):
    (tmp_path / "list.txt").write_text(f"{album / 'both.png'}\n{album / 'deep'}\n", "utf-8")
    done = invoke("--list", tmp_path / "list.txt", "-m", looking, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert {Path(row["path"]).name for row in rows(tmp_path / "out")} == {"both.png", "green.png"}
    assert invoke("-m", looking, "-o", tmp_path / "out").exit_code == 2


def test_a_bad_picture_is_a_row_and_exit_3(album, looking, tmp_path):
    (album / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    done = invoke(album, "-m", looking, "-o", tmp_path / "out")
    assert done.exit_code == 3, done.output
    with (tmp_path / "out" / "failures.csv").open(newline="") as file:
        (failure,) = csv.DictReader(file)
    assert Path(failure["path"]).name == "broken.jpg"
    assert failure["stage"] == "decode"
    assert len(rows(tmp_path / "out")) == 3


def test_the_scores_are_those_of_the_maps(album, looking, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    save_mask(
        masks / "both.png", (640, 480), ("azurite", 40, 40, 150), ("cinnabar", 0, 300, 150)
    )  # the second is wrong
    save_mask(masks / "green.png", (300, 400), ("malachite/green", 100, 30, 90))
    done = invoke(album, "-m", looking, "-o", tmp_path / "out", "--score", masks, "--deletion")
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["maps"] == 3
    assert scores["pointing"] == pytest.approx(2 / 3, abs=1e-5)
    assert scores["pointing_centre"] == 0
    assert (scores["maps_off_centre"], scores["pointing_off_centre"]) == (3, scores["pointing"])
    assert {name: one["pointing"] for name, one in scores["minerals"].items()} == {
        "azurite": 1,
        "cinnabar": 0,
        "malachite/green": 1,
    }
    assert scores["deletion"] < scores["deletion_centre"]
    assert scores["insertion"] > scores["insertion_centre"]
    assert "Pointing game, 3 maps: 66.7% on the mineral (middle of the picture 0.0%" in done.output


def without_maps(folder):
    path = write_model(folder / "plain.onnx")
    write_metadata(path, {MAPS_KEY: "{}"})
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["album", "-m", "MODEL", "--mineral", "azurit"], "no mineral 'azurit'; did you mean azurite?"),
        (["nowhere", "-m", "MODEL"], "no such file or folder: nowhere"),
        (["album", "-m", "MODEL", "--score", "nowhere"], "no such folder of masks: nowhere"),
        (
            ["album", "-m", "BARE"],
            "export its checkpoint again with `mineral-export onnx CHECKPOINT --explain`",
        ),
        (["album", "-m", "BROKEN"], "the model's record of its maps cannot be read"),
        (["album", "-m", "OTHER"], "the model's graph gives maps of the shapes"),
        (["album", "-m", "MODEL", "-o", "album/grey.png"], "cannot write into album/grey.png"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, album, looking, model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken, other = without_maps(tmp_path), write_model(tmp_path / "other.onnx")
    write_metadata(other, {MAPS_KEY: MapSpec("grad-cam", (3, 3), 2).to_json()})
    models = {"MODEL": looking, "BARE": model_path, "BROKEN": broken, "OTHER": other}
    done = invoke(*(models.get(word, word) for word in arguments), "-q")
    assert done.exit_code == 1
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1


@pytest.mark.parametrize("record", [{"method": "guess"}, {"grid": [3]}, {"grid": [0, 3]}, {"top": "2"}])
def test_a_record_of_maps_that_cannot_be_is_refused(record):
    good = {"method": "grad-cam", "grid": [3, 4], "top": 2}
    assert MapSpec.from_json(json.dumps(good)) == MapSpec("grad-cam", (3, 4), 2)
    with pytest.raises(ContractError):
        MapSpec.from_json(json.dumps(good | record))
