"""The decode table: fidelity is computed right, and a decoder that cannot read a picture is left out."""

from __future__ import annotations

import io
import json
import math
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image as PILImage

from mineral_batch.evaluation.metrics import mean_average_precision
from mineral_batch.model.contract import InputSpec
from mineral_bench.cli import main
from mineral_bench.images import FORMATS, can_encode, encode, photograph
from mineral_bench.measure import Plan, Rounds
from mineral_bench.studies import decode, decoder_effect
from mineral_bench.studies.accuracy import open_candidates

if TYPE_CHECKING:
    from pathlib import Path

SPEC = InputSpec(height=32, width=32)
SHORT = Plan(least=2, most=2, seconds=0, warm_up=1)


def group(name: str, side: int = 256) -> decode.Group:
    return decode.Group(name, (encode(photograph(side, side), name),), name.startswith("JPEG"))


def test_psnr_of_one_step_everywhere() -> None:
    gray = np.full((4, 4, 3), 100, np.uint8)
    assert decode.psnr([gray], [gray]) == math.inf
    assert decode.psnr([gray + 1], [gray]) == pytest.approx(20 * math.log10(255))
    assert decode.psnr([gray, gray + 1], [gray, gray]) == pytest.approx(20 * math.log10(255) + 10 * math.log10(2))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_by_what_claims_to(name: str) -> None:
    if not can_encode(name):
        pytest.skip(f"this build of Pillow cannot write {name}")
    found = decode.measure(group(name), SPEC, SHORT)
    assert {decode.REFERENCE, decode.OURS} <= set(found.psnr)
    assert found.psnr[decode.REFERENCE] == math.inf
    assert ("Pillow, draft 1x" in found.psnr) == name.startswith("JPEG")
    assert all(value > 25 for value in found.psnr.values())
    if not name.startswith("JPEG"):
        assert found.psnr[decode.OURS] == math.inf


def test_scaled_decoding_is_near_the_full_one_and_nearer_at_twice_the_size() -> None:
    near = decode.measure(group("JPEG"), SPEC, SHORT).psnr
    assert 40 < near[decode.OURS] < math.inf
    assert near["Pillow, draft 1x"] < near[decode.OURS]


def test_a_decoder_that_fails_or_answers_another_shape_is_left_out() -> None:
    def fails(content: bytes, spec: InputSpec) -> np.ndarray:
        raise OSError("built without this format")

    small = decode.Candidate(lambda content, spec: np.zeros((1, 1, 3), np.uint8))
    absent = decode.Candidate(decode.pillow, package="a_package_that_nobody_has")
    for candidate in (decode.Candidate(fails), small, absent):
        assert decode.attempt(candidate, group("PNG", 64), SPEC) == []


def measured(seconds: float, psnr: float) -> decode.DecodeTimes:
    times = {decode.OURS: np.full(6, 2.0), "other": np.full(6, seconds)}
    return decode.DecodeTimes("JPEG", 1, Rounds(times, times, 1, True), {decode.OURS: 50.0, "other": psnr})


@pytest.mark.parametrize(
    ("seconds", "psnr", "better"),
    [(1.0, 50.0, ["other"]), (1.0, 49.6, ["other"]), (1.0, 45.0, []), (2.0, 60.0, [])],
)
def test_only_what_is_faster_at_the_same_fidelity_is_recommended(
    seconds: float, psnr: float, better: list[str]
) -> None:
    assert measured(seconds, psnr).better() == better
    assert ("JPEG: other" in decode.verdict([measured(seconds, psnr)])) == bool(better)


def test_a_users_photographs_are_grouped_by_content(tmp_path: Path) -> None:
    for index, name in enumerate(["a.jpg", "b.png", "c.jpg", "d.jpg"]):
        kind = "PNG" if name in ("b.png", "c.jpg") else "JPEG"  # c.jpg is a PNG
        buffer = io.BytesIO()
        PILImage.new("RGB", (40, 30), (index, 2, 3)).save(buffer, kind)
        (tmp_path / name).write_bytes(buffer.getvalue())
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "empty.jpg").touch()
    found, failures = decode.of_user([tmp_path], SPEC)
    assert [(one.name, one.is_jpeg) for one in found] == [
        ("JPEG, up to 0.3 MP (2)", True),
        ("PNG, up to 0.3 MP (2)", False),
    ]
    assert [one.path for one in failures] == [str(tmp_path / "broken.jpg"), str(tmp_path / "empty.jpg")]
    assert len(decode.of_user([tmp_path], SPEC, most=1)[0][0].contents) == 1


