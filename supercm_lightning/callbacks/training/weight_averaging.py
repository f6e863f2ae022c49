"""Averages of the weights over the training steps, validated, saved and kept in place of the last weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from supercm_lightning.callbacks.training.averaged_statistics import (
    TrainingBatches,
    estimate_batch_norm,
    estimate_centroids,
)
from supercm_lightning.nn import evaluating
from supercm_lightning.utils.options import SuperCMError


class _StepAveraging(WeightAveraging, ABC):
    """Lightning's `WeightAveraging` by optimiser steps, with statistics that belong to the averaged weights.

    Differences from the base class:

    - Nothing is swapped before the first update: until then the raw model is validated and saved.
    - Parameters are averaged; running statistics of batch norm and centroids are estimated again from training batches
      for the averaged weights, whenever these changed and are about to be validated, saved or kept. All other buffers
      (counters, thresholds, metric states) are the live ones, never averaged nor swapped.
    - Raw and averaged values trade places, also at the end of `fit`, so that a checkpoint written at any time holds
      both and a resumed run goes on exactly.
    - The update is one fused operation without waiting for the device, and copies no buffers.

    Batch norm: every layer that is in training mode when training starts gets the cumulative mean of the batch
    statistics of `refresh_batches` joint forwards (`joint_forward`: labelled and all unlabelled rows as in training).
    Centroids of the module's head: class means of the eval-mode features of the labelled rows of the same batches; a
    class without rows among them keeps the raw model's centroid. Ranks put together what they found. The random state
    of the run is not touched. A module without `joint_forward` keeps the raw model's buffers.

    Batches come from a fresh `datamodule.train_dataloader()`. Loaders that were passed to `fit` or come from the module
    itself are iterated a second time, as shallow copies that share no iterator with the running epoch.

    A checkpoint written while an exception unwinds is not refreshed, because ranks may be gone: it holds the statistics
    of the last refresh, and a run resumed from it refreshes when it next needs them.
    """

    def __init__(self, every_n_steps: int, refresh_batches: int) -> None:
        super().__init__(use_buffers=False)
        if every_n_steps < 1:
            raise SuperCMError(f"every_n_steps={every_n_steps}: must be at least 1.")
        if refresh_batches < 1:
            raise SuperCMError(f"refresh_batches={refresh_batches}: must be at least 1.")
        self.every_n_steps = every_n_steps
        self.refresh_batches = refresh_batches
        self._start_step = 0
        self._num_averaged = 0
        self._swapped = False
        self._stale = False
        self._batch_norms: tuple[str, ...] = ()
        self._loaded: dict[str, Tensor] | None = None

    @abstractmethod
    def _resolve_start(self, trainer: Trainer) -> int:
        """Number of optimiser steps before the averaged ones."""

    @abstractmethod
    def _weight(self, num_averaged: int) -> float:
        """Weight of the new parameters in the average, given how many were averaged before."""

    # --------------------------------------------------------------------------------------------------- set-up
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses set-ups that would average or save something wrong.

        Raises:
            ValueError: Sharded strategies, a second averaging callback, or checkpoints of weights only.
        """
        if stage != "fit":
            return
        name = type(self).__name__
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
            raise SuperCMError(
                f"{name} keeps a whole copy of the model on every device, and {type(trainer.strategy).__name__} shards "
                "it. Use strategy ddp (or one device), or remove the callback."
            )
        if sum(isinstance(callback, WeightAveraging) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise SuperCMError(f"{name}: the trainer has more than one weight averaging callback; keep one.")
        if any(isinstance(c, ModelCheckpoint) and c.save_weights_only for c in trainer.checkpoint_callbacks):
            raise SuperCMError(
                f"{name}: ModelCheckpoint(save_weights_only=True) would save the raw weights beside the score of the "
                "averaged ones, because Lightning asks no callback about such checkpoints. Use save_weights_only=False."
            )
        # A callback that serves a second fit starts over.
        self._latest_update_step = self._num_averaged = 0
        self._swapped = self._stale = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the averaged copy: only here is the model complete, on its device and in its precision."""
        self._average_model = AveragedModel(pl_module)
        self._average.trainer = trainer
        if self._loaded is not None:
            self._average.load_state_dict(self._loaded, strict=pl_module.strict_loading)
            self._loaded = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settles where averaging starts and which batch norm layers learn their statistics."""
        self._start_step = self._resolve_start(trainer)
        if trainer.global_step <= self._start_step:
            # A longer run than the checkpoint's averages its own last steps.
            self._num_averaged = 0
        self._batch_norms = tuple(
            name
            for name, module in pl_module.named_modules()
            if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
        )

    @property
    def _average(self) -> LightningModule:
        assert self._average_model is not None
        return self._average_model.module  # type: ignore[return-value]

    # --------------------------------------------------------------------------------------------------- updates
    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the weights after the optimiser step with this zero-based index enter the average."""
        steps = 0 if step_idx is None else step_idx + 1 - self._start_step
        return steps > 0 and steps % self.every_n_steps == 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the average after an optimiser step that counts."""
        step = trainer.global_step
        if step == self._latest_update_step or not self.should_update(step_idx=step - 1):
            return
        # Not AveragedModel.update_parameters: that reads its counter from the device and copies every buffer each time.
        kept: list[Tensor] = list(self._average.parameters())
        live: list[Tensor] = list(pl_module.parameters())
        with torch.no_grad():
            if self._num_averaged == 0:
                torch._foreach_copy_(kept, live)
            else:
                torch._foreach_lerp_(kept, live, self._weight(self._num_averaged))
        self._num_averaged += 1
        self._latest_update_step = step
        self._stale = True

    # ------------------------------------------------------------------------------------------------------ swap
    def _swap_models(self, pl_module: LightningModule) -> None:
        """Trades raw and averaged values, once there is an average."""
        if not self._num_averaged or pl_module.trainer.state.fn != TrainerFn.FITTING:
            return
        if not self._swapped:
            self._refresh(pl_module.trainer, pl_module)
        with torch.no_grad():
            for kept, live in zip(self._owned(self._average), self._owned(pl_module), strict=True):
                held = kept.clone()
                kept.copy_(live)
                live.copy_(held)
        self._swapped = not self._swapped

    def _owned(self, module: nn.Module) -> list[Tensor]:
        """The tensors in which raw and averaged model differ."""
        return [*module.parameters(), *(module.get_buffer(name) for name in self._statistics)]

    @property
    def _statistics(self) -> list[str]:
        """Names of the buffers that belong to the weights."""
        prefixes = [f"{name}." if name else "" for name in self._batch_norms]
        names = [prefix + part for prefix in prefixes for part in ("running_mean", "running_var")]
        return names + ["head.centroids"] * hasattr(getattr(self._average, "head", None), "centroids")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the averaged weights in the module."""
        if self._num_averaged:
            self._swap_models(pl_module)
        else:
            rank_zero_warn(
                f"{type(self).__name__}: training ended after {trainer.global_step} steps, before any weights were "
                f"averaged (start: step {self._start_step}, then every {self.every_n_steps}). The model holds its last "
                "weights."
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the raw weights back if validation was interrupted."""
        if self._swapped:
            self._swap_models(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Frees the device."""
        if stage == "fit" and self._average_model is not None:
            self._average_model.cpu()

    # --------------------------------------------------------------------------------------------------- refresh
    def _refresh(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimates the statistics of the averaged weights anew if these changed."""
        if not self._stale:
            return
        average = self._average
        with torch.no_grad(), isolate_rng(), evaluating(average):
            for kept, live in zip(average.buffers(), pl_module.buffers(), strict=True):
                kept.copy_(live)
            if hasattr(average, "joint_forward") and self._statistics:
                batches = TrainingBatches(trainer, pl_module, self.refresh_batches)
                estimate_batch_norm(average, self._batch_norms, batches)
                # After batch norm, on which the features depend.
                if hasattr(average.head, "centroids"):
                    estimate_centroids(average, batches)
        self._stale = False

    # ----------------------------------------------------------------------------------------------- checkpoints
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stores the averaged model as `state_dict`, the raw one as `current_model_state`, once there is an average."""
        if not self._num_averaged:
            return
        if not self._swapped and trainer.state.status != TrainerStatus.INTERRUPTED:
            self._refresh(trainer, pl_module)
        kept = self._average.state_dict()
        owned = {name for name, _ in self._average.named_parameters(remove_duplicate=False)}.union(self._statistics)
        live = checkpoint["state_dict"]
        other = live | {name: kept[name] for name in live if name in owned}
        averaged, raw = (live, other) if self._swapped else (other, live)
        checkpoint["state_dict"] = averaged
        checkpoint["current_model_state"] = raw
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self._num_averaged), "stale": self._stale}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores raw and averaged model to resume; testing and prediction keep the averaged one."""
        if trainer.state.fn != TrainerFn.FITTING or "averaging_state" not in checkpoint:
            return
        self._loaded = checkpoint["state_dict"]
        pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)
        self._num_averaged = int(checkpoint["averaging_state"]["n_averaged"])
        self._stale = bool(checkpoint["averaging_state"].get("stale", True))


class EMA(_StepAveraging):
    """Exponential moving average of the weights, validated and saved in place of the raw ones.

    average ← decay · average + (1 − decay) · weights after every `every_n_steps` optimiser steps, starting from the
    first weights it sees. Statistics, checkpoints and resuming are described at the shared base, `_StepAveraging`.

    Args:
        decay: In [0, 1).
        start_step: Optimiser steps before averaging starts.
        every_n_steps: Optimiser steps between updates.
        refresh_batches: Training batches, per rank, from which batch norm statistics and centroids are estimated.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self, decay: float = 0.999, start_step: int = 0, every_n_steps: int = 1, refresh_batches: int = 50
    ) -> None:
        super().__init__(every_n_steps, refresh_batches)
        if not 0 <= decay < 1:
            raise SuperCMError(f"decay={decay}: must be in [0, 1).")
        if start_step < 0:
            raise SuperCMError(f"start_step={start_step}: must not be negative.")
        self.decay = decay
        self.start_step = start_step

    def _resolve_start(self, trainer: Trainer) -> int:
        return self.start_step

    def _weight(self, num_averaged: int) -> float:
        return 1 - self.decay


class SWA(_StepAveraging):
    """Stochastic weight averaging: the equal mean of the weights along the last part of the training.

    Lightning's `StochasticWeightAveraging` counts epochs, validates the raw weights and ends with a step on a stale
    gradient; this one counts steps, so that it works with `max_steps`, and validates what it saves. Statistics,
    checkpoints and resuming are described at the shared base, `_StepAveraging`.

    Args:
        start: Where averaging starts: a fraction in [0, 1) of all optimiser steps, or a number of optimiser steps.
        every_n_steps: Optimiser steps between the averaged weights.
        lr: Learning rate from there on, held constant whatever the schedule says: of the parameter group with the
            highest rate, the others in proportion. None leaves the schedule alone.
        refresh_batches: Training batches, per rank, from which batch norm statistics and centroids are estimated.

    Raises:
        ValueError: If an argument is outside its range, or `start` is a fraction and the trainer has no end.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018.
    """

    def __init__(
        self, start: int | float = 0.75, every_n_steps: int = 1, lr: float | None = None, refresh_batches: int = 50
    ) -> None:
        super().__init__(every_n_steps, refresh_batches)
        if start < 0 or (isinstance(start, float) and start >= 1):
            raise SuperCMError(f"start={start}: give a fraction in [0, 1), or an integer number of optimiser steps.")
        if lr is not None and not lr > 0:
            raise SuperCMError(f"lr={lr}: the learning rate must be positive.")
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


@contextmanager
def averaged_weights(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Puts the averaged weights, if the trainer averages and has begun to, into the module for a while.

    For callbacks that look at the model during `fit`, so that they need not care which callback runs first. Every rank
    must enter it.

    Args:
        trainer: The trainer.
        pl_module: Its module.
    """
    averaging = [callback for callback in trainer.callbacks if isinstance(callback, _StepAveraging)]  # type: ignore[attr-defined]
    if not averaging or averaging[0]._swapped:
        yield
        return
    averaging[0]._swap_models(pl_module)
    try:
        yield
    finally:
        averaging[0]._swap_models(pl_module)
