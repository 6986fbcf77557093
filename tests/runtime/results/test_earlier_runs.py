"""Rows of earlier runs, hand-edited tables, inputs that are missing: nothing leaves a table silently."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image as PILImage

from mineral_batch import DataError, Predictor
from mineral_batch.cli import main
from mineral_batch.results import journal as journal_module
from mineral_batch.results.check import check
from mineral_batch.results.journal import JOURNAL, Journal
from mineral_batch.results.run import run

pytest.importorskip("onnxruntime")


@pytest.fixture
def predict(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in this process and in a folder with `day1` (3 images) and `day2` (2), into `out`."""
    monkeypatch.chdir(tmp_path)
    for day, count in (("day1", 3), ("day2", 2)):
        Path(day).mkdir()
        for index in range(count):
            pixels = np.random.default_rng(index).integers(0, 255, (30, 40, 3), np.uint8)
            PILImage.fromarray(pixels).save(f"{day}/{index}.png")

    def run(*arguments: object) -> Result:
        options = ["-o", "out", "--backend", "onnx-cpu", "-m", model_path]
        return CliRunner().invoke(main, ["predict", *map(str, [*options, *arguments])])

    return run


def paths(name: str = "predictions.csv") -> list[str]:
    with Path("out", name).open(encoding="utf-8", newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


def manifest() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path("out/run.json").read_text())
    return record


DAY1, DAY2 = [f"day1/{n}.png" for n in range(3)], [f"day2/{n}.png" for n in range(2)]


def test_other_inputs_add_their_rows(predict: Any) -> None:
    assert predict("day1").exit_code == 0
    done = predict("day2", "--format", "jsonl")
    assert done.exit_code == 0
    assert paths() == DAY1 + DAY2
    assert "2 images predicted in" in done.stdout
    assert "3 rows of earlier runs, not of these inputs (--prune removes them)" in done.stdout
    assert [json.loads(line)["path"] for line in Path("out/predictions.jsonl").read_text().splitlines()] == DAY1 + DAY2
    assert manifest()["pictures"]["of_other_inputs"] == 3
    assert list(check("out")) == []


def test_the_order_of_runs_and_an_interruption_change_no_row(predict: Any) -> None:
    predict("day1")
    predict("day2")
    together = Path("out/predictions.csv").read_bytes()
    with sqlite3.connect("out/journal.sqlite") as db:  # as if the second run had been killed before its last image
        db.execute("DELETE FROM result WHERE name = ?", (b"day2/1.png",))
    db.close()
    assert "1 image predicted in" in predict("day2").stdout
    assert Path("out/predictions.csv").read_bytes() == together


def test_prune_removes_what_is_not_named(predict: Any) -> None:
    predict("day1")
    assert predict("day2", "--prune").exit_code == 0
    assert paths() == DAY2
    assert predict("day1").exit_code == 0  # predicted anew
    assert paths() == DAY2 + DAY1


def test_a_drive_that_is_not_mounted_is_an_error_where_it_had_rows(predict: Any) -> None:
    predict("day1", "day2")
    before = Path("out/predictions.csv").read_bytes()
    for path in Path("day2").iterdir():
        path.unlink()
    for _ in range(2):  # an empty mount point, then none at all
        done = predict("day1", "day2")
        assert done.exit_code == 1
        assert "no images in day2 now, but an earlier run into out had some from there" in done.stderr
        assert Path("out/predictions.csv").read_bytes() == before
        if Path("day2").exists():
            Path("day2").rmdir()
    assert predict("day1").exit_code == 0
    assert paths() == DAY2 + DAY1, "left out of the command, its rows stay"


def test_an_input_without_images_is_a_warning_at_both_ends(predict: Any) -> None:
    Path("empty").mkdir()
    done = predict("empty", "day1")
    assert done.exit_code == 0
    assert "Warning: no images in empty: is the drive mounted?" in done.stderr
    assert "Warning: no images in empty: is the drive mounted?" in done.stdout
    assert manifest()["inputs_without_images"] == ["empty"]


def test_one_missing_name_is_a_row_and_not_the_end(predict: Any) -> None:
    Path("all.txt").write_text("day1/0.png\nday1/typo.png\nday1/1.png\n")
    done = predict("--list", "all.txt")
    assert done.exit_code == 3
    assert paths() == DAY1[:2]
    with Path("out/failures.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"path": "day1/typo.png", "stage": "read", "reason": "no such file or folder"}
        ]
    assert "no such file or folder: day1/typo.png" in done.stderr
    assert "no such file or folder" not in done.stdout  # told once


