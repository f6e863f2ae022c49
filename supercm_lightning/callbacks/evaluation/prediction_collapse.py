"""Names a model that gives nearly all samples one class."""

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from supercm_lightning.callbacks.evaluation.prediction_writer import has_clusters
from supercm_lightning.contracts import ClassModel, ViewData
from supercm_lightning.utils.collectives import sum_over_ranks
from supercm_lightning.utils.text import printable
from supercm_lightning.utils.trainer import datamodule_of

_LOG = logging.getLogger(__name__)
_FEWEST_SAMPLES = 20
_COLLAPSE = 0.95  # fraction of one class
_REMEDY = "Try a lower lr, more steps, a smaller weight of the loss without labels, or a pretrained backbone"


class PredictionCollapse(Callback):
    """Warns at the end of `fit` or of the test if 95 % of the samples or more are predicted to be of one class.

    `fit` looks at its last validation, of the target where there are two domains. Sets of fewer than 20 samples, and
    those whose own labels are nearly as unequal, are left alone. The command line adds it to every run.

    Attributes:
        message: What the last validation or test showed; None: no collapse.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(logger=False, enable_checkpointing=False, callbacks=[PredictionCollapse()])
    """

    def __init__(self) -> None:
        self.message: str | None = None
        self._warned = False
        self._counts = torch.zeros(2, 0)  # of predictions and of known labels, by class

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts counting."""
        classes = pl_module.num_classes if isinstance(pl_module, ClassModel) and not trainer.sanity_checking else 0
        self.message, self._counts = None, torch.zeros(2, classes, device=pl_module.device)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Counts the predictions and the labels of a batch: of the target, or else of the first loader."""
        classes = self._counts.shape[1]
        given = isinstance(outputs, dict) and "logits" in outputs
        if classes and given and dataloader_idx == int(_has_target(trainer) and not trainer.testing):
            for counts, found in zip(self._counts, (outputs["logits"].argmax(dim=1), batch[1]), strict=True):
                counts += torch.bincount(found[found >= 0].clamp(max=classes - 1), minlength=classes)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges the predictions."""
        predicted, known = sum_over_ranks(self._counts).cpu()
        total = int(predicted.sum())
        if total >= _FEWEST_SAMPLES and predicted.max() >= _COLLAPSE * total:
            if 0 < known.sum() * (_COLLAPSE - 0.15) < known.max():
                return
            top, data = int(predicted.argmax()), datamodule_of(trainer)
            has_names = isinstance(data, ViewData) and data.class_names and not has_clusters(pl_module)
            name = data.class_names[top] if has_names else top
            samples = (
                f"{100 * float(predicted[top]) / total:.0f} % of {total:,} {'target ' * _has_target(trainer)}samples"
            )
            self.message = f"{samples} are predicted to be {name}"

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges the predictions, and warns unless `fit` did."""
        self.on_validation_epoch_end(trainer, pl_module)
        self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warns of what the last validation showed."""
        if self.message and not self._warned and trainer.is_global_zero:
            self._warned = True
            _LOG.warning("warning: %s: the model has collapsed. %s.", printable(self.message), _REMEDY)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end


def _has_target(trainer: Trainer) -> bool:
    data = datamodule_of(trainer)
    return isinstance(data, ViewData) and data.is_domain_adaptation
