"""`mineral-batch predict`: exit codes, tables, and one line for everything that is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from mineral_batch import BackendError, Predictor
from mineral_batch.cli import main
from mineral_batch.engines.onnx_cpu import OnnxCpuEngine
from mineral_batch.model.onnx_file import write_contract

from .helpers import assert_one_line_error, table

if TYPE_CHECKING:
    from typing import Any

    from mineral_batch import ModelContract

onnxruntime = pytest.importorskip("onnxruntime")


# ---- the table -------------------------------------------------------------------------------------------------------


def test_a_folder_becomes_a_table_in_file_order(
    predict: Any, album: Path, tmp_path: Path, contract: ModelContract
) -> None:
    result = predict(album)
    assert result.exit_code == 0
    rows = table(tmp_path / "out/predictions.csv")
    assert [row["path"] for row in rows] == [str(album / f"{n:02}.png") for n in range(11)]
    assert list(rows[0]) == ["path", "minerals", *contract.labels]
    assert not (tmp_path / "out/failures.csv").exists()
    assert "11 images" in result.output
    assert "predictions.csv" in result.output


def test_minerals_are_those_at_or_above_their_thresholds(
    predict: Any, album: Path, tmp_path: Path, contract: ModelContract
) -> None:
    predict(album)
    rows = table(tmp_path / "out/predictions.csv")
    for row in rows:
        values = {label: float(row[label]) for label in contract.labels}
        called = {label for label, t in zip(contract.labels, contract.thresholds, strict=True) if values[label] >= t}
        listed = row["minerals"].split(";") if row["minerals"] else []
        assert set(listed) == called
        assert [values[label] for label in listed] == sorted((values[label] for label in listed), reverse=True)
    assert len({row["minerals"] for row in rows}) > 1


def test_probabilities_read_back_to_a_millionth(
    predict: Any, album: Path, tmp_path: Path, model_path: Path, contract: ModelContract
) -> None:
    predict(album)
    read = [[float(row[label]) for label in contract.labels] for row in table(tmp_path / "out/predictions.csv")]
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        expected = [result.probabilities.astype(float) for result in predictor.predict([album])]
    np.testing.assert_allclose(read, expected, rtol=1e-6)


def test_batch_size_and_threads_do_not_change_a_byte(predict: Any, album: Path, tmp_path: Path) -> None:
    tables = []
    for options in (["--batch-size", 1], ["--batch-size", 4, "--decode-threads", 1], ["--batch-size", 64]):
        assert predict(album, *options).exit_code == 0
        tables.append((tmp_path / "out/predictions.csv").read_bytes())
        shutil.rmtree(tmp_path / "out")
    assert len(set(tables)) == 1


def test_a_bad_picture_is_a_row_of_its_own_and_exit_code_3(
    predict: Any, tmp_path: Path, photos: dict[str, Any], damaged: dict[str, bytes]
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, photo in photos.items():
        (folder / name).write_bytes(photo.content)
    for name, content in damaged.items():
        (folder / name).write_bytes(content)
    result = predict(folder)
    assert result.exit_code == 3
    good, bad = table(tmp_path / "out/predictions.csv"), table(tmp_path / "out/failures.csv")
    assert {row["path"] for row in good} == {str(folder / name) for name in photos}
    assert [row["path"] for row in bad] == sorted(str(folder / name) for name in damaged)
    assert {row["stage"] for row in bad} == {"read", "decode"}
    assert all(row["reason"] for row in bad)
    assert f"{len(damaged)} images could not be read" in result.output


def test_a_rerun_says_how_many_of_the_images_done_were_not_readable(predict: Any, album: Path) -> None:
    """The counts add up: an image that failed before is done, too."""
    (album / "03.png").write_bytes(b"damaged")
    assert predict(album).exit_code == 3
    output = predict(album).output
    assert "11 images already done by an earlier run (1 of them could not be read)" in output
    assert "1 image could not be read" in output


def test_other_thresholds_than_the_earlier_runs_are_said(
    predict: Any, album: Path, model_path: Path, tmp_path: Path, contract: ModelContract
) -> None:
    """Nothing is predicted again, and yet the table changes."""
    said = "The thresholds are not those of the earlier run"
    first = predict(album, "--specimen", "catalog")
    assert said not in first.output + predict(album).output
    assert "11 specimens\n" in first.output
    assert f"{tmp_path / 'out/specimens.csv'}\n" in first.output
    other = tmp_path / "other.onnx"
    shutil.copy(model_path, other)
    write_contract(other, contract.with_thresholds([0.99] * len(contract.labels)))
    assert said in predict(album, model=other).output
    assert said not in predict(album, model=other).output


def test_a_clean_run_after_a_failed_one_leaves_no_failures(predict: Any, album: Path, tmp_path: Path) -> None:
    good = (album / "03.png").read_bytes()
    (album / "03.png").write_bytes(b"damaged")
    assert predict(album).exit_code == 3
    (album / "03.png").write_bytes(good)
    assert predict(album).exit_code == 0
    assert not (tmp_path / "out/failures.csv").exists()
    assert len(table(tmp_path / "out/predictions.csv")) == 11


def test_odd_names_come_through(predict: Any, album: Path, tmp_path: Path, odd_names: tuple[bytes, ...]) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in odd_names:
        try:
            shutil.copy(album / "00.png", folder / os.fsdecode(name))
        except OSError as error:  # some file systems take UTF-8 only
            pytest.skip(f"this file system refuses {name!r}: {error}")
    assert predict(folder).exit_code == 0
    found = [os.fsencode(row["path"]) for row in table(tmp_path / "out/predictions.csv")]
    assert sorted(found) == sorted(os.fsencode(folder) + b"/" + name for name in odd_names)


def test_quiet_says_nothing(predict: Any, album: Path) -> None:
    result = predict(album, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_the_opening_line_names_the_model_and_the_engine(predict: Any, album: Path) -> None:
    assert predict(album).stderr.startswith("tiny: 5 minerals, onnx-cpu on CPU")


# ---- what is wrong is one line ---------------------------------------------------------------------------------------


def test_a_mistyped_folder_makes_no_output_folder(predict: Any, album: Path, tmp_path: Path) -> None:
    assert_one_line_error(predict(tmp_path / "albun", "-q"), "no such file or folder", "albun")
    assert_one_line_error(predict("n" * 300, "-q"), "nnn")
    assert not (tmp_path / "out").exists()


def test_no_photographs_is_said_and_makes_no_output_folder(predict: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("none here")
    assert_one_line_error(predict(tmp_path / "empty", "-q"), "no images in")
    assert not (tmp_path / "out").exists()


def test_if_no_picture_can_be_read_the_run_failed(predict: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"damaged")
    assert_one_line_error(predict(tmp_path / "bad.jpg", "-q"), "the image cannot be read", "bad.jpg", "failures.csv")
    assert table(tmp_path / "out/failures.csv")[0]["stage"] == "decode"


def test_a_model_that_is_none_is_refused(predict: Any, album: Path, tmp_path: Path, bare_model_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    assert_one_line_error(predict(album, model=tmp_path / "no.onnx"), "no such model file")
    assert_one_line_error(predict(album, model=tmp_path / "text.onnx"), "not an ONNX file")
    assert_one_line_error(predict(album, model=bare_model_path), "without a contract", "mineral-export onnx")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(predict: Any, album: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    assert_one_line_error(predict(album, "-q"), "-o")
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize(
    "arguments", [["--backend", "tpu"], ["--batch-size", "0"], ["--decode-threads", "-1"], ["--color"], []]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], album: Path) -> None:
    result = CliRunner().invoke(main, ["predict", *([str(album)] if arguments else []), *arguments])
    assert result.exit_code == 2
    assert "Usage" in result.stderr


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this build knows CUDA")
def test_cuda_that_is_not_there_is_refused_not_replaced(predict: Any, album: Path, tmp_path: Path) -> None:
    assert_one_line_error(predict(album, backend="onnx-cuda"), "onnx-cuda needs an NVIDIA GPU")
    assert not (tmp_path / "out").exists()


def test_without_onnxruntime_one_line_names_the_extra(
    predict: Any, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_one_line_error(predict(album), "[cpu]'")


# ---- runs that do not end well ---------------------------------------------------------------------------------------


def test_an_engine_that_fails_midway_leaves_the_older_table(
    predict: Any, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(album, "-q").exit_code == 0
    before = (tmp_path / "out/predictions.csv").read_bytes()
    for path in album.iterdir():  # other pictures, so that nothing can be taken from the run before
        shutil.copy(path, path.with_name(f"other {path.name}"))
        path.unlink()
    calls, infer = [], OnnxCpuEngine.infer

    def failing(self: OnnxCpuEngine, pixels: Any) -> Any:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise BackendError("out of memory")
        return infer(self, pixels)

    monkeypatch.setattr(OnnxCpuEngine, "infer", failing)
    assert_one_line_error(predict(album, "-q", "--batch-size", 2), "out of memory")
    assert (tmp_path / "out/predictions.csv").read_bytes() == before


def test_a_log_gets_a_line_now_and_then(predict: Any, album: Path) -> None:
    (album / "04.png").write_bytes(b"damaged")
    lines = predict(album, "--log-every", 0, "--batch-size", 1).stderr.splitlines()[1:]
    assert len(lines) == 11
    assert all(line[:2] == "20" and " images/s" in line for line in lines)
    assert " 11 " in lines[-1] or " 11 of 11 images" in lines[-1]
    assert "1 failed" in lines[-1]
    again = predict(album, "--log-every", 0).stderr.splitlines()[1:]
    assert "11 from earlier runs" in again[-1]
    assert "0.0 images/s" in again[-1]
    assert len(predict(album, "--restart").stderr.splitlines()) == 1  # over within a minute


# ---- inputs and outputs ----------------------------------------------------------------------------------------------


def test_lists_globs_and_archives_in_any_mix(predict: Any, album: Path, tmp_path: Path) -> None:
    names = "\n".join(str(album / f"{n:02}.png") for n in range(3))
    (tmp_path / "list.txt").write_text(names)
    shutil.make_archive(str(tmp_path / "packed"), "zip", album)
    result = predict("--list", tmp_path / "list.txt", album / "0[2-4].png", tmp_path / "packed.zip")
    assert result.exit_code == 0
    paths = [row["path"] for row in table(tmp_path / "out/predictions.csv")]
    assert [*paths[:3], *paths[-2:]] == [str(album / f"{n:02}.png") for n in (2, 3, 4, 0, 1)]
    assert sorted(paths[3:-2]) == [f"{tmp_path}/packed.zip/{n:02}.png" for n in range(11)]


def test_more_formats_columns_and_a_tree(predict: Any, album: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    formats = ["--format", "jsonl", "--format", "parquet", "--layout", "per-image"]
    assert predict(album, *formats, "--columns", "gps, size").exit_code == 0
    assert {entry.name for entry in (tmp_path / "out").iterdir() if not entry.name.startswith("journal")} == {
        "predictions.csv", "predictions.jsonl", "predictions.parquet", "per-image", "run.json", "written.json",
    }  # fmt: skip
    assert list(table(tmp_path / "out/predictions.csv")[0])[:6] == [
        "path", "minerals", "width", "height", "latitude", "longitude",
    ]  # fmt: skip
    checked = CliRunner().invoke(main, ["check", str(tmp_path / "out")])
    assert (checked.exit_code, checked.output) == (0, f"{tmp_path}/out: no problems\n")


def test_columns_that_are_none_are_refused(predict: Any, album: Path, tmp_path: Path) -> None:
    result = predict(album, "--columns", "size,color")
    assert result.exit_code == 2
    assert "unknown columns: color; choose from size, captured, gps" in result.stderr
    assert not (tmp_path / "out").exists()


def test_another_model_into_the_same_folder_is_refused_until_restart(predict: Any, album: Path, tmp_path: Path) -> None:
    predict(album)
    assert_one_line_error(predict(album, "--exact", "-q"), "decoder was", "--restart")
    assert predict(album, "--exact", "--restart").exit_code == 0


def test_the_command_works_in_a_process_of_its_own(album: Path, model_path: Path, tmp_path: Path) -> None:
    """Standard output carries the summary, standard error the progress; nothing else is printed."""
    shutil.copy(album / "00.png", album / "-o.png")
    (album / "bad.png").write_bytes(b"damaged")
    command = "import sys; from mineral_batch.cli import main; main(sys.argv[1:])"
    options = ["-m", model_path, "--backend", "onnx-cpu", "--", "-o.png", "bad.png", "00.png"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", command, "predict", *map(str, options)],
        cwd=album,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert len(table(album / "results/predictions.csv")) == 2
    assert "Traceback" not in done.stderr
    assert "2 images" in done.stdout


def test_images_without_a_mineral_are_counted_at_the_end(predict: Any, album: Path, tmp_path: Path) -> None:
    output = predict(album).output
    blank = sum(not row["minerals"] for row in table(tmp_path / "out" / "predictions.csv"))
    assert (f"{blank} of 11 images have no mineral at or above its threshold" in output) == (blank > 0)


def test_the_closing_lines_count_specimens_and_images_without_one(predict: Any, album: Path) -> None:
    for name in ("M-1235 front.png", "M-1235 back.png", "IMG_4711.png"):
        shutil.copy(album / "00.png", album / name)
    line = "13 specimens; 1 image has no specimen by this rule, such as"
    for _ in range(2):  # also when there is nothing to do
        output = predict(album, "--specimen", "catalog").output
        assert line in output
        assert "IMG_4711.png\n" in output


@pytest.mark.parametrize("name", ["predictions.csv", "failures.csv", "specimens.csv", "run.json"])
def test_a_file_of_somebody_elses_is_neither_replaced_nor_removed(predict: Any, album: Path, name: str) -> None:
    for text in ("before a run", "after a run"):
        out = album.parent / text
        if text == "after a run":
            assert predict(album, "-o", out).exit_code == 0
        out.mkdir(exist_ok=True)
        if text == "after a run" and name in ("predictions.csv", "run.json"):
            continue  # these are the run's own
        (out / name).write_text(text)
        refused = predict(album, "-o", out)
        assert refused.exit_code == 1
        assert "already exists and was not written by predict" in refused.stderr
        assert (out / name).read_text() == text
