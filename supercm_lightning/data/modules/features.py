"""Frozen features, labelled and not."""

import zlib
from collections.abc import Sequence, Sized
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from supercm_lightning.data.modules.base import SPLITS, ViewDataModule
from supercm_lightning.data.sources.npz import load_npz
from supercm_lightning.data.sources.stores import ArrayStore, DatasetStore, Samples
from supercm_lightning.data.splits import check_labels, count_rows, domain_strata, make_split
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation
from supercm_lightning.utils.options import SuperCMError

FeatureSet = str | Path | Dataset[Any]
"""A file, or a torch data set of (features, label); from Python also arrays, (features, labels) or features alone."""


class FeatureDataModule(ViewDataModule):
    """Feature vectors from files: a labelled, an unlabelled and a test set, or a source and a target domain.

    A file is `.npz` or `.pt` with `features` (n, d) and, where known, `labels` (n,) int64, `classes` (K,) names and
    `files` (n,), the name of each row in predictions. Labels of the unlabelled file are never read. Without an
    unlabelled file, `num_labeled` rows of the labelled file keep their labels and the rest is unlabelled.

    With `source` and `target` in place of `labeled` and `unlabeled`, rows are those of two domains: a tenth of the
    source is held out for validation; the target is trained on without its labels and tested on with them; validation
    reads the target training rows in a second loader, with labels of -1, and testing the source validation rows.

    Args:
        labeled: Labelled features: a file or, from Python, a torch data set of (features, label) or a tuple of arrays
            (n, d) and (n,).
        unlabeled: Unlabelled features; None: the rows of `labeled` left by `num_labeled`.
        test: Test features with labels; None: `num_test` rows of `labeled`, or the rows of `target` that have labels.
        val: Validation features with labels; None: `num_val` rows of the labelled ones.
        root: Folder from which relative names of files count; a name without suffix is that of an `.npz` or `.pt` file.
        source: Features of the source domain, or of several, in place of `labeled`.
        target: Features of the target domain, in place of `unlabeled`.
        num_labeled: Number of rows that keep their label, balanced over the classes; None: all.
        num_val: Number of validation rows taken from the labelled ones when `val` is not given, or their share below 1;
            None: a tenth of the source, none of `labeled`.
        num_test: Number of test rows taken from `labeled` when `test` is not given, the same for every `split_seed`.
        labeled_batch_size: Labelled (source) rows per step and device.
        unlabeled_batch_size: Unlabelled (target) rows per step and device.
        eval_batch_size: Samples per step of validation, test and prediction.
        steps_per_epoch: Steps per epoch; None: one pass over the unlabelled rows.
        split_seed: Seed of the split, apart from the run's own seed.
        standardize: Subtract the mean and divide by the standard deviation, per feature: those of all training rows,
            labelled and not (`joint`), or of the training rows of each domain by itself (`domain`).
        noise: Standard deviation of the noise in the weak view.
        predict_on: Samples that `predict` reads: `test`, `val`, `unlabeled`, `labeled`, or a file of new features.
        oracle_labels: Give validation the labels of the target training rows, for scores that stand under `oracle/`;
            training never sees them.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file lacks features or labels, or the sets contradict each other.
    """

    def __init__(
        self,
        labeled: FeatureSet | None = None,
        unlabeled: FeatureSet | None = None,
        test: FeatureSet | None = None,
        val: FeatureSet | None = None,
        root: str | Path = ".",
        source: FeatureSet | list[str] | None = None,
        target: FeatureSet | None = None,
        num_labeled: int | None = None,
        num_val: int | float | None = None,
        num_test: int = 0,
        labeled_batch_size: int = 50,
        unlabeled_batch_size: int = 50,
        eval_batch_size: int = 2000,
        steps_per_epoch: int | None = None,
        split_seed: int = 0,
        standardize: Literal["joint", "domain"] | None = None,
        noise: float = 0.0,
        predict_on: str = "test",
        oracle_labels: bool = False,
    ) -> None:
        new = _located(predict_on, Path(root))
        predict_on = str(new) if isinstance(new, Path) and new.exists() and predict_on not in SPLITS else predict_on
        super().__init__(labeled_batch_size, unlabeled_batch_size, eval_batch_size, steps_per_epoch, predict_on, 0)
        if noise < 0:
            raise SuperCMError(f"noise={noise}: must not be negative.")
        if (labeled is None) == (source is None) or (source is None) != (target is None):
            raise SuperCMError("Give either labeled, with or without unlabeled, or both source and target.")
        if unlabeled is not None and target is not None:
            raise SuperCMError("unlabeled: the rows of target are the unlabelled ones; leave it out.")
        self.is_domain_adaptation = target is not None
        if standardize not in (None, "joint", "domain"):
            raise SuperCMError(f"standardize={standardize!r}: choose joint, domain or None.")
        if standardize == "domain" and not self.is_domain_adaptation:
            raise SuperCMError("standardize='domain' needs two domains: give source and target, or use 'joint'.")
        if oracle_labels and not self.is_domain_adaptation:
            raise SuperCMError("oracle_labels: only a target has labels that are kept from the run.")
        self.num_labeled = num_labeled
        self.num_val = (0.1 if self.is_domain_adaptation else 0) if num_val is None else num_val
        self.num_test = num_test
        self.split_seed = split_seed
        self.standardize = standardize
        self.noise = noise
        self.oracle_labels = oracle_labels
        part = "source" if self.is_domain_adaptation else "labeled"
        with_labels: Any = labeled if source is None else source
        several = isinstance(with_labels, list | tuple) and not _are_arrays(with_labels)
        with_labels = with_labels if several else [with_labels]
        first, *more = (_located(given, Path(root)) for given in with_labels)
        others = {"unlabeled": unlabeled, "target": target, "val": val, "test": test}
        self._given = {name: _located(given, Path(root)) for name, given in others.items() if given is not None}
        if self._given.get("target") in (first, *more):
            raise SuperCMError(f"source and target are the same, {target}.")
        store, self.class_names = read_features(part, first, labels="required")
        self.input_shape = tuple(store.data.shape[1:])
        stores = [store, *(self._read_like_first(part, other, labels="required") for other in more)]
        self._domain = torch.arange(len(stores)).repeat_interleave(torch.tensor([len(store) for store in stores]))
        if more:
            store = joined(stores)
        self._train = store
        self.num_classes = len(self.class_names) if self.class_names else int(store.labels.max()) + 1
        if self.num_classes < 2:
            raise SuperCMError(f"{part}: there must be at least two classes.")

    def read(self) -> dict[str, Samples]:
        """Reads the other files and draws the split."""
        labels: dict[str, _Labels] = {"unlabeled": "never", "target": "if known"}
        given = {
            part: self._read_like_first(part, source, labels.get(part, "required"))
            for part, source in self._given.items()
        }
        train = self._train
        known = train.labels[train.labels >= 0]
        check_labels(known, self.num_classes, self.class_names, "source" if self.is_domain_adaptation else "labeled")
        num_val = 0 if "val" in given else count_rows("val", self.num_val, len(known))
        num_test = 0 if {"test", "target"} & set(given) else self.num_test
        strata = domain_strata(train.labels, self._domain, self.num_classes)
        split = make_split(strata, "features", self.num_labeled, num_val, num_test, self.split_seed)
        rows = {part: Samples(train, index) for part, index in split.rows(labeled_in_unlabeled=False).items()}
        rows |= {part: Samples.all_of(store) for part, store in given.items() if part != "target"}
        if (target := given.get("target")) is not None:
            rows["unlabeled"] = Samples.all_of(target, hide_labels=not self.oracle_labels)
            if "test" not in given:
                rows["test"] = Samples(target, (target.labels >= 0).nonzero().flatten())
        if self.standardize == "joint":
            statistics = _statistics(torch.cat([_features(rows[part]) for part in ("labeled", "unlabeled")]))
            self.preprocessing = {"mean": statistics[1].tolist(), "std": statistics[0].tolist()}
            for store in (train, *given.values()):
                store.data = _standardized(store.data, statistics)
        elif self.standardize == "domain":
            self._standardize_domains(rows, given)
        return rows

    def _standardize_domains(self, rows: dict[str, Samples], given: dict[str, ArrayStore]) -> None:
        source, target = (_statistics(_features(rows[part])) for part in ("labeled", "unlabeled"))
        self.preprocessing = {"mean": target[1].tolist(), "std": target[0].tolist()}  # new rows are of the target
        for part, store in given.items():
            store.data = _standardized(store.data, source if part == "val" else target)
        labeled, features = rows["labeled"].index, self._train.data.clone()
        for number in range(int(self._domain.max()) + 1):
            mine = self._domain == number
            statistics = _statistics(self._train.data[labeled[mine[labeled]]])
            features[mine] = _standardized(self._train.data[mine], statistics)
        self._train.data = features

    def _read_like_first(self, part: str, source: Path | Dataset[Any], labels: "_Labels") -> ArrayStore:
        """Reads a set and compares it with the first labelled one."""
        store, names = read_features(part, source, labels)
        if tuple(store.data.shape[1:]) != self.input_shape:
            raise SuperCMError(
                f"{part}: features of shape {tuple(store.data.shape[1:])}, but labeled has {self.input_shape}."
            )
        if names and self.class_names and names != self.class_names and labels != "never":
            differ = sorted(set(names) ^ set(self.class_names)) or ["in another order"]
            raise SuperCMError(f"{part}: other classes than those of the labelled features ({', '.join(differ[:10])}).")
        return store

    def read_new(self, path: Path) -> ArrayStore:
        """Reads a file of features; with two domains they are taken for those of the target."""
        self._read_sets()  # which finds the mean and deviation
        return new_features(path, self.input_shape, self.preprocessing)

    def configure_augmentations(self) -> dict[str, Any]:
        """The weak view: noise, if any."""
        return {"weak": WeakAugmentation(Normalization(), noise=self.noise)}


