"""Saves and requeues a SLURM job that is about to hit its time limit or to be preempted."""

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

_STEPS = 10


class SlurmRequeue(Checkpoint):
    """On SIGUSR1, finishes the step, saves a checkpoint, requeues the job and stops.

    Lightning saves from within the signal handler, at any point of a step: centroids may have moved and the weights not
    yet, so that a resumed run moves the centroids twice. It also saves into `default_root_dir`, where every later job
    with that folder resumes from it. This callback saves `last-requeue.ckpt` beside the run's other checkpoints.

    Several processes exchange every ten optimizer steps whether one of them got the signal. The signal is not answered
    during validation, nor while gradients accumulate: these are in no checkpoint. A validation that is due after the
    step of the checkpoint is left out.

    Raises:
        RuntimeError: If `scontrol` does not requeue the job; the checkpoint is saved by then.
    """

    def __init__(self) -> None:
        self._signaled = False
        self._previous: Any = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replaces the signal's handler, so that Lightning does not."""
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._signaled = False
            self._previous = signal.signal(signal.SIGUSR1, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self._signaled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the number of optimizer steps."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves, requeues and stops if the signal came."""
        if trainer.global_step == self._step:  # gradients accumulate
            return
        self._step = trainer.global_step
        signaled = self._signaled
        if trainer.world_size > 1:
            if trainer.global_step % _STEPS:
                return
            signaled = trainer.strategy.reduce_boolean_decision(signaled, all=False)
        if not signaled:
            return
        saving = trainer.checkpoint_callback
        own = saving.dirpath if isinstance(saving, ModelCheckpoint) else None
        folder = Path(own) if own is not None else Path(trainer.log_dir or trainer.default_root_dir, "checkpoints")
        trainer.save_checkpoint(path := folder / "last-requeue.ckpt")
        if trainer.is_global_zero:
            _requeue()
            rank_zero_info(f"The job is requeued and will go on from {path}.")
        raise KeyboardInterrupt  # Lightning ends the run in order

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores the signal's handler."""
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)
            self._previous = None


def _requeue() -> None:
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"scontrol requeue {job} failed: {answer.stderr.strip()}")
