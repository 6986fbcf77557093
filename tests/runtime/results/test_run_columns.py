"""Extra columns, run.json, and memory that does not grow with the images."""

from __future__ import annotations

import csv
import json
import random
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags
from PIL import Image as PILImage

from mineral_batch import ModelContract, Prediction, Predictor
from mineral_batch.files import atomic_file
from mineral_batch.model.onnx_file import write_contract
from mineral_batch.results.check import check
from mineral_batch.results.csv import write_csv
from mineral_batch.results.fingerprint import fingerprint
from mineral_batch.results.run import run
from mineral_batch.results.write import Tables

onnxruntime = pytest.importorskip("onnxruntime")

ALL = Tables(("csv", "jsonl"), per_image=True, columns=("size",))


def table(folder: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def manifest(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


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
        "damaged": 0,
        "files_with_further_images": 0,
    }
    assert (len(record["inputs"]), record["inputs_named"]) == (100, 151)
    assert record["tables"] == ["predictions.csv", "predictions.jsonl", "per-image", "failures.csv"]
    assert predictor.decoder is not None
    assert record["fingerprint"] == fingerprint(predictor, predictor.decoder)
    assert record["engine"]["backend"] == "onnx-cpu"
    assert set(record["stage_seconds"]) == {"decode", "engine", "engine_waited", "results_waited"}
    assert record["stage_seconds"]["decode"] > 0
    assert record["stage_seconds"]["engine"] > 0
    assert record["peak_memory_mib"] > 20
    assert record["started"] <= record["finished"]


def test_files_of_others_in_the_folder_are_kept(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with atomic_file(out / "notes.txt") as file:
        file.write(b"mine")
    run(predictor, [album], out)
    assert (out / "notes.txt").read_bytes() == b"mine"


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


def test_answers_at_a_level_are_in_every_table(album: Path, tmp_path: Path, predictor: Predictor) -> None:
    """A resumed run without the option has no such column, and `check` finds all tables in agreement."""
    pytest.importorskip("pyarrow")
    tables = Tables(("csv", "jsonl", "parquet"), level="class")
    run(predictor, [album], tmp_path / "out", tables)
    rows = table(tmp_path / "out")
    assert list(rows[0])[:3] == ["path", "minerals", "answer"]
    for row in rows:
        assert set(filter(None, row["minerals"].split(";"))) <= set(row["answer"].split(";"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in lines if "answer" in line] == [row["answer"] for row in rows]
    assert manifest(tmp_path / "out")["level"] == "class"
    assert list(check(tmp_path / "out")) == []
    run(predictor, [album], tmp_path / "out")
    assert "answer" not in table(tmp_path / "out")[0]


def test_answers_follow_the_users_own_table_of_minerals(
    album: Path, tmp_path: Path, model_path: Path, contract: ModelContract
) -> None:
    """Also a table that was edited since the tables were written."""
    model = tmp_path / "careful.onnx"
    shutil.copy(model_path, model)
    write_contract(model, replace(contract, thresholds=(0.99,) * len(contract.labels)))
    own = tmp_path / "own.csv"
    with Predictor(model, backend="onnx-cpu") as predictor:
        for name in ("all of them", "every one"):
            write_csv(own, ("name", "species", "class"), [(label, label, name) for label in contract.labels])
            run(predictor, [album], tmp_path / "out", Tables(level="class", minerals=str(own)))
            answers = {row["answer"] for row in table(tmp_path / "out")}
            assert name in answers
            assert answers & {"all of them", "every one"} == {name}
