"""Marks checkpoints with their run, and ends a run that was resumed after its last step."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


class ContinuedRun(Callback):
    """Lets `--ckpt_path last` find a run's checkpoints, and resume from each of them.

    Every checkpoint holds `run`: the run's folder and the number of steps that its logs have. When a run is resumed
    after its last step, Lightning calls no hook of the training; this callback calls those at its start and end, among
    them the one that leaves averaged weights in the module.
    """

    def __init__(self) -> None:
        self._folder = ""
        self._must_end = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes the run's folder, which all ranks must ask for together."""
        self._folder = str(Path(trainer.log_dir or trainer.default_root_dir).resolve())
        self._must_end = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stores the run's folder and the number of steps in its logs."""
        # With several optimizers, Lightning logs by batches, and `global_step` counts the steps of all of them.
        automatic = pl_module.automatic_optimization
        steps = trainer.global_step if automatic else trainer.fit_loop.total_batch_idx + 1
        checkpoint["run"] = {"folder": self._folder, "steps": steps}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes that a training is resumed."""
        self._must_end = trainer.state.fn == TrainerFn.FITTING

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that there were steps left."""
        self._must_end = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calls the hooks at the start and end of the training, if no step was left."""
        if self._must_end:
            trainer.fit_loop.on_run_start()
            trainer.fit_loop.on_run_end()
