"""Statistics that belong to averaged weights, estimated from training batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader

from supercm_lightning.contracts import Batch, JointModel
from supercm_lightning.data import move_batch
from supercm_lightning.nn import evaluating
from supercm_lightning.utils.collectives import mean_over_ranks
from supercm_lightning.utils.lightning_private import without_iterator
from supercm_lightning.utils.trainer import datamodule_of


class TrainingBatches:
    """Re-iterable view of the first `limit` training batches, per rank, of a fresh loader; workers start once.

    The data module makes the loader, or else those of the trainer are iterated a second time.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, limit: int) -> None:
        data = datamodule_of(trainer)
        if data is not None:
            source = data.train_dataloader()
        else:
            source = tree_map_only(DataLoader, without_iterator, trainer.train_dataloader)
        self.loader = source if isinstance(source, CombinedLoader) else CombinedLoader(source, "max_size_cycle")
        self.trainer, self.pl_module, self.limit = trainer, pl_module, limit

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches on the module's device, in the trainer's input precision."""
        for batch, _, _ in islice(self.loader, self.limit):
            yield move_batch(self.trainer.precision_plugin.convert_input(batch), self.trainer, self.pl_module)


def training_batch_norms(module: torch.nn.Module) -> tuple[str, ...]:
    """Names of the batch norm layers whose running statistics follow the training of a module, in its present mode."""
    return tuple(
        name
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.running_mean is not None
    )


@torch.no_grad()
def estimate_statistics(trainer: Trainer, pl_module: LightningModule, batch_norms: Sequence[str], limit: int) -> None:
    """Estimates the statistics of the present weights from training batches, over all ranks.

    Running statistics of batch norm become the cumulative mean of the batch statistics of joint forwards; then the
    module estimates its own (`JointModel.estimate_statistics`), which may depend on them. Modes and random states stay
    as they are, and so does a layer that takes no part in the joint forward, or a module that is no `JointModel`.
    """
    if not isinstance(pl_module, JointModel):
        return
    batches = TrainingBatches(trainer, pl_module, limit)
    layers = [layer for layer in map(pl_module.get_submodule, batch_norms) if isinstance(layer, _BatchNorm)]
    with isolate_rng(), evaluating(pl_module):
        if layers:
            with _cumulative(layers), trainer.precision_plugin.forward_context():
                for batch in batches:
                    pl_module.joint_forward(batch)
        pl_module.estimate_statistics(batches)


@contextmanager
def _cumulative(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Lets batch norm layers collect the mean of the batch statistics, counters untouched."""
    before = [[stat.clone() for stat in _running(layer)] for layer in layers]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the cumulative mean
        layer.train()
    try:
        yield
        for layer, stats in zip(layers, before, strict=True):
            *moments, num_batches = _running(layer)
            if num_batches > 0:  # otherwise it took no part, as the layers of a teacher
                stats[:2] = map(mean_over_ranks, moments)
    finally:
        for layer, momentum, stats in zip(layers, momenta, before, strict=True):
            for stat, value in zip(_running(layer), stats, strict=True):
                stat.copy_(value)
            layer.momentum = momentum
            layer.eval()


def _running(layer: _BatchNorm) -> list[Tensor]:
    return [layer.get_buffer(name) for name in ("running_mean", "running_var", "num_batches_tracked")]
