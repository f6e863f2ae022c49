"""Saves and requeues a SLURM job that is about to lose its time or its place."""

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

_STEPS = 10


class SlurmRequeue(Checkpoint):
    """On SIGUSR1, finishes the step, saves a checkpoint, requeues the job and stops.

    Lightning saves from within the signal handler, wherever the step happens to be: centroids may have moved and the
    weights not yet, and the resumed run moves them again. It also saves into `default_root_dir`, where any later job
    with that folder goes on from it. Here the checkpoint is `last-requeue.ckpt` beside the run's others.

    Several processes agree every ten optimiser steps whether one of them got the signal. The signal is not answered
    during validation, nor while gradients accumulate: these are in no checkpoint.

    Raises:
        RuntimeError: If `scontrol` does not requeue the job; the checkpoint is saved by then.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the signal, so that Lightning does not."""
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._asked = False
            self._before = signal.signal(signal.SIGUSR1, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self._asked = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves, requeues and stops if the signal came."""
        if trainer.fit_loop._should_accumulate():
            return
        asked = self._asked
        if trainer.world_size > 1:
            if trainer.global_step % _STEPS:
                return
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if not asked:
            return
        saving = trainer.checkpoint_callback
        folder = getattr(saving, "dirpath", None) or Path(trainer.log_dir or trainer.default_root_dir, "checkpoints")
        trainer.save_checkpoint(Path(folder, "last-requeue.ckpt"))
        if trainer.is_global_zero:
            job = os.environ["SLURM_JOB_ID"]
            if "SLURM_ARRAY_JOB_ID" in os.environ:
                job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
            answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
            if answer.returncode:
                raise RuntimeError(f"scontrol requeue {job} failed: {answer.stderr.strip()}")
            rank_zero_info(f"Job {job} is requeued and goes on from {Path(folder, 'last-requeue.ckpt')}.")
        raise KeyboardInterrupt  # which Lightning answers by an orderly end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
            self._before = None
