"""Makes the random numbers of every training step a function of seed, step and rank."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from supercm_lightning.utils.random import seed_of


class StepSeed(Callback):
    """Reseeds the generators of torch, NumPy and Python for every training batch and step, from seed, step and rank.

    Dropout, perturbations and a user's augmentation of a resumed run are then those of the uninterrupted one, on every
    number of accelerators.
    After the training the process has its random state back. Methods of this package add the callback by themselves.

    Attributes:
        run_seed: The seed of the run: that of the process when `fit` started, or of the checkpoint it resumed from.
    """

    def __init__(self) -> None:
        self.run_seed = torch.initial_seed()
        self._isolation: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the seed of the process, the same on every rank; a checkpoint's replaces it later."""
        if stage == "fit":
            self.run_seed = int(trainer.strategy.broadcast(torch.initial_seed()))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the random state of the process, and reseeds for the first batch."""
        self._isolation = isolate_rng()
        self._isolation.__enter__()
        self._reseed_for_batch(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Reseeds for the step."""
        _reseed(pl_module, seed_of(self.run_seed, trainer.fit_loop.total_batch_idx, trainer.global_rank))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reseeds for the next batch."""
        self._reseed_for_batch(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reseeds for the next batch, as a resumed run leaves a validation before it out."""
        if self._isolation is not None:
            self._reseed_for_batch(trainer, pl_module)

    def _reseed_for_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning has no hook of callbacks before a batch is augmented.
        number = trainer.fit_loop.total_batch_idx + 1
        _reseed(pl_module, seed_of(self.run_seed, "batch", number, trainer.global_rank))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the process its random state back."""
        if self._isolation is not None:
            self._isolation.__exit__(None, None, None)
            self._isolation = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Likewise after a failure."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The seed of the run."""
        return {"run_seed": self.run_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the seed of the run."""
        self.run_seed = state_dict["run_seed"]


def _reseed(module: LightningModule, seed: int) -> None:
    # torch.manual_seed formats the whole stack for accelerators that are absent: 0.4 ms of every step.
    torch.default_generator.manual_seed(seed)
    if module.device.type != "cpu":
        torch.get_device_module(module.device).manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that a user's augmentation draws from
    random.seed(seed)
