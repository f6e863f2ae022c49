"""Frozen features as a source: files that are mapped from the disk, arrays, torch data sets of vectors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supercm_lightning.data.sources.base import Defaults, Source
from supercm_lightning.data.sources.feature_store import FeatureStore, Labels, located, read_features
from supercm_lightning.data.sources.stores import Store, join
from supercm_lightning.data.sources.worker_stores import classes_of
from supercm_lightning.utils.options import SuperCMError


class FeatureSource(Source):
    """Frozen features from files, arrays or torch data sets; those of `train` are its domains.

    `labels` says whether those of a split are read, `required` where nothing is said, and `options` what a split is
    called in messages. Relative names of files count from `root`; one without suffix is that of an `.npz` or `.pt`
    file.
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
        places = {
            split: [p.resolve() if isinstance(p, Path) else p for p in parts] for split, parts in self.splits.items()
        }
        for split in {*self.splits} - {"train"}:
            for part, place in zip(self.splits[split], places[split], strict=True):
                if place in places["train"]:
                    raise SuperCMError(f"{train} and {self.options.get(split, split)} are the same, {part}.")
        files = [place for place in places["train"] if isinstance(place, Path)]
        if len({*files}) < len(files):
            raise SuperCMError(f"{train}: a file is named twice; its samples would be trained on and held out.")
        first, self.class_names = self._open("train", self.splits["train"][0])
        self.sample_shape, self.origin = tuple(first.data.shape[1:]), first.origin
        known = [first.labels, *(self._like_first("train", part).labels for part in self.splits["train"][1:])]
        self.num_classes = len(self.class_names or ()) or classes_of(torch.cat(known), train)
        self.defaults = defaults or Defaults()

    def _open(self, split: str, part: Any) -> tuple[FeatureStore, tuple[str, ...] | None]:
        return read_features(self.options.get(split, split), part, self.labels.get(split, "required"))

    def _like_first(self, split: str, part: Any) -> FeatureStore:
        """Opens a set and compares it with the first of `train`; its classes are numbered as there, by name."""
        store, names = self._open(split, part)
        option, first = self.options.get(split, split), self.options.get("train", "train")
        self._check(option, store, f"{first} has")
        if names != self.class_names and self.labels.get(split) != "never" and bool((store.labels >= 0).any()):
            store.labels = _renumbered(store.labels, names, self.class_names, option, first)
        if split in ("val", "test"):
            store.weak = store.strong = None  # evaluation reads clean features
        return store

    def _check(self, option: str, store: FeatureStore, other: str) -> None:
        """Checks that features are of the shape and, as far as their file says, of the network of the others."""
        if (shape := tuple(store.data.shape[1:])) != self.sample_shape:
            raise SuperCMError(f"{option}: features of shape {shape}, but {other} {self.sample_shape}.")
        for name in store.origin.keys() & self.origin.keys():
            if (found := store.origin[name]) != self.origin[name]:
                raise SuperCMError(
                    f"{option}: features of {name} {found}, and {other} those of {name} {self.origin[name]}."
                )

    def read(self) -> dict[str, Store]:
        """Opens the files; their features are read when they are fetched."""
        found = {split: [self._like_first(split, part) for part in parts] for split, parts in self.splits.items()}
        self.train_sizes = [len(store) for store in found["train"]]
        for store in found.get("test", ()):
            for other in (*found["train"], *found.get("val", ())):
                _check_disjoint(store, other)
        self.views = _common_views(found["train"], found.get("unlabeled", found["train"]))
        return {split: join(parts) for split, parts in found.items()}

    @property
    def preparation(self) -> dict[str, Any]:
        """The network that gave the features, where their file says it."""
        return {"extractor": dict(self.origin)} if self.origin else {}

    def read_new(self, path: Path, preprocessing: Mapping[str, Any]) -> FeatureStore:
        """Opens a file of further features; `mean` and `std` of the preprocessing, if any, are taken out."""
        store, _ = read_features("predict_on", path, labels="never")
        self._check(f"predict_on={path}", store, "the model was trained on")
        store.weak = store.strong = None
        if "mean" in preprocessing:
            store.standardization = torch.tensor(preprocessing["mean"]), torch.tensor(preprocessing["std"])
        return store


def _common_views(labeled: Sequence[FeatureStore], unlabeled: Sequence[FeatureStore]) -> tuple[int, int]:
    """Numbers of weak and strong views of the training samples; labeled ones may have none."""
    views, given = unlabeled[0].num_views, labeled[0].num_views
    expected_of = [(store, views) for store in unlabeled] + [(s, views if any(given) else given) for s in labeled]
    for store, expected in expected_of:
        if store.num_views != expected:
            found, wanted = (" and ".join(map(str, numbers)) for numbers in (store.num_views, expected))
            raise SuperCMError(
                f"{store.option}: {found} weak and strong views, and others have {wanted}. Write all files with equal "
                "weak_views and strong_views."
            )
    return views


def _renumbered(
    labels: Tensor, names: tuple[str, ...] | None, expected: tuple[str, ...] | None, option: str, first: str
) -> Tensor:
    """Labels by the numbers that the classes have in the first file."""
    if names is None or expected is None:
        named, other = (option, first) if expected is None else (first, option)
        raise SuperCMError(f"{other}: has no names of classes, and {named} has; add classes (K,) to the file.")
    if differ := sorted(set(names) - set(expected)):
        raise SuperCMError(f"{option}: other classes than those of {first} ({', '.join(differ[:10])}).")
    numbers = torch.tensor([*(expected.index(name) for name in names), -1])  # -1 stays
    if int(labels.max()) >= len(names):
        raise SuperCMError(f"{option}: label {int(labels.max())}, and there are {len(names)} classes.")
    return numbers[labels]


def _check_disjoint(test: FeatureStore, other: FeatureStore) -> None:
    """Refuses samples of the test that are trained on or chosen by: those of one file name and one vector."""
    if test.names is None or other.names is None:
        return
    numbers = {name: number for number, name in enumerate(other.names)}
    both = [(number, numbers[name]) for number, name in enumerate(test.names) if name in numbers]
    same = [test.names[one] for one, two in both if other.labels[two] >= 0 and test.data[one].equal(other.data[two])]
    if same:
        names = ", ".join(same[:3])
        raise SuperCMError(f"{test.option}: {len(same)} samples are in {other.option} too ({names}); take them out.")
