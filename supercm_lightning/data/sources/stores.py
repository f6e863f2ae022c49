"""Stores of samples: arrays in memory or on the disk, image files, torch data sets."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from supercm_lightning.data.sources.images import (
    REMEDY,
    UnreadableImage,
    channels_of,
    image_shape,
    in_threads,
    pixels_of,
    progress,
    read_image,
)
from supercm_lightning.utils.options import SuperCMError


def default_num_workers() -> int:
    """One process for each core that this one may use, at most four: torch warns of more than there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


class Store(ABC):
    """Samples with their labels, read by number.

    Attributes:
        labels: Labels (N,) int64, -1 where unknown.
        names: File of each sample, or None.
        needs_workers: Whether loaders should read the samples in worker processes.
    """

    labels: Tensor
    names: Sequence[str] | None = None
    needs_workers = False

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def fetch(self, index: Tensor, device: torch.device) -> Tensor:
        """Samples by number.

        Args:
            index: Numbers of the samples, (n,) int64.
            device: Where to bring them.

        Returns:
            The samples, (n, …).

        Raises:
            SuperCMError: If one cannot be read; the message names it.
        """

    def load(self, index: Tensor) -> Tensor | None:
        """What a loader reads in its worker: the samples, or None where they are fetched later, on the device."""
        return None

    def parts(self, index: Tensor) -> list[tuple["Store", Tensor]]:
        """The stores that these samples lie in, with the numbers of those samples there."""
        return [(self, index)]

    def describe(self, number: int) -> str:
        """File of a sample, or its number."""
        return self.names[number] if self.names is not None else str(number)


@dataclass
class ArrayStore(Store):
    """Samples in one array, which moves to the training device if it fits.

    Examples:
        >>> store = ArrayStore(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10))
        >>> store.fetch(torch.tensor([3, 1]), torch.device("cpu")).shape
        torch.Size([2, 1, 8, 8])

    Attributes:
        data: uint8 images (N, C, H, W), or floats of any shape (N, …), used as they are.
        labels: Labels (N,) int64, -1 where unknown.
        names: File of each sample, or None.
    """

    data: Tensor
    labels: Tensor
    names: Sequence[str] | None = None
    _asked: torch.device | None = field(default=None, repr=False)

    def fetch(self, index: Tensor, device: torch.device) -> Tensor:
        """Gathers samples where the array is and brings them to the device."""
        # One question per device: its free memory changes with every step, and asking takes time.
        if device.type == "cuda" and device not in (self.data.device, self._asked):
            self._asked = device
            if self._fits(torch.cuda.mem_get_info(device)[0]):
                self.data = self.data.to(device)
        return self.data[index.to(self.data.device, non_blocking=True)].to(device, non_blocking=True)

    def _fits(self, free: int) -> bool:
        return self.data.nbytes <= free // 2

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: no device memory."""
        return vars(self) | {"data": self.data.cpu(), "_asked": None}


class WorkerStore(Store):
    """Samples that are read one by one.

    Attributes:
        shape: Expected shape of every sample, or None.
        remedy: What to do about samples of different shapes, for the message.
        threads: Threads that may read at a time; None: as many as the machine has use for.
    """

    needs_workers = True
    shape: tuple[int, ...] | None = None
    remedy: str
    threads: int | None

    @abstractmethod
    def __getitem__(self, number: int) -> Tensor:
        """One sample as a uint8 image (C, H, W) or a float tensor."""

    def read(self, number: int) -> Tensor:
        """One sample, checked for its shape.

        Raises:
            SuperCMError: If it cannot be read, or has another shape; the message names it.
        """
        sample = self[number]
        if self.shape is not None and tuple(sample.shape) != self.shape:
            raise self._wrong_shape(number, tuple(sample.shape))
        return sample

    def load(self, index: Tensor) -> Tensor:
        """Reads samples one after the other."""
        return torch.stack([self.read(number) for number in index.tolist()])

    def fetch(self, index: Tensor, device: torch.device) -> Tensor:
        """Reads samples side by side and brings them to the device."""
        with ThreadPoolExecutor(self.threads) as pool:
            return torch.stack(list(pool.map(self.read, index.tolist()))).to(device)

    def in_memory(self) -> ArrayStore:
        """Reads all samples, with a progress bar.

        Raises:
            SuperCMError: As `read`.
        """
        first = self.read(0)
        data = torch.empty((len(self), *first.shape), dtype=first.dtype)

        def fill(number: int) -> None:
            data[number] = self.read(number)

        self._each(fill, "Reading")
        return ArrayStore(data, self.labels, self.names)

    def _wrong_shape(self, number: int, found: tuple[int, ...]) -> SuperCMError:
        name = self.names[number] if self.names is not None else f"sample {number}"
        return SuperCMError(f"{name}: shape {found} where {self.shape} was expected. {self.remedy}")

    def _each(self, work: Callable[[int], None], what: str) -> None:
        for _ in in_threads(work, range(len(self)), f"{what} {len(self):,} images", self.threads):
            pass


class FileStore(WorkerStore):
    """Image files.

    Args:
        paths: The files.
        labels: Labels, (N,) int64, -1 where unknown.
        channels: 1 (gray) or 3 (RGB).
        image_size: Images are brought to this square; None keeps them as they are.
        keep_aspect: Resize the shorter side and cut out the center square, instead of resizing both sides.
        shape: Expected shape (C, H, W) of every image, or None.
    """

    remedy = "Set image_size to bring all images to one size."
    threads = None

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        channels: int,
        image_size: int | None,
        keep_aspect: bool = True,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.names: Sequence[str] = [str(path) for path in paths]
        self.labels = labels
        self.channels = channels
        self.image_size = image_size
        self.keep_aspect = keep_aspect
        self.shape = shape

    def __getitem__(self, number: int) -> Tensor:
        """Decodes one file to uint8 (C, H, W).

        Raises:
            UnreadableImage: If the file cannot be read as an image; the message names it.
        """
        return read_image(self.names[number], self.channels, self.image_size, self.keep_aspect)

    def readable(self) -> tuple["FileStore", list[str]]:
        """Decodes every file once, as a truncated one shows only then, and leaves out those that cannot be read.

        Returns:
            The store of the others, and a message for each that is left out.
        """
        messages: dict[int, str] = {}

        def check(number: int) -> None:
            try:
                self[number]
            except UnreadableImage as error:
                messages[number] = str(error).removesuffix(REMEDY)

        self._each(check, "Checking")
        numbers = [number for number in range(len(self)) if number not in messages]
        kept = copy(self)
        kept.names, kept.labels = [self.names[number] for number in numbers], self.labels[numbers]
        return kept, [messages[number] for number in sorted(messages)]

    def check(self) -> None:
        """Opens every file once, without decoding, so that a broken one stops the run before it starts.

        Raises:
            SuperCMError: If a file is no image, or its size is not that of `shape` and `image_size` is unset.
        """

        def check(number: int) -> None:
            found = image_shape(self.names[number], self.image_size)
            if self.shape is not None and found[1:] != self.shape[1:]:
                raise self._wrong_shape(number, (self.channels, *found[1:]))

        self._each(check, "Checking")


class DatasetStore(WorkerStore):
    """A torch data set of images or (image, label) pairs, as its author wrote it.

    Args:
        dataset: The data set; its items are PIL images, uint8 tensors (C, H, W), or float tensors, which are used as
            they are, alone or first in a tuple whose second entry is the label.
        labels: Its labels, (N,); None: those of its attribute `targets` or `labels`, else read item by item.
        shape: Expected shape of every sample, or None.

    Raises:
        SuperCMError: If the data set has no item, or no label for each.
    """

    remedy = "Items of a data set must have one shape: give it a transform that resizes them."
    threads = 1  # a data set may hold an open file or draw random numbers

    def __init__(
        self, dataset: Dataset[Any], labels: Tensor | None = None, shape: tuple[int, ...] | None = None
    ) -> None:
        self.dataset = dataset
        self.shape = shape
        count = len(cast(Sized, dataset))
        if not count:
            raise SuperCMError(f"{type(dataset).__name__}: the data set is empty.")
        found = labels if labels is not None else listed_labels(dataset)
        if found is None:
            found = [_label(dataset[number]) for number in progress(range(count), f"Reading {count:,} labels", count)]
        self.labels = torch.as_tensor(found, dtype=torch.int64).flatten()
        if len(self.labels) != count:
            raise SuperCMError(f"{type(dataset).__name__}: {len(self.labels)} labels for {count} items.")

    def __getitem__(self, number: int) -> Tensor:
        """One sample as a tensor."""
        item = self.dataset[number]
        image = item[0] if isinstance(item, (tuple, list)) else item
        return pixels_of(image, channels_of(image), None) if isinstance(image, Image.Image) else torch.as_tensor(image)


def listed_labels(dataset: Dataset[Any]) -> Any:
    """Labels that a data set lists as `targets` or `labels`, if they are those that its items carry; else None."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    listed = getattr(dataset, "targets", getattr(dataset, "labels", None))
    count = len(cast(Sized, dataset))
    return listed if listed is not None and len(listed) == count and not isinstance(listed[0], str) else None


