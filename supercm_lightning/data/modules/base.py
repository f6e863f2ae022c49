"""What every data module shares: options, splits and loaders."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from supercm_lightning.contracts import SeedOwner
from supercm_lightning.data.manifest import SIDES, Manifest
from supercm_lightning.data.modules.known_samples import KnownSamples
from supercm_lightning.data.modules.pipeline import TrainLoader, eval_loader, loader_options
from supercm_lightning.data.preparation import OPTIONS, check_preparation, save_options
from supercm_lightning.data.samplers import BalancedSampler, CyclingSampler
from supercm_lightning.data.sources.base import Source
from supercm_lightning.data.sources.images import progress
from supercm_lightning.data.sources.names import normalized
from supercm_lightning.data.sources.stores import Samples, Store
from supercm_lightning.data.sources.worker_stores import default_num_workers
from supercm_lightning.data.splits import check_label_range, check_labels
from supercm_lightning.utils.options import SuperCMError, check_range
from supercm_lightning.utils.trainer import callbacks_of


class ViewDataModule(KnownSamples, ABC):
    """Base of the data modules: labeled, unlabeled, validation, test and prediction samples as batches of views.

    A training batch is `{"labeled": (x, y), "unlabeled": (views, index)}` with the views that the method declares; an
    evaluation batch is `(x, y, index)`. Samples in memory stay on the device where they fit, a loader step moves their
    positions, and gathering, augmentation and normalization run batched on the device. All randomness is a function of
    the run's seed, the step and the rank. Options are in `hparams`, as plain values; torch data sets and arrays are
    left out.

    Subclasses set `num_classes` and `input_shape` in their constructor and return the samples in `read`. Where the
    labeled samples are a source domain and the unlabeled ones a target domain (`is_domain_adaptation`), validation
    reads the source validation samples and, in a second loader, the target training samples; testing reads the test
    samples and the source validation samples.

    Args:
        eval_batch_size: Samples per step and device of validation, test and prediction.
        steps_per_epoch: Steps per epoch; None: one pass over the unlabeled samples (the labeled ones, for methods that
            need no unlabeled samples).
        predict_on: Samples that `predict` reads: `test`, `val`, `unlabeled`, `labeled`, or a folder of new images or a
            file of new features, which are prepared as the test samples are.
        num_workers: Worker processes per loader, for data that is not in memory; None: one per core, at most four.

    Attributes:
        labeled_batch_size: Labeled samples per step and device.
        unlabeled_batch_size: Unlabeled samples per step and device.
        samples: Samples of each split, once the data is read.
        source: Where the data modules of the package read from; None for others.
        preprocessing: What was done to the samples that the model receives, plain values: `mean` and `std`, on the
            scale [0, 1] for images, or `whitening`. Empty where nothing was.
        measured: Tensors that this was measured by, on training samples or by the run of a checkpoint.

    Examples:
        >>> from supercm_lightning.data.sources.stores import ArrayStore
        >>> class Points(ViewDataModule):
        ...     def __init__(self, count: int = 90):
        ...         super().__init__(num_workers=0)
        ...         self.num_classes, self.input_shape = 3, (2,)
        ...     def read(self):
        ...         store = ArrayStore(torch.randn(self.hparams.count, 2), torch.arange(self.hparams.count) % 3)
        ...         labeled, unlabeled = torch.arange(self.hparams.count).split([30, self.hparams.count - 30])
        ...         return {"labeled": Samples(store, labeled), "unlabeled": Samples(store, unlabeled)}
        >>> data = Points()
        >>> data.setup("fit")
        >>> data.arrays("unlabeled")[0].shape
        (60, 2)
    """

    input_shape: tuple[int, ...]
    is_domain_adaptation = False
    labeled_batch_size = 50
    unlabeled_batch_size = 50
    missing_messages: ClassVar[dict[str, str]] = {
        "labeled": "The labeled set is empty. To learn without labels use ASD or one of its combinations.",
        "unlabeled": "The unlabeled set is empty, and it is needed. Give unlabeled data, or set num_labeled below the "
        "number of labeled samples: the others are then unlabeled.",
        "val": "There are no validation samples. Give a validation set, or set num_val.",
        "test": "There are no test samples. Give a test set, or set num_test. To predict samples without labels, set "
        "predict_on: unlabeled.",
    }

    def __init__(
        self,
        eval_batch_size: int = 500,
        steps_per_epoch: int | None = None,
        predict_on: str = "test",
        num_workers: int | None = None,
    ) -> None:
        super().__init__()
        self.preprocessing: dict[str, Any] = {}
        self.measured: dict[str, Tensor] = {}
        save_options(self, inspect.currentframe())
        sizes = {name: size for name, size in self.hparams.items() if name.endswith("batch_size")}
        check_range(1, **sizes | {"eval_batch_size": eval_batch_size, "steps_per_epoch": steps_per_epoch})
        check_range(0, num_workers=num_workers)
        if predict_on not in SIDES and (not str(predict_on) or not Path(predict_on).expanduser().exists()):
            raise SuperCMError(
                f"predict_on={predict_on!r}: choose one of {', '.join(SIDES)}, or give a path; there is no such path."
            )
        self.eval_batch_size = eval_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.predict_on = str(predict_on)
        self.num_workers = default_num_workers() if num_workers is None else num_workers

    def _use(self, source: Source, option: str = "dataset") -> None:
        """Takes classes and shape of a source with labels."""
        self.source, self.class_names, self.input_shape = source, source.class_names, source.input_shape
        self.num_classes = source.num_classes or 0
        if self.num_classes < 2:
            raise SuperCMError(f"{option}: {self.num_classes} class, where at least two are needed.")

    @abstractmethod
    def read(self) -> dict[str, Samples]:
        """Reads the data: `labeled`, `unlabeled`, `val`, `test`, those of which there are samples.

        Called again when a checkpoint tells another split; `stores` and `draw_split` then give what they should.
        """

    def read_new(self, path: Path) -> Store:
        """Reads samples that are in none of the splits, prepared as the test samples are, for `predict`."""
        if self.source is None:
            raise SuperCMError(f"predict_on={path}: {type(self).__name__} does not override read_new. Choose a split.")
        if {"whitening", "standardize"} & self.preprocessing.keys():
            self._read_splits()  # on which this is measured
        return self.source.read_new(path, self.preprocessing)

    def prepare_data(self) -> None:
        """Downloads a registered data set, in one process, if asked to."""
        if self.source is not None and self.hparams.get("download"):
            self.source.download()

    def setup(self, stage: str) -> None:
        """Takes the seed of the run; reads and checks the data, once, or only the new samples that are predicted."""
        if self.trainer is not None and stage == "fit":
            # Ranks must agree on the sampling order even when the user seeded none of them.
            self.seed = int(self.trainer.strategy.broadcast(torch.initial_seed()))
            self.former_unlabeled = None
        if stage == "predict" and self.predict_on not in SIDES:
            self.samples[self.predict_on] = Samples.all_of(self.read_new(Path(self.predict_on).expanduser()))
        else:
            self._read_splits()

    def _read_splits(self) -> None:
        if any(split in self.samples for split in SIDES):
            return
        samples = self.read()
        if "labeled" in samples:
            check_labels(samples["labeled"].labels, self.num_classes, self.class_names, "labeled set")
        for split in ("val", "test"):
            if split in samples and not samples[split].hide_labels:
                check_label_range(samples[split].labels, self.num_classes, f"{split} set")
        self.samples |= samples
        self.check_copies()
        self.augmentations = self.configure_augmentations()

    def state_dict(self) -> dict[str, Any]:
        """The run's seed, so that a resumed run continues the sampling order; classes, samples, preparation."""
        options = {name: self.hparams[name] for name in OPTIONS if name in self.hparams}
        about = {"seed": self.seed, "class_names": self.class_names, "samples": self.manifest_state()}
        return about | {"preprocessing": self.preparation, "measured": self.measured, "options": options}

    @property
    def preparation(self) -> dict[str, Any]:
        """How a file becomes an input of the model, plain values."""
        return (self.source.preparation if self.source is not None else {}) | self.preprocessing

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the seed, split and preprocessing of the run: every sample that it knows stays in its split.

        Other class names than those of the data, other preparation, and test samples that were trained on are errors.
        """
        self.seed = state_dict["seed"]
        known = state_dict.get("class_names")
        if known and self.class_names and tuple(map(normalized, known)) != tuple(map(normalized, self.class_names)):
            differ = sorted(set(known) ^ set(self.class_names)) or ["the same in another order"]
            raise SuperCMError(
                f"ckpt_path: the checkpoint has other classes than the data ({', '.join(differ[:10])}). Use its data."
            )
        outdated = self.restore_preparation(state_dict)
        self.keep_sides(Manifest.from_state(state_dict["samples"]))
        if outdated:
            self.read_again()

    def restore_preparation(self, state: Mapping[str, Any]) -> bool:
        """Takes what a checkpoint measured; says whether the samples that were read are outdated by that."""
        check_preparation(state["preprocessing"], self.preparation)
        own, self.measured = self.measured, dict(state["measured"])
        return own.keys() != self.measured.keys() or not all(own[k].equal(v) for k, v in self.measured.items())

    def read_again(self) -> None:
        """Reads what was read, after a checkpoint told how samples are prepared."""
        if any(split in self.samples for split in SIDES):
            for split in SIDES:
                self.samples.pop(split, None)
            self._read_splits()
        if self.predict_on in self.samples and self.predict_on not in SIDES:
            self.setup("predict")

    @property
    def num_unlabeled(self) -> int:
        """Number of unlabeled samples, once the data is read."""
        return len(self.samples.get("unlabeled", ()))

    @property
    def has_test(self) -> bool:
        """Whether there are test samples with labels, once the data is read."""
        return "test" in self.samples and len(self.samples["test"]) > 0 and not self.samples["test"].hide_labels

    def describe_sample(self, split: str, index: int) -> str:
        """File of a sample of a split (or of `predict`); its index where it has none."""
        samples = self.samples[self.predict_on if split == "predict" else split]
        return samples.store.describe(int(samples.index[index])) if samples.store.names is not None else str(index)

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All samples of a split, as evaluation sees them: normalized, without augmentation.

        Args:
            split: `labeled`, `unlabeled`, `val` or `test`; if it has no samples, that is an error.

        Returns:
            Inputs (n, *input_shape) float32, and labels (n,) int64, -1 where unknown; those of the unlabeled samples
            are always -1.
        """
        samples = self._split(split)
        x = np.empty((len(samples), *self.input_shape), np.float32)
        chunks = torch.arange(len(samples)).split(500)
        for position in progress(chunks, f"Reading {len(samples):,} samples", len(samples)):
            fetched = samples.fetch(position, torch.device("cpu"))
            x[position[0] : position[-1] + 1] = self.normalize(fetched).float().numpy()
        return x, (np.full(len(samples), -1) if split == "unlabeled" else samples.labels.numpy())

    @property
    def _batch_sizes(self) -> dict[str, int]:
        """Samples per step of each training loader that the method needs."""
        needs_labeled, views = self._needs
        sizes = {"labeled": self.labeled_batch_size} if needs_labeled else {}
        return sizes | ({"unlabeled": self.unlabeled_batch_size} if views else {})

    @property
    def num_steps(self) -> int:
        """Steps of one epoch of training; 0 where neither `steps_per_epoch` nor the data that was read tells."""
        world = self.trainer.world_size if self.trainer is not None else 1
        longest, size = list(self._batch_sizes.items())[-1]
        return self.steps_per_epoch or -(-len(self.samples.get(longest, ())) // (size * world))

    def train_dataloader(self) -> dict[str, DataLoader[Any]]:
        """A loader of labeled samples, unless the method labels samples itself, and one of its unlabeled views."""
        trainer, sizes = self.trainer, self._batch_sizes
        splits = {split: self._split(split) for split in sizes}
        self._find_consumers()
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        owners = (c for c in callbacks_of(trainer) if isinstance(c, SeedOwner)) if trainer is not None else iter(())
        if (owner := next(owners, None)) is not None:
            self.seed = owner.run_seed
        steps, seed = self.num_steps, self._seed
        balanced = self.hparams.get("balanced_batches")
        order_of = {
            split: partial(BalancedSampler, samples.labels)
            if balanced and split == "labeled"
            else partial(CyclingSampler, len(samples))
            for split, samples in splits.items()
        }
        return {
            split: TrainLoader(
                sampler=order_of[split](size, steps, seed, split, rank, world, lambda: self._step),
                batch_size=size,
                **loader_options(split, splits[split], self.num_workers),
            )
            for split, size in sizes.items()
        }

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The validation samples; for `fit` without such samples an empty list, which Lightning skips.

        With two domains a list: the source validation samples and the target training samples.
        """
        validating = self.trainer is not None and self.trainer.state.fn == TrainerFn.VALIDATING
        return self._eval_dataloaders("val", "unlabeled") if validating or len(self.samples.get("val", ())) else []

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The test samples. With two domains a list: these and the source validation samples, where there are such."""
        if self.samples and not self.has_test:
            raise SuperCMError(self.missing_messages["test"])
        return self._eval_dataloaders("test", "val")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The samples chosen by `predict_on`."""
        return self._eval_dataloader(self.predict_on)

    def _eval_dataloaders(self, split: str, other: str) -> DataLoader[Any] | list[DataLoader[Any]]:
        loader = self._eval_dataloader(split)
        if not self.is_domain_adaptation:
            return loader
        return [loader, self._eval_dataloader(other)] if len(self.samples.get(other, ())) else [loader]

    def _eval_dataloader(self, split: str) -> DataLoader[Any]:
        return eval_loader(split, self._split(split), self.eval_batch_size, self.num_workers, self.trainer)

    def _split(self, split: str) -> Samples:
        if not self.samples:
            raise RuntimeError('The data has not been read: call setup("fit") first.')
        if not len(self.samples.get(split, ())):
            raise SuperCMError(self.missing_messages[split])
        return self.samples[split]
