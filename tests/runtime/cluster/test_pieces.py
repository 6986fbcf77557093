"""Runs in pieces: in any order, twice, after crashes, the merged tables are those of one machine, byte for byte."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mineral_batch import DataError, Failure, Prediction
from mineral_batch.cli import main
from mineral_batch.cluster import sources
from mineral_batch.cluster.parts import PlannedImage, decode_part, encode_part
from mineral_batch.cluster.place import Folder
from mineral_batch.types import ExifInfo

pytest.importorskip("onnxruntime")
pytest.importorskip("pyarrow")

TABLES = ("predictions.csv", "failures.csv", "predictions.jsonl", "predictions.parquet")


@pytest.fixture
def command(model_path: Path, tmp_path: Path) -> Any:
    """`mineral-batch predict` with the tiny model."""

    def run(output: object, *arguments: object) -> Result:
        options = ["predict", "-o", output, "-m", model_path, "--backend", "onnx-cpu", "--piece-images", 3]
        return CliRunner().invoke(main, [*map(str, [*options, *arguments])])

    return run


def merge(output: object, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["merge", str(output), *map(str, arguments)])


@pytest.fixture
def photos_of_all_kinds(album: Path) -> Path:
    """Eleven photographs, one damaged; an archive with three beside them."""
    (album / "04.png").write_bytes(b"damaged")
    with zipfile.ZipFile(album.parent / "more.zip", "w") as archive:
        for name in ("00.png", "05.png", "10.png"):
            archive.write(album / name, name)
    return album


def assert_same_tables(one: Path, other: Path) -> None:
    for name in TABLES:
        assert (one / name).exists() == (other / name).exists(), name
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def error_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.stderr.splitlines()[-1] == line
    return line


def test_shards_in_any_order_make_the_tables_of_one_machine(
    photos_of_all_kinds: Path, tmp_path: Path, command: Any
) -> None:
    inputs = photos_of_all_kinds, tmp_path / "more.zip", tmp_path / "absent.png"
    options = ("--format", "jsonl", "--format", "parquet", "--columns", "size,captured,best", "--layout", "per-image")
    single = command(tmp_path / "one", *inputs, *options)
    assert single.exit_code == 3
    for shard in ("3/3", "1/3", "1/3", "2/3"):
        assert command(tmp_path / "out", *inputs, *options, "--shard", shard, "-q").exit_code in (0, 3)
    assert merge(tmp_path / "out").exit_code == 3
    assert merge(tmp_path / "out", "--exit-zero-on-failures").exit_code == 0
    assert_same_tables(tmp_path / "one", tmp_path / "out")
    folders = tmp_path / "one/per-image", tmp_path / "out/per-image"
    trees = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in folders]
    assert trees[0] == trees[1] != []
    assert CliRunner().invoke(main, ["check", str(tmp_path / "out")]).exit_code == 0
    record = json.loads((tmp_path / "out/run.json").read_text())
    (worker,) = record["workers"]
    assert worker["pieces"] == record["pieces"] == 5
    assert worker["engine"]["backend"] == "onnx-cpu"


def test_tables_are_chosen_at_the_merge(album: Path, tmp_path: Path, command: Any) -> None:
    options = (
        "--specimen",
        "folder",
        "--round",
        3,
        "--columns",
        "size",
        "--prevalence",
        "estimate",
        "--format",
        "jsonl",
    )
    assert command(tmp_path / "one", album, *options).exit_code == 0
    assert command(tmp_path / "out", album, "--shard", "1/1").exit_code == 0
    assert merge(tmp_path / "out", *options).exit_code == 0
    assert_same_tables(tmp_path / "one", tmp_path / "out")
    both = [(tmp_path / name / "specimens.csv").read_bytes() for name in ("one", "out")]
    assert both[0] == both[1]


def test_a_merge_says_what_is_missing_and_the_rest_is_done_by_one(album: Path, tmp_path: Path, command: Any) -> None:
    command(tmp_path / "out", album, "--shard", "2/2")
    line = error_line(merge(tmp_path / "out"))
    assert "2 of 4 pieces (6 images) are not done" in line
    assert "000000-" in line
    command(tmp_path / "out", album, "--shard", "1/1")
    assert merge(tmp_path / "out").exit_code == 0


def test_a_deleted_part_is_made_again_and_a_damaged_one_is_named(album: Path, tmp_path: Path, command: Any) -> None:
    command(tmp_path / "out", album, "--shard", "1/1")
    assert merge(tmp_path / "out").exit_code == 0
    before = (tmp_path / "out/predictions.csv").read_bytes()
    first, second, *_ = sorted((tmp_path / "out/parts").iterdir())
    first.unlink()
    assert "1 of 4 pieces (3 images) is not done" in error_line(merge(tmp_path / "out"))
    second.write_bytes(second.read_bytes()[:-100])
    command(tmp_path / "out", album, "--shard", "1/1")
    line = error_line(merge(tmp_path / "out"))
    assert f"{second.name} is damaged: delete it" in line
    second.unlink()
    command(tmp_path / "out", album, "--shard", "1/1")
    assert merge(tmp_path / "out").exit_code == 0
    assert (tmp_path / "out/predictions.csv").read_bytes() == before


def test_other_inputs_models_and_kinds_of_runs_are_refused(album: Path, tmp_path: Path, command: Any) -> None:
    command(tmp_path / "out", album, "--shard", "1/2")
    assert "planned for other inputs" in error_line(command(tmp_path / "out", album / "00.png", "--shard", "2/2"))
    assert "without the column captured" in error_line(
        command(tmp_path / "out", album, "--columns", "captured", "--shard", "2/2")
    )
    assert "decoder was" in error_line(command(tmp_path / "out", album, "--exact", "--shard", "2/2"))
    assert "holds a run in pieces" in error_line(command(tmp_path / "out", album))
    command(tmp_path / "single", album)
    assert "without --shard" in error_line(command(tmp_path / "single", album, "--shard", "1/2"))
    assert "no run in pieces" in error_line(merge(tmp_path / "single"))
    for shard, message in [("auto", "not a number"), ("5/4", "numbered from 1/4 to 4/4"), ("all", "is not a shard")]:
        words = ["predict", str(album), "-o", str(tmp_path / "new"), "--shard", shard]
        done = CliRunner(env={"SLURM_ARRAY_TASK_ID": ""}).invoke(main, words)
        assert done.exit_code == 2
        assert message in done.stderr


def test_mixed_decoders_need_an_option_and_are_named(album: Path, tmp_path: Path, command: Any) -> None:
    command(tmp_path / "out", album, "--shard", "1/2")
    assert command(tmp_path / "out", album, "--exact", "--shard", "2/2", "--allow-mixed-engines").exit_code == 0
    assert "made differently (decoder" in error_line(merge(tmp_path / "out"))
    merged = merge(tmp_path / "out", "--allow-mixed-engines")
    assert merged.exit_code == 0
    assert "probabilities may differ" in merged.stderr
    assert len(json.loads((tmp_path / "out/run.json").read_text())["workers"]) == 2


def test_what_may_pass_leaves_the_piece_and_what_does_not_is_a_row(
    album: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(tmp_path / "out", album, "--shard", "2/2")
    (album / "01.png").unlink()
    real = sources.read_file

    def stale(path: str) -> bytes:
        if path.endswith("00.png"):
            raise OSError(116, "Stale file handle")
        return real(path)

    monkeypatch.setattr(sources, "read_file", stale)
    monkeypatch.setattr("mineral_batch.cluster.run.time.sleep", lambda seconds: None)
    line = error_line(command(tmp_path / "out", album, "--shard", "1/2"))
    assert "1 piece could not be read now" in line
    assert "00.png: Stale file handle" in line
    monkeypatch.setattr(sources, "read_file", real)
    assert command(tmp_path / "out", album, "--shard", "1/2").exit_code == 3
    assert merge(tmp_path / "out").exit_code == 3
    assert "01.png,read,No such file" in (tmp_path / "out/failures.csv").read_text()
    assert not [*Folder(tmp_path / "out").keys("attempts/")] or not any((tmp_path / "out/attempts").rglob("*.*"))


@pytest.mark.slow
def test_a_picture_that_ends_its_process_is_found_by_halving(album: Path, tmp_path: Path, model_path: Path) -> None:
    """Each death is a process of its own, as on a cluster."""
    program = """
