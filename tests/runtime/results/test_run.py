"""Runs into a folder: the same bytes by every road, whatever stops them, and only once at a time."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as PILImage

from mineral_batch import DataError, Failure, ModelContract, Prediction, Predictor
from mineral_batch.files import atomic_file
from mineral_batch.images.discover import find_sources
from mineral_batch.model.onnx_file import graph_digest, write_contract
from mineral_batch.results.check import check
from mineral_batch.results.fingerprint import fingerprint
from mineral_batch.results.journal import Journal
from mineral_batch.results.run import run
from mineral_batch.results.write import Tables
from mineral_batch.types import Source

if TYPE_CHECKING:
    from collections.abc import Iterator

onnxruntime = pytest.importorskip("onnxruntime")

ALL = Tables(("csv", "jsonl"), per_image=True, columns=("size",))


@pytest.fixture(scope="session")
def predictor(model_path: Path) -> Iterator[Predictor]:
    with Predictor(model_path, backend="onnx-cpu", batch_size=2, decode_threads=2) as opened:
        yield opened


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


# ---- the same answer by every road -----------------------------------------------------------------------------------


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
    assert len(outcome(tmp_path / "out")) == 13
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


# ---- resuming --------------------------------------------------------------------------------------------------------


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
    with Predictor(model, backend="onnx-cpu") as other, pytest.raises(DataError, match="labels and input was"):
        run(other, [album], out)
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(model_path))
    graph.graph.initializer[3].raw_data = b"\0" * len(graph.graph.initializer[3].raw_data)
    onnx.save(graph, str(model))
    with Predictor(model, backend="onnx-cpu") as other:
        with pytest.raises(DataError, match=r"were made differently \(model was .*-o, or discard them with --restart"):
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


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_an_input_that_vanishes_ends_the_run_and_loses_nothing(
    album: Path, tmp_path: Path, predictor: Predictor
) -> None:
    for index in range(200):
        shutil.copy(album / "00.png", album / f"more {index:03}.png")
    run(predictor, [album], tmp_path / "reference")
    away, out = tmp_path / "away", tmp_path / "out"
    count = itertools.count(1)

    def unplug(_result: object) -> None:
        if next(count) == 2:
            album.rename(away)

    with pytest.raises(DataError, match="album is no longer there; the results so far are saved") as caught:
        run(predictor, [album], out, seen=unplug)
    assert len(str(caught.value).splitlines()) == 1
    done = len(table(out, "predictions.partial.csv"))
    assert 2 <= done < 211
    away.rename(album)
    assert run(predictor, [album], out).reused == done
    assert outcome(out) == outcome(tmp_path / "reference")


@pytest.mark.parametrize("as_list", [False, True])
def test_one_file_that_vanishes_is_only_a_failure(
    album: Path, tmp_path: Path, predictor: Predictor, as_list: bool
) -> None:
    def remove(_result: object) -> None:
        (album / "last.png").unlink(missing_ok=True)

    for index in range(200):
        shutil.copy(album / "00.png", album / f"{index:03}.png")
    shutil.copy(album / "00.png", album / "last.png")
    inputs = sorted(album.iterdir()) if as_list else [album]
    report = run(predictor, inputs, tmp_path / "out", seen=remove)
    assert (report.predicted, report.failed) == (211, 1)
    assert table(tmp_path / "out", "failures.csv")[0]["stage"] == "read"


def test_a_heic_is_predicted_by_the_next_run_once_its_package_is_there(
    album: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    with PILImage.open(album / "03.png") as picture:
        picture.save(album / "telephone.heic")
    run(predictor, [album], tmp_path / "reference", ALL)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        patch.delitem(PILImage.OPEN, "HEIF")
        patch.setattr(PILImage, "ID", [name for name in PILImage.ID if name != "HEIF"])
        run(predictor, [album], tmp_path / "out", ALL)
    (failure,) = table(tmp_path / "out", "failures.csv")
    assert failure["path"].endswith("telephone.heic")
    assert "[heif]'" in failure["reason"]
    report = run(predictor, [album], tmp_path / "out", ALL)
    assert (report.reused, report.predicted, report.failed) == (11, 12, 0)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "reference")


def test_a_full_disk_while_the_tables_are_written_leaves_them_for_the_next_run(
    album: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(predictor, [album], tmp_path / "reference", ALL)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"No space left on device; the results so far are saved: free some space"):
            run(predictor, [album], tmp_path / "out", ALL)
    assert not (tmp_path / "out/run.json").exists()
    assert run(predictor, [album], tmp_path / "out", ALL).reused == 11
    assert outcome(tmp_path / "out") == outcome(tmp_path / "reference")


@pytest.mark.parametrize("where", ["seen", "journal"])
def test_an_error_amid_the_results_ends_the_threads_at_once(
    album: Path, tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_: object) -> None:
        raise DataError("the disk is full")

    if where == "journal":
        monkeypatch.setattr(Journal, "add", fail)
    before = set(threading.enumerate())
    with pytest.raises(DataError, match="the disk is full") as caught:
        run(predictor, [album], tmp_path / "out", seen=fail if where == "seen" else lambda _: None)
    assert set(threading.enumerate()) <= before, "though the error is kept"
    assert caught.value.__traceback__ is not None


def test_a_second_run_into_the_same_folder_is_refused(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    refused: list[str] = []

    def start_another(_result: object) -> None:
        if not refused:
            with pytest.raises(DataError, match="another run is writing") as caught:
                run(predictor, [album], tmp_path / "out")
            refused.append(str(caught.value))

    assert run(predictor, [album], tmp_path / "out", seen=start_another).complete
    assert refused
    assert list(check(tmp_path / "out")) == []


def test_an_output_inside_the_input_is_no_input(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    out = album / "results"
    run(predictor, [album], out, ALL)
    before = outcome(out)
    assert run(predictor, [album], out, ALL).predicted == 11
    assert outcome(out) == before


# ---- kills -----------------------------------------------------------------------------------------------------------


def killing(tmp_path: Path, album: Path, model_path: Path, kills: int, pictures: int) -> int:
    """Run killing.py over many links to a few pictures and two that are damaged."""
    folder = tmp_path / "many"
    for index in range(pictures):
        place = folder / f"{index % 7}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:05}.png").symlink_to(album / f"{index % 11:02}.png")
    (folder / "bad.png").write_bytes(b"damaged")
    (folder / "empty.png").write_bytes(b"")
    options = ["-m", str(model_path), "--backend", "onnx-cpu", "--batch-size", "2", "-q", "--layout", "per-image"]
    if kills and importlib.util.find_spec("pyarrow"):
        options += ["--format", "parquet"]
    program = [sys.executable, str(Path(__file__).with_name("killing.py")), str(kills), "1", str(tmp_path / "out")]
    arguments = [*options, "--format", "jsonl", "--columns", "size,captured", str(folder)]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@needs_fork
@pytest.mark.parametrize(
    ("kills", "pictures"), [(12, 300), pytest.param(50, 5000, marks=pytest.mark.soak)], ids=["12", "50"]
)
def test_killed_again_and_again_it_ends_with_the_same_bytes(
    album: Path, tmp_path: Path, model_path: Path, kills: int, pictures: int
) -> None:
    assert killing(tmp_path, album, model_path, kills, pictures) == kills
    reference = outcome(tmp_path / "out/reference")
    assert len(reference) >= pictures + 3
    assert outcome(tmp_path / "out/killed") == reference
    assert list(check(tmp_path / "out/killed")) == []


@needs_fork
def test_killed_before_any_operation_on_files_it_ends_with_the_same_bytes(
    album: Path, tmp_path: Path, model_path: Path
) -> None:
    operations = killing(tmp_path, album, model_path, 0, 2)
    assert operations > 10
    reference = outcome(tmp_path / "out/reference")
    for last in range(operations):
        assert outcome(tmp_path / "out" / str(last)) == reference, last


# ---- columns and manifest -----------------------------------------------------------------------------------------


def with_exif(path: Path, source: Path, **fields: Any) -> None:
    picture = PILImage.open(source).convert("RGB")
    exif = picture.getexif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif).update(fields.get("photo", {}))
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(fields.get("place", {}))
    picture.save(path, exif=exif)


def test_size_time_and_place_on_request(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    time_, offset = ExifTags.Base.DateTimeOriginal, ExifTags.Base.OffsetTimeOriginal
    south = {1: "S", 2: (12.0, 30.0, 36.0), 3: "W", 4: (7.0, 15.0, 0.0)}
    with_exif(folder / "a.jpg", album / "00.png", photo={time_: "2024:05:17 14:03:22", offset: "+02:00"}, place=south)
    with_exif(folder / "b.jpg", album / "00.png", photo={time_: "2024:05:17 14:03:22", offset: "?"})
    with_exif(folder / "c.jpg", album / "00.png", photo={time_: "    :  :     :  :  "}, place=south | {1: "X"})
    with_exif(folder / "d.jpg", album / "00.png", place=south | {2: (91.0, 0.0, 0.0)})
    shutil.copy(album / "00.png", folder / "e.png")
    run(predictor, [folder], tmp_path / "plain")
    run(predictor, [folder], tmp_path / "out", Tables(columns=("gps", "captured", "size")))
    keys = ("width", "height", "captured", "latitude", "longitude")
    assert [tuple(row[key] for key in keys) for row in table(tmp_path / "out")] == [
        ("90", "40", "2024-05-17T14:03:22+02:00", "-12.51", "-7.25"),
        ("90", "40", "2024-05-17T14:03:22", "", ""),
        ("90", "40", "", "", ""),
        ("90", "40", "", "", ""),
        ("40", "90", "", "", ""),
    ]
    plain = table(tmp_path / "plain")
    assert list(plain[0])[:2] == ["path", "minerals"]
    assert not set(plain[0]) & set(keys)
    assert [{k: v for k, v in row.items() if k not in keys} for row in table(tmp_path / "out")] == plain
    assert list(check(tmp_path / "out")) == []


@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_metadata_costs_only_itself(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    good = tmp_path / "good.jpg"
    place = {1: "N", 2: (1.0, 2.0, 3.0), 3: "E", 4: (4.0, 5.0, 6.0)}
    with_exif(good, album / "00.png", photo={ExifTags.Base.DateTimeOriginal: "2024:05:17 14:03:22"}, place=place)
    data, dice = good.read_bytes(), random.Random(4)
    start, end = data.index(b"Exif\0\0") + 6, data.index(b"\xff\xdb")
    folder = tmp_path / "damaged"
    folder.mkdir()
    for number in range(150):
        mutant = bytearray(data)
        for _ in range(3):
            mutant[dice.randrange(start, end)] = dice.randrange(256)
        (folder / f"{number:03}.jpg").write_bytes(mutant)
    results = list(predictor.predict([folder], with_exif=True))
    assert all(isinstance(result, Prediction) for result in results)
    for result in results:
        assert isinstance(result, Prediction)
        assert result.exif is not None
        assert result.exif.latitude is None or -90 <= result.exif.latitude <= 90


def test_run_json_says_what_was_done(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    (album / "04.png").write_bytes(b"damaged")
    (album / "05.png").write_bytes(b"")
    inputs = [album, *[album / "00.png"] * 150]
    run(predictor, inputs, tmp_path / "out", ALL)
    record = manifest(tmp_path / "out")
    assert record["schema"] == 1
    assert sum(record["table_counts"]["minerals"].values()) >= 9
    assert record["pictures"] == {
        "predicted": 9,
        "failed": 2,
        "failed_by_stage": {"decode": 1, "read": 1},
        "from_earlier_runs": 0,
        "of_other_inputs": 0,
        "damaged_results_predicted_again": 0,
    }
    assert (len(record["inputs"]), record["inputs_named"]) == (100, 151)
    assert record["tables"] == ["predictions.csv", "predictions.jsonl", "per-image", "failures.csv"]
    assert record["fingerprint"] == of(predictor)
    assert record["engine"]["backend"] == "onnx-cpu"
    assert set(record["stage_seconds"]) == {"decode", "engine", "engine_waited", "results_waited"}
    assert record["stage_seconds"]["decode"] > 0
    assert record["stage_seconds"]["engine"] > 0
    assert 20 < record["peak_memory_mib"] < 5000
    assert record["started"] <= record["finished"]


def test_a_folder_that_needs_no_manifest_keeps_other_peoples_files(
    album: Path, tmp_path: Path, predictor: Predictor
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with atomic_file(out / "notes.txt") as file:
        file.write(b"mine")
    run(predictor, [album], out)
    assert (out / "notes.txt").read_bytes() == b"mine"


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak(tmp_path: Path, album: Path, model_path: Path, pictures: int) -> float:
    """MiB that a run over so many pictures, in one tar and in folders, held at most."""
    folder = tmp_path / str(pictures)
    for index in range(pictures // 2):
        place = folder / f"{index // 250:03}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:06}.png").symlink_to(album / "00.png")
    data = (album / "00.png").read_bytes()
    with tarfile.open(folder / "shard.tar", "w") as shard:
        import io

        for index in range(pictures // 2):
            member = tarfile.TarInfo(f"{index:06}.png")
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    out = folder / "out"
    program = [sys.executable, "-c", "from mineral_batch.cli import main; main()", "predict", "-q"]
    options = ["-o", str(out), "-m", str(model_path), "--backend", "onnx-cpu", "--format", "jsonl", "--batch-size", "8"]
    subprocess.run([*program, *options, str(folder), str(folder / "shard.tar")], check=True, timeout=900)
    assert manifest(out)["pictures"]["predicted"] == pictures // 2 * 2
    return float(manifest(out)["peak_memory_mib"])


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not say how much memory was held")
@pytest.mark.parametrize(
    ("few", "many", "growth"),
    [(500, 2500, 0.06), pytest.param(1000, 20_000, 0.03, marks=pytest.mark.soak)],
    ids=["2500", "20000"],
)
def test_memory_is_flat(album: Path, tmp_path: Path, model_path: Path, few: int, many: int, growth: float) -> None:
    low, high = (peak(tmp_path, album, model_path, pictures) for pictures in (few, many))
    print(f"peak memory: {low} MiB for {few} pictures, {high} MiB for {many}: {high / low - 1:+.1%}")
    assert high < (1 + growth) * low
