"""The order that teaches most, and the features that it spreads over."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mineral_batch import InputSpec, ModelContract
from mineral_batch.cli import main
from mineral_batch.errors import ContractError
from mineral_batch.images.decode import load_image
from mineral_batch.model.onnx_calibration import calibrate_graph
from mineral_batch.results.read import read_results
from mineral_batch.review import order
from mineral_batch.review.decisions import Decisions
from mineral_batch.review.features import FeatureExtractor, FeatureStore, model_of
from mineral_batch.review.reading import Reader
from mineral_batch.review.session import Review


def test_a_doubt_about_a_rare_mineral_is_worth_more() -> None:
    scores = np.array([[0.9, 0.01], [0.9, 0.01], [0.5, 0.01], [0.9, 0.5]])
    worth = order.worth(scores)
    assert worth.argmax() == 3
    assert worth[0] == pytest.approx(worth[1])


def test_copies_of_what_was_chosen_come_last_and_every_image_once() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(4, 8))
    vectors = np.repeat(kinds, 5, axis=0).astype(np.float32)  # five copies of each of four
    scores = np.full((21, 3), 0.4)
    found = order.teaches(scores, vectors, np.arange(20))
    assert sorted(found.tolist()) == list(range(21))
    assert {place // 5 for place in found[:4].tolist()} == {0, 1, 2, 3}


def test_without_features_it_spreads_over_the_answers() -> None:
    scores = np.repeat([[0.5, 0.1, 0.1], [0.1, 0.5, 0.1], [0.1, 0.1, 0.5]], 4, axis=0)
    found = order.teaches(scores, order.answers(scores), order.candidates(scores))
    assert {place // 4 for place in found[:3].tolist()} == {0, 1, 2}


def means(spec: InputSpec, photo: Path) -> Any:
    """What the tiny model's last layer reads: mean colors of its 3 x 4 cells, normalized."""
    pixels = load_image(photo, spec).pixels / 255
    cells = ((pixels - spec.mean) / spec.std).reshape(3, 8, 4, 8, 3).mean(axis=(1, 3))
    return cells.transpose(2, 0, 1).ravel()


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_features_are_what_the_last_layer_reads(
    model_path: Path, contract: ModelContract, tmp_path: Path, is_calibrated: bool
) -> None:
    if is_calibrated:
        target = tmp_path / "calibrated.onnx"
        count = len(contract.labels)
        calibrate_graph(model_path, target, [1.5] * count, [-0.5] * count)
        model_path = target
    photo = tmp_path / "a.png"
    Image.effect_noise((64, 48), 80).convert("RGB").save(photo)
    extractor = FeatureExtractor(model_path)
    pixels = load_image(photo, extractor.spec).pixels
    np.testing.assert_allclose(extractor(pixels[None])[0], means(extractor.spec, photo), rtol=1e-4, atol=1e-5)


def test_a_model_without_a_pooled_vector_is_refused(tmp_path: Path) -> None:
    from ..explain import models

    path = tmp_path / "colors.onnx"
    models.write_color_model(path)
    with pytest.raises(ContractError, match="one linear layer"):
        FeatureExtractor(path)


@pytest.fixture
def predicted(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of a real run on eight photographs, two of each color."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for place, color in enumerate(["red", "red", "lime", "lime", "blue", "blue", "white", "white"]):
        Image.new("RGB", (40, 30), color).save(folder / f"{place}.png")
    done = CliRunner().invoke(main, ["predict", "photos", "-m", str(model_path), "-o", "results"])
    assert done.exit_code == 0, done.output
    return tmp_path / "results"


def test_the_order_of_a_review_goes_by_features_once_they_are_computed(predicted: Path) -> None:
    results = read_results(predicted)
    model = model_of(results, Path())
    assert model is not None
    with Decisions(predicted) as decisions:
        store = FeatureStore(predicted, FeatureExtractor(model))
        review = Review(results, decisions, predicted.parent, "Ada", features=store)
        early = review.queue("teaches", "", 0, 3, undecided=True)
        review.teaching.wait()
        late = review.queue("teaches", "", 0, 8, undecided=True)
        again = review.queue("teaches", "", 0, 3, undecided=True, edition=early["edition"])
        review.close()
    assert late["edition"] == 1
    assert [item["row"] for item in again["items"]] == [item["row"] for item in early["items"]]
    assert len({item["row"] // 2 for item in late["items"][:4]}) == 4  # one of each color


def test_features_are_computed_once_and_without_what_vanished(
    predicted: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(read_results(predicted).predictions.paths)
    Path(names[3]).unlink()
    store = FeatureStore(predicted, FeatureExtractor(model_path))
    store.compute(names, Reader(Path()), threading.Event())
    places, vectors = store.vectors(names)
    store.close()
    assert places.tolist() == [0, 1, 2, 4, 5, 6, 7]
    for file in Path("photos").iterdir():
        file.unlink()
    again = FeatureStore(predicted, FeatureExtractor(model_path))
    again.compute(names, Reader(Path()), threading.Event())
    np.testing.assert_array_equal(again.vectors(names)[1], vectors)
    again.close()


def test_another_model_under_the_same_name_is_not_taken_for_that_of_the_run(
    predicted: Path, model_path: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "mine.onnx"
    copy.write_bytes(model_path.read_bytes())
    done = CliRunner().invoke(main, ["predict", "photos", "-m", "mine.onnx", "-o", "other"])
    assert done.exit_code == 0, done.output
    results = read_results(tmp_path / "other")
    assert model_of(results, tmp_path) == Path("mine.onnx")
    copy.write_bytes(copy.read_bytes() + b" ")
    assert model_of(results, tmp_path) is None
