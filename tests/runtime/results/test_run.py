"""Runs into a folder: the same bytes by every road, and only what is new is done again."""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import shutil
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch import DataError, Failure, ModelContract, Prediction, Predictor
from mineral_batch.images.discover import find_sources
from mineral_batch.model.onnx_file import graph_digest, write_contract
from mineral_batch.results.check import check
from mineral_batch.results.fingerprint import fingerprint
from mineral_batch.results.run import run
from mineral_batch.results.write import Tables
from mineral_batch.types import Source

onnxruntime = pytest.importorskip("onnxruntime")

ALL = Tables(("csv", "jsonl"), per_image=True, columns=("size",))


def outcome(folder: Path) -> dict[str, bytes]:
    """Everything a run leaves that must not depend on how it came about."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("journal.") and path.name != "run.json"
    }


def table(folder: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def manifest(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


@pytest.mark.parametrize("decode_threads", [1, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_batches_and_threads_change_no_byte(
    album: Path, tmp_path: Path, model_path: Path, predictor: Predictor, batch_size: int, decode_threads: int
) -> None:
    (album / "04.png").write_bytes(b"damaged")
    run(predictor, [album], tmp_path / "reference", ALL)
    options: dict[str, Any] = {"batch_size": batch_size, "decode_threads": decode_threads}
    with Predictor(model_path, backend="onnx-cpu", **options) as other:
        run(other, [album], tmp_path / "out", ALL)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "reference")
    assert len(outcome(tmp_path / "out")) == 14
    assert list(check(tmp_path / "out")) == []


def test_threads_that_finish_in_another_order_change_nothing(album: Path, model_path: Path) -> None:
    def delayed(source: Source, seconds: float) -> Source:
        def read() -> Any:
            time.sleep(seconds)
            return source.read()

        return replace(source, read=read)

    sources = [source for source in find_sources([album]) if isinstance(source, Source)]
    with Predictor(model_path, backend="onnx-cpu", batch_size=3, decode_threads=6) as predictor:
        plain = list(predictor.predict(sources))
        for seed in range(3):
            dice = random.Random(seed)
            shuffled = list(predictor.predict([delayed(source, dice.uniform(0, 0.03)) for source in sources]))
            assert [result.path for result in shuffled] == [result.path for result in plain]
            np.testing.assert_array_equal(answers(shuffled), answers(plain))


def answers(results: list[Prediction | Failure]) -> Any:
    assert all(isinstance(result, Prediction) for result in results)
    return np.stack([result.probabilities for result in results])


def test_folders_globs_lists_archives_and_memory_give_the_same_probabilities(
    album: Path, tmp_path: Path, predictor: Predictor
) -> None:
    paths = sorted(album.iterdir())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for path in paths:
            packed.write(path, path.name)
    for name, mode in (("a.tar", "w"), ("a.tgz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as tarred:
            for path in paths:
                tarred.add(path, path.name)
    pictures = [PILImage.open(path).convert("RGB") for path in paths]
    roads: dict[str, list[Any]] = {
        "folder": [album],
        "files": list(paths),
        "text": [str(path) for path in paths],
        "glob": [str(album / "*.png")],
        "zip": [tmp_path / "a.zip"],
        "tar": [tmp_path / "a.tar"],
        "tgz": [tmp_path / "a.tgz"],
        "pictures": pictures,
        "arrays": [np.asarray(picture) for picture in pictures],
        "mixed": [paths[0], pictures[1], np.asarray(pictures[2]), *paths[3:]],
    }
    found = {road: list(predictor.predict(inputs)) for road, inputs in roads.items()}
    for road, results in found.items():
        np.testing.assert_array_equal(answers(results), answers(found["folder"]), err_msg=road)
        assert [result.width for result in results] == [picture.width for picture in pictures]


@pytest.mark.parametrize("enough", [1, 4, 10])
def test_stopped_and_started_again_it_ends_with_the_same_bytes(
    album: Path, tmp_path: Path, predictor: Predictor, enough: int
) -> None:
    (album / "04.png").write_bytes(b"damaged")
    run(predictor, [album], tmp_path / "reference", ALL)
    drawn, out = itertools.count(), tmp_path / "out"
    first = run(predictor, [album], out, ALL, stop=lambda: next(drawn) == enough)
    assert not first.complete
    assert first.predicted + first.failed == enough
    assert len(table(out, "predictions.partial.csv")) == first.predicted
    assert list(outcome(out)) == ["predictions.partial.csv"]
    assert "no run into this folder is complete" in next(check(out))
    second = run(predictor, [album], out, ALL)
    assert second.complete
    assert second.reused == first.predicted + first.failed
    assert outcome(out) == outcome(tmp_path / "reference")


def test_the_same_command_again_does_nothing_and_changes_nothing(
    album: Path, tmp_path: Path, predictor: Predictor
) -> None:
    run(predictor, [album], tmp_path / "out", ALL)
    before = outcome(tmp_path / "out")
    report = run(predictor, [album], tmp_path / "out", ALL)
    assert (report.reused, report.predicted) == (11, 11)
    assert outcome(tmp_path / "out") == before
    assert manifest(tmp_path / "out")["pictures_per_second"] is None


def test_new_changed_and_removed_pictures_are_noticed(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    out = tmp_path / "out"
    run(predictor, [album], out, ALL)
    before = {row["path"]: row for row in table(out)}
    shutil.copy(album / "00.png", album / "new.png")
    shutil.copy(album / "01.png", album / "05.png")
    (album / "09.png").unlink()
    os.utime(album / "07.png", (1, 1))
    report = run(predictor, [album], out, Tables(columns=("size",)))
    assert (report.predicted, report.new, report.reused, report.kept) == (12, 3, 8, 1)
    after = {row["path"]: row for row in table(out)}
    changed = {Path(path).name for path in before.keys() & after.keys() if before[path] != after[path]}
    assert changed == {"05.png"}
    assert {Path(path).name for path in before.keys() ^ after.keys()} == {"new.png"}
    assert list(check(out)) == []
    assert run(predictor, [album], out, Tables(columns=("size",)), prune=True).predicted == 11
    assert str(album / "09.png") not in {row["path"] for row in table(out)}
    assert not (out / "per-image" / str(album).lstrip("/") / "09.png.csv").exists()
    assert list(check(out)) == []


def test_new_thresholds_rewrite_the_column_and_predict_nothing(album: Path, tmp_path: Path, model_path: Path) -> None:
    model = Path(shutil.copy(model_path, tmp_path / "model.onnx"))
    out = tmp_path / "out"
    with Predictor(model, backend="onnx-cpu") as predictor:
        contract = predictor.contract
        run(predictor, [album], out)
    before = table(out)
    write_contract(model, contract.with_thresholds([0.0] * 5))
    with Predictor(model, backend="onnx-cpu") as predictor:
        assert run(predictor, [album], out).reused == 11
    after = table(out)
    assert all(len(row["minerals"].split(";")) == 5 for row in after)
    assert [row | {"minerals": ""} for row in after] == [row | {"minerals": ""} for row in before]
    assert list(check(out)) == []


def test_another_model_labels_or_decoding_is_refused_and_named(album: Path, tmp_path: Path, model_path: Path) -> None:
    out, model = tmp_path / "out", Path(shutil.copy(model_path, tmp_path / "model.onnx"))
    with Predictor(model, backend="onnx-cpu") as predictor:
        run(predictor, [album], out)
        contract = predictor.contract
    before = outcome(out)
    with Predictor(model, backend="onnx-cpu", exact=True) as exact, pytest.raises(DataError, match="decoder was"):
        run(exact, [album], out)
    write_contract(model, replace(contract, labels=tuple("abcde")))
    with Predictor(model, backend="onnx-cpu") as other, pytest.raises(DataError, match="labels or input differ"):
        run(other, [album], out)
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(model_path))
    graph.graph.initializer[3].raw_data = b"\0" * len(graph.graph.initializer[3].raw_data)
    onnx.save(graph, str(model))
    with Predictor(model, backend="onnx-cpu") as other:
        with pytest.raises(DataError, match=r"were made with another model.*-o, or discard them with --restart"):
            run(other, [album], out)
        assert outcome(out) == before
        assert run(other, [album], out, restart=True).reused == 0
    assert outcome(out) != before


def test_the_digest_is_of_the_graph_alone(tmp_path: Path, model_path: Path, contract: ModelContract) -> None:
    model = Path(shutil.copy(model_path, tmp_path / "model.onnx"))
    before = graph_digest(model)
    write_contract(model, contract.with_thresholds([0.125] * 5))
    assert graph_digest(model) == before
    data = bytearray(model.read_bytes())
    at = data.index(b"AveragePool")
    data[at : at + 11] = b"LpNormaliza"
    model.write_bytes(data)
    assert graph_digest(model) != before


def of(predictor: Predictor) -> dict[str, str]:
    assert predictor.decoder is not None
    return fingerprint(predictor, predictor.decoder)


def test_everything_that_changes_results_is_in_the_fingerprint(model_path: Path, predictor: Predictor) -> None:
    with Predictor(model_path, backend="onnx-cpu", exact=True) as exact:
        assert {key for key, value in of(exact).items() if of(predictor)[key] != value} == {"decoder"}
    with Predictor(model_path, backend="onnx-cpu", batch_size=64, decode_threads=1) as other:
        assert of(other) == of(predictor)
    assert of(predictor)["engine"] == f"onnx-cpu, ONNX Runtime {onnxruntime.__version__}, float32"