def test_a_file_that_is_gone_keeps_its_row(predict: Any) -> None:
    predict(*DAY1)
    Path("day1/1.png").unlink()
    done = predict(*DAY1)
    assert done.exit_code == 0
    assert sorted(paths()) == DAY1
    assert "no such file or folder: day1/1.png" in done.stderr


@pytest.mark.parametrize("arguments", [["all.txt"], ["day1", "all.txt"]])
def test_a_list_given_as_an_image_names_the_option(predict: Any, arguments: list[str]) -> None:
    Path("all.txt").write_text("day1/0.png\n")
    done = predict(*arguments)
    assert done.exit_code == 1
    assert "--list all.txt" in done.stderr
    assert not Path("out").exists()


def test_wrong_inputs_are_reported_before_a_model_is_opened(predict: Any, tmp_path: Path) -> None:
    assert "no such file or folder: nothing" in predict("nothing", "-m", tmp_path / "no model.onnx").stderr
    wrong = predict("day1", "-m", tmp_path / "no model.onnx", "--prevalence", "nothing.csv").stderr
    assert "there is no file nothing.csv" in wrong


@pytest.mark.parametrize("restart", [False, True])
def test_a_table_that_was_edited_is_not_overwritten(predict: Any, restart: bool) -> None:
    predict("day1")
    table = Path("out/predictions.csv")
    edited = table.read_text().replace("day1/0.png,", "day1/0.png,gold", 1)
    table.write_text(edited)
    done = predict("day1", "day2", *(["--restart"] if restart else []))
    assert done.exit_code == 1
    assert "out/predictions.csv was edited since the last run" in done.stderr
    assert table.read_text() == edited
    table.rename("out/corrected.csv")
    assert predict("day1", "day2").exit_code == 0
    assert paths() == DAY1 + DAY2


@pytest.mark.parametrize(
    "command",
    [
        ("report", "out"),
        ("deliver", "out", "--as", "csv-excel"),
        ("evaluate", "out/predictions.csv", "labels.csv"),
        ("audit", "labels.csv", "out"),
        ("review", "out", "--export", "decided.csv"),
    ],
    ids=lambda words: words[0],
)
def test_what_reads_an_edited_table_says_so(predict: Any, command: tuple[str, ...]) -> None:
    predict("day1")
    Path("labels.csv").write_text("path,labels\n" + "".join(f"{path},gold\n" for path in DAY1))

    def said() -> str:
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        return result.stderr

    assert "edited" not in said()
    table = Path("out/predictions.csv")
    table.write_text(table.read_text() + "\n")
    assert "Note: out/predictions.csv was edited since the run wrote it" in said()


def test_after_a_resume_the_summary_counts_all_images(predict: Any) -> None:
    first = predict("day1").stdout
    again = predict("day1").stdout
    minerals = [line for line in first.splitlines() if line.startswith("  ")]
    assert minerals
    assert [line for line in again.splitlines() if line.startswith("  ")] == minerals


# ---- damage in the journal -------------------------------------------------------------------------------------------

ZEROS = b"\0" * 20


@pytest.mark.parametrize(
    "change",
    [
        ("probabilities = ?", ZEROS),
        ("probabilities = ?", b"short"),
        ("width = ?", 7),
        ("checksum = ?", None),
    ],
    ids=["zeros", "another length", "another width", "no checksum"],
)
def test_a_damaged_result_is_predicted_again_and_counted(predict: Any, change: tuple[str, Any]) -> None:
    predict("day1", "--columns", "size")
    before = Path("out/predictions.csv").read_bytes()
    with sqlite3.connect(Path("out", JOURNAL)) as db:
        db.execute(f"UPDATE result SET {change[0]} WHERE name = ?", (change[1], b"day1/1.png"))
    db.close()
    done = predict("day1", "--columns", "size")
    assert "1 saved result damaged on disk; predicted again" in done.stdout
    assert Path("out/predictions.csv").read_bytes() == before
    assert manifest()["pictures"]["damaged_results_predicted_again"] == 1


def test_a_damaged_result_of_other_inputs_is_a_failure_not_a_wrong_row(predict: Any) -> None:
    predict("day1")
    with sqlite3.connect(Path("out", JOURNAL)) as db:
        db.execute("UPDATE result SET probabilities = ? WHERE name = ?", (ZEROS, b"day1/1.png"))
    db.close()
    assert predict("day2").exit_code == 3
    assert paths() == ["day1/0.png", "day1/2.png", *DAY2]
    assert paths("failures.csv") == ["day1/1.png"]
    assert predict("day1").exit_code == 0
    assert sorted(paths()) == DAY1 + DAY2


