"""Frozen features as a source: files that are mapped from the disk, arrays, torch data sets of vectors."""

import zlib
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from supercm_lightning.data.sources.base import Defaults, Source
from supercm_lightning.data.sources.files import MEMORY
from supercm_lightning.data.sources.npz import load_npz
from supercm_lightning.data.sources.stores import ArrayStore, Store, join
from supercm_lightning.data.sources.worker_stores import DatasetStore
from supercm_lightning.utils.options import MissingFileError, SuperCMError

FeatureSet = str | Path | Dataset[Any]
"""A file, or a torch data set of (features, label); from Python also arrays, (features, labels) or features alone."""

Labels = Literal["required", "if known", "never"]
"""Whether the labels of a set must be there, and whether they are read."""

Statistics = tuple[Tensor, Tensor]
"""Mean and standard deviation of each feature, (d,) each; the deviation of a constant feature is 1."""


@dataclass
class FeatureStore(ArrayStore):
    """Features (N, d), checked and standardized when they are fetched: a mapped file is never read as a whole.

    Attributes:
        option: Option that gave them, for messages.
        standardization: Mean and deviation that are taken out, or None.
    """

    option: str = "features"
    standardization: Statistics | None = None

    def fetch(self, index: Tensor, device: torch.device) -> Tensor:
        """Features (n, d) float32, standardized; one that is NaN or infinite is an error that names the sample."""
        features = self.raw(index, device)
        if self.standardization is None:
            return features
        mean, std = (values.to(features.device, non_blocking=True) for values in self.standardization)
        return (features - mean) / std

    def raw(self, index: Tensor, device: torch.device) -> Tensor:
        """Features (n, d) float32, as they are in the file; raises as `fetch`."""
        features = super().fetch(index, device).float()
        # A device would have to be waited for at every step; what lies there was checked when it moved.
        if self.data.device.type == "cpu":
            self._check(features, index)
        return features

    def _fits(self, free: int) -> bool:
        # A large file that is mapped stays where it is.
        if self.data.nbytes > MEMORY or not super()._fits(free):
            return False
        for number in torch.arange(len(self)).split(100_000):
            self._check(self.data[number], number)
        return True

    def _check(self, features: Tensor, index: Tensor) -> None:
        finite = features.isfinite().all(1)
        if not finite.all():
            number = int(index[~finite.cpu()][0])
            name = f" ({self.names[number]})" if self.names is not None else ""
            raise SuperCMError(f"{self.option}: sample {number}{name} has a feature that is NaN or infinite.")


def statistics(parts: Iterable[tuple[Store, Tensor]], correction: int = 0) -> Statistics:
    """Mean and standard deviation of each feature, computed in double precision, some thousand samples at a time.

    Args:
        parts: Stores of features with the numbers of the samples that count.
        correction: Subtracted from the number of samples in the variance.

    """
    count, mean, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for store, index in parts:
        for numbers in index.split(8192):
            features = cast(FeatureStore, store).raw(numbers, torch.device("cpu")).double()
            center, n = features.mean(0), len(features)
            # Chan et al., 1983: how two sums of squares about their own means are joined.
            squares = squares + (features - center).square_().sum(0) + (center - mean) ** 2 * (count * n / (count + n))
            mean = mean + (center - mean) * (n / (count + n))
            count += n
    std = (squares / max(count - correction, 1)).sqrt()
    # What lies below the resolution of float32 is a constant feature.
    return mean.float(), torch.where(std > torch.finfo(torch.float32).eps * mean.abs(), std, 1.0).float()


def standardize_stores(parts: Iterable[tuple[Store, Tensor]], found: Statistics) -> None:
    """Sets what is taken out of the features of stores when they are fetched, in place of what was before."""
    for store, _ in parts:
        cast(FeatureStore, store).standardization = found


class FeatureSource(Source):
    """Frozen features from files, arrays or torch data sets.

    Args:
        splits: Sets of each split; those of `train` are its domains.
        labels: Whether labels of a split are read; `required` where nothing is said.
        options: Option that gives a split, for messages; the split's name where nothing is said.
        root: Folder from which relative names of files count; a name without suffix is that of an `.npz` or `.pt` file.
        defaults: Values of options.
    """

    name = "features"

    def __init__(
        self,
        splits: Mapping[str, Sequence[Any]],
        labels: Mapping[str, Labels] | None = None,
        options: Mapping[str, str] | None = None,
        root: Path = Path("."),
        defaults: Defaults | None = None,
    ) -> None:
        self.labels, self.options = labels or {}, options or {}
        self.splits = {split: [located(given, root) for given in parts] for split, parts in splits.items()}
        train = self.options.get("train", "train")
        if any(part in self.splits["train"] for part in self.splits.get("unlabeled", ())):
            (same,) = self.splits["unlabeled"]
            raise SuperCMError(f"{train} and {self.options.get('unlabeled', 'unlabeled')} are the same, {same}.")
        first, self.class_names = self._open("train", self.splits["train"][0])
        self.sample_shape = tuple(first.data.shape[1:])
        known = [first.labels, *(self._like_first("train", part).labels for part in self.splits["train"][1:])]
        self.num_classes = len(self.class_names or ()) or int(torch.cat(known).max()) + 1 or None
        self.defaults = defaults or Defaults()

    def _open(self, split: str, part: Any) -> tuple[FeatureStore, tuple[str, ...] | None]:
        return read_features(self.options.get(split, split), part, self.labels.get(split, "required"))

    def _like_first(self, split: str, part: Any) -> FeatureStore:
        """Opens a set and compares it with the first of `train`."""
        store, names = self._open(split, part)
        option, first = self.options.get(split, split), self.options.get("train", "train")
        if tuple(store.data.shape[1:]) != self.sample_shape:
            raise SuperCMError(
                f"{option}: features of shape {tuple(store.data.shape[1:])}, but {first} has {self.sample_shape}."
            )
        if names and self.class_names and names != self.class_names and self.labels.get(split) != "never":
            differ = sorted(set(names) ^ set(self.class_names)) or ["in another order"]
            raise SuperCMError(f"{option}: other classes than those of {first} ({', '.join(differ[:10])}).")
        return store

    def read(self) -> dict[str, Store]:
        """Opens the files; their features are read when they are fetched."""
        found = {split: [self._like_first(split, part) for part in parts] for split, parts in self.splits.items()}
        self.train_sizes = [len(store) for store in found["train"]]
        return {split: join(parts) for split, parts in found.items()}

    def read_new(self, path: Path, preprocessing: Mapping[str, Any] | None = None) -> FeatureStore:
        """Opens a file of further features; `mean` and `std` of the preprocessing, if any, are taken out."""
        store, _ = read_features("predict_on", path, labels="never")
        if tuple(store.data.shape[1:]) != self.sample_shape:
            raise SuperCMError(
                f"predict_on={path}: features of shape {tuple(store.data.shape[1:])}, but the model was trained on "
                f"{self.sample_shape}."
            )
        if preprocessing:
            store.standardization = torch.tensor(preprocessing["mean"]), torch.tensor(preprocessing["std"])
        return store


