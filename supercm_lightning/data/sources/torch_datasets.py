"""Torch data sets as a source."""

from collections.abc import Mapping, Sequence, Sized
from typing import Any, cast

import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from supercm_lightning.data.sources.base import Source
from supercm_lightning.data.sources.names import normalized
from supercm_lightning.data.sources.stores import ArrayStore, Store, join
from supercm_lightning.data.sources.worker_stores import DatasetStore, classes_of, listed_labels, whole_numbers
from supercm_lightning.utils.options import SuperCMError


class TorchSource(Source):
    """Torch data sets of images, as their authors wrote them; those of `train`, one for each domain, have labels.

    Items are (image, label), or with `without_labels` images alone. Labels of `unlabeled` are never read. The number of
    classes is given, or that of an attribute `classes`, or the largest label + 1; only the last needs the labels before
    the data is read. `option` gave `train`, for messages; `image_size` is the model's, where images are larger.
    """

    def __init__(
        self,
        train: Sequence[Dataset[Any]],
        others: Mapping[str, Dataset[Any] | None],
        num_classes: int | None = None,
        in_memory: bool | None = None,
        without_labels: bool = False,
        option: str = "dataset",
        image_size: int | None = None,
    ) -> None:
        self.name, self.input_size = type(train[0]).__name__, image_size
        for split, dataset in {option: train[0], **others}.items():
            if isinstance(dataset, IterableDataset) or not (dataset is None or isinstance(dataset, Sized)):
                raise SuperCMError(
                    f"{split}: {type(dataset).__name__} gives its samples in turn; give it len() and []."
                )
            if split != option and any(dataset is one for one in train):
                raise SuperCMError(f"{split}: is the data set of {option} itself; leave it out, or give other samples.")
        self.in_memory, self.without_labels = in_memory, without_labels
        self.splits = {"train": list(train)}
        self.splits |= {split: [dataset] for split, dataset in others.items() if dataset is not None}
        self.class_names = _classes(train[0]) or None
        first = _item(train[0])
        self.sample_shape = tuple(first.shape)
        if len(self.sample_shape) != 3 and not without_labels:
            raise SuperCMError(
                f"{option}: items of shape {self.sample_shape}, not images (C, H, W). Use FeatureDataModule."
            )
        every = [(split, dataset) for split, datasets in self.splits.items() for dataset in datasets]
        for split, dataset in every:
            # uint8 images are normalized and floats are not: together they would be two different inputs.
            if (found := _item(dataset).dtype) != first.dtype:
                split = "target" if option == "source" and split == "unlabeled" else split
                raise SuperCMError(f"{split}: images of type {found}, but those of {option} are {first.dtype}.")
        for split, dataset in every:
            other, expected = (tuple(map(normalized, names or ())) for names in (_classes(dataset), self.class_names))
            if split != "unlabeled" and other and expected and other != expected:
                ours, theirs = (", ".join(names[:5]) for names in (other, expected))
                raise SuperCMError(f"{split}: its classes are {ours}, those of {option} {theirs}. Number both alike.")
        self._train = None if num_classes or self.class_names else self._stores("train")
        self.num_classes = num_classes or len(self.class_names or ()) or None
        if self._train is not None:
            self.num_classes = classes_of(torch.cat([store.labels for store in self._train]), option)

    def _stores(self, split: str) -> list[Store]:
        stores: list[Store] = []
        for dataset in self.splits[split]:
            hidden = split == "unlabeled" or (self.without_labels and not _has_label(dataset))
            labels = torch.full((len(cast(Sized, dataset)),), -1) if hidden else None
            if isinstance(dataset, TensorDataset):
                data, *known = dataset.tensors
                if data.is_floating_point() and not (finite := data.flatten(1).isfinite().all(1)).all():
                    raise SuperCMError(
                        f"{split}: sample {int(finite.int().argmin())} has a value that is NaN or infinite."
                    )
                stores.append(ArrayStore(data, whole_numbers(known[0], split) if labels is None else labels))
            else:
                stores.append(DatasetStore(dataset, labels, self.sample_shape))
        return stores

    def read(self) -> dict[str, Store]:
        """Reads the labels, and all items if asked to."""
        stores = {split: self._stores(split) for split in self.splits if split != "train" or self._train is None}
        stores["train"] = self._train or stores["train"]
        self.train_sizes = [len(store) for store in stores["train"]]
        if self.in_memory:
            stores = {
                split: [store.in_memory() if isinstance(store, DatasetStore) else store for store in found]
                for split, found in stores.items()
            }
        return {split: join(found) for split, found in stores.items()}


def _classes(dataset: Dataset[Any]) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None)
    return tuple(map(str, () if names is None else names))


def _item(dataset: Dataset[Any]) -> torch.Tensor:
    return DatasetStore(dataset, torch.zeros(len(cast(Sized, dataset))))[0]


def _has_label(dataset: Dataset[Any]) -> bool:
    item = dataset[0]
    return (isinstance(item, tuple | list) and len(item) > 1) or listed_labels(dataset) is not None
