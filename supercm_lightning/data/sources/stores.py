"""Where rows come from: arrays in memory, image files decoded by workers, or a torch data set."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from supercm_lightning.data.sources.images import (
    REMEDY,
    BadImage,
    UnreadableImage,
    channels_of,
    image_shape,
    pixels_of,
    read_image,
)
from supercm_lightning.utils.options import SuperCMError

_MEMORY = 4 * 2**30


def default_num_workers() -> int:
    """One process for each core that this one may use, at most four: torch warns of more than there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


@dataclass
class ArrayStore:
    """Samples that live in memory, and on the training device when they fit.

    Attributes:
        data: uint8 images (N, C, H, W), or float rows of any shape, used as they are.
        labels: Labels (N,) int64, -1 where unknown.
        names: File of each row, or None.
    """

    data: Tensor
    labels: Tensor
    names: Sequence[str] | None = None
    _asked: torch.device | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def place(self, device: torch.device) -> bool:
        """Moves the rows to `device` if they take at most half of its free memory, else leaves them where they are.

        Returns:
            Whether the rows are on `device`.
        """
        # One question per device: its free memory changes with every step, and asking takes time.
        if device.type == "cuda" and device not in (self.data.device, self._asked):
            self._asked = device
            free, _ = torch.cuda.mem_get_info(device)
            if self.data.nbytes <= free // 2:
                self.data = self.data.to(device)
        return self.data.device == device


class WorkerStore(ABC):
    """Samples that workers fetch one by one.

    Attributes:
        labels: Labels (N,) int64, -1 where unknown.
        names: File of each row, or None.
        remedy: What to do about rows of different shapes, for the message.
        threads: Threads that may fetch rows at a time; None: as many as the machine has use for.
    """

    labels: Tensor
    names: Sequence[str] | None = None
    remedy: str
    threads: int | None

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitem__(self, row: int) -> Tensor:
        """The row as a uint8 image (C, H, W) or a float tensor."""

    def of_shape(self, row: int, shape: tuple[int, ...]) -> Tensor:
        """A row, checked for its shape.

        Raises:
            ValueError: If the row cannot be read, or has another shape; the message names it.
        """
        value = self[row]
        if tuple(value.shape) != shape:
            raise self._wrong_shape(row, tuple(value.shape), shape)
        return value

    def read(self, rows: list[int], shape: tuple[int, ...]) -> Tensor:
        """Some rows, (n, *shape), fetched side by side.

        Raises:
            ValueError: As `of_shape`.
        """
        with ThreadPoolExecutor(self.threads) as pool:
            return torch.stack(list(pool.map(lambda row: self.of_shape(row, shape), rows)))

    def in_memory(self, shape: tuple[int, ...]) -> ArrayStore:
        """Fetches all rows, with a progress bar.

        Args:
            shape: Expected shape of every row.

        Raises:
            ValueError: As `of_shape`.
        """
        data = torch.empty((len(self), *shape), dtype=self[0].dtype)

        def fill(row: int) -> None:
            data[row] = self.of_shape(row, shape)

        self._each(fill, "Reading")
        return ArrayStore(data, self.labels, self.names)

    def _wrong_shape(self, row: int, found: tuple[int, ...], expected: tuple[int, ...]) -> ValueError:
        name = self.names[row] if self.names is not None else f"row {row}"
        return ValueError(f"{name}: shape {found} where {expected} was expected. {self.remedy}")

    def _each(self, work: Callable[[int], None], what: str) -> None:
        with ThreadPoolExecutor(self.threads) as pool:
            done = pool.map(work, range(len(self)))
            try:
                for _ in _track(done, f"{what} {len(self):,} images", len(self)):
                    pass
            finally:
                pool.shutdown(cancel_futures=True)


def _track(work: Any, what: str, total: int) -> Any:
    return track(work, what, total=total, disable=getattr(rank_zero_only, "rank", 0) != 0 or total < 1000)