def test_what_cannot_be_read_is_told_and_the_rest_measured(tmp_path: Path) -> None:
    whole = encode(photograph(64, 64), "JPEG")
    (tmp_path / "good.jpg").write_bytes(whole)
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    out = tmp_path / "found.json"
    done = CliRunner().invoke(main, ["decode", str(tmp_path), "--size", "32", "--seconds", "0", "--json", str(out)])
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("Left out")]
    assert "empty.jpg: the file is empty; gone.jpg: No such file or directory" in line
    assert "cut.jpg: " in line
    assert str(tmp_path) not in line
    figures = json.loads(out.read_text("utf-8"))["figures"]
    assert [one["pictures"] for one in figures["groups"]] == [1]
    assert figures["unreadable"] == 3


@pytest.mark.parametrize(("content", "reason"), [(b"", "the file is empty"), (b"no picture", "not an image, or")])
def test_nothing_readable_is_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(content)
    for given in (photo, tmp_path):
        done = CliRunner().invoke(main, ["decode", str(given), "--seconds", "0"])
        assert done.exit_code == 1
        (line,) = done.output.splitlines()
        assert line.startswith(f"Error: no readable image under {given} ({photo}: {reason}")


# ---- what a model makes of it ----------------------------------------------------------------------------------------


@pytest.fixture
def specimens(tmp_path: Path) -> Path:
    """Two photographs that are decoded at a scale for an input of 32 pixels, one that is not, and a broken one."""
    folder = tmp_path / "specimens"
    folder.mkdir()
    for index, name in enumerate(("0.jpg", "1.jpg")):
        (folder / name).write_bytes(encode(photograph(256, 256, seed=index), "JPEG"))
    (folder / "2.png").write_bytes(encode(photograph(256, 256, seed=2), "PNG"))
    (folder / "3.jpg").write_bytes(b"no picture")
    return folder


def test_only_scaled_photographs_change_and_the_smallest_scale_changes_more(model_path: Path, specimens: Path) -> None:
    truth = np.eye(4, 3, dtype=bool)
    with ExitStack() as stack:
        ((model, *_), _) = open_candidates([model_path], [("onnx-cpu", "float32")], stack)
        found = decoder_effect.predict(model, sorted(specimens.iterdir()), truth)
    full, ours, smallest = (decoder_effect.change(name, found, resamples=5) for name in found.probabilities)
    assert found.unreadable == 1
    assert [one.photographs for one in (full, ours, smallest)] == [0, 2, 2]
    assert np.isinf(found.psnr[decode.OURS][2])
    assert (full.largest, full.decisions, full.difference) == (0, 0, (0, 0, 0))
    assert 40 < ours.psnr[1] < math.inf
    assert smallest.psnr[1] < ours.psnr[1]
    assert 0 < ours.largest < 0.05
    assert ours.mean <= ours.largest
    assert full.mean_ap == pytest.approx(mean_average_precision(found.probabilities[decode.REFERENCE], truth[:3]).mean)


def test_the_command_adds_what_changes_for_a_model(model_path: Path, specimens: Path, tmp_path: Path) -> None:
    labels, out = tmp_path / "labels.csv", tmp_path / "found.json"
    labels.write_text("path,labels,split\n0.jpg,agate,test\n1.jpg,gold,test\n2.png,gold,train\n", "utf-8")
    command = ["decode", str(specimens), "--seconds", "0", "-m", str(model_path), "--json", str(out)]
    done = CliRunner().invoke(main, [*command, "--labels", str(labels), "--split", "test"])
    assert done.exit_code == 0, done.output
    figures = json.loads(out.read_text("utf-8"))["figures"]
    assert figures["answers"]["photographs"] == 2
    assert [one["decoder"] for one in figures["answers"]["decoders"]] == list(decoder_effect.DECODERS)
    assert "| mAP | against the full decode |" in done.output
    assert {group["group"] for group in figures["groups"]} == {"JPEG, up to 0.3 MP (2)", "PNG, up to 0.3 MP (1)"}
    without = CliRunner().invoke(main, command)
    assert without.exit_code == 0, without.output
    assert "3 photographs, 1 more could not be read; 9 decisions" in without.output
    assert "mAP" not in without.output


@pytest.mark.parametrize(
    "options", [["-m", "model.onnx"], ["photos", "--labels", "labels.csv"], ["photos", "-m", "x", "--split", "test"]]
)
def test_options_that_need_others_say_so(options: list[str]) -> None:
    done = CliRunner().invoke(main, ["decode", *options])
    assert done.exit_code == 2
    assert "--labels a --model and one folder" in done.output
