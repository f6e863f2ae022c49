"""Chooses the features that the centroids of a clustering head follow during training."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from supercm_lightning.contracts import ClusteringModel, Step
from supercm_lightning.nn import evaluating
from supercm_lightning.utils.options import SuperCMError, check_choice


class CentroidUpdate(Callback):
    """Updates the centroids of `SuperCM` and its combinations from the labeled samples of every training batch.

    Without the callback SuperCM does what `reuse` does.

    Args:
        mode: Which features the centroids follow. `reuse`: those of the training forward, at no cost.
            `eval_forward`: the published rule, one extra eval-mode forward without gradient of the labeled samples
            without augmentation, before the training forward.

    Attributes:
        needs_clean_labeled: Asks the data module for `batch["clean"]`, the labeled samples without augmentation.

    Raises:
        SuperCMError: If the mode is unknown or, at set-up, the module has no centroids or does not fit the mode.

    Source: Singh et al., "SuperCM: Revisiting Clustering for Semi-Supervised Learning", ICASSP 2025.

    Examples:
        >>> CentroidUpdate(mode="eval_forward").needs_clean_labeled
        True
    """

    def __init__(self, mode: Literal["reuse", "eval_forward"] = "reuse") -> None:
        check_choice(mode=(mode, ("reuse", "eval_forward")))
        self.mode = mode
        self.needs_clean_labeled = mode == "eval_forward"
        self._clean: tuple[Tensor, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes over the centroids of the module."""
        if not isinstance(pl_module, ClusteringModel):
            raise SuperCMError(
                f"CentroidUpdate: {type(pl_module).__name__} has no centroids. Remove the callback, or use SuperCM or "
                "one of its combinations."
            )
        if self.mode == "eval_forward" and pl_module.hparams.get("pseudo_centroids") is not None:
            raise SuperCMError(
                "pseudo_centroids: takes samples of the training forward. Use CentroidUpdate(mode='reuse')."
            )
        if self.mode == "eval_forward" and not pl_module.needs_labeled:
            raise SuperCMError(
                f"mode=eval_forward: forwards the labeled samples of the data, and {type(pl_module).__name__} labels "
                "samples itself. Use CentroidUpdate(mode='reuse')."
            )
        pl_module.follows_step = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the centroids back to the module."""
        if isinstance(pl_module, ClusteringModel):
            pl_module.follows_step = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """`eval_forward`: computes the features of the labeled samples without augmentation."""
        if self.mode == "reuse":
            return
        if "clean" not in batch:
            raise SuperCMError(
                'mode=eval_forward: reads batch["clean"], the labeled samples without augmentation, and the loader '
                "gives none. Use a data module of this package, or mode=reuse."
            )
        assert isinstance(pl_module, ClusteringModel)
        x, y = batch["clean"]
        with torch.no_grad(), evaluating(pl_module), trainer.precision_plugin.forward_context():
            self._clean = pl_module.features(x), y

    def observe(self, trainer: Trainer, pl_module: LightningModule, step: Step) -> None:
        """Moves the centroids, between the training forward and the losses."""
        assert isinstance(pl_module, ClusteringModel)
        pl_module.head.update(*(self._clean or pl_module.centroid_samples(step)))
        self._clean = None
