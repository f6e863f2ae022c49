"""Stores of samples: what is read by number, in memory or not."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supercm_lightning.data.sources.names import Keys, content_number, keys_of
from supercm_lightning.utils.options import SuperCMError


class Store(ABC):
    """Samples with their labels, read by number.

    Attributes:
        labels: Labels (N,) int64, -1 where unknown.
        names: File of each sample, or None.
        ids: Names that stay the same wherever the data lies, (N,), such as paths below its folder; None: `names`.
        marks: A number for the contents of each sample's file, (N,) int64, 0 where unknown; None: there are no files.
        needs_workers: Whether loaders should read the samples in worker processes.
    """

    labels: Tensor
    names: Sequence[str] | None = None
    ids: Sequence[str] | None = None
    marks: Keys | None = None
    needs_workers = False

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def fetch(self, index: Tensor, device: torch.device) -> Tensor:
        """Samples by number, (n,) int64, on a device; one that cannot be read is a `SuperCMError` that names it."""

    def load(self, index: Tensor) -> Tensor:
        """Samples that a loader's worker reads, where `needs_workers`; others are fetched on the device."""
        return self.fetch(index, torch.device("cpu"))

    def parts(self, index: Tensor) -> list[tuple["Store", Tensor]]:
        """The stores that these samples lie in, with the numbers of those samples there."""
        return [(self, index)]

    def describe(self, number: int) -> str:
        """File of a sample, or its number."""
        return self.names[number] if self.names is not None else str(number)

    @property
    def is_named(self) -> bool:
        """Whether samples are known by name rather than by their number among all."""
        return self.names is not None

    def content(self) -> int:
        """A number for all samples together, where they have no names; no label is read."""
        raise NotImplementedError

    @cached_property
    def keys(self) -> Keys:
        """What each sample is known by, (N,) int64: its name, of which no two may be the same, else its number."""
        names = self.ids if self.ids is not None else self.names
        if names is None:
            return np.int64(self.content()) + np.arange(len(self))
        keys = keys_of(names)
        _, first = np.unique(keys, return_index=True)
        if len(first) < len(keys):
            twice = names[int(np.setdiff1d(np.arange(len(keys)), first)[0])]
            raise SuperCMError(f"{twice}: two samples have this name. Each needs a name of its own: remove one.")
        return keys


@dataclass
class ArrayStore(Store):
    """Samples in one array, which moves to the training device if it fits.

    Attributes:
        data: uint8 images (N, C, H, W), or floats of any shape (N, …), used as they are.
    """

    data: Tensor
    labels: Tensor
    names: Sequence[str] | None = None
    ids: Sequence[str] | None = None
    marks: Keys | None = None
    _asked: torch.device | None = field(default=None, repr=False)

    def fetch(self, index: Tensor, device: torch.device) -> Tensor:
        """Gathers samples where the array is and brings them to the device."""
        # One question per device: its free memory changes with every step, and asking takes time.
        if device.type == "cuda" and device not in (self.data.device, self._asked):
            self._asked = device
            if self._fits(torch.cuda.mem_get_info(device)[0]):
                self.data = self.data.to(device)
        # torch does not wait for a copy to the host, which would be read before it is complete.
        return self.data[index.to(self.data.device, non_blocking=True)].to(device, non_blocking=device.type != "cpu")

    def content(self) -> int:
        """A number for the array."""
        return content_number(self.data)

    def _fits(self, free: int) -> bool:
        return self.data.nbytes <= free // 2

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: no device memory."""
        return vars(self) | {"data": self.data.cpu(), "_asked": None}


class ConcatStore(Store):
    """Several stores, one after the other; samples have one shape and type."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        self.labels = torch.cat([store.labels for store in stores])
        named = all(store.names is not None for store in stores)
        self.names = [name for store in stores for name in store.names or ()] if named else None
        marks = [np.zeros(len(store), np.int64) if store.marks is None else store.marks for store in stores]
        self.marks = np.concatenate(marks) if any(store.marks is not None for store in stores) else None
        self.needs_workers = any(store.needs_workers for store in stores)
        self._ends = torch.tensor([len(store) for store in stores]).cumsum(0)

    @cached_property
    def keys(self) -> Keys:
        """What each sample is known by, (N,) int64."""
        return np.concatenate([store.keys for store in self.stores])

    def parts(self, index: Tensor) -> list[tuple[Store, Tensor]]:
        """The stores that have some of the samples, with their numbers there."""
        of = torch.bucketize(index, self._ends, right=True)
        start = [0, *self._ends.tolist()]
        return [(store, index[of == k] - start[k]) for k, store in enumerate(self.stores) if bool((of == k).any())]

    def fetch(self, index: Tensor, device: torch.device) -> Tensor:
        """Fetches samples from each store and puts them in order."""
        index = index.cpu()
        return self._in_order(index, [store.fetch(numbers, device) for store, numbers in self.parts(index)])

    def load(self, index: Tensor) -> Tensor:
        """Reads samples in a worker."""
        return self._in_order(index, [store.load(numbers) for store, numbers in self.parts(index)])

    def _in_order(self, index: Tensor, fetched: list[Tensor]) -> Tensor:
        order = torch.bucketize(index, self._ends, right=True).argsort(stable=True).argsort()
        samples = torch.cat(fetched)
        return samples[order.to(samples.device, non_blocking=True)]


def join(stores: Sequence[Store]) -> Store:
    """Several stores as one; plain arrays become one array."""
    if len(stores) == 1:
        return stores[0]
    joined = ConcatStore(stores)
    arrays = [store.data for store in stores if type(store) is ArrayStore]
    if len(arrays) < len(stores):
        return joined
    named = all(store.ids is not None for store in stores)
    ids = [name for store in stores for name in store.ids or ()] if named else None
    return ArrayStore(torch.cat(arrays), joined.labels, joined.names, ids, joined.marks)


@dataclass
class Samples:
    """Some samples of a store.

    Attributes:
        store: Where they are.
        index: Their numbers in the store, (n,) int64.
        hide_labels: Whether their labels read -1.
    """

    store: Store
    index: Tensor
    hide_labels: bool = False
    _on_device: Tensor | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: no device memory."""
        return vars(self) | {"_on_device": None}

    @property
    def labels(self) -> Tensor:
        """Their labels, (n,) int64, -1 where unknown or hidden."""
        return self.labels_of(torch.arange(len(self)))

    def labels_of(self, position: Tensor) -> Tensor:
        """Labels of some of them, by position (n,) int64 on the host."""
        return torch.full_like(position, -1) if self.hide_labels else self.store.labels[self.index[position]]

    def fetch(self, position: Tensor, device: torch.device) -> Tensor:
        """Some of them, by position (n,) int64, as `Store.fetch` gives them."""
        index = self.index
        if position.device != index.device:  # those that a method chose: the host does not wait for them
            if self._on_device is None or self._on_device.device != position.device:
                self._on_device = index.to(position.device)
            index = self._on_device
        return self.store.fetch(index[position], device)

    @classmethod
    def all_of(cls, store: Store, hide_labels: bool = False) -> "Samples":
        """Every sample of a store."""
        return cls(store, torch.arange(len(store)), hide_labels)

    @classmethod
    def labeled_of(cls, store: Store) -> "Samples":
        """The samples of a store that have a label."""
        return cls(store, (store.labels >= 0).nonzero().flatten())
