"""`mineral-train fit` as a user meets it: one line per mistake, and a kill costs nothing but time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner

from mineral_train.cli import main
from mineral_train.model.presets import PRESETS
from mineral_train.training import loop
from mineral_train.training.checkpoint import load_checkpoint, load_state
from mineral_train.training.config import TrainConfig
from mineral_train.training.run_folder import STATE

if TYPE_CHECKING:
    from pathlib import Path

TINY = [
    "--recipe", "paper",
    "--backbone", "test_vit", "--image-size", "64", "--width", "32", "--ffn", "48", "--no-pretrained",
    "--epochs", "2", "--batch", "8", "--lr", "1e-3", "--workers", "0", "--device", "cpu", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("agate\ngold\npyrite\nquartz\n", encoding="utf-8")
    return path


@pytest.fixture
def run(colored_manifest, labels):
    """`run(folder, *options)` -> the command's result."""

    def invoke(folder, *options, manifest=colored_manifest):
        arguments = ["fit", str(manifest), "-o", str(folder), "--labels", str(labels), *TINY, *options]
        return CliRunner().invoke(main, arguments)

    return invoke


def test_it_trains_says_how_good_it_is_and_what_comes_next(run, tmp_path):
    result = run(tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "Epoch 2/2" in result.output
    assert "% (equation-6)" in result.output
    assert "mineral-export onnx" in result.output
    model, contract = load_checkpoint(tmp_path / "run")
    assert contract.labels == ("agate", "gold", "pyrite", "quartz")
    assert contract.name == "run"
    assert model.config.backbone == "test_vit"


def test_the_same_command_again_only_says_the_result(run, tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    assert "Epoch 1/2" in first.output
    assert second.exit_code == 0
    assert "Epoch 1/2" not in second.output
    assert "all 2 epochs are done" in second.output


def test_options_reach_the_recipe(run, tmp_path):
    options = [
        "--loss", "focal", "--ema", "0.9", "--schedule", "cosine", "--warmup-epochs", "0.5", "--min-lr", "0.1",
        "--layer-decay", "0.8", "--head-lr", "3", "--clip", "1", "--freeze-epochs", "1", "--freeze-stages", "1",
        "--patience", "4", "--positive-weight", "sqrt-inverse", "--accumulate", "2", "--precision", "bf16",
        "--augment", "none", "--flip", "0", "--crop", "0.5", "--smoothing", "0.1", "--seed", "7",
        "--weight-decay", "0.2", "--freeze-norm", "--best", "loss", "--tune-thresholds", "--imply-parents",
        "--projection", "linear", "--dropout", "0.2", "--set", "mixup=0.5", "--set", "jitter=0.1",
        "--set", "cutmix=0.3", "--set", "vertical-flip=0.1", "--set", "aux-weight=0.2", "--set", "aux-least=2",
        "--set", "repeat=0.1", "--set", "positive-cap=9", "--set", "soft-weight=0.5",
    ]  # fmt: skip
    result = run(tmp_path, *options)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "config.json").read_text("utf-8"))["train"]
    defaults = TrainConfig(PRESETS["vit-b16-384"]).to_json()
    unchanged = {name for name, value in defaults.items() if record[name] == value}
    # Tested in test_recipe_options.py and test_auxiliary.py.
    assert unchanged == {"init", "soft_targets", "train_size", "aux_column"}
    assert record["model"]["projection"] == "linear"
    assert record["augment"] == ""


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (["--lr", "0"], "--lr must be above 0", 1),
        (["--backbone", "vit_giant"], "vit_giant", 1),
        (["--preset", "vit-b16-384"], "exclude each other", 2),
        (["--pretrained", "weights.pth"], "exclude each other", 2),
        (["--device", "toaster"], "unknown device", 1),
        (["--precision", "fp16"], "needs a GPU", 1),
        (["--init", "nowhere"], "is not a checkpoint", 1),
        (["--labels", "nowhere.txt"], "cannot read the labels", 1),
        (["--width", "30"], "multiple of model.heads", 1),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, options, words, code):
    result = run(tmp_path / "run", *options)
    assert result.exit_code == code
    assert words in result.output
    assert "Traceback" not in result.output
    assert result.output.strip().splitlines()[-1].startswith("Error: ")
    assert not (tmp_path / "run").exists()


def test_a_missing_manifest_is_one_line(run, tmp_path):
    result = run(tmp_path / "run", manifest="nowhere.csv")
    assert result.exit_code == 1
    assert result.output.startswith("Error: there is no file nowhere.csv")


def test_a_run_folder_that_cannot_be_written_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    result = run(tmp_path / "file" / "run")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith(f"Error: cannot write {tmp_path / 'file' / 'run'}")


def test_another_recipe_names_what_differs(run, tmp_path):
    run(tmp_path)
    result = run(tmp_path, "--lr", "0.5")
    assert result.exit_code == 1
    assert "lr: 0.001 -> 0.5" in result.output
    assert "--restart" in result.output


def test_ctrl_c_says_how_to_go_on(run, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "_validate", interrupted)
    result = run(tmp_path)
    assert result.exit_code == 130
    assert "the same command resumes from the last state saved" in result.output