# ------------------------------------------------------------------------------------------------------- what is given
def are_arrays(given: Any) -> bool:
    """Whether features are given as an array, or a tuple of features and labels."""
    arrays = given if isinstance(given, tuple) else (given,)
    return 0 < len(arrays) < 3 and all(isinstance(array, np.ndarray | Tensor) for array in arrays)


def located(given: Any, root: Path) -> Path | Dataset[Any]:
    """The file that a name means; a data set of arrays."""
    if are_arrays(given):
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


# ------------------------------------------------------------------------------------------------------------ reading
def read_features(
    option: str, given: Path | Dataset[Any], labels: Labels
) -> tuple[FeatureStore, tuple[str, ...] | None]:
    """Features of one file or data set, labels (-1 where unknown or not to be read), class names."""
    names = files = None
    if isinstance(given, Path):
        data, known, names, files = _load(option, given, labels)
    elif isinstance(given, TensorDataset):
        data, *more = given.tensors
        known = more[0] if more and labels != "never" else None
        if known is None and labels == "required":
            raise SuperCMError(f"{option}: features without labels; give (features, labels).")
    else:
        hidden = None if labels == "required" else torch.full((len(cast(Sized, given)),), -1)
        dataset = DatasetStore(given, hidden)
        dataset.shape = tuple(dataset[0].shape)
        data, known = dataset.in_memory().data, dataset.labels
    numbers = _whole_numbers(option, known) if known is not None else torch.full((len(data),), -1)
    if data.ndim != 2 or len(data) != len(numbers) or not len(data):
        raise SuperCMError(
            f"{option}: features of shape {tuple(data.shape)} with {len(numbers)} labels; expected (n, d) and n, with "
            "n at least 1."
        )
    if files is not None and len(files) != len(data):
        raise SuperCMError(f"{option}: {len(files)} files for {len(data)} samples; each needs one, or leave files out.")
    return FeatureStore(data, numbers, files, option=option), names


def _whole_numbers(option: str, labels: Tensor) -> Tensor:
    whole = labels.long().flatten()
    if not torch.equal(whole.to(labels.dtype), labels.flatten()) or (len(whole) and int(whole.min()) < -1):
        raise SuperCMError(f"{option}: labels must be whole numbers from 0, or -1 where unknown.")
    return whole


def _load(
    option: str, path: Path, labels: Labels
) -> tuple[Tensor, Tensor | None, tuple[str, ...] | None, list[str] | None]:
    """Features, labels, names of the classes and files of the samples; features stay on the disk if they can."""
    if not path.exists():
        raise MissingFileError(
            f"{option}={path}: no such file. Expected .npz or .pt with features (n, d) and labels (n,)."
        )
    if path.suffix not in (".npz", ".pt", ".pth"):
        raise SuperCMError(f"{option}={path}: features are read from .npz or .pt files.")
    wanted = {"features", "classes", "files", *(["labels"] if labels != "never" else [])}
    optional = {"classes", "files", *(["labels"] if labels != "required" else [])}
    try:
        if path.suffix == ".npz":
            content, found = load_npz(path, wanted)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            content = saved if isinstance(saved, dict) else {}
            found = set(content)
    except (UnpicklingError, ValueError) as error:
        raise SuperCMError(f"{option}={path}: holds more than tensors, numbers, strings; save only these.") from error
    except (OSError, RuntimeError, EOFError, BadZipFile, zlib.error) as error:
        raise SuperCMError(f"{option}={path}: cannot be read; the file is truncated or damaged ({error}).") from error
    if missing := wanted - found - optional:
        raise SuperCMError(
            f"{option}={path}: has {', '.join(sorted(map(str, found))) or 'nothing by name'}, lacks "
            f"{' and '.join(sorted(missing))}."
        )
    names = tuple(str(name) for name in content["classes"]) if "classes" in found else None
    files = [str(file) for file in content["files"]] if "files" in found else None
    try:
        known = torch.as_tensor(content["labels"]) if "labels" in content and labels != "never" else None
        return torch.as_tensor(content["features"]), known, names, files
    except (TypeError, ValueError, RuntimeError) as error:
        raise SuperCMError(f"{option}={path}: features and labels must be arrays of numbers ({error}).") from error
