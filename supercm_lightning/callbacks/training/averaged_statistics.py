"""Statistics that belong to averaged weights, estimated from training batches: batch norm's and the centroids."""

import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader

from supercm_lightning.data import move_batch
from supercm_lightning.nn.clustering_head import class_totals


class TrainingBatches:
    """The first training batches of a fresh loader, as often as one iterates; worker processes start once.

    Args:
        trainer: The trainer; its datamodule makes the loader, or else its own loaders are iterated a second time.
        pl_module: The module that moves batches to its device.
        limit: Number of batches, per rank.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, limit: int) -> None:
        if trainer.datamodule is not None:  # type: ignore[attr-defined]
            source = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        else:
            source = tree_map_only(DataLoader, _without_iterator, trainer.train_dataloader)
        self.loader = source if isinstance(source, CombinedLoader) else CombinedLoader(source, "max_size_cycle")
        self.trainer, self.pl_module, self.limit = trainer, pl_module, limit

    def __iter__(self) -> Iterator[Any]:
        """Yields the batches on the module's device, in the trainer's input precision."""
        for batch, _, _ in islice(self.loader, self.limit):
            yield move_batch(self.trainer.precision_plugin.convert_input(batch), self.trainer, self.pl_module)


def estimate_batch_norm(model: Any, names: Sequence[str], batches: TrainingBatches) -> None:
    """Sets running statistics to the cumulative mean of the batch statistics of joint forwards, over all ranks.

    Args:
        model: A module with `joint_forward`, in evaluation mode.
        names: Names of its batch norm layers that learn; one that takes no part keeps what it had.
        batches: The batches.
    """
    trainer = batches.trainer
    layers = [layer for layer in map(model.get_submodule, names) if isinstance(layer, _BatchNorm)]
    before = [[stat.clone() for stat in _running(layer)[:2]] for layer in layers]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the cumulative mean
        layer.train()
    for batch in batches if layers else ():
        with trainer.precision_plugin.forward_context():
            model.joint_forward(batch)
    for layer, momentum, (mean, var) in zip(layers, momenta, before, strict=True):
        running_mean, running_var, num_batches = _running(layer)
        if num_batches > 0:
            mean, var = (trainer.strategy.reduce(stat, reduce_op="mean") for stat in (running_mean, running_var))
        # Otherwise it took no part, a teacher's layer for instance.
        running_mean.copy_(mean)
        running_var.copy_(var)
        layer.momentum = momentum
        layer.eval()


def estimate_centroids(model: Any, batches: TrainingBatches) -> None:
    """Sets the centroids to the class means of the features of the labelled rows, over all ranks.

    Args:
        model: A method whose head has centroids, in evaluation mode; a class without rows keeps its centroid.
        batches: The batches.
    """
    trainer = batches.trainer
    centroids: Tensor = model.head.centroids
    totals = torch.zeros(len(centroids), centroids.shape[1] + 1, device=centroids.device)
    for batch in batches:
        x, y = model.labeled_samples(batch)
        with trainer.precision_plugin.forward_context():
            features = model.features(x)
        totals += class_totals(features, y, len(centroids))
    totals = trainer.strategy.reduce(totals, reduce_op="sum")
    sums, counts = totals[:, :-1], totals[:, -1:]
    centroids.copy_(torch.where(counts > 0, sums / counts.clamp_min(1), centroids))


def _running(layer: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    return layer.running_mean, layer.running_var, layer.num_batches_tracked


def _without_iterator(loader: DataLoader[Any]) -> DataLoader[Any]:
    # Persistent workers hang on the iterator; a copy that kept it would restart the running epoch.
    loader = copy.copy(loader)
    loader._iterator = None
    return loader
