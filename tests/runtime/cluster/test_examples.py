"""The example files for schedulers: they parse, and name options that exist."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mineral_batch.cli.predict import predict
from mineral_batch.cluster.shards import Shard, parse_shard

EXAMPLES = Path(__file__).parents[3] / "runtime/examples"
OPTIONS = {option for parameter in predict.params for option in parameter.opts}


def test_the_job_array_of_slurm_covers_every_shard() -> None:
    text = (EXAMPLES / "slurm.sh").read_text()
    if bash := shutil.which("bash"):
        subprocess.run([bash, "-n", EXAMPLES / "slurm.sh"], check=True)
    assert "#SBATCH --array=0-15\n" in text
    assert "--shard auto/16 " in text
    command = next(line for line in text.splitlines() if line.startswith("exec mineral-batch predict"))
    assert {word for word in command.split() if word.startswith("--")} <= OPTIONS


def test_the_indexed_job_of_kubernetes_covers_every_shard() -> None:
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    (container,) = spec["template"]["spec"]["containers"]
    values = dict(arg.split("=", 1) for arg in container["args"] if "=" in arg)
    assert {arg.split("=")[0] for arg in container["args"] if arg.startswith("--")} <= OPTIONS
    shards = [
        parse_shard(values["--shard"], {"JOB_COMPLETION_INDEX": str(index)}) for index in range(spec["completions"])
    ]
    assert shards == [Shard(number, 16) for number in range(1, 17)]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
