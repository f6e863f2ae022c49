"""Exponential and equal averages of the weights over the training steps."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from supercm_lightning.callbacks.training.step_averaging import StepAveraging
from supercm_lightning.nn.averaging import Warmup, ema_decay
from supercm_lightning.utils.options import SuperCMError, check_decay, check_positive


class EMA(StepAveraging):
    """Exponential moving average of the weights, validated and saved in place of the weights.

    average ← d · average + (1 − d) · weights after every `every_n_steps` optimizer steps, from the first weights on,
    where the decay d is min(`decay`, (1 + n) / (10 + n)) at update n. Without this warm-up a run of 1,000 steps with
    decay 0.999 would end with 37 % of the weights of its first step. What is averaged, checkpoints and resuming are
    described at the shared base, `StepAveraging`.

    Args:
        decay: In [0, 1).
        warmup: Reduce the decay in the first updates, as above.
        every_n_steps: Optimizer steps between updates, >= 1.
        refresh_batches: Training batches, per rank, from which batch norm statistics and centroids are estimated before
            every validation and checkpoint; None: they are averaged like the weights, as in FixMatch.

    Raises:
        SuperCMError: If an argument is outside its range.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[EMA(decay=0.99)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self, decay: float = 0.999, warmup: bool = True, every_n_steps: int = 1, refresh_batches: int | None = None
    ) -> None:
        super().__init__(every_n_steps, refresh_batches)
        check_decay(decay=decay)
        self.decay = decay
        self.warmup: Warmup = "ratio" if warmup else None

    def _resolve_start(self, trainer: Trainer) -> int:
        return 0

    def _weight(self, num_averaged: int) -> float:
        return 1 - ema_decay(num_averaged, self.decay, self.warmup)


class SWA(StepAveraging):
    """Stochastic weight averaging: the equal mean of the weights along the last part of the training.

    Counts optimizer steps, so that it works with `max_steps`, and validates what it saves; Lightning's
    `StochasticWeightAveraging` counts epochs and validates the weights themselves. What is averaged, checkpoints and
    resuming are described at the shared base, `StepAveraging`.

    Args:
        start: Where averaging starts: a fraction in [0, 1) of all optimizer steps, or a number of optimizer steps.
        every_n_steps: Optimizer steps between the averaged weights, >= 1.
        lr: Learning rate from there on, > 0, whatever the schedule says: of the parameter group with the highest rate,
            the others in proportion. None: the schedule continues.
        refresh_batches: Training batches, per rank, from which batch norm statistics and centroids are estimated, >= 1.

    Raises:
        SuperCMError: If an argument is outside its range, or `start` is a fraction and the trainer has no end.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_steps=1000, callbacks=[SWA(start=0.75)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self, start: int | float = 0.75, every_n_steps: int = 1, lr: float | None = None, refresh_batches: int = 50
    ) -> None:
        super().__init__(every_n_steps, refresh_batches)
        if start < 0 or (isinstance(start, float) and start >= 1):
            raise SuperCMError(f"start={start}: give a fraction in [0, 1), or an integer number of optimizer steps.")
        check_positive(lr=lr)
        self.start = start
        self.lr = lr

    def _resolve_start(self, trainer: Trainer) -> int:
        if isinstance(self.start, int):
            return self.start
        total = trainer.estimated_stepping_batches
        if total == float("inf"):
            raise SuperCMError(
                f"SWA(start={self.start}) is a fraction of the training: set trainer.max_epochs or max_steps."
            )
        return int(self.start * total)

    def _weight(self, num_averaged: int) -> float:
        return 1 / (num_averaged + 1)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Holds the learning rate; here, because schedules may step at the end of batches, epochs and validations."""
        if self.lr is None or trainer.global_step < self._start_step:
            return
        for optimizer in trainer.optimizers:
            base = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = self.lr * rate / max(base)
