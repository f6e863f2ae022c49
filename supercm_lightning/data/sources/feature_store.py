"""Frozen features from files and arrays, checked, read where they are, and standardized."""

import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from supercm_lightning.data.sources.files import MEMORY
from supercm_lightning.data.sources.npz import load_npz
from supercm_lightning.data.sources.stores import ArrayStore, Store
from supercm_lightning.data.sources.worker_stores import DatasetStore, whole_numbers
from supercm_lightning.utils.options import MissingFileError, SuperCMError

Statistics = tuple[Tensor, Tensor]
"""Mean and standard deviation of each feature, (d,) each; the deviation of a constant feature is 1."""


@dataclass
class FeatureStore(ArrayStore):
    """Features (N, d), checked and standardized when they are fetched: a mapped file is never read as a whole.

    Attributes:
        option: Option that gave them, for messages.
        standardization: Mean and deviation that are taken out, or None.
        weak: Features of weak views, (N, v, d), or None.
        strong: Features of strong views, (N, s, d), or None.
        origin: What is known of the network: `backbone`, `weights` and `image_size`.
    """

    option: str = "features"
    standardization: Statistics | None = None
    weak: Tensor | None = None
    strong: Tensor | None = None
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_views(self) -> tuple[int, int]:
        """Numbers of weak and of strong views."""
        weak, strong = (0 if views is None else views.shape[1] for views in (self.weak, self.strong))
        return weak, strong

    def fetch(self, index: Tensor, device: torch.device) -> Tensor:
        """Features (n, d) float32, standardized; one that is NaN or infinite is an error that names the sample.

        With views (n, 1 + v + s, d): the clean vector, the weak and the strong views.
        """
        features = self.raw(index, device)
        if sum(self.num_views):
            if self.data.device.type != "cpu":
                self.weak, self.strong = (v if v is None else v.to(self.data.device) for v in (self.weak, self.strong))
            there = index.to(self.data.device, non_blocking=True)
            views = [view[there].to(device).float() for view in (self.weak, self.strong) if view is not None]
            if self.data.device.type == "cpu":
                for view in views:
                    self._check(view, index)
            features = torch.cat([features.unsqueeze(1), *views], 1)
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
        size = self.data.nbytes * (1 + sum(self.num_views))
        if size > MEMORY or size > free // 2:
            return False
        for number in torch.arange(len(self)).split(100_000):
            self._check(self.data[number], number)
        return True

    def _check(self, features: Tensor, index: Tensor) -> None:
        if features.sum().isfinite():  # many times faster than to ask of each
            return
        finite = features.isfinite().flatten(1).all(1)
        if not finite.all():
            number = int(index[~finite.cpu()][0])
            name = f" ({self.names[number]})" if self.names is not None else ""
            raise SuperCMError(f"{self.option}: sample {number}{name} has a feature that is NaN or infinite.")


def statistics(parts: Iterable[tuple[Store, Tensor]], correction: int = 0) -> Statistics:
    """Mean and standard deviation of each feature of some samples, in double precision, a few thousand at a time."""
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


def standardize(store: Store, mean: Tensor, std: Tensor) -> None:
    """Sets what is taken out of features when they are fetched, in place of what was before."""
    for part, _ in store.parts(torch.arange(len(store))):
        cast(FeatureStore, part).standardization = mean, std


FeatureSet = str | Path | Dataset[Any]
"""A file, or a torch data set of (features, label), a `TensorDataset` also with views, (features, label, weak,
strong); from Python also arrays, (features, labels) or features alone."""

Labels = Literal["required", "if known", "never"]
"""Whether the labels of a set must be there, and whether they are read."""


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
        return TensorDataset(features.detach(), *labels)
    if not isinstance(given, str | Path):
        if not (hasattr(given, "__getitem__") and hasattr(given, "__len__")) or isinstance(given, tuple | dict):
            raise SuperCMError(
                f"{type(given).__name__} is no set of features; give a file, a torch data set, or arrays (n, d), (n,)."
            )
        return given
    try:
        path = root.expanduser() / Path(given).expanduser()
    except RuntimeError as error:
        raise SuperCMError(f"{given}: there is no such user ({error}).") from error
    named = [path.with_name(path.name + suffix) for suffix in (".npz", ".pt")]
    found = [path] if path.is_file() else [file for file in named if file.exists()] or [path]
    if len(found) > 1:
        raise SuperCMError(f"{found[0]} and {found[1]} are both there; give the name with its suffix.")
    return found[0]