def new_features(path: Path, shape: tuple[int, ...], preprocessing: dict[str, Any]) -> ArrayStore:
    """Features that are in none of the sets of a data module.

    Args:
        path: Their file.
        shape: Expected shape (d,) of a row.
        preprocessing: `mean` and `std` of each feature, or nothing.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or its rows have another shape.
    """
    store, _ = read_features("predict_on", path, labels="never")
    if tuple(store.data.shape[1:]) != shape:
        raise SuperCMError(
            f"predict_on={path}: features of shape {tuple(store.data.shape[1:])}, but the model was trained on {shape}."
        )
    if preprocessing:
        std, mean = (torch.tensor(preprocessing[name]) for name in ("std", "mean"))
        store.data = _standardized(store.data, (std, mean))
    return store


def _features(rows: Samples) -> Tensor:
    assert isinstance(rows.store, ArrayStore)
    return rows.store.data[rows.index]


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation, 1 where it is 0, and mean of each feature."""
    std, mean = torch.std_mean(features, dim=0, correction=0)
    return torch.where(std > 0, std, 1.0), mean


def _standardized(features: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
    std, mean = statistics
    return (features - mean) / std


def _are_arrays(given: Any) -> bool:
    arrays = given if isinstance(given, tuple) else (given,)
    return 0 < len(arrays) < 3 and all(isinstance(array, np.ndarray | Tensor) for array in arrays)


def _located(given: Any, root: Path) -> Path | Dataset[Any]:
    """The file that a name means; a data set of arrays."""
    if _are_arrays(given):
        features, *labels = map(torch.as_tensor, given if isinstance(given, tuple) else (given,))
        if any(len(one) != len(features) for one in labels):
            raise SuperCMError(f"features of shape {tuple(features.shape)} with {len(labels[0])} labels.")
        return TensorDataset(features, *labels)
    if not isinstance(given, str | Path):
        if not (hasattr(given, "__getitem__") and hasattr(given, "__len__")) or isinstance(given, tuple | dict):
            raise SuperCMError(
                f"{type(given).__name__} is no set of features. Give the name of a file, a torch data set of "
                "(features, label), a tuple of arrays (n, d) and (n,), or an array (n, d) where no labels are needed."
            )
        return given
    path = root.expanduser() / Path(given).expanduser()
    named = [path.with_name(path.name + suffix) for suffix in (".npz", ".pt")]
    return path if path.exists() else next((file for file in named if file.exists()), path)


_Labels = Literal["required", "if known", "never"]


def read_features(part: str, source: Path | Dataset[Any], labels: _Labels) -> tuple[ArrayStore, tuple[str, ...] | None]:
    """Features, labels (-1 where unknown or not to be read) and class names of one file or data set."""
    names = files = None
    if isinstance(source, Path):
        data, known, names, files = _load(part, source, labels)
    elif isinstance(source, TensorDataset):
        data, *more = source.tensors
        known = more[0] if more and labels != "never" else None
        if known is None and labels == "required":
            raise SuperCMError(f"{part}: features without labels; give (features, labels).")
    else:
        count = len(cast(Sized, source))
        dataset = DatasetStore(source, None if labels == "required" else torch.full((count,), -1))
        data, known = dataset.in_memory(tuple(dataset[0].shape)).data, dataset.labels
    data = data.float()
    numbers = _whole_numbers(part, known) if known is not None else torch.full((len(data),), -1)
    if data.ndim != 2 or len(data) != len(numbers) or not len(data):
        raise SuperCMError(
            f"{part}: features of shape {tuple(data.shape)} with {len(numbers)} labels; expected (n, d) and n, with n "
            "at least 1."
        )
    if not data.isfinite().all():
        row = int((~data.isfinite()).any(1).nonzero()[0])
        raise SuperCMError(f"{part}: row {row} has a feature that is NaN or infinite.")
    if files is not None and len(files) != len(data):
        raise SuperCMError(f"{part}: {len(files)} files for {len(data)} rows; each needs one, or leave files out.")
    return ArrayStore(data, numbers, files), names


def joined(stores: Sequence[ArrayStore]) -> ArrayStore:
    """The rows of several stores, one after the other; they keep the names of their files if all have such."""
    names = [name for store in stores for name in store.names or ()]
    rows = torch.cat([store.data for store in stores])
    return ArrayStore(rows, torch.cat([store.labels for store in stores]), names if len(names) == len(rows) else None)


def _whole_numbers(part: str, labels: Tensor) -> Tensor:
    whole = labels.long().flatten()
    if not torch.equal(whole.to(labels.dtype), labels.flatten()) or (len(whole) and int(whole.min()) < -1):
        raise SuperCMError(f"{part}: labels must be whole numbers from 0, or -1 where unknown.")
    return whole


def _load(
    part: str, path: Path, labels: _Labels
) -> tuple[Tensor, Tensor | None, tuple[str, ...] | None, list[str] | None]:
    """Features, labels, names of the classes and of the files of the rows."""
    if not path.exists():
        raise FileNotFoundError(
            f"{part}={path}: no such file. Expected .npz or .pt with features (n, d) and labels (n,)."
        )
    if path.suffix not in (".npz", ".pt", ".pth"):
        raise SuperCMError(f"{part}={path}: features are read from .npz or .pt files.")
    wanted = {"features", "classes", "files", *(["labels"] if labels != "never" else [])}
    optional = {"classes", "files", *(["labels"] if labels != "required" else [])}
    try:
        if path.suffix == ".npz":
            content, found = load_npz(path, wanted)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            content = saved if isinstance(saved, dict) else {}
            found = set(content)
    except (UnpicklingError, ValueError) as error:
        raise SuperCMError(f"{part}={path}: holds more than tensors, numbers, strings; save only these.") from error
    except (OSError, RuntimeError, EOFError, BadZipFile, zlib.error) as error:
        raise SuperCMError(f"{part}={path}: cannot be read; the file is truncated or damaged ({error}).") from error
    if missing := wanted - found - optional:
        raise SuperCMError(
            f"{part}={path}: has {', '.join(sorted(map(str, found))) or 'nothing by name'}, lacks "
            f"{' and '.join(sorted(missing))}."
        )
    names = tuple(str(name) for name in content["classes"]) if "classes" in found else None
    files = [str(file) for file in content["files"]] if "files" in found else None
    try:
        known = torch.as_tensor(content["labels"]) if "labels" in content and labels != "never" else None
        return torch.as_tensor(content["features"]), known, names, files
    except (TypeError, ValueError, RuntimeError) as error:
        raise SuperCMError(f"{part}={path}: features and labels must be arrays of numbers ({error}).") from error
