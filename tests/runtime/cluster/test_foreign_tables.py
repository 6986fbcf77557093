"""Tables of a run in pieces: merge replaces its own, and nothing of somebody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from mineral_batch.cli import main


def merge(output: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["merge", str(output), *arguments])


def test_a_table_of_somebody_elses_is_not_replaced(album: Path, tmp_path: Path, command: Any) -> None:
    out = tmp_path / "out"
    assert command(album, "-o", out, "--shard", "1/1").exit_code == 0
    assert merge(out).exit_code == 0
    assert merge(out).exit_code == 0, "its own tables are replaced"
    (out / "predictions.jsonl").write_text("mine\n")
    refused = merge(out, "--format", "jsonl")
    assert refused.exit_code == 1
    said = f"{out}/predictions.jsonl already exists and was not written by merge: move it"
    assert said in refused.stderr
    assert (out / "predictions.jsonl").read_text() == "mine\n"
    (out / "predictions.csv").write_text("edited\n")
    assert "was edited since the last run" in merge(out).stderr
