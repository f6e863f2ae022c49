"""What a trial of `supercm-tune` is measured by."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from supercm_lightning.contracts import ViewData
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.trainer import datamodule_of


class UnmeasurableError(SuperCMError):
    """No run of the search can be measured."""


class TrialWatch(Callback):
    """Reports every validation of a run to Optuna's trial, as number `first_step` and so on, and omits the test.

    A run that is pruned is stopped. Without a metric it is `val/score` for data of two domains, else `val/acc`.
    """

    def __init__(self, trial: Any, metric: str | None, first_step: int = 0) -> None:
        self.trial = trial
        self.metric = metric
        self.step = first_step
        self.samples = 0
        self.value: float | None = None
        self.pruned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Switches the test off, which no choice may depend on."""
        trainer.limit_test_batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks processes and validation samples before the first step."""
        if trainer.world_size > 1:
            raise UnmeasurableError("A trial runs in one process: --fixed trainer.devices=1, and several workers.")
        if not sum(trainer.num_val_batches):
            raise UnmeasurableError("There is no validation to choose by: give validation samples (data.num_val).")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the metric; the validation before the first step only shows whether there is one."""
        data = datamodule_of(trainer)
        domains = isinstance(data, ViewData) and data.is_domain_adaptation
        self.samples = len(data.samples.get("val", ())) if isinstance(data, ViewData) else 0
        self.metric = self.metric or ("val/score" if domains else "val/acc")
        early = trainer.sanity_checking and self.metric == "val/score"  # which needs a step before
        if self.metric not in trainer.callback_metrics and not early:
            known = ", ".join(trainer.callback_metrics)
            raise UnmeasurableError(f"metric={self.metric!r} is not logged by the validation; choose of {known}.")
        if trainer.sanity_checking:
            return
        self.value = float(trainer.callback_metrics[self.metric])
        self.trial.report(self.value, self.step)
        self.step += 1
        if self.trial.should_prune():
            self.pruned = trainer.should_stop = True
