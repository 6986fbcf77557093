"""`mineral-batch predict` on a bucket: rows, rerun, and what must not be written."""

import io

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image as PILImage

from mineral_batch.cli import main
from mineral_batch.storage import errors
from mineral_batch.storage.store import _CloudStore, open_store


def picture(seed):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)
    PILImage.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def bucket(s3):
    pytest.importorskip("onnxruntime")
    store = open_store("s3://photos")
    for number in range(6):
        store.put(f"set/{number}.jpg", picture(number))
    return s3


def predict(*arguments):
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


@pytest.mark.slow
def test_only_what_is_new_is_predicted_and_no_secret_is_written(bucket, tmp_path):
    output = tmp_path / "out"
    signed = f"{bucket.replace('//', '//me:hidden-word@')}/photos/set/0.jpg?X-Amz-Signature=hidden-word"
    (tmp_path / "list.txt").write_text(f"{signed}\n{bucket}/photos/none.jpg?sig=hidden-word\n")
    result = predict("s3://photos/set", "--list", tmp_path / "list.txt", "-o", output)
    assert result.exit_code == 3, result.output
    rows = (output / "predictions.csv").read_text().splitlines()[1:]
    web = f"{bucket}/photos/set/0.jpg"
    assert [row.split(",")[0] for row in rows] == [*(f"s3://photos/set/{n}.jpg" for n in range(6)), web]
    assert f"{bucket}/photos/none.jpg,read,no such object" in (output / "failures.csv").read_text()
    for file in output.iterdir():
        assert b"hidden-word" not in file.read_bytes(), file
        assert b"very-secret" not in file.read_bytes(), file
    assert "hidden-word" not in result.output
    open_store("s3://photos").put("set/3.jpg", picture(33))
    again = predict("s3://photos/set", "-o", output)
    assert "1 image predicted in" in again.output
    assert "5 more images already done" in again.output


@pytest.mark.slow
def test_credentials_that_expire_end_the_run_and_it_resumes(bucket, tmp_path, monkeypatch):
    output, get = tmp_path / "out", _CloudStore.get

    def expired(self, key, check=None):
        if key >= "set/3":
            raise errors.explained(RuntimeError("<Code>ExpiredToken</Code> secret text"), f"s3://photos/{key}")
        return get(self, key, check)

    with monkeypatch.context() as patched:
        patched.setattr(_CloudStore, "get", expired)
        result = predict("s3://photos/set", "-o", output)
    assert result.exit_code == 1
    assert "the credentials have expired; renew them" in result.output
    assert "rerun the same command to resume" in result.output
    assert "secret text" not in result.output
    assert predict("s3://photos/set", "-o", output).exit_code == 0
    assert len((output / "predictions.csv").read_text().splitlines()) == 7
    assert not (output / "failures.csv").exists()


@pytest.mark.slow
def test_shards_of_a_bucket_give_the_rows_of_one_run(bucket, tmp_path):
    assert predict("s3://photos/set", "-o", tmp_path / "one").exit_code == 0
    for shard in ("1/2", "2/2"):
        result = predict("s3://photos/set", "-o", tmp_path / "two", "--shard", shard)
        assert result.exit_code == 0, result.output
    assert CliRunner().invoke(main, ["merge", str(tmp_path / "two")]).exit_code == 0
    tables = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]
