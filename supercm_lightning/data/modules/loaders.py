"""What loaders yield, and how: positions of samples in memory, or samples read by workers."""

from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supercm_lightning.data.samplers import ShardSampler
from supercm_lightning.data.sources.stores import Samples
from supercm_lightning.utils.lightning_private import before_batch_transfer


class RawBatch(NamedTuple):
    """What a loader yields.

    Attributes:
        split: Split of the samples: `labeled`, `unlabeled`, `val` or `test`, or the path of new ones.
        position: Positions of the samples in their split, (n,) int64.
        pixels: The samples as read by workers, or None where they are fetched from memory later.
        labels: Their labels, (n,) int64, -1 where unknown.
    """

    split: str
    position: Tensor
    pixels: Tensor | None
    labels: Tensor


class SampleDataset(Dataset[Any]):
    """Positions and labels of samples in memory, or samples that are read, as whole batches.

    Args:
        split: Name of the split.
        samples: Its samples.
    """

    def __init__(self, split: str, samples: Samples) -> None:
        self.split = split
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, positions: list[int]) -> RawBatch:
        """One batch."""
        position = torch.tensor(positions)
        pixels = self.samples.store.load(self.samples.index[position])
        return RawBatch(self.split, position, pixels, self.samples.labels_of(position))


class TrainLoader(DataLoader[Any]):
    """A loader that a resumed run may start anywhere in an epoch: its sampler asks the trainer for the step.

    The empty state tells Lightning so; without it, Lightning warns that the loader cannot be resumed.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step is the trainer's."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def loader_options(split: str, samples: Samples, num_workers: int) -> dict[str, Any]:
    """Arguments of the loader of a split; samples in memory need no workers."""
    workers = num_workers if samples.store.needs_workers else 0
    return {
        "dataset": SampleDataset(split, samples),
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": workers > 0 and torch.cuda.is_available(),
        "collate_fn": _as_collated,
    }


def eval_loader(
    split: str, samples: Samples, batch_size: int, num_workers: int, trainer: Trainer | None
) -> DataLoader[Any]:
    """The loader of validation, test or prediction: every sample once, in order, sharded over the ranks."""
    options = loader_options(split, samples, num_workers)
    if trainer is None or trainer.world_size == 1 or trainer.predicting:  # Lightning shards what is predicted
        return DataLoader(batch_size=batch_size, **options)
    sampler = ShardSampler(len(samples), trainer.global_rank, trainer.world_size, split)
    return DataLoader(batch_size=sampler.batch_size(batch_size), sampler=sampler, **options)


def _as_collated(batch: RawBatch) -> RawBatch:
    return batch


def move_batch(batch: Any, trainer: Trainer, module: LightningModule, dataloader_idx: int = 0) -> Any:
    """Brings a batch of any loader to the device, as `training_step` or `validation_step` would receive it."""
    batch = before_batch_transfer(module, batch, dataloader_idx)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)
