"""Loaders of samples, in memory or read by workers, and the way of their batches to views on the device."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supercm_lightning.contracts import CleanSampleConsumer, ViewConsumer
from supercm_lightning.data.samplers import ShardSampler
from supercm_lightning.data.sources.stores import Samples
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation
from supercm_lightning.utils.lightning_private import before_batch_transfer
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.random import generator
from supercm_lightning.utils.trainer import callbacks_of


class RawBatch(NamedTuple):
    """What a loader yields: samples of a split, or of the path of new ones, by position (n,) with labels (n,).

    `pixels` are the samples as read by workers, or None where they are fetched from memory later.
    """

    split: str
    position: Tensor
    pixels: Tensor | None
    labels: Tensor


class SampleDataset(Dataset[Any]):
    """Positions and labels of the samples of a split in memory, or samples that are read, as whole batches."""

    def __init__(self, split: str, samples: Samples) -> None:
        self.split = split
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, positions: list[int]) -> RawBatch:
        """One batch."""
        position = torch.tensor(positions)
        store = self.samples.store
        pixels = store.load(self.samples.index[position]) if store.needs_workers else None
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


class ViewPipeline(LightningDataModule):
    """The part of a data module that runs on the device; all random numbers depend on seed, step and rank alone.

    Attributes:
        samples: Samples of each split, once the data is read.
        augmentations: Augmentation of each named view, once the data is read.
        seed: Seed of the run; None before it.
        labeled_view: Name of the view of the labeled samples.
        normalization: What turns images into floats.
        view_remedy: What to do about a missing view, for the message.
    """

    if TYPE_CHECKING:
        hparams: Any
    labeled_view = "weak"
    normalization = Normalization()
    view_remedy = "Add it in configure_augmentations."

    def __init__(self) -> None:
        super().__init__()
        self.samples: dict[str, Samples] = {}
        self.augmentations: dict[str, Any] = {}
        self.seed: int | None = None
        self._views: tuple[str, ...] = ()
        self._needs_clean = False

    def configure_augmentations(self) -> dict[str, Any]:
        """Augmentation of each named view, a callable of (samples, torch.Generator); override to add or change."""
        return {"weak": WeakAugmentation(self.normalization)}

    def normalize(self, samples: Tensor) -> Tensor:
        """Samples without augmentation, for evaluation and clean views."""
        return self.normalization(samples)

    @property
    def _needs(self) -> tuple[bool, tuple[str, ...]]:
        """Whether the method needs labeled samples, and the unlabeled views that it needs."""
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        return (module.needs_labeled, module.all_views) if isinstance(module, ViewConsumer) else (True, ("weak",))

    def _find_consumers(self) -> None:
        """Finds out, once a training, which views the method needs and whether a callback needs clean samples."""
        callbacks = callbacks_of(self.trainer) if self.trainer is not None else []
        self._needs_clean = any(isinstance(c, CleanSampleConsumer) and c.needs_clean_labeled for c in callbacks)
        self._views = self._needs[1]
        for view in self._views:
            if view not in self.augmentations:
                method = type(self.trainer.lightning_module).__name__ if self.trainer is not None else "The method"
                raise SuperCMError(
                    f"{method} needs the view {view!r}; {type(self).__name__} has {', '.join(self.augmentations)}. "
                    f"{self.view_remedy}"
                )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Fetches samples that are in memory, from where they are to the device."""
        if isinstance(batch, dict):
            return {name: self.on_before_batch_transfer(raw, dataloader_idx) for name, raw in batch.items()}
        assert self.trainer is not None
        if batch.pixels is not None:
            return batch
        device = self.trainer.strategy.root_device
        return batch._replace(pixels=self.samples[batch.split].fetch(batch.position, device))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments and normalizes on the device."""
        assert self.trainer is not None
        # The samples become floats here, after Lightning has converted its batches to the run's precision.
        return self.trainer.precision_plugin.convert_input(self._on_device(batch))

    def _on_device(self, batch: Any) -> Any:
        assert self.trainer is not None
        if isinstance(batch, RawBatch):
            assert batch.pixels is not None
            return self.normalize(batch.pixels), batch.labels, batch.position
        out: dict[str, Any] = {}
        if "labeled" in batch:
            pixels, y = batch["labeled"].pixels, batch["labeled"].labels
            out["labeled"] = (self._view(self.labeled_view, pixels, "labeled"), y)
            if self._needs_clean:
                out["clean"] = (self.normalize(pixels), y)
        if "unlabeled" in batch:
            raw = batch["unlabeled"]
            views = (self._view(view, raw.pixels, f"unlabeled {number}") for number, view in enumerate(self._views))
            out["unlabeled"] = (tuple(views), raw.position)
        return out

    def views_of(self, split: str, position: Tensor, views: tuple[str, ...], name: str) -> tuple[Tensor, ...]:
        """Views of samples that a method chose itself, apart from the loaders' batches; no label is read.

        Args:
            split: Split of the samples: `labeled`, `unlabeled`, `val` or `test`.
            position: Their positions in the split, (n,) int64.
            views: Names of the views; `clean` is a sample without augmentation.
            name: Distinguishes the random numbers of several calls in one step.

        Returns:
            For each view the samples, (n, *input_shape), on the device of the training.
        """
        assert self.trainer is not None
        pixels = self.samples[split].fetch(position, self.trainer.strategy.root_device)
        made = (
            self.normalize(pixels) if view == "clean" else self._view(view, pixels, f"{name} {number}")
            for number, view in enumerate(views)
        )
        return tuple(self.trainer.precision_plugin.convert_input(view) for view in made)

    def _view(self, view: str, pixels: Tensor, name: str) -> Tensor:
        assert self.trainer is not None
        stream = generator(self._seed, self._step, self.trainer.global_rank, name, device=pixels.device)
        return self.augmentations[view](pixels, stream)

    @property
    def _seed(self) -> int:
        return self.seed if self.seed is not None else torch.initial_seed()

    @property
    def _step(self) -> int:
        """Number of the training step whose batch is being made, counted over epochs and restarts."""
        return self.trainer.fit_loop.total_batch_idx + 1 if self.trainer is not None else 0
