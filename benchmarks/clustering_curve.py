"""Follows the accuracy of a clustering run on the test rows, as a curve beside the signals that need no labels.

A callback for `supercm fit`, to be run from the repository's folder:

    supercm fit --config configs/clustering/cifar10/asd_freematch.yaml \
        --data.dataset folder --data.root DATA/cifar10 --data.protocol split \
        --trainer.callbacks+ benchmarks.clustering_curve.ClusteringCurve --trainer.callbacks.every_n_steps 500

Nothing is chosen by the curve: it reads labels, which a clustering does not have.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from supercm_lightning.data import move_batch
from supercm_lightning.metrics import ClusteringAccuracy
from supercm_lightning.nn import evaluating


class ClusteringCurve(Callback):
    """Logs `curve/acc`, the clustering accuracy of the present weights on the test rows.

    Args:
        every_n_steps: Steps between two points.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Adds a point."""
        if trainer.global_step % self.every_n_steps:
            return
        accuracy = ClusteringAccuracy(pl_module.num_classes).to(pl_module.device)
        with torch.no_grad(), evaluating(pl_module), trainer.precision_plugin.forward_context():
            for raw in trainer.datamodule.test_dataloader():
                x, y, _ = move_batch(raw, trainer, pl_module)
                accuracy.update(pl_module(x).argmax(1), y)
        pl_module.log("curve/acc", accuracy.compute().cpu(), prog_bar=True)
