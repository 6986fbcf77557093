"""Runs into an object store: the tables of one machine, resumable by the same command."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mineral_batch.cli import main
from mineral_batch.cluster.place import Prefix, open_place
from mineral_batch.storage.errors import explained
from mineral_batch.storage.store import _CloudStore, open_store

pytest.importorskip("onnxruntime")
pytest.importorskip("pyarrow")
pytest.importorskip("obstore")

pytestmark = pytest.mark.slow

TABLES = ("predictions.csv", "failures.csv", "predictions.jsonl")


@pytest.fixture
def command(model_path: Path) -> Any:
    """`mineral-batch predict` with the tiny model."""

    def run(output: object, *arguments: object) -> Result:
        options = ["predict", "-o", output, "-m", model_path, "--backend", "onnx-cpu", "--format", "jsonl"]
        return CliRunner().invoke(main, [*map(str, [*options, *arguments])])

    return run


def test_a_run_into_a_bucket_resumes_and_writes_the_tables_of_one_machine(
    s3: str, album: Path, tmp_path: Path, command: Any
) -> None:
    (album / "04.png").write_bytes(b"damaged")
    assert command(tmp_path / "one", album).exit_code == 3
    output = "s3://results/runs/first"
    assert command(output, album, "--piece-images", 3, "--shard", "2/2").exit_code == 3
    missing = CliRunner().invoke(main, ["merge", output])
    assert missing.exit_code == 1
    assert "2 of 4 pieces" in missing.stderr
    whole = command(output, album, "--piece-images", 3)
    assert whole.exit_code == 3, whole.output
    assert "5 images already done" in whole.stdout
    place = open_place(output)
    assert isinstance(place, Prefix)
    for name in TABLES:
        assert place.get(name) == (tmp_path / "one" / name).read_bytes()
    again = command(output, album, "--piece-images", 3, "--exit-zero-on-failures")
    assert again.exit_code == 0
    assert "11 images already done" in again.stdout


def test_changed_images_are_refused_and_start_over_with_restart(s3: str, album: Path, command: Any) -> None:
    output = "s3://results/second"
    assert command(output, album).exit_code == 0
    (album / "03.png").unlink()
    refused = command(output, album)
    assert refused.exit_code == 1
    assert "1 image removed since the run in s3://results/second was planned" in refused.stderr
    assert command(output, album, "--restart").exit_code == 0
    content = open_place(output).get("predictions.csv") or b""
    assert content.count(b".png") == 10


def test_photographs_in_a_bucket_and_in_a_tar_there(s3: str, album: Path, tmp_path: Path, command: Any) -> None:
    (album / "04.png").write_bytes(b"damaged")
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        for file in sorted(album.iterdir())[:4]:
            archive.add(file, file.name)
    place = open_place("s3://results/photos")
    for file in sorted(album.iterdir()):
        place.put(file.name, file.read_bytes())
    place.put("more.tar", (tmp_path / "more.tar").read_bytes())
    inputs = "s3://results/photos/", "s3://results/photos/more.tar"
    assert command(tmp_path / "one", *inputs).exit_code == 3
    assert command("s3://results/out", *inputs, "--piece-images", 4).exit_code == 3
    for name in TABLES:
        assert open_place("s3://results/out").get(name) == (tmp_path / "one" / name).read_bytes()
    place.delete("03.png")
    (part, *_) = (key for key in open_place("s3://results/out").keys("parts/") if "/000000-" in key)
    open_place("s3://results/out").delete(part)
    assert command("s3://results/out", *inputs, "--shard", "1/1").exit_code == 3
    assert CliRunner().invoke(main, ["merge", "s3://results/out"]).exit_code == 3
    failures = (open_place("s3://results/out").get("failures.csv") or b"").decode()
    assert "photos/03.png,read,no such object" in failures


def packed(files: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in files:
            archive.add(file, file.name)
    return buffer.getvalue()


def test_what_changed_after_the_plan_is_not_answered_under_its_name(s3: str, album: Path, command: Any) -> None:
    first, second, third, *_ = sorted(album.iterdir())
    photos, out = open_place("s3://photos"), open_place("s3://results/out")
    for name in ("a.png", "b.png"):
        photos.put(name, first.read_bytes())
    photos.put("c.tar", packed([first, second]))
    inputs = "s3://photos/", "s3://photos/c.tar"
    assert command("s3://results/out", *inputs, "--piece-images", 2).exit_code == 0
    photos.put("b.png", third.read_bytes(), create_only=False)
    photos.put("c.tar", packed([first, third]), create_only=False)
    for part in list(out.keys("parts/")):
        out.delete(part)
    assert command("s3://results/out", *inputs, "--shard", "1/1").exit_code == 3
    assert CliRunner().invoke(main, ["merge", "s3://results/out"]).exit_code == 3
    assert (out.get("failures.csv") or b"").decode().splitlines()[1:] == [
        "s3://photos/b.png,read,it has changed since it was listed",
        "s3://photos/c.tar/00.png,read,it has changed since the run was planned",
        "s3://photos/c.tar/01.png,read,no longer in s3://photos/c.tar",
    ]


def test_a_shard_that_does_not_answer_is_no_lost_photograph(
    s3: str, album: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(album.iterdir())
    photos = open_place("s3://photos")
    for name, content in {"0.tar": files[:2], "1.tar": files[2:4]}.items():
        photos.put(name, packed(content))
    options = "s3://photos/{0..1}.tar", "--piece-images", 2, "--shard", "1/1"
    real = _CloudStore.open

    def silent(self: Any, key: str, check: Any = None) -> Any:
        if key == "1.tar":
            raise explained(RuntimeError("503"), "s3://photos/1.tar")
        return real(self, key, check)

    monkeypatch.setattr("mineral_batch.cluster.run.time.sleep", lambda seconds: None)
    with monkeypatch.context() as patched:
        patched.setattr(_CloudStore, "open", silent)
        unplanned = command(tmp_path / "out", *options)
        assert unplanned.exit_code == 1
        assert "; rerun the same command" in unplanned.stderr.splitlines()[-1]
    assert command(tmp_path / "out", *options).exit_code == 0
    for part in (tmp_path / "out/parts").iterdir():
        part.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(_CloudStore, "open", silent)
        left = command(tmp_path / "out", *options)
        assert left.exit_code == 1
        assert "1 piece could not be read now" in left.stderr.splitlines()[-1]
        assert "the store does not answer" in left.stderr.splitlines()[-1]
    assert command(tmp_path / "out", *options).exit_code == 0
    assert len(list((tmp_path / "out/parts").iterdir())) == 2


def test_no_secret_is_in_what_a_run_says_and_writes(
    s3: str, album: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("AWS_SESSION_TOKEN", "HF_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN"):
        monkeypatch.setenv(name, "hidden-word")
    open_place("s3://photos").put_file("m.onnx", model_path)
    model = f"{s3.replace('//', '//me:hidden-word@')}/photos/m.onnx?X-Amz-Signature=hidden-word"
    said = []
    for output in ("s3://results/out", tmp_path / "out"):
        options = ["predict", album, tmp_path / "absent.png", "-o", output, "-m", model, "--backend", "onnx-cpu"]
        result = CliRunner().invoke(main, [*map(str, options), "--log-format", "json", "--log-every", "0"])
        assert result.exit_code == 3, result.output
        said.append(result.output)
    results = open_store("s3://results")
    written = {entry.key: results.get(entry.key) for entry in results.list()}
    written |= {str(file): file.read_bytes() for file in tmp_path.glob("out/**/*") if file.is_file()}
    assert {"out/run.json", "out/plan.json", "out/predictions.csv", str(tmp_path / "out/run.json")} <= written.keys()
    for secret in ("hidden-word", "very-secret"):
        assert not [name for name, content in written.items() if secret.encode() in content]
        assert secret not in "".join(said)
    assert not [path for path in (tmp_path / "cache").rglob("*") if "hidden-word" in str(path)]


def test_a_report_of_results_in_a_bucket(s3: str, album: Path, tmp_path: Path, command: Any) -> None:
    (album / "04.png").write_bytes(b"damaged")
    assert command("s3://results/out", album).exit_code == 3
    refused = CliRunner().invoke(main, ["report", "s3://results/out"])
    assert refused.exit_code == 2
    assert "say with -o where the page goes" in refused.stderr
    page = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["report", "s3://results/out", "-o", str(page)])
    assert done.exit_code == 0, done.output
    assert "04.png" in page.read_text("utf-8")
    absent = CliRunner().invoke(main, ["report", "s3://results/absent", "-o", str(page)])
    assert absent.stderr.splitlines()[-1] == "Error: no such object: s3://results/absent/predictions.csv"


def test_signed_urls_are_not_planned(s3: str, album: Path, tmp_path: Path, command: Any) -> None:
    refused = command(tmp_path / "out", f"{s3}/photos/a.jpg?X-Amz-Signature=hidden", "--shard", "1/1")
    assert refused.exit_code == 2
    assert "has a password or a signature" in refused.stderr
    assert "hidden" not in refused.output


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["bucket", "my-credentials", "notfounderror"])
def test_any_name_of_a_bucket_will_do(s3: str, album: Path, command: Any, bucket: str) -> None:
    from mineral_batch.storage.store import open_store

    boto3 = pytest.importorskip("boto3")
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket=bucket)
    done = command(f"s3://{bucket}/out", album)
    assert done.exit_code == 0, done.output
    assert open_store(f"s3://{bucket}/out").get("out/predictions.csv")


def test_a_bucket_that_is_not_there_is_one_line(s3: str, album: Path, command: Any) -> None:
    refused = command("s3://absent/out", album)
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[-1] == "Error: no such bucket: s3://absent"
    web = command("https://example.org/out", album)
    assert web.exit_code == 1
    assert "cannot be written to" in web.stderr


def test_create_only_leaves_what_is_there(s3: str) -> None:
    place = open_place("s3://results/third")
    assert place.put("parts/a", b"one")
    assert not place.put("parts/a", b"two")
    assert place.get("parts/a") == b"one"
    assert list(place.keys("parts/")) == ["parts/a"]
    place.delete("parts/a")
    place.delete("parts/a")
    assert place.get("parts/a") is None