def _label(item: Any) -> int:
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise SuperCMError("A labeled data set must yield (image, label) pairs.")
    return int(item[1])


class ConcatStore(Store):
    """Several stores, one after the other.

    Args:
        stores: The stores; samples have one shape and type.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        self.labels = torch.cat([store.labels for store in stores])
        named = all(store.names is not None for store in stores)
        self.names = [name for store in stores for name in store.names or ()] if named else None
        self.needs_workers = any(store.needs_workers for store in stores)
        self._ends = torch.tensor([len(store) for store in stores]).cumsum(0)

    def parts(self, index: Tensor) -> list[tuple[Store, Tensor]]:
        """The stores that have some of the samples, with their numbers there."""
        of = torch.bucketize(index, self._ends, right=True)
        start = [0, *self._ends.tolist()]
        return [(store, index[of == k] - start[k]) for k, store in enumerate(self.stores) if bool((of == k).any())]

    def fetch(self, index: Tensor, device: torch.device) -> Tensor:
        """Fetches samples from each store and puts them in order."""
        index = index.cpu()
        return self._in_order(index, [store.fetch(numbers, device) for store, numbers in self.parts(index)])

    def load(self, index: Tensor) -> Tensor | None:
        """Reads samples in a worker; None if all are in memory."""
        if not self.needs_workers:
            return None
        read = [(store, numbers, store.load(numbers)) for store, numbers in self.parts(index)]
        here = torch.device("cpu")
        return self._in_order(index, [s.fetch(n, here) if data is None else data for s, n, data in read])

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
    return ArrayStore(torch.cat(arrays), joined.labels, joined.names) if len(arrays) == len(stores) else joined


@dataclass
class Samples:
    """Some samples of a store.

    Examples:
        >>> store = ArrayStore(torch.zeros(10, 3), torch.arange(10))
        >>> Samples(store, torch.tensor([2, 5])).labels
        tensor([2, 5])

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