# Is killed before its sixth step, in the middle of the third epoch, so that nothing depends on speed.
KILLED = """
import os, signal, sys
from mineral_train.training.learner import Learner
from mineral_train.cli import main
step, count = Learner.step, [0]
def counted(self, *args, **options):
    count[0] += 1
    if count[0] == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **options)
Learner.step = counted
main(prog_name="mineral-train")
"""


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(run, colored_manifest, labels, tmp_path):
    options = ["--epochs", "5", "--save-every", "1", "--ema", "0.9", "--deterministic"]
    arguments = ["fit", str(colored_manifest), "-o", str(tmp_path / "killed"), "--labels", str(labels)]
    command = [sys.executable, "-c", KILLED, *arguments, *TINY, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    progress = load_state(tmp_path / "killed" / STATE)[1]["progress"]
    assert (progress["epoch"], progress["step"], progress["reason"]) == (2, 1, "")
    for name in ("killed", "whole"):
        assert run(tmp_path / name, *options).exit_code == 0
    killed, whole = (load_state(tmp_path / name / STATE)[0] for name in ("killed", "whole"))
    assert killed.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(killed[name], whole[name])] == []


def test_help_shows_about_a_dozen_options_with_the_papers_values():
    text = CliRunner().invoke(main, ["fit", "--help"], terminal_width=200).output
    shown = {line.split()[0] for line in text.splitlines() if line.strip().startswith("--")}
    assert 10 <= len(shown) <= 15
    for option, value in {"--lr": "1e-05", "--batch": "16", "--epochs": "50"}.items():
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{option} "))
        assert f"[paper: {value}]" in line


def test_settings_are_listed_and_all_of_them_can_be_set():
    lines = CliRunner().invoke(main, ["fit", "--settings"]).output.splitlines()
    assert len(lines) > 35
    assert 'loss = "asymmetric"' in lines
    assert "lr = 1e-05" in lines


def test_settings_come_from_options_then_set_then_the_recipe(run, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('epochs = 9\nhead-lr = 3.0\nloss = "focal"\nclip = 2\n', "utf-8")
    result = run(tmp_path / "run", "--recipe", str(recipe), "--set", "loss=bce", "--set", "epochs=5", "--epochs", "1")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))["train"]
    assert (record["epochs"], record["loss"], record["head_lr"], record["clip"]) == (1, "bce", 3.0, 2.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "epoch=3"], "no setting 'epoch'; did you mean epochs?"),
        (["--set", "epochs"], "--set takes key=value"),
        (["--set", "ema=much"], "the setting ema must be a number"),
        (["--set", "freeze-norm=perhaps"], "freeze_norm must be of type bool"),
        (["--recipe", "some"], "choose few, paper, or give a TOML file"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(run, tmp_path, options, words):
    result = run(tmp_path / "run", *options)
    assert result.exit_code == (2 if "--set" in options else 1)
    assert words in result.output
    assert "Traceback" not in result.output


def test_the_default_recipe_is_printed_with_its_reason(colored_manifest, labels, tmp_path):
    arguments = ["fit", str(colored_manifest), "-o", str(tmp_path / "run"), "--labels", str(labels)]
    start = arguments.index("fit") + 1
    options = TINY[TINY.index("--backbone") :]
    result = CliRunner().invoke(main, [*arguments[:start], *arguments[start:], *options])
    assert result.exit_code == 0, result.output
    assert "Recipe few: 16 training images are fewer than 20,000" in result.output
    record = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))["train"]
    assert record["train_size"] == 0  # another model than the starter
    assert (record["init"], record["freeze_stages"], record["freeze_epochs"], record["ema"]) == ("", 0, 1, 0.995)


def test_a_manifest_from_a_spreadsheet_is_read(run, colored_manifest, tmp_path):
    rows = [line.split(",") for line in colored_manifest.read_text("utf-8").splitlines()]
    rows = [[row[0] if n == 0 else str(colored_manifest.parent / row[0]), *row[1:]] for n, row in enumerate(rows)]
    table = tmp_path / "semicolons.csv"
    table.write_text("\n".join(f'{path};"{names}";{split}' for path, names, split in rows), encoding="utf-8-sig")
    assert run(tmp_path / "run", "--epochs", "1", manifest=table).exit_code == 0


@pytest.mark.slow
def test_deterministic_runs_with_two_threads_are_equal_bit_for_bit(colored_manifest, labels, tmp_path):
    """In processes of their own, because the tests themselves run with one thread."""
    options = [*TINY[TINY.index("--no-pretrained") :], "--backbone", "test_efficientnet", "--image-size", "64"]
    states = []
    for name in "ab":
        command = ["fit", str(colored_manifest), "-o", str(tmp_path / name), "--labels", str(labels), *options]
        done = subprocess.run(
            [sys.executable, "-m", "mineral_train", *command, "--recipe", "paper", "--deterministic"],
            env={**os.environ, "OMP_NUM_THREADS": "2"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        states.append(load_state(tmp_path / name / STATE)[0])
    assert [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])] == []