import os, sys
from mineral_batch.cluster import sources
real = sources.read_file
def read(path):
    if path.endswith("05.png"):
        os._exit(9)
    return real(path)
sources.read_file = read
from mineral_batch.cli import main
main(sys.argv[1:])
"""
    arguments = ["predict", album, "-o", tmp_path / "out", "-m", model_path, "--backend", "onnx-cpu"]
    arguments += ["--piece-images", 4, "--shard", "1/1", "-q", "--exit-zero-on-failures"]
    codes = []
    while not codes or codes[-1] == 9:
        codes.append(subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=False).returncode)
        assert len(codes) < 12
    assert codes[-1] == 0
    assert merge(tmp_path / "out", "--exit-zero-on-failures").exit_code == 0
    assert (tmp_path / "out/failures.csv").read_text().splitlines()[1:] == [
        f'{album / "05.png"},decode,"the process that read it died, several times"'
    ]
    assert (tmp_path / "out/predictions.csv").read_text().count(".png") == 10


def test_structured_logs_are_one_object_per_line(album: Path, tmp_path: Path, command: Any) -> None:
    sharded = command(tmp_path / "out", album, "--shard", "1/1", "--log-format", "json", "--log-every", 0, "-q")
    events = [json.loads(line) for line in sharded.stderr.splitlines() if not line.startswith("Warning")]
    pieces = [event for event in events if event["event"] == "piece"]
    assert [piece["images"] for piece in pieces] == [3, 3, 3, 2]
    assert all({"failed", "seconds", "images_per_second", "stages", "time"} <= set(piece) for piece in pieces)
    assert all(round(event["seconds"], 3) == event["seconds"] for event in events if "seconds" in event)
    assert any(event["event"] == "progress" and event["total"] == 11 for event in events)
    single = command(tmp_path / "one", album, "--log-format", "json", "-q")
    (run,) = [json.loads(line) for line in single.stderr.splitlines()]
    assert (run["event"], run["predicted"], run["failed"]) == ("run", 11, 0)
    assert run["stages"]["decode"] >= 0


@pytest.mark.parametrize("missing", [True, False])
def test_shards_and_merge_need_no_pyarrow(
    missing: bool, album: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert command(tmp_path / "out", album, "--shard", "1/1").exit_code == 0
    assert merge(tmp_path / "out").exit_code == 0
    asked = merge(tmp_path / "out", "--format", "parquet")
    assert (asked.exit_code == 1) == missing
    assert not missing or "[parquet]" in error_line(asked)


def test_merge_replaces_only_what_merge_wrote(album: Path, tmp_path: Path, command: Any) -> None:
    out = tmp_path / "out"
    command(out, album, "--shard", "1/1")
    for name in ("failures.csv", "predictions.csv", "specimens.csv"):
        (out / name).write_text("mine\n")
    line = error_line(merge(out))
    assert f"{out / 'predictions.csv'}, {out / 'failures.csv'}, {out / 'specimens.csv'} already exist and" in line
    assert line.endswith("were not written by merge: move them")
    for name in ("failures.csv", "predictions.csv", "specimens.csv"):
        assert (out / name).read_text() == "mine\n"
        (out / name).unlink()
    done = merge(out, "--format", "csv-excel", "--layout", "per-image", "--specimen", "folder")
    files = ("predictions.csv", "predictions.excel.csv", "specimens.csv", "per-image/")
    assert f"Tables: {', '.join(f'{out}/{name}' for name in files)}" in done.output
    assert merge(out, "--specimen", "folder").exit_code == 0
    for name in ("predictions.csv", "predictions.excel.csv"):
        (out / name).write_text("edited\n")
    line = error_line(merge(out))
    assert line.endswith("were edited since the last run and would be overwritten: rename or move them")
    for name in ("predictions.csv", "predictions.excel.csv"):
        (out / name).unlink()
    assert merge(out).exit_code == 0
    (out / "per-image/mine.csv").write_text("mine\n")
    assert "per-image already exists and has been edited since merge wrote it" in error_line(merge(out))
    (out / "per-image/mine.csv").unlink()
    (out / "run.json").unlink()
    (out / "merge.begun").touch()  # killed while it replaced the tables
    assert merge(out).exit_code == 0
    assert not (out / "merge.begun").exists()


def test_parts_keep_every_value_and_any_name(tmp_path: Path, contract: Any) -> None:
    name = os.fsdecode(b"odd \xff name.jpg")
    values = np.array([0.1, 1, 0, 1e-7, 0.5], np.float32)
    results = [
        Prediction(name, values, 3, 4, ExifInfo("2026-01-02T03:04:05", 1.5, -2.25), familiarity=0.25),
        Failure("b.jpg", "decode", "not an image"),
    ]
    part = decode_part(encode_part([PlannedImage(name, 1, 2), PlannedImage("b.jpg", 0, 0)], results, {}), "here")
    first = part.results[0]
    assert isinstance(first, Prediction)
    assert (first.path, first.exif, first.familiarity) == (name, results[0].exif, 0.25)  # type: ignore[union-attr]
    assert first.probabilities.tobytes() == values.tobytes()
    assert part.results[1] == results[1]


def test_a_part_of_another_release_is_no_traceback() -> None:
    results = [Prediction("a.jpg", np.array([0.5, 0.25], np.float32), 3, 4)]
    header, row = gzip.decompress(encode_part([PlannedImage("a.jpg", 1, 2)], results, {})).splitlines()
    values = json.loads(row)
    newer = b'{"version": 3}'
    longer, shorter = (json.dumps(values).encode() for values in ([*values, "x"], values[:-2]))
    rows_of_others = [[newer, row], [header, longer], [header, shorter], [header, b"[]"], [header, b"7"]]
    for lines in (*rows_of_others, [b"[]", row], [b"7"], [], [b"PAR1"]):
        with pytest.raises(DataError, match="here is damaged"):
            decode_part(gzip.compress(b"\n".join(lines)), "here")


def test_a_damaged_byte_is_noticed_or_harmless() -> None:
    images = [PlannedImage(f"{index}.jpg", 1, 2) for index in range(30)]
    results = [Prediction(image.name, np.array([0.5, 0.25], np.float32), 3, 4) for image in images]
    content = encode_part(images, results, {"engine": "any"})
    noticed = 0
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        try:
            part = decode_part(bytes(damaged), "here")
        except DataError:
            noticed += 1
        else:
            rows = [(result.path, result.probabilities.tolist()) for result in part.results]  # type: ignore[union-attr]
            assert rows == [(image.name, [0.5, 0.25]) for image in images]
    assert noticed > 50


def test_an_object_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    assert place.put("parts/a", b"one")
    assert not place.put("parts/a", b"two")
    assert place.get("parts/a") == b"one"
    assert list(place.keys("parts/")) == ["parts/a"]
    assert place.get("parts/b") is None


def test_each_shard_of_a_small_run_has_images_by_default(album: Path, tmp_path: Path, command: Any) -> None:
    said = [command(tmp_path / "out", album, "--shard", f"{n}/4").stdout for n in (1, 2, 3, 4)]
    images = [int(re.search(r"Shard \d/4: (\d+) image", text)[1]) for text in said]  # type: ignore[index]
    assert sum(images) == len(list(album.iterdir()))
    assert min(images) >= 1
    assert max(images) == 3


def test_every_line_of_json_logs_is_an_object(album: Path, tmp_path: Path, command: Any) -> None:
    for more in ((), ("--shard", "1/1")):
        result = command(tmp_path / f"out{len(more)}", album, tmp_path / "absent", "--log-format", "json", *more)
        events = [json.loads(line)["event"] for line in result.stderr.splitlines()]
        assert "message" in events, result.stderr


def test_a_shard_tells_what_was_added_removed_or_changed_since_the_plan(
    album: Path, tmp_path: Path, command: Any
) -> None:
    """Between shards and after the merge; what was planned is finished and saved first."""
    out = tmp_path / "out"
    first = command(out, album, "--shard", "1/2")
    assert first.exit_code == 0
    assert "2 pieces, assigned to other shards, are not done yet" in first.stdout
    new = album / "99.png"
    new.write_bytes((album / "00.png").read_bytes())
    line = error_line(command(out, album, "--shard", "2/2"))
    assert f"1 image added since the run in {out} was planned (" in line
    assert "all planned images of this shard are saved" in line
    merged = merge(out)
    assert merged.exit_code == 0
    assert re.search(r"^Planned on 20\S+: 11 images; images added since then are not in", merged.stdout, re.MULTILINE)
    for shard in ("1/2", "2/2", "1/1"):
        again = command(out, album, "--shard", shard)
        assert "1 image added since" in error_line(again)
        assert "0 images" not in again.stdout
    (album / "03.png").unlink()
    os.utime(album / "05.png", ns=(1, 1))
    line = error_line(command(out, album, "--shard", "1/2"))
    assert "1 image added, 1 removed and 1 changed since" in line
    new.unlink()
    assert "Error: 1 image removed and 1 changed since" in error_line(command(out, album, "--shard", "1/2"))


def test_an_image_that_was_removed_is_no_error_of_the_shards(album: Path, tmp_path: Path, command: Any) -> None:
    """Its prediction, or its row of failures.csv, says what became of it: the run lacks nothing."""
    command(tmp_path / "out", album, "--shard", "1/1")
    (album / "03.png").unlink()
    done = command(tmp_path / "out", album, "--shard", "1/1")
    assert done.exit_code == 0
    assert "Warning: 1 image removed since the run in" in done.stderr


def test_of_very_many_shards_and_where_listing_takes_long_only_the_date_is_told(
    album: Path, tmp_path: Path, command: Any
) -> None:
    command(tmp_path / "out", album, "--shard", "2/101")
    (album / "99.png").write_bytes((album / "00.png").read_bytes())
    told = "11 images; images added since then are not in this run"
    later = command(tmp_path / "out", album, "--shard", "3/101")
    assert later.exit_code == 0
    assert told in later.stdout
    assert "1 image added since" in error_line(command(tmp_path / "out", album, "--shard", "1/101"))
    with tarfile.open(tmp_path / "more.tar.gz", "w:gz") as archive:
        for name in (f"{index:02}.png" for index in range(11)):
            archive.add(album / name, name)
    packed = command(tmp_path / "packed", tmp_path / "more.tar.gz", "--shard", "1/1")
    assert packed.exit_code == 0
    assert told in packed.stdout


def test_images_that_cannot_be_read_are_told_apart(album: Path, tmp_path: Path, command: Any) -> None:
    (album / "00.png").write_bytes(b"damaged")
    said = command(tmp_path / "out", album, "--shard", "1/1").stdout
    assert re.search(r"^Shard 1/1: 10 images predicted in .*\n1 image could not be read$", said, re.MULTILINE)
    again = command(tmp_path / "out", album, "--shard", "1/1").stdout
    assert "Shard 1/1: 11 images already done by an earlier run, failures included\n" in again


def test_another_size_of_pieces_is_not_ignored(album: Path, tmp_path: Path, command: Any) -> None:
    command(tmp_path / "out", album, "--shard", "1/2")
    line = error_line(command(tmp_path / "out", album, "--shard", "2/2", "--piece-images", "5"))
    assert "was planned with pieces of 3 images: leave out --piece-images 5" in line
    assert command(tmp_path / "out", album, "--shard", "2/2").exit_code == 0
