"""What goes wrong with a store is one line or a row, shows no secret, and loses nothing; nor do runs that share one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mineral_batch import DataError
from mineral_batch.cli import main
from mineral_batch.cluster import run as cluster_run
from mineral_batch.cluster.place import open_place

from ...fakes.faulty_store import Faults, faulty_store

pytest.importorskip("onnxruntime")
pytest.importorskip("pyarrow")
pytest.importorskip("obstore")

pytestmark = pytest.mark.slow

OUTPUT = "s3://results/out"


@pytest.fixture
def faults(s3: str, album: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """A store that fails where a test says so; its bucket `photos` has eleven photographs below `set/`."""
    from mineral_batch.storage import store

    photos = open_place("s3://photos/set")
    for file in sorted(album.iterdir()):
        photos.put_file(file.name, file)
    monkeypatch.setattr("mineral_batch.cluster.run.time.sleep", lambda seconds: None)
    with faulty_store(s3) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.address)
        store._cloud_store.cache_clear()
        yield found
        store._cloud_store.cache_clear()


def error_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert "secret" not in result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    return last


FULL = "the store is full or its quota is used up; free some space"
EXPIRED = "the credentials have expired; renew them"
DENIED = "access denied; check the credentials and their rights"


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "AccessDenied", DENIED),
        (400, "ExpiredToken", EXPIRED),
        (403, "QuotaExceeded", FULL),  # as Ceph says it
        (400, "XMinioAdminBucketQuotaExceeded", FULL),
    ],
)
@pytest.mark.parametrize(("path", "spared"), [("/out/plan", 2), ("/out/parts/", 1), ("/out/predictions.csv", 0)])
def test_an_output_that_cannot_be_written_costs_only_what_was_in_hand(
    faults: Faults, tmp_path: Path, command: Any, status: int, code: str, message: str, path: str, spared: int
) -> None:
    assert command("s3://photos/set", "-o", tmp_path / "one").exit_code == 0
    faults.set("PUT", path, status, code, spared=spared)
    line = error_line(command("s3://photos/set", "-o", OUTPUT))
    assert message in line
    assert "s3://results/out" in line
    faults.clear()
    again = command("s3://photos/set", "-o", OUTPUT)
    assert again.exit_code == 0, again.output
    done = {"/out/plan": 0, "/out/parts/": 3, "/out/predictions.csv": 11}[path]
    assert (f"{done} images already done" in again.stdout) == (done > 0)
    assert open_place(OUTPUT).get("predictions.csv") == (tmp_path / "one/predictions.csv").read_bytes()
    assert list(open_place(OUTPUT).keys("attempts/")) == []


def test_photographs_behind_credentials_that_expire_are_left_for_later(
    faults: Faults, tmp_path: Path, command: Any
) -> None:
    assert command("s3://photos/set", "-o", tmp_path / "one").exit_code == 0
    faults.set("GET", "/photos/set/", 400, "ExpiredToken", spared=5)
    line = error_line(command("s3://photos/set", "-o", OUTPUT))
    assert EXPIRED in line
    assert "everything else is saved: rerun the same command" in line
    faults.clear()
    assert command("s3://photos/set", "-o", OUTPUT).exit_code == 0
    assert open_place(OUTPUT).get("predictions.csv") == (tmp_path / "one/predictions.csv").read_bytes()


def test_what_may_not_be_read_is_a_row_and_what_may_not_be_listed_is_one_line(faults: Faults, command: Any) -> None:
    faults.set("GET", "set/0[37].png", 403, "AccessDenied")
    assert command("s3://photos/set/", "-o", OUTPUT).exit_code == 3
    failures = (open_place(OUTPUT).get("failures.csv") or b"").decode().splitlines()[1:]
    assert failures == [f"s3://photos/set/{n}.png,read,s3://photos/set/{n}.png: {DENIED}" for n in ("03", "07")]
    faults.set("GET", "list-type=2", 403, "AccessDenied")
    assert DENIED in error_line(command("s3://photos/set/", "-o", "s3://results/other"))


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (301, "PermanentRedirect", "the bucket is in another region; set AWS_REGION to it"),
        (400, "AuthorizationHeaderMalformed", "the bucket is in another region; set AWS_REGION to it"),
        (400, "InvalidToken", DENIED),
        (403, "SignatureDoesNotMatch", DENIED),
        (403, "RequestTimeTooSkewed", "set this machine's clock"),
        (400, "InvalidRequest", "the store refuses it (400 Bad Request, InvalidRequest)"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_what_a_store_refuses_says_why(faults: Faults, status: int, code: str, message: str, method: str) -> None:
    place = open_place("s3://photos/ExpiredToken/NoSuchBucket")  # what a key is called says nothing
    faults.set(method, "", status, code)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        list(place.keys("credentials/")) if method == "GET" else place.put("credentials/a.jpg", b"1")
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_part_that_vanishes_while_it_is_merged_is_named(faults: Faults, command: Any) -> None:
    assert command("s3://photos/set", "-o", OUTPUT, "--shard", "1/1").exit_code == 0
    faults.set("GET", "/parts/000002-", 404, "NoSuchKey")
    line = error_line(CliRunner().invoke(main, ["merge", OUTPUT]))
    assert "/parts/000002-" in line
    assert "was deleted meanwhile: rerun the predict command that made it, then merge again" in line
    faults.clear()
    assert CliRunner().invoke(main, ["merge", OUTPUT]).exit_code == 0


def test_a_corrupt_table_of_photographs_costs_what_is_corrupt(faults: Faults, command: Any, album: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    photos = open_place("s3://photos/tables")
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(album.iterdir())]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": rows}), sink, row_group_size=4, compression="none", write_page_checksum=True)
    whole = sink.getvalue().to_pybytes()
    broken = bytearray(whole)
    start = whole.index(rows[5]["bytes"])
    broken[start : start + 400] = bytes(400)
    contents = {"0.parquet": bytes(broken), "1.parquet": whole[:-50], "2.parquet": whole}
    for name, content in contents.items():
        photos.put(name, content)
    inputs = [f"s3://photos/tables/{name}" for name in contents]
    assert command(*inputs, "-o", OUTPUT).exit_code == 3
    place = open_place(OUTPUT)
    failures = (place.get("failures.csv") or b"").decode()
    assert "s3://photos/tables/1.parquet,read,the Parquet file is damaged" in failures
    predicted = (place.get("predictions.csv") or b"").decode()
    assert predicted.count("2.parquet/") == 11
    assert "0.parquet/9/09.png" in predicted


def start(output: object, photos: Path, model: Path, *arguments: str) -> subprocess.Popen[str]:
    program = ["-m", "mineral_batch", "predict", str(photos), "-o", str(output), "-m", str(model)]
    program += ["--backend", "onnx-cpu", "--piece-images", "1", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *program], stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("where", ["a folder", "a bucket"])
def test_the_same_shard_twice_at_once_gives_the_tables_of_one(
    s3: str, album: Path, tmp_path: Path, model_path: Path, command: Any, where: str
) -> None:
    assert command(album, "-o", tmp_path / "one").exit_code == 0
    output = tmp_path / "out" if where == "a folder" else OUTPUT
    both = [start(output, album, model_path, "--shard", "1/1") for _ in range(2)]
    for process in both:
        said = process.communicate(timeout=600)
        assert process.returncode == 0, said
    place = open_place(output)
    assert len(list(place.keys("parts/"))) == 11
    marks = [*place.keys("attempts/")] if where == "a bucket" else [*tmp_path.glob("out/attempts/*/*")]
    assert marks == []
    assert CliRunner().invoke(main, ["merge", str(output)]).exit_code == 0
    assert place.get("predictions.csv") == (tmp_path / "one/predictions.csv").read_bytes()


@pytest.mark.parametrize(
    ("other", "message"), [(["--exact"], "decoder was"), (["--columns", "captured"], "without the column captured")]
)
def test_of_two_different_runs_that_begin_at_once_the_second_is_refused(
    s3: str, album: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch, other: list[str], message: str
) -> None:
    """The second has looked for a plan before the first has written its own."""
    assert command(album, "-o", tmp_path / "one").exit_code == 0
    assert command(album, "-o", OUTPUT, "--shard", "1/2").exit_code == 0
    real, calls = cluster_run.read_plan, []

    def too_early(place: Any) -> Any:
        calls.append(place)
        return real(place) if len(calls) > 1 else None

    with monkeypatch.context() as patched:
        patched.setattr(cluster_run, "read_plan", too_early)
        assert message in error_line(command(album, "-o", OUTPUT, "--shard", "2/2", *other))
    assert command(album, "-o", OUTPUT, "--shard", "2/2").exit_code == 0
    assert CliRunner().invoke(main, ["merge", OUTPUT]).exit_code == 0
    assert open_place(OUTPUT).get("predictions.csv") == (tmp_path / "one/predictions.csv").read_bytes()