class FileStore(WorkerStore):
    """Image files.

    Args:
        paths: The files.
        labels: Labels, (N,) int64, -1 where unknown.
        channels: 1 (grey) or 3 (RGB).
        image_size: Images are brought to this square; None keeps them as they are.
        keep_aspect: Resize the shorter side and cut out the centre square, instead of resizing both sides.
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
    ) -> None:
        self.names: Sequence[str] = [str(path) for path in paths]
        self.labels = labels
        self.channels = channels
        self.image_size = image_size
        self.keep_aspect = keep_aspect

    def __getitem__(self, row: int) -> Tensor:
        """Decodes one file to uint8 (C, H, W).

        Raises:
            UnreadableImage: If the file cannot be read as an image; the message names it.
        """
        return read_image(self.names[row], self.channels, self.image_size, self.keep_aspect)

    def readable(self) -> tuple["FileStore", list[str]]:
        """Decodes every file once, as a truncated one shows only then, and leaves out those that cannot be read.

        Returns:
            The store of the others, and a message for each that is left out.
        """
        messages: dict[int, str] = {}

        def check(row: int) -> None:
            try:
                self[row]
            except UnreadableImage as error:
                messages[row] = str(error).removesuffix(REMEDY)

        self._each(check, "Checking")
        rows = [row for row in range(len(self)) if row not in messages]
        kept = copy(self)
        kept.names, kept.labels = [self.names[row] for row in rows], self.labels[rows]
        return kept, [messages[row] for row in sorted(messages)]

    def checked(self, shape: tuple[int, ...]) -> "FileStore":
        """Opens every file once, without decoding, so that a broken one stops the run before it starts.

        Raises:
            ValueError: If a file is no image, or its size is not that of `shape` and `image_size` is unset.
        """

        def check(row: int) -> None:
            found = image_shape(self.names[row], self.image_size)
            if found[1:] != shape[1:]:
                raise self._wrong_shape(row, (self.channels, *found[1:]), shape)

        self._each(check, "Checking")
        return self


def file_stores(
    parts: Mapping[str, Sequence[tuple[Path, int]]],
    shape: tuple[int, ...],
    image_size: int | None,
    in_memory: bool | None,
    keep_aspect: bool = True,
    on_bad_image: BadImage = "error",
) -> dict[str, "Store"]:
    """Stores of the image files of several parts, in memory together or read by workers together.

    Args:
        parts: Files and labels of each part.
        shape: Shape (C, H, W) of every image.
        image_size: As in `FileStore`.
        in_memory: Whether to read all images now; None: if they take at most 4 GiB.
        keep_aspect: As in `FileStore`.
        on_bad_image: What to do about a file that cannot be read as an image: `error` or `skip`, which leaves it out,
            counts and lists it.

    Raises:
        ValueError: If a file is no image or has another shape, or none of a part can be read.
    """
    size = sum(map(len, parts.values())) * math.prod(shape)
    in_memory = size <= _MEMORY if in_memory is None else in_memory
    stores: dict[str, Store] = {}
    skipped: list[str] = []
    for part, files in parts.items():
        labels = torch.tensor([label for _, label in files], dtype=torch.int64)
        store = FileStore([file for file, _ in files], labels, shape[0], image_size, keep_aspect)
        if on_bad_image == "skip":
            store, messages = store.readable()
            skipped += messages
            if files and not len(store):
                raise SuperCMError(f"{part}: none of its {len(files)} images can be read, {files[0][0]} among them.")
        stores[part] = store.in_memory(shape) if in_memory else store.checked(shape)
    if skipped:
        total = sum(map(len, parts.values()))
        rank_zero_warn(f"{len(skipped)} of {total} images are left out:\n" + "\n".join(skipped))
    return stores


class DatasetStore(WorkerStore):
    """A torch data set of images or (image, label) pairs, as its author wrote it.

    Args:
        dataset: The data set; its items are PIL images, uint8 tensors (C, H, W), or float tensors, which are used as
            they are, alone or first in a tuple whose second entry is the label.
        labels: Its labels, (N,); None: those of its attribute `targets` or `labels`, else read item by item.

    Raises:
        ValueError: If the data set has no item, or no label for each.
    """

    remedy = "Items of a data set must have one shape: give it a transform that resizes them."
    threads = 1  # a data set may hold an open file or draw random numbers

    def __init__(self, dataset: Dataset[Any], labels: Tensor | None = None) -> None:
        self.dataset = dataset
        count = len(cast(Sized, dataset))
        if not count:
            raise SuperCMError(f"{type(dataset).__name__}: the data set is empty.")
        known = labels if labels is not None else self._listed(count)
        if known is None:
            known = [_label(dataset[row]) for row in _track(range(count), f"Reading {count:,} labels", count)]
        self.labels = torch.as_tensor(known, dtype=torch.int64).flatten()
        if len(self.labels) != count:
            raise SuperCMError(f"{type(dataset).__name__}: {len(self.labels)} labels for {count} items.")

    def _listed(self, count: int) -> Any:
        """Labels that the data set lists, if they are those that its items carry."""
        if getattr(self.dataset, "target_transform", None) is not None:
            return None
        known = getattr(self.dataset, "targets", getattr(self.dataset, "labels", None))
        return known if known is not None and len(known) == count and not isinstance(known[0], str) else None

    def __getitem__(self, row: int) -> Tensor:
        """One row as a tensor."""
        item = self.dataset[row]
        image = item[0] if isinstance(item, (tuple, list)) else item
        return pixels_of(image, channels_of(image), None) if isinstance(image, Image.Image) else torch.as_tensor(image)


def _label(item: Any) -> int:
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise SuperCMError("A labelled data set must yield (image, label) pairs.")
    return int(item[1])


Store = ArrayStore | WorkerStore


@dataclass
class Samples:
    """Some rows of a store.

    Attributes:
        store: Where they are.
        index: Their row numbers in the store, (n,) int64.
        hide_labels: Whether their labels read -1.
    """

    store: Store
    index: Tensor
    hide_labels: bool = False
    _on: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> Tensor:
        """Their labels, (n,) int64, -1 where unknown or hidden."""
        return torch.full_like(self.index, -1) if self.hide_labels else self.store.labels[self.index]

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row numbers and labels on a device, copied there once."""
        if device not in self._on:
            self._on[device] = (self.index.to(device), self.labels.to(device))
        return self._on[device]

    @classmethod
    def all_of(cls, store: Store, hide_labels: bool = False) -> "Samples":
        """Every row of a store."""
        return cls(store, torch.arange(len(store)), hide_labels)
