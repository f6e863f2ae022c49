"""Frozen features, labelled and not."""

import zlib
from collections.abc import Sized
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from supercm_lightning.data.augment import Normalization, WeakAugmentation
from supercm_lightning.data.base import ViewDataModule
from supercm_lightning.data.splits import check_labels, make_split
from supercm_lightning.data.stores import ArrayStore, DatasetStore, Rows


class FeatureDataModule(ViewDataModule):
    """Feature vectors from files: a labelled, an unlabelled and a test set.

    A file is `.npz` or `.pt` with `features` (n, d) and, where known, `labels` (n,) int64 and `classes` (K,) names.
    Labels of the unlabelled file are never read. Without an unlabelled file, `num_labeled` rows of the labelled file
    keep their labels and the rest is unlabelled.

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
        standardize: Subtract the mean and divide by the standard deviation of the training rows, labelled and not, per
            feature.
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
        if noise < 0:
            raise ValueError(f"noise={noise}: must not be negative.")
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
        if self.num_classes < 2:
            raise ValueError("labeled: there must be at least two classes.")

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
        check_labels(train.labels[train.labels >= 0], self.num_classes, self.class_names, "labeled")
        num_val, num_test = (0 if part in given else getattr(self, f"num_{part}") for part in ("val", "test"))
        split = make_split(train.labels, "features", self.num_labeled, num_val, num_test, self.split_seed)
        rows = {part: Rows(train, index) for part, index in split.rows(labeled_in_unlabeled=False).items()}
        rows |= {part: Rows.all_of(store) for part, store in given.items()}
        if self.standardize:
            seen = torch.cat([_features(rows[part]) for part in ("labeled", "unlabeled")])
            std, mean = torch.std_mean(seen, dim=0, correction=0)
            for store in (train, *given.values()):
                store.data = (store.data - mean) / torch.where(std > 0, std, 1.0)
        return rows

    def configure_augmentations(self) -> dict[str, Any]:
        """The weak view: noise, if any."""
        return {"weak": WeakAugmentation(Normalization(), noise=self.noise)}


def _features(rows: Rows) -> Tensor:
    assert isinstance(rows.store, ArrayStore)
    return rows.store.data[rows.index]


def _read(
    part: str, source: str | Path | Dataset[Any], needs_labels: bool
) -> tuple[ArrayStore, tuple[str, ...] | None]:
    """Features, labels (-1 where unknown or not needed) and class names of one file or data set."""
    names = None
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        data, known, names = _load(part, path, needs_labels)
    else:
        count = len(cast(Sized, source))
        dataset = DatasetStore(source, None if needs_labels else torch.full((count,), -1))
        data, known = dataset.in_memory(tuple(dataset[0].shape)).data, dataset.labels
    data = data.float()
    labels = _whole_numbers(part, known) if known is not None else torch.full((len(data),), -1)
    if data.ndim != 2 or len(data) != len(labels) or not len(data):
        raise ValueError(
            f"{part}: features of shape {tuple(data.shape)} with {len(labels)} labels; expected (n, d) and n, with n "
            "at least 1."
        )
    if not data.isfinite().all():
        row = int((~data.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"{part}: row {row} has a feature that is NaN or infinite.")
    return ArrayStore(data, labels), names


def _whole_numbers(part: str, labels: Tensor) -> Tensor:
    whole = labels.long().flatten()
    if not torch.equal(whole.to(labels.dtype), labels.flatten()) or (len(whole) and int(whole.min()) < -1):
        raise ValueError(f"{part}: labels must be whole numbers from 0, or -1 where unknown.")
    return whole


def _load(part: str, path: Path, needs_labels: bool) -> tuple[Tensor, Tensor | None, tuple[str, ...] | None]:
    if not path.exists():
        raise FileNotFoundError(
            f"{part}={path}: no such file. Expected .npz or .pt with features (n, d) and labels (n,)."
        )
    if path.suffix not in (".npz", ".pt", ".pth"):
        raise ValueError(f"{part}={path}: features are read from .npz or .pt files.")
    wanted = {"features", "classes", *(["labels"] if needs_labels else [])}
    try:
        if path.suffix == ".npz":
            # numpy leaves a file that it opened itself open when it cannot read it.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                found = set(file.files)
                content = {name: file[name] for name in wanted & found}
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            content = saved if isinstance(saved, dict) else {}
            found = set(content)
    except (UnpicklingError, ValueError) as error:
        raise ValueError(f"{part}={path}: holds more than tensors, numbers, strings; save only these.") from error
    except (OSError, RuntimeError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{part}={path}: cannot be read; the file is truncated or damaged ({error}).") from error
    if missing := wanted - found - {"classes"}:
        raise ValueError(
            f"{part}={path}: has {', '.join(sorted(map(str, found))) or 'nothing by name'}, lacks "
            f"{' and '.join(sorted(missing))}."
        )
    names = tuple(str(name) for name in content["classes"]) if "classes" in found else None
    try:
        labels = torch.as_tensor(content["labels"]) if needs_labels else None
        return torch.as_tensor(content["features"]), labels, names
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{part}={path}: features and labels must be arrays of numbers ({error}).") from error
