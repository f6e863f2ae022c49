"""An average of the weights over the optimizer steps, validated, saved and kept in place of the last weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from supercm_lightning.callbacks.training.averaged_statistics import estimate_statistics, training_batch_norms
from supercm_lightning.contracts import JointModel
from supercm_lightning.utils.options import SuperCMError, check_range
from supercm_lightning.utils.trainer import callbacks_of, check_trainer


class StepAveraging(Callback, ABC):
    """Average of the weights by optimizer steps, swapped with the weights for validation and at the end of `fit`.

    - The average consists of all parameters and of the statistics that belong to them: running mean and variance of the
      batch norm layers that are in training mode when training starts, and the buffers that the module names in
      `weight_statistics` (`contracts.JointModel`), such as the centroids of SuperCM. Other buffers (counters,
      thresholds, metric states) are neither averaged nor swapped.
    - Statistics are averaged like the parameters if `refresh_batches` is None. Otherwise they are estimated from that
      many training batches whenever the average has changed and is validated, saved or kept: batch norm by joint
      forwards, as in training, and then the module's own by `estimate_statistics`. The random state of the run is not
      touched. A module that is no `JointModel` keeps its last statistics.
    - Before the first update nothing is swapped: the weights themselves are validated and saved.
    - Checkpoints hold the average as `state_dict` and the weights as `current_model_state`, so that a resumed run
      continues exactly.
    - An update is one fused operation that does not wait for the device.

    Batches for estimates come from a fresh `datamodule.train_dataloader()`. Loaders that were passed to `fit` or belong
    to the module are iterated a second time, as shallow copies that share no iterator with the running epoch.

    A checkpoint that is written while an exception unwinds is not refreshed, because other ranks may be gone: it holds
    the statistics of the last estimate, and a run that resumes from it estimates them again.
    """

    def __init__(self, every_n_steps: int, refresh_batches: int | None) -> None:
        check_range(1, every_n_steps=every_n_steps, refresh_batches=refresh_batches)
        self.every_n_steps = every_n_steps
        self.refresh_batches = refresh_batches
        self._start_over()

    def _start_over(self) -> None:
        self._start_step = self._last_step = self._num_averaged = 0
        self._swapped = self._stale = False
        self._average: dict[str, Tensor] = {}
        self._batch_norms: tuple[str, ...] = ()

    @abstractmethod
    def _resolve_start(self, trainer: Trainer) -> int:
        """Number of optimizer steps before the averaged ones."""

    @abstractmethod
    def _weight(self, num_averaged: int) -> float:
        """Weight of the new parameters in the average, given how many were averaged before."""

    # --------------------------------------------------------------------------------------------------- set-up
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the trainer and starts a new average."""
        if stage != "fit":
            return
        name = type(self).__name__
        check_trainer(trainer, name)
        kinds = StepAveraging | WeightAveraging | StochasticWeightAveraging
        if sum(isinstance(callback, kinds) for callback in callbacks_of(trainer)) > 1:
            raise SuperCMError(f"{name}: the trainer has more than one weight averaging callback; keep one.")
        if any(isinstance(c, ModelCheckpoint) and c.save_weights_only for c in trainer.checkpoint_callbacks):
            raise SuperCMError(
                f"{name}: ModelCheckpoint(save_weights_only=True) would save the weights beside the score of their "
                "average, because Lightning calls no callback for such checkpoints. Use save_weights_only=False."
            )
        self._start_over()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Determines where averaging starts and which batch norm layers learn their statistics."""
        self._batch_norms = training_batch_norms(pl_module)
        self._start_step = self._resolve_start(trainer)
        if trainer.global_step <= self._start_step:  # a run longer than the checkpoint's averages its own last steps
            self._num_averaged = 0
        if self._num_averaged:
            live = self._owned(pl_module)
            self._average = {name: self._average[name].to(value, copy=True) for name, value in live.items()}

    def _statistics(self, module: LightningModule) -> dict[str, Tensor]:
        """Buffers that belong to the weights."""
        names = [f"{layer}.{stat}" for layer in self._batch_norms for stat in ("running_mean", "running_var")]
        if isinstance(module, JointModel):
            names += module.weight_statistics()
        return {name: module.get_buffer(name.removeprefix(".")) for name in names}

    def _owned(self, module: LightningModule) -> dict[str, Tensor]:
        """The tensors in which the weights and their average differ."""
        return dict(module.named_parameters()) | self._statistics(module)

    # --------------------------------------------------------------------------------------------------- updates
    def _is_due(self, step: int) -> bool:
        """Whether the weights after this many optimizer steps enter the average."""
        return step > max(self._start_step, self._last_step) and (step - self._start_step) % self.every_n_steps == 0

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the average after an optimizer step that counts."""
        step = trainer.global_step
        if not self._is_due(step):
            return
        live = self._owned(pl_module)
        if self._num_averaged == 0:
            self._average = {name: value.detach().clone() for name, value in live.items()}
        else:
            statistics = self._statistics(pl_module) if self.refresh_batches is not None else ()
            names = [name for name in live if name not in statistics]
            weight = self._weight(self._num_averaged)
            torch._foreach_lerp_([self._average[name] for name in names], [live[name] for name in names], weight)
        self._num_averaged += 1
        self._last_step = step
        self._stale = True

    # ------------------------------------------------------------------------------------------------------ swap
    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        for name, live in self._owned(pl_module).items():
            average = self._average[name]
            held = average.clone()
            average.copy_(live)
            live.copy_(held)
        self._swapped = not self._swapped

    def _refresh(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimates the statistics of the average if it has changed."""
        if not self._stale or self.refresh_batches is None:
            return
        with torch.no_grad():
            for name, live in self._statistics(pl_module).items():
                self._average[name].copy_(live)
        self._swap(pl_module)
        try:
            estimate_statistics(trainer, pl_module, self._batch_norms, self.refresh_batches)
        finally:
            self._swap(pl_module)
        self._stale = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average into the module, if there is one."""
        self._apply(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the weights back."""
        if self._swapped and trainer.state.fn == TrainerFn.FITTING:
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the module."""
        if not self._num_averaged:
            rank_zero_warn(
                f"{type(self).__name__}: training ended after {trainer.global_step} steps, before any weights were "
                f"averaged (start: step {self._start_step}, then every {self.every_n_steps}). The model holds its last "
                "weights."
            )
        self._apply(trainer, pl_module)

    def _apply(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._num_averaged and not self._swapped and trainer.state.fn == TrainerFn.FITTING:
            self._refresh(trainer, pl_module)
            self._swap(pl_module)

    @contextmanager
    def applied(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
        """Puts the average, if there is one, into the module for the duration of the context."""
        before = self._swapped
        self._apply(trainer, pl_module)
        try:
            yield
        finally:
            if self._swapped != before:
                self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Puts the weights back if a validation was interrupted."""
        if self._swapped:
            self._swap(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Frees the device."""
        self._average = {name: value.cpu() for name, value in self._average.items()}

    # ----------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Counts of steps and of averaged weights."""
        return {"last_step": self._last_step, "num_averaged": self._num_averaged, "stale": self._stale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the counts of the checkpoint."""
        self._last_step, self._stale = state_dict["last_step"], state_dict["stale"]
        self._num_averaged = state_dict["num_averaged"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stores the average as `state_dict` and the weights as `current_model_state`, once there is an average."""
        if not self._num_averaged:
            return
        if not self._swapped and trainer.state.status != TrainerStatus.INTERRUPTED:
            self._refresh(trainer, pl_module)
        live = checkpoint["state_dict"]
        first_names = {id(tensor): name for name, tensor in self._owned(pl_module).items()}
        everything = [*pl_module.named_parameters(remove_duplicate=False), *self._statistics(pl_module).items()]
        kept = {name: self._average[first_names[id(tensor)]] for name, tensor in everything if name in live}
        average, weights = (live, live | kept) if self._swapped else (live | kept, live)
        checkpoint["state_dict"], checkpoint["current_model_state"] = average, weights

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores the weights and their average to resume; testing and prediction keep the average."""
        if trainer.state.fn == TrainerFn.FITTING and "current_model_state" in checkpoint:
            self._average = checkpoint["state_dict"]
            pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)


@contextmanager
def averaged_weights(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Puts the average of the weights into the module for the duration of the context, if the trainer has one.

    For callbacks that evaluate the model during `fit`, whichever callback runs first. Every rank must enter it.

    Args:
        trainer: The trainer.
        pl_module: Its module.

    Examples:
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> trainer = Trainer(logger=False, enable_checkpointing=False)
        >>> with averaged_weights(trainer, LightningModule()):
        ...     pass  # forward, draw, score
    """
    averaging = next((c for c in callbacks_of(trainer) if isinstance(c, StepAveraging)), None)
    if averaging is None:
        yield
        return
    with averaging.applied(trainer, pl_module):
        yield