@pytest.mark.parametrize(
    ("version", "later"),
    [(1, ("checksum", "familiarity", "further")), (2, ("familiarity", "further")), (3, ("further",))],
)
def test_a_journal_of_an_earlier_release_is_brought_up_to_date(
    predict: Any, version: int, later: tuple[str, ...]
) -> None:
    predict("day1", "--columns", "captured,gps")
    before = Path("out/predictions.csv").read_bytes()
    with sqlite3.connect(Path("out", JOURNAL)) as db:
        for column in later:
            db.execute(f"ALTER TABLE result DROP COLUMN {column}")
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    done = predict("day1", "--columns", "captured,gps")
    assert "3 images already done by an earlier run" in done.stdout
    assert Path("out/predictions.csv").read_bytes() == before


def test_many_results_are_compared_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contract: Any) -> None:
    """Resumed with gaps at the edges of chunks, each image is still done once and in order."""
    from mineral_batch import Prediction
    from mineral_batch.types import Source

    monkeypatch.setattr(journal_module, "_SOURCES_AT_ONCE", 8)
    names = [f"{n:03}" for n in range(100)]
    sources = [Source(name, 1, 2, bytes) for name in names]

    def work(todo: list[Source]) -> list[str]:
        done = []
        with Journal(tmp_path, {}) as journal:
            for source in journal.unfinished(iter(todo)):
                assert isinstance(source, Source)
                done.append(source.name)
                journal.add(Prediction(source.name, np.zeros(2, np.float32), 1, 1))
            assert [result.path for result in journal.results(kept=False)] == [source.name for source in todo]
        return done

    assert work([source for index, source in enumerate(sources) if index % 17 and index % 31]) == [
        name for index, name in enumerate(names) if index % 17 and index % 31
    ]
    assert work(sources) == [name for index, name in enumerate(names) if not (index % 17 and index % 31)]
    assert work(sources) == []


def test_a_time_of_change_beyond_64_bits_is_a_time_like_others(tmp_path: Path) -> None:
    from mineral_batch import Prediction
    from mineral_batch.types import Source

    future = Source("a", 1, 2**63 + 5, bytes)
    for expected in (["a"], []):
        with Journal(tmp_path, {}) as journal:
            left = [source.name for source in journal.unfinished(iter([future])) if isinstance(source, Source)]
            assert left == expected
            for name in left:
                journal.add(Prediction(name, np.zeros(2, np.float32), 1, 1))


def test_a_model_that_answers_no_number_is_at_fault(
    predict: Any, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mineral_batch.engines.onnx_cpu import OnnxCpuEngine

    infer = OnnxCpuEngine.infer
    monkeypatch.setattr(OnnxCpuEngine, "infer", lambda self, pixels: infer(self, pixels) * np.float32("nan"))
    done = predict("day1")
    assert done.exit_code == 1
    assert "the model is at fault" in done.stderr


def test_nothing_is_lost_of_a_run_through_python(predict: Any, model_path: Path) -> None:
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        assert run(predictor, ["day1"], Path("out")).kept == 0
        summary = run(predictor, ["day2", "nowhere"], Path("out"))
        assert (summary.predicted, summary.new, summary.kept, summary.reused, summary.failed) == (5, 3, 3, 0, 1)
        with pytest.raises(DataError, match="no such file or folder: nowhere"):
            run(predictor, ["nowhere"], Path("out"))


# ---- a run with nothing to do ----------------------------------------------------------------------------------------


def test_tables_that_would_be_the_same_are_not_written_again(predict: Any) -> None:
    first = predict("day1", "--format", "jsonl").stdout
    before = Path("out/predictions.csv").stat()
    again = predict("day1").stdout
    assert Path("out/predictions.csv").stat().st_ino == before.st_ino
    assert again.splitlines()[1:] == first.splitlines()[1:]
    assert manifest()["pictures"]["from_earlier_runs"] == 3
    assert list(check("out")) == []


@pytest.mark.parametrize(
    "arguments", [["day1", "--columns", "size"], ["day1", "--round", "2"], ["day2"], ["day1", "--format", "jsonl"]]
)
def test_tables_that_would_differ_are_written(predict: Any, arguments: list[str]) -> None:
    predict("day1")
    before = Path("out/predictions.csv").stat()
    predict(*arguments)
    assert Path("out/predictions.csv").stat().st_ino != before.st_ino
    assert list(check("out")) == []


def test_a_table_that_is_gone_is_written_again(predict: Any) -> None:
    predict("day1")
    content = Path("out/predictions.csv").read_bytes()
    Path("out/predictions.csv").unlink()
    predict("day1")
    assert Path("out/predictions.csv").read_bytes() == content
