"""What every data module shares: loaders that move row numbers or raw images, batched augmentation on the device."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supercm_lightning.data.samplers import CyclingSampler
from supercm_lightning.data.sources.stores import ArrayStore, Samples, Store, default_num_workers
from supercm_lightning.data.splits import check_label_range, check_labels
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation
from supercm_lightning.utils.lightning_private import before_batch_transfer
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.random import generator

SPLITS = ("test", "val", "unlabeled", "labeled")
"""Sets of rows that a data module may have."""


class RawBatch(NamedTuple):
    """What a loader yields.

    Attributes:
        part: Set of the rows: `labeled`, `unlabeled`, `val` or `test`.
        position: Places of the rows in their set, (n,) int64.
        pixels: The rows as read by workers, or None where they are gathered from memory later.
    """

    part: str
    position: Tensor
    pixels: Tensor | None


class _SampleDataset(Dataset[Any]):
    """Row numbers only, for sets in memory; rows read one by one, for the others."""

    def __init__(self, part: str, rows: Samples, shape: tuple[int, ...]) -> None:
        self.part = part
        self.samples = rows
        self.shape = shape

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, positions: list[int]) -> RawBatch:
        position = torch.tensor(positions)
        store = self.samples.store
        if isinstance(store, ArrayStore):
            return RawBatch(self.part, position, None)
        read = [store.of_shape(row, self.shape) for row in self.samples.index[position].tolist()]
        return RawBatch(self.part, position, torch.stack(read))


class _TrainLoader(DataLoader[Any]):
    """A loader that a resumed run may start anywhere in an epoch: its sampler asks the trainer for the step.

    The empty state tells Lightning so; without it, Lightning warns that the loader cannot be resumed.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def _as_collated(batch: RawBatch) -> RawBatch:
    return batch