def read_features(
    option: str, given: Path | Dataset[Any], labels: Labels
) -> tuple[FeatureStore, tuple[str, ...] | None]:
    """Features of one file or data set, labels (-1 where unknown or not to be read), class names."""
    names = files = None
    views: dict[str, Any] = {}
    if isinstance(given, Path):
        content = _load(option, given, labels)
        data, known = content["features"], content.get("labels")
        names, files = content.get("classes"), content.get("files")
        views = {name: content[name] for name in ("weak", "strong", "origin") if name in content}
    elif isinstance(given, TensorDataset):
        data, *more = given.tensors
        views = dict(zip(("weak", "strong"), more[1:], strict=False))
        known = more[0] if more and labels != "never" else None
        if known is None and labels == "required":
            raise SuperCMError(f"{option}: features without labels; give (features, labels).")
    else:
        hidden = None if labels == "required" else torch.full((len(cast(Sized, given)),), -1)
        dataset = DatasetStore(given, hidden)
        dataset.shape = tuple(dataset[0].shape)
        data, known = dataset.in_memory().data, dataset.labels
    data = data.detach()
    numbers = whole_numbers(known, option) if known is not None else torch.full((len(data),), -1)
    if data.ndim != 2 or len(data) != len(numbers) or not len(data):
        raise SuperCMError(
            f"{option}: features of shape {tuple(data.shape)} with {len(numbers)} labels; expected (n, d) and n > 0."
        )
    if files is not None and len(files) != len(data):
        raise SuperCMError(f"{option}: {len(files)} files for {len(data)} samples; each needs one, or leave files out.")
    for name in views.keys() - {"origin"}:
        if views[name].ndim != 3 or views[name].shape[::2] != data.shape:
            raise SuperCMError(f"{option}: {name} of shape {tuple(views[name].shape)}; expected (n, views, d).")
    return FeatureStore(data, numbers, files, option=option, **views), names


_NETWORK = ("backbone", "weights", "image_size")


def _load(option: str, path: Path, labels: Labels) -> dict[str, Any]:
    """What a file holds, as tensors and strings; features stay on the disk if they can."""
    if not path.exists():
        raise MissingFileError(f"{option}={path}: no such file. Expected .npz or .pt with features and labels.")
    if path.suffix not in (".npz", ".pt", ".pth"):
        raise SuperCMError(f"{option}={path}: features are read from .npz or .pt files.")
    required = {"features", *(["labels"] if labels == "required" else [])}
    arrays = {"features", "weak", "strong", *(["labels"] if labels != "never" else [])}
    wanted = arrays | {"classes", "files", *_NETWORK}
    try:
        if path.suffix == ".npz":
            content, found = load_npz(path, wanted)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            content = {name: saved[name] for name in saved if name in wanted} if isinstance(saved, dict) else {}
            found = set(saved) if isinstance(saved, dict) else set()
    except (UnpicklingError, ValueError) as error:
        raise SuperCMError(f"{option}={path}: holds more than tensors, numbers, strings; save only these.") from error
    except (OSError, RuntimeError, EOFError, BadZipFile, zlib.error, MemoryError, OverflowError) as error:
        raise SuperCMError(f"{option}={path}: cannot be read; the file is truncated or damaged ({error}).") from error
    if missing := required - found:
        has = ", ".join(sorted(map(str, found))) or "nothing by name"
        raise SuperCMError(f"{option}={path}: has {has}, lacks {' and '.join(sorted(missing))}.")
    try:
        tensors: dict[str, Any] = {name: torch.as_tensor(content[name]) for name in arrays & content.keys()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise SuperCMError(f"{option}={path}: features and labels must be arrays of numbers ({error}).") from error
    if odd := [
        name
        for name, one in tensors.items()
        if one.is_quantized or one.is_meta or one.is_complex() or one.layout != torch.strided
    ]:
        raise SuperCMError(
            f"{option}={path}: {odd[0]} must be a dense array of real numbers, of a type that NumPy has."
        )
    for name in {"classes", "files"} & content.keys():
        if np.ndim(content[name]) != 1:
            raise SuperCMError(f"{option}={path}: {name} must be a list of names.")
        tensors[name] = [unicodedata.normalize("NFC", str(value)) for value in content[name]]
    if "classes" in tensors:
        tensors["classes"] = tuple(tensors["classes"])
        if len({*tensors["classes"]}) < len(tensors["classes"]):
            raise SuperCMError(
                f"{option}={path}: two classes have one name ({', '.join(sorted(tensors['classes'])[:9])})."
            )
    return tensors | {"origin": {name: str(content[name]) for name in _NETWORK if name in content}}
