"""Moves the centroids of a clustering head during training."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from supercm_lightning.nn import ClusteringHead, evaluating
from supercm_lightning.utils.options import SuperCMError


class CentroidUpdate(Callback):
    """Updates the centroids of the module's `ClusteringHead` from the labelled rows of every training batch.

    Args:
        mode: Which features the centroids follow. `reuse`: those of the training forward that
            `SuperCM.centroid_samples` names, between that forward and the loss, at no cost. `eval_forward`: the
            published rule, one extra eval-mode forward without gradient of the labelled rows without
            augmentation, before the training forward.

    Attributes:
        needs_clean_labeled: Asks the datamodule for `batch["clean"]`, the labelled rows without augmentation.

    Raises:
        ValueError: If the mode is unknown or, at set-up, the module's head has no centroids.

    Source: Singh et al., "SuperCM: Revisiting Clustering for Semi-Supervised Learning", ICASSP 2025.
    """

    def __init__(self, mode: Literal["reuse", "eval_forward"] = "reuse") -> None:
        if mode not in ("reuse", "eval_forward"):
            raise SuperCMError(f"mode={mode!r}: choose reuse or eval_forward.")
        self.mode = mode
        self.needs_clean_labeled = mode == "eval_forward"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that there are centroids to update."""
        if self.mode == "eval_forward" and getattr(pl_module, "pseudo_centroids", None) is not None:
            raise SuperCMError("pseudo_centroids takes rows of the training forward: use CentroidUpdate(mode='reuse').")
        head = getattr(pl_module, "head", None)
        if not isinstance(head, ClusteringHead):
            raise SuperCMError(
                f"CentroidUpdate needs a module whose head is a ClusteringHead; the head of {type(pl_module).__name__} "
                f"is {type(head).__name__}. Remove the callback, or use SuperCM or one of its combinations."
            )

    def on_train_forward(self, trainer: Trainer, pl_module: LightningModule, step: Any) -> None:
        """`reuse`: follows the labelled features of the training forward. `Method.training_step` makes this call."""
        if self.mode == "reuse":
            pl_module.head.update(*pl_module.centroid_samples(step))  # type: ignore[operator,union-attr]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """`eval_forward`: follows the features of the labelled rows without augmentation."""
        if self.mode != "eval_forward":
            return
        if "clean" not in batch:
            raise SuperCMError(
                'CentroidUpdate(mode="eval_forward") reads batch["clean"], the labelled rows without augmentation, and '
                'the loader gives none. Use a datamodule of this package, or mode="reuse".'
            )
        x, y = batch["clean"]
        with torch.no_grad(), evaluating(pl_module), trainer.precision_plugin.forward_context():
            features = pl_module.features(x)  # type: ignore[operator]
        pl_module.head.update(features, y)  # type: ignore[operator,union-attr]