class ViewDataModule(LightningDataModule, ABC):
    """Base of the data modules: labelled, unlabelled, validation, test and prediction rows as batches of views.

    A training batch is `{"labeled": (x, y), "unlabeled": (views, index)}` with the views that the method declares; an
    evaluation batch is `(x, y, index)`. Samples in memory stay on the device where they fit, a loader step moves row
    numbers, and gathering, augmentation and normalisation run batched on the device. All randomness is a function of
    the run's seed, the step and the rank. Batch sizes are per device.

    Subclasses set `num_classes` and `input_shape` in their constructor and fill `rows` in `read`. Where labelled rows
    are a source domain and unlabelled rows a target domain (`is_domain_adaptation`), validation reads the source
    validation rows and, in a second loader, the target training rows; testing reads the
    test rows and the source validation rows.

    Args:
        labeled_batch_size: Labelled rows per step.
        unlabeled_batch_size: Unlabelled rows per step.
        eval_batch_size: Samples per step of validation, test and prediction.
        steps_per_epoch: Steps per epoch; None: one pass over the unlabelled set (the labelled set, for methods that
            need no unlabelled rows).
        predict_on: Samples that `predict` reads: `test`, `val`, `unlabeled`, `labeled`, or a path for `read_new`.
        num_workers: Worker processes per loader, for data that is not held in memory; None: one for each core that
            this process may use, at most four.

    Attributes:
        preprocessing: What was done to the rows that the model receives, plain values: `mean` and `std`, on the scale
            [0, 1] for images, or `whitening`. Empty where nothing was.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...] | None = None
    is_domain_adaptation = False
    labeled_view = "weak"
    missing_messages: ClassVar[dict[str, str]] = {
        "labeled": "The labelled set is empty. To learn without labels use ASD or one of its combinations.",
        "unlabeled": "The unlabelled set is empty, and it is needed. Give unlabelled data, or set num_labeled below "
        "the number of labelled rows: the rest is unlabelled.",
        "val": "There are no validation rows. Give a validation set, or set num_val.",
        "test": "There are no test rows. Give a test set, or set num_test. To predict rows without labels, set "
        "predict_on: unlabeled.",
    }

    def __init__(
        self,
        labeled_batch_size: int,
        unlabeled_batch_size: int,
        eval_batch_size: int,
        steps_per_epoch: int | None,
        predict_on: str,
        num_workers: int | None,
    ) -> None:
        super().__init__()
        sizes = {
            "labeled_batch_size": labeled_batch_size,
            "unlabeled_batch_size": unlabeled_batch_size,
            "eval_batch_size": eval_batch_size,
            "steps_per_epoch": steps_per_epoch,
        }
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise SuperCMError(f"{name}={value}: must be at least 1.")
        if num_workers is not None and num_workers < 0:
            raise SuperCMError(f"num_workers={num_workers}: must not be negative.")
        if predict_on not in SPLITS and not Path(predict_on).expanduser().exists():
            raise SuperCMError(
                f"predict_on={predict_on!r}: choose one of {', '.join(SPLITS)}, or give the path of new rows; there is "
                "no such path."
            )
        self.labeled_batch_size = labeled_batch_size
        self.unlabeled_batch_size = unlabeled_batch_size
        self.eval_batch_size = eval_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.predict_on = str(predict_on)
        self.num_workers = default_num_workers() if num_workers is None else num_workers
        self.samples: dict[str, Samples] = {}
        self.seed: int | None = None
        self.augmentations: dict[str, Any] = {}
        self.preprocessing: dict[str, Any] = {}

    # ------------------------------------------------------------------------------------- what subclasses give
    @abstractmethod
    def read(self) -> dict[str, Samples]:
        """Reads the data: `labeled`, `unlabeled`, `val`, `test`, those of which there are rows."""

    def read_new(self, path: Path) -> Store:
        """Reads rows that are in none of the sets, prepared as the test rows are, for `predict`; override to allow it.

        Raises:
            ValueError: If the path holds no such rows.
        """
        raise SuperCMError(
            f"predict_on={path}: {type(self).__name__} cannot prepare files as the items of a torch data set are. Give "
            "trainer.predict a loader of new rows."
        )

    def configure_augmentations(self) -> dict[str, Any]:
        """Augmentation of each named view, a callable of (rows, torch.Generator); override to add or change."""
        return {"weak": WeakAugmentation(Normalization())}

    def normalize(self, rows: Tensor) -> Tensor:
        """Samples without augmentation, for evaluation and clean views."""
        return Normalization()(rows)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a row as it is stored, before the augmentation crops it."""
        return self.input_shape

    # --------------------------------------------------------------------------------------------------- set-up
    def setup(self, stage: str) -> None:
        """Takes the seed of the run; reads and checks the data, once, or the new rows that alone are predicted."""
        if self.trainer is not None and stage == "fit":
            # Ranks must agree on the walk through the data even when the user seeded none of them.
            self.seed = int(self.trainer.strategy.broadcast(torch.initial_seed()))
        if stage == "predict" and self.predict_on not in SPLITS:
            self.samples[self.predict_on] = Samples.all_of(self.read_new(Path(self.predict_on).expanduser()))
        else:
            self._read_sets()

    def _read_sets(self) -> None:
        if any(part in self.samples for part in SPLITS):
            return
        rows = self.read()
        if "labeled" in rows:
            check_labels(rows["labeled"].labels, self.num_classes, self.class_names, "labelled set")
        for part in ("val", "test"):
            if part in rows and not rows[part].hide_labels:
                check_label_range(rows[part].labels, self.num_classes, f"{part} set")
        self.samples |= rows
        self.augmentations = self.configure_augmentations()

    def state_dict(self) -> dict[str, Any]:
        """The seed of the run, so that a resumed run walks on where it was, and what a user of the model must know."""
        return {"seed": self.seed, "class_names": self.class_names, "preprocessing": self.preprocessing}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the seed of the run.

        Raises:
            ValueError: If the classes of the data have other names than those of the checkpoint.
        """
        self.seed = state_dict["seed"]
        known = state_dict.get("class_names")
        if known and self.class_names and tuple(known) != self.class_names:
            differ = sorted(set(known) ^ set(self.class_names)) or ["the same in another order"]
            raise SuperCMError(
                f"ckpt_path: the checkpoint has other classes than the data ({', '.join(differ[:10])}), whose numbers "
                "would mean something else. Give the data its classes back, or train anew."
            )

    @property
    def num_unlabeled(self) -> int:
        """Number of unlabelled rows, once the data is read."""
        return len(self.samples.get("unlabeled", ()))

    @property
    def has_test(self) -> bool:
        """Whether there are test rows with labels, once the data is read."""
        return "test" in self.samples and len(self.samples["test"]) > 0 and not self.samples["test"].hide_labels

    def describe_sample(self, part: str, index: int) -> str:
        """File of a row of a part (`test`, `val`, `unlabeled`, `labeled`, `predict`); its index where it has none."""
        rows = self.samples[self.predict_on if part == "predict" else part]
        return rows.store.names[int(rows.index[index])] if rows.store.names is not None else str(index)

    # --------------------------------------------------------------------------------------------------- loaders
    @property
    def _views(self) -> tuple[str, ...]:
        module = self.trainer.lightning_module if self.trainer is not None else None
        views = tuple(getattr(module, "all_views", ("weak",)))
        for view in views:
            if view not in self.augmentations:
                raise SuperCMError(
                    f"{type(module).__name__} asks for the view {view!r}; {type(self).__name__} has "
                    f"{', '.join(self.augmentations)}. Add it in configure_augmentations."
                )
        return views

    @property
    def _batch_sizes(self) -> dict[str, int]:
        """Samples per step of each training loader that the method needs."""
        self._check_read()
        module = self.trainer.lightning_module if self.trainer is not None else None
        sizes = {"labeled": self.labeled_batch_size} if getattr(module, "needs_labeled", True) else {}
        return sizes | ({"unlabeled": self.unlabeled_batch_size} if self._views else {})

    @property
    def num_steps(self) -> int:
        """Steps of one epoch of training."""
        world = self.trainer.world_size if self.trainer is not None else 1
        longest, size = list(self._batch_sizes.items())[-1]
        return self.steps_per_epoch or -(-len(self._part(longest)) // (size * world))

    def train_dataloader(self) -> dict[str, DataLoader[Any]]:
        """A loader for the labelled rows, unless the method labels rows itself, and one for its unlabelled views.

        Raises:
            ValueError: If the method needs rows of which there are none.
        """
        sizes = self._batch_sizes
        parts = {part: self._part(part) for part in sizes}
        trainer, steps = self.trainer, self.num_steps
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        samplers = {
            part: CyclingSampler(len(parts[part]), size, steps, self._seed, part, rank, world, lambda: self._step)
            for part, size in sizes.items()
        }
        return {
            part: _TrainLoader(sampler=samplers[part], batch_size=sizes[part], **self._reading(part)) for part in sizes
        }

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The validation rows; for `fit` without such rows an empty list, which Lightning skips.

        With two domains a list: the source validation rows and the target training rows.
        """
        validating = self.trainer is not None and self.trainer.state.fn == TrainerFn.VALIDATING
        return self._eval_dataloaders("val", "unlabeled") if validating or len(self.samples.get("val", ())) else []

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The test rows. With two domains a list: these and the source validation rows, where there are such.

        Raises:
            ValueError: If there are no test rows with labels.
        """
        self._check_read()
        if not self.has_test:
            raise SuperCMError(self.missing_messages["test"])
        return self._eval_dataloaders("test", "val")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The rows chosen by `predict_on`."""
        return self._eval_dataloader(self.predict_on)

    def _eval_dataloaders(self, part: str, other: str) -> DataLoader[Any] | list[DataLoader[Any]]:
        loader = self._eval_dataloader(part)
        if not self.is_domain_adaptation:
            return loader
        return [loader, self._eval_dataloader(other)] if len(self.samples.get(other, ())) else [loader]

    def _eval_dataloader(self, part: str) -> DataLoader[Any]:
        return DataLoader(batch_size=self.eval_batch_size, **self._reading(part))

    def _part(self, part: str) -> Samples:
        self._check_read()
        if not len(self.samples.get(part, ())):
            raise SuperCMError(self.missing_messages[part])
        return self.samples[part]

    def _check_read(self) -> None:
        if not self.samples:
            raise RuntimeError('The data has not been read: call setup("fit") first.')

    def _reading(self, part: str) -> dict[str, Any]:
        rows = self._part(part)
        workers = 0 if isinstance(rows.store, ArrayStore) else self.num_workers
        return {
            "dataset": _SampleDataset(part, rows, self.sample_shape),
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": workers > 0 and torch.cuda.is_available(),
            "collate_fn": _as_collated,
        }

    # --------------------------------------------------------------------------------------------------- batches
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Gathers rows on the host where they do not fit on the device."""
        if isinstance(batch, dict):
            return {name: self.on_before_batch_transfer(raw, dataloader_idx) for name, raw in batch.items()}
        assert self.trainer is not None
        store = self.samples[batch.part].store
        if isinstance(store, ArrayStore) and not store.place(self.trainer.strategy.root_device):
            return batch._replace(pixels=store.data[self.samples[batch.part].index[batch.position]])
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Gathers, augments and normalises on the device."""
        assert self.trainer is not None
        # The rows became floats here, after Lightning has converted its batches to the run's precision.
        return self.trainer.precision_plugin.convert_input(self._on_device(batch))

    def _on_device(self, batch: Any) -> Any:
        assert self.trainer is not None
        if isinstance(batch, RawBatch):
            pixels, y = self._gather(batch)
            return self.normalize(pixels), y, batch.position
        out: dict[str, Any] = {}
        if "labeled" in batch:
            pixels, y = self._gather(batch["labeled"])
            out["labeled"] = (self._view(self.labeled_view, pixels, "labeled"), y)
            if any(getattr(callback, "needs_clean_labeled", False) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
                out["clean"] = (self.normalize(pixels), y)
        if "unlabeled" in batch:
            pixels, _ = self._gather(batch["unlabeled"])
            views = tuple(self._view(view, pixels, f"unlabeled {number}") for number, view in enumerate(self._views))
            out["unlabeled"] = (views, batch["unlabeled"].position)
        return out

    def views_of(self, part: str, position: Tensor, views: tuple[str, ...], name: str) -> tuple[Tensor, ...]:
        """Views of rows that a method chose itself, apart from the loaders' batches; no label is read.

        Args:
            part: Set of the rows: `labeled`, `unlabeled`, `val` or `test`.
            position: Places of the rows in their set, (n,) int64.
            views: Names of the views; `clean` is a row without augmentation.
            name: Distinguishes the random numbers of several calls in one step.

        Returns:
            For each view the rows, (n, *input_shape), on the device of the training.
        """
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        rows = self._part(part)
        if isinstance(rows.store, ArrayStore):
            place = device if rows.store.place(device) else rows.store.data.device
            pixels = rows.store.data[rows.index.to(place)[position.to(place)]].to(device)
        else:
            pixels = rows.store.read(rows.index[position.cpu()].tolist(), self.sample_shape).to(device)
        made = (
            self.normalize(pixels) if view == "clean" else self._view(view, pixels, f"{name} {number}")
            for number, view in enumerate(views)
        )
        return tuple(self.trainer.precision_plugin.convert_input(made_view) for made_view in made)

    def _gather(self, raw: RawBatch) -> tuple[Tensor, Tensor]:
        rows = self.samples[raw.part]
        index, labels = rows.on(raw.position.device)
        if raw.pixels is not None:
            return raw.pixels, labels[raw.position]
        assert isinstance(rows.store, ArrayStore)
        return rows.store.data[index[raw.position]], labels[raw.position]

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


def move_batch(batch: Any, trainer: Trainer, module: LightningModule, dataloader_idx: int = 0) -> Any:
    """Brings a loader's batch to the device the way the trainer does, for code outside its loops.

    Args:
        batch: A batch of any loader of the trainer's data.
        trainer: The trainer.
        module: Its module.
        dataloader_idx: Number of the loader.

    Returns:
        The batch as `training_step` or `validation_step` would receive it.
    """
    batch = before_batch_transfer(module, batch, dataloader_idx)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)
