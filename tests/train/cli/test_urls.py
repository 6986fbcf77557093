"""Manifests, checkpoints and weights by URL; photographs and outputs on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mineral_batch.model.onnx_file import read_contract
from mineral_batch.model.starter import starter_path
from mineral_train.cli import main

pytest.importorskip("obstore")

_TINY = [
    "--image-size", "64", "--width", "32", "--ffn", "48", "--epochs", "1", "--workers", "0", "--quiet",
    "--device", "cpu", "--recipe", "paper", "--backbone", "test_vit", "--batch", "8",
]  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture
def bucket(s3, colored_manifest, tmp_path, monkeypatch):
    """A manifest and a label set in a bucket and here, the photographs in the current folder."""
    from mineral_batch.storage.store import open_store

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(colored_manifest.parent, tmp_path / "photos")
    (tmp_path / "photos/manifest.csv").unlink()
    (tmp_path / "labels.txt").write_text("agate\ngold\npyrite\nquartz\n")
    monkeypatch.chdir(tmp_path / "photos")
    store = open_store("s3://photos")
    store.put("set/manifest.csv", colored_manifest.read_bytes())
    return store


@pytest.mark.slow
def test_fit_reads_its_manifest_and_its_start_from_a_bucket(bucket, tmp_path):
    labels = "--labels", tmp_path / "labels.txt"
    first = run("fit", "s3://photos/set/manifest.csv", "-o", tmp_path / "a", *labels, *_TINY, "--no-pretrained")
    assert first.exit_code == 0, first.output
    for name in ("model.safetensors", "config.json"):
        bucket.put(f"runs/lr.1/{name}", (tmp_path / "a" / name).read_bytes())
    common = "fit", "s3://photos/set/manifest.csv", *labels, *_TINY, "-o"
    second = run(*common, tmp_path / "b", "--init", "s3://photos/runs/lr.1")
    assert second.exit_code == 0, second.output
    assert "all weights from lr.1" in second.output
    third = run(*common, tmp_path / "c", "--pretrained", "s3://photos/runs/lr.1/model.safetensors")
    assert third.exit_code == 0, third.output
    assert run(*common, tmp_path / "d", "--init", "s3://photos/absent").exit_code == 1
    mean = run("average", "s3://photos/runs/lr.1", tmp_path / "b", "-o", tmp_path / "mean")
    assert mean.exit_code == 0, mean.output
    assert json.loads((tmp_path / "mean/config.json").read_text())["contract"]["provenance"]["averaged"] == [
        "lr.1",
        "b",
    ]
    refused = run("calibrate", "s3://photos/runs/lr.1", "s3://photos/set/manifest.csv")
    assert refused.exit_code == 2
    assert "nothing is written to s3://photos/runs/lr.1: say with -o" in refused.output
    done = run("calibrate", "s3://photos/runs/lr.1", "s3://photos/set/manifest.csv", "-o", tmp_path / "calibrated")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "calibrated/model.safetensors").is_file()


@pytest.mark.slow
def test_adapt_reads_its_table_and_its_model_from_a_bucket(bucket, tmp_path):
    bucket.put("m/starter.onnx", starter_path().read_bytes())
    source, base = "s3://photos/set/manifest.csv", "s3://photos/m/starter.onnx"
    done = run("adapt", source, "--from", base, "-o", tmp_path / "m.onnx", "--force")
    assert done.exit_code == 0, done.output
    assert set(read_contract(tmp_path / "m.onnx").labels) == {"agate", "gold", "pyrite"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("fit", "manifest.csv", "-o", "s3://bucket/run"),
        ("average", "a", "b", "-o", "s3://bucket/run"),
        ("data", "s3://bucket/photos", "-o", "manifest.csv"),
        ("data", "photos", "-o", "s3://bucket/manifest.csv"),
        ("synth", "s3://bucket/pictures", "-n", "5"),
    ],
)
def test_nothing_is_written_to_a_folder_called_s3(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "is a URL: name a file or folder on this machine" in refused.output.splitlines()[-1]
    assert list(Path().iterdir()) == []


def test_a_signed_url_does_not_get_into_a_run(colored_manifest, tmp_path):
    (tmp_path / "labels.txt").write_text("agate\ngold\npyrite\nquartz\n")
    url = "https://user:hidden@example.org/weights.pth"
    options = ["--labels", tmp_path / "labels.txt", *_TINY, "--pretrained", url]
    refused = run("fit", colored_manifest, "-o", tmp_path / "run", *options)
    assert refused.exit_code == 1
    assert "--pretrained https://example.org/weights.pth has a password" in refused.output
    assert "hidden" not in refused.output
    assert not (tmp_path / "run").exists()
