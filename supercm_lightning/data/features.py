"""Frozen features, labelled and not."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from supercm_lightning.data.augment import Normalization, WeakAugmentation
from supercm_lightning.data.base import ViewDataModule
from supercm_lightning.data.splits import make_split
from supercm_lightning.data.stores import ArrayStore, DatasetStore, Rows


class FeatureDataModule(ViewDataModule):
    """Feature vectors from files: a labelled, an unlabelled and a test set.

    A file is `.npz` or `.pt` with `features` (n, d) and, where known, `labels` (n,) int64 and `classes` (K,) names.
    Labels of the unlabelled file are never read. Without an unlabelled file, `num_labeled` rows of the labelled file keep
    their labels and the rest is unlabelled.

    Args:
        labeled: Labelled features: a file or, from Python, a torch data set of (features, label).
        unlabeled: Unlabelled features; None: the rows of `labeled` left by `num_labeled`.
        test: Test features with labels; None: `num_test` rows of `labeled`.
        val: Validation features with labels; None: `num_val` rows of `labeled`.
        num_labeled: Number of rows that keep their label, balanced over the classes; None: all.
        num_val: Number of validation rows taken from `labeled` when `val` is not given.
        num_test: Number of test rows taken from `labeled` when `test` is not given, the same for every `split_seed`.
        labeled_batch_size: Labelled rows per step and device.
        unlabeled_batch_size: Unlabelled rows per step and device.
        eval_batch_size: Rows per step of validation, test and prediction.
        steps_per_epoch: Steps per epoch; None: one pass over the unlabelled rows.
        split_seed: Seed of the split, apart from the run's own seed.
        standardize: Subtract the mean and divide by the standard deviation of the training rows, per feature.
        noise: Standard deviation of the noise in the weak view.
        predict_on: Rows that `predict` reads: `test`, `val`, `unlabeled` or `labeled`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file lacks features or labels, or the sets contradict each other.
    """

    def __init__(
        self,
        labeled: str | Path | Dataset[Any],
        unlabeled: str | Path | Dataset[Any] | None = None,
        test: str | Path | Dataset[Any] | None = None,
        val: str | Path | Dataset[Any] | None = None,
        num_labeled: int | None = None,
        num_val: int = 0,
        num_test: int = 0,
        labeled_batch_size: int = 50,
        unlabeled_batch_size: int = 50,
        eval_batch_size: int = 2000,
        steps_per_epoch: int | None = None,
        split_seed: int = 0,
        standardize: bool = False,
        noise: float = 0.0,
        predict_on: str = "test",
    ) -> None:
        super().__init__(labeled_batch_size, unlabeled_batch_size, eval_batch_size, steps_per_epoch, predict_on, 0)
        self.num_labeled = num_labeled
        self.num_val = num_val
        self.num_test = num_test
        self.split_seed = split_seed
        self.standardize = standardize
        self.noise = noise
        self._sources = {"unlabeled": unlabeled, "val": val, "test": test}
        self._train, names = _read("labeled", labeled, needs_labels=True)
        self.input_shape = tuple(self._train.data.shape[1:])
        self.class_names = names
        self.num_classes = len(names) if names else int(self._train.labels.max()) + 1
        if num_labeled is not None and num_labeled < self.num_classes:
            raise ValueError(
                f"num_labeled={num_labeled}: fewer labels than the {self.num_classes} classes; every class needs one."
            )

    def read(self) -> dict[str, Rows]:
        """Reads the other files and draws the split."""
        given = {
            part: _read(part, source, needs_labels=part != "unlabeled")[0]
            for part, source in self._sources.items()
            if source is not None
        }
        for part, store in given.items():
            if tuple(store.data.shape[1:]) != self.input_shape:
                raise ValueError(
                    f"{part}: features of shape {tuple(store.data.shape[1:])}, but labeled has {self.input_shape}."
                )
        train = self._train
        count = {part: 0 if part in given else getattr(self, f"num_{part}") for part in ("val", "test")}
        if sum(count.values()) + (self.num_labeled or self.num_classes) > len(train):
            raise ValueError(
                f"num_labeled={self.num_labeled}, num_val={count['val']} and num_test={count['test']} ask for more than "
                f"the {len(train):,} labelled rows. Lower one of them."
            )
        split = make_split(train.labels, "features", self.num_labeled, count["val"], count["test"], self.split_seed)
        if self.standardize:
            # Over all training rows, labels aside.
            rows = torch.cat([store.data for store in (train, given.get("unlabeled")) if store is not None])
            std, mean = torch.std_mean(rows, dim=0)
            for store in (train, *given.values()):
                store.data = (store.data - mean) / torch.where(std > 0, std, 1.0)
        rows = {part: Rows(train, index) for part, index in split.rows(labeled_in_unlabeled=False).items()}
        return rows | {part: Rows.all_of(store) for part, store in given.items()}

    def configure_augmentations(self) -> dict[str, Any]:
        """The weak view: noise, if any."""
        return {"weak": WeakAugmentation(Normalization(), noise=self.noise)}


def _read(part: str, source: str | Path | Dataset[Any], needs_labels: bool) -> tuple[ArrayStore, tuple[str, ...] | None]:
    """Features, labels (-1 where unknown or not needed) and class names of one file or data set."""
    if isinstance(source, Dataset):
        count = len(source)  # type: ignore[arg-type]
        dataset = DatasetStore(source, None if needs_labels else torch.full((count,), -1))
        data, labels, names = torch.stack([dataset[row] for row in range(count)]), dataset.labels, None
    else:
        path = Path(source).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"{part}={path}: no such file. Expected .npz or .pt with features (n, d) and labels (n,).")
        content = _load(path)
        if "features" not in content or (needs_labels and "labels" not in content):
            raise ValueError(
                f"{part}={path}: has {', '.join(sorted(content)) or 'nothing'}, needs features"
                f"{' and labels' if needs_labels else ''}."
            )
        data = torch.as_tensor(content["features"])
        labels = torch.as_tensor(content["labels"]).long() if needs_labels else torch.full((len(data),), -1)
        names = tuple(str(name) for name in content["classes"]) if "classes" in content else None
    data = data.float()
    if data.ndim != 2 or len(data) != len(labels) or not len(data):
        raise ValueError(
            f"{part}: features of shape {tuple(data.shape)} with {len(labels)} labels; expected (n, d) and n, n at least 1."
        )
    if not data.isfinite().all():
        row = int((~data.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"{part}: row {row} has a feature that is NaN or infinite.")
    return ArrayStore(data, labels), names


def _load(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    if path.suffix in (".pt", ".pth"):
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    raise ValueError(f"{path}: features are read from .npz or .pt files.")

