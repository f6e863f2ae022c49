"""Stops a training whose loss is no longer a number."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, distributed

from supercm_lightning.utils.collectives import world_size
from supercm_lightning.utils.trainer import log_interval


class FiniteLosses(Callback):
    """Raises `FloatingPointError` when a term of the loss becomes NaN or infinite on any rank, and names the term.

    The terms of every step are checked on the device, without waiting for it; the result is read, of all ranks
    together, every `log_every_n_steps` steps, before a checkpoint is saved and at the end. Methods of this package add
    the callback by themselves.
    """

    def __init__(self) -> None:
        self._finite: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets an earlier training."""
        self._finite.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Checks the terms of the step; reads the result at logged steps."""
        for name, term in outputs["terms"].items() if isinstance(outputs, dict) and "terms" in outputs else ():
            finite = term.isfinite()
            self._finite[name] = self._finite[name] & finite if name in self._finite else finite
        if (batch_idx + 1) % log_interval(trainer) == 0:
            self._check(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuses to save weights after a loss that is no number."""
        self._check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the last steps."""
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        names = sorted(self._finite)
        if not names:
            return
        finite = torch.stack([self._finite[name] for name in names]).int()
        self._finite.clear()
        # After an exception the other ranks may be gone.
        if world_size() > 1 and trainer.state.status != TrainerStatus.INTERRUPTED:
            distributed.all_reduce(finite, distributed.ReduceOp.MIN)
        if bad := [f"train/{name}" for name, fine in zip(names, finite.tolist(), strict=True) if not fine]:
            raise FloatingPointError(
                f"{' and '.join(bad)} became NaN or infinite at or before step {trainer.global_step}. Lower lr or the "
                "weight of that term, or clip gradients with --trainer.gradient_clip_val."
            )
