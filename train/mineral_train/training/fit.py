"""`fit`: a training run that can stop anywhere and goes on from there.

A run is a folder: the best checkpoint so far (`model.safetensors`, `config.json`), `log.csv`, and under `last/` the
state from which the same command resumes. Everything random is a function of (seed, step, process) or of (seed, epoch,
image), not of what was drawn before: a run that was killed and resumed ends with the weights of one that was not, bit
for bit, on the same machine with `--deterministic`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError, MineralError
from mineral_batch.system import keep_freed_memory
from mineral_train.data.parents import reading
from mineral_train.model.network import input_spec
from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.data import TrainingManifest
from mineral_train.training.distributed import is_lost_peer, join
from mineral_train.training.environment import deterministic, memory_in_words
from mineral_train.training.evaluate import DEAD_WORKER, is_dead_worker
from mineral_train.training.loop import Trainer, ignore
from mineral_train.training.run_folder import FitResult, RunFolder
from mineral_train.training.stop import StopSignal

if TYPE_CHECKING:
    from mineral_train.training.loop import Listener

_LOST_PEER = "another process of this run has ended (see its message); the same command resumes"


def fit(
    config: TrainConfig,
    manifest: str | Path | Sequence[str | Path],
    run: str | Path,
    options: RunOptions | None = None,
    *,
    on_epoch: Listener | None = None,
    say: Callable[[str], None] | None = None,
) -> FitResult:
    """Train a model on a manifest's training split, choosing the epoch by its validation split.

    An interrupted run resumes from its last saved state; a finished one returns its result again. Under `torchrun`
    every process calls this with the same arguments and a folder that all of them can read.

    Args:
        config: the recipe.
        manifest: the CSV (see `manifest.read_manifest`), or several, whose figures are also given apart; the `test`
            split is not used.
        run: the folder of the run.
        options: how to carry it out on this machine.
        on_epoch: called in the main process after every epoch, when its state has been saved.
        say: called there with lines for the user.

    Raises:
        DataError: if the manifest, an image, or the run's folder is not as it must be.
        DoesNotFitError: if the GPU's memory is too small.
        MineralError: if the recipe differs from the one the run was begun with, another process trains into the
            folder, the loss is not finite, the processes do not see the same run, or another of them has ended.
        RunStopped: after a first Ctrl-C or SIGTERM to any of the processes, when the state has been saved.
    """
    options = options or RunOptions()
    with join(options.device) as process, deterministic(options.deterministic), memory_in_words():
        if process.device.type == "cpu":
            keep_freed_memory()
        if not process.main:
            on_epoch = say = None
        say = say or ignore
        labels, parents = config.model.labels, config.imply_parents
        spec = None if options.skip_damaged else input_spec(config.model)
        source = TrainingManifest.read(manifest, labels, config.soft_targets, parents=parents, spec=spec)
        for line in reading(labels, source.manifest.rows):
            say(line)
        folder = RunFolder(Path(run), config, source.sha256)
        with folder.locked() if process.main else contextlib.nullcontext(), StopSignal(process.main) as stop:
            try:
                trainer = Trainer.open(source, folder, options, process, stop, say)
                return trainer.run(on_epoch or ignore)
            except RuntimeError as error:  # torch's handler of a worker's death raises wherever the program is
                if is_dead_worker(error):
                    raise DataError(DEAD_WORKER) from None
                if process.world > 1 and is_lost_peer(error):
                    raise MineralError(_LOST_PEER) from None
                raise
