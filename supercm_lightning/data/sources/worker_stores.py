"""Stores of samples that are read one by one: image files and torch data sets."""

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from supercm_lightning.data.sources import images
from supercm_lightning.data.sources.folder import Files
from supercm_lightning.data.sources.names import Keys, content_number, fingerprint, relative_names
from supercm_lightning.data.sources.stores import ArrayStore, Store
from supercm_lightning.utils.options import SuperCMError


def default_num_workers() -> int:
    """One process for each core that this one may use, at most four: torch warns of more than there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


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
        """One sample; if it cannot be read or has an unexpected shape, the error names it."""
        sample = self[number]
        self._check_shape(number, sample.shape)
        return sample

    def load(self, index: Tensor) -> Tensor:
        """Reads samples one after the other."""
        return torch.stack([self.read(number) for number in index.tolist()])

    def fetch(self, index: Tensor, device: torch.device) -> Tensor:
        """Reads samples side by side and brings them to the device."""
        with ThreadPoolExecutor(self.threads) as pool:
            return torch.stack(list(pool.map(self.read, index.tolist()))).to(device)

    def in_memory(self) -> ArrayStore:
        """Reads all samples, with a progress bar."""
        first = self.read(0)
        data = torch.empty((len(self), *first.shape), dtype=first.dtype)

        def fill(number: int) -> None:
            data[number] = self.read(number)

        self._each(fill, "Reading")
        return ArrayStore(data, self.labels, self.names, self.ids, self.marks)

    def _check_shape(self, number: int, found: Sequence[int]) -> None:
        if self.shape is not None and tuple(found) != self.shape:
            name = self.names[number] if self.names is not None else f"sample {number}"
            raise SuperCMError(f"{name}: shape {tuple(found)} where {self.shape} was expected. {self.remedy}")

    def _each(self, work: Callable[[int], None], what: str) -> None:
        """Does something with each sample, in threads, and marks the contents of its file."""

        def marked(number: int) -> None:
            if self.marks is not None and self.names is not None:
                self.marks[number] = fingerprint(self.names[number])
            work(number)

        for _ in images.in_threads(marked, range(len(self)), f"{what} {len(self):,} images", self.threads):
            pass


class FileStore(WorkerStore):
    """Image files with their labels, in 1 or 3 channels, resized as `pixels_of` says; a `shape` is expected of all.

    A file's path below `root` is its name; None: the whole path is.
    """

    remedy = "Set image_size to bring all images to one size."
    threads = None
    names: Sequence[str]
    ids: Sequence[str]
    marks: Keys

    def __init__(
        self,
        files: Files,
        channels: int,
        image_size: int | None,
        keep_aspect: bool = True,
        shape: tuple[int, ...] | None = None,
        root: Path | None = None,
    ) -> None:
        self.names = [str(file) for file, _ in files]
        self.ids = relative_names(self.names, root) if root is not None else self.names
        self.marks = np.zeros(len(self.names), np.int64)
        self.labels, self.shape = torch.tensor([label for _, label in files], dtype=torch.int64), shape
        self.channels, self.image_size, self.keep_aspect = channels, image_size, keep_aspect

    def __getitem__(self, number: int) -> Tensor:
        """Decodes one file to uint8 (C, H, W)."""
        return images.read_image(self.names[number], self.channels, self.image_size, self.keep_aspect)

    def readable(self) -> tuple["FileStore", list[str]]:
        """The store without the files that cannot be read, found by decoding all, and a message for each of those."""
        messages: dict[int, str] = {}

        def check(number: int) -> None:
            try:
                self[number]
            except images.UnreadableImage as error:
                messages[number] = str(error).removesuffix(images.REMEDY)

        self._each(check, "Checking")
        numbers = [number for number in range(len(self)) if number not in messages]
        kept = copy(self)
        kept.names, kept.ids = ([names[number] for number in numbers] for names in (self.names, self.ids))
        kept.labels, kept.marks = self.labels[numbers], self.marks[numbers]
        return kept, [messages[number] for number in sorted(messages)]

    def check(self) -> None:
        """Opens every file once, without decoding: one that is no image or has another size stops the run early."""

        def check(number: int) -> None:
            _, *size = images.image_shape(self.names[number], self.image_size)
            self._check_shape(number, (self.channels, *size))

        self._each(check, "Checking")


class DatasetStore(WorkerStore):
    """A torch data set of images or (image, label) pairs, as its author wrote it.

    Its images are PIL images, uint8 tensors (C, H, W), or floats, used as they are. Where no labels (N,) are given,
    they are those of its attribute `targets` or `labels`, else read item by item.
    """

    remedy = "Items of a data set must have one shape: give it a transform that resizes them."
    threads = 1  # a data set may hold an open file or draw random numbers

    def __init__(
        self, dataset: Dataset[Any], labels: Tensor | None = None, shape: tuple[int, ...] | None = None
    ) -> None:
        self.dataset, self.shape = dataset, shape
        count, name = len(cast(Sized, dataset)), type(dataset).__name__
        if not count:
            raise SuperCMError(f"{name}: the data set is empty.")
        found = labels if labels is not None else listed_labels(dataset)
        if found is None:
            numbers = images.progress(range(count), f"Reading {count:,} labels", count)
            found = [_label(self._item(number)) for number in numbers]
        self.labels = whole_numbers(found, name)
        own = _parts(self._item(0))[1:2] if labels is None else []
        if own and isinstance(own[0], int | Tensor) and not torch.equal(whole_numbers(own, name), self.labels[:1]):
            raise SuperCMError(f"{name}: lists the label {self.labels[0]} for its first item, which has {own[0]}.")
        if len(self.labels) != count:
            raise SuperCMError(f"{name}: {len(self.labels)} labels for {count} items.")

    def __getitem__(self, number: int) -> Tensor:
        """One sample as a tensor."""
        name, image = type(self.dataset).__name__, _parts(self._item(number))[0]
        if isinstance(image, Image.Image):
            return images.pixels_of(image, images.channels_of(image), None)
        try:
            image = torch.as_tensor(image)
        except (TypeError, ValueError) as error:
            raise SuperCMError(
                f"{name}: sample {number} is no image of Pillow and no array of numbers ({error})."
            ) from error
        if image.is_floating_point() and not image.isfinite().all():
            raise SuperCMError(f"{name}: sample {number} has a value that is NaN or infinite.")
        return image

    def _item(self, number: int) -> Any:
        try:
            return self.dataset[number]
        except IndexError as error:
            length = f"its length is {len(cast(Sized, self.dataset))}"
            raise SuperCMError(f"{type(self.dataset).__name__}: no sample {number}, but {length} ({error}).") from error

    def content(self) -> int:
        """A number for the data set: its type and length, and three of its items unless they are random."""
        if isinstance(self.dataset, TensorDataset):
            return content_number(self.dataset.tensors[0])
        count = len(self)
        with isolate_rng():
            items = [(self[number], self[number]) for number in sorted({0, count // 2, count - 1})]
        fixed = [content_number(one) for one, other in items if torch.equal(one, other)]
        return content_number(torch.tensor(fixed), type(self.dataset).__name__, count)


def _parts(item: Any) -> list[Any]:
    return list(item) if isinstance(item, tuple | list) else [item]


def listed_labels(dataset: Dataset[Any]) -> Any:
    """Labels that a data set lists as `targets` or `labels`, if they are those that its items carry; else None."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    listed = getattr(dataset, "targets", getattr(dataset, "labels", None))
    count = len(cast(Sized, dataset))
    return listed if listed is not None and len(listed) == count and not isinstance(listed[0], str) else None


def _label(item: Any) -> Any:
    if len(_parts(item)) < 2:
        raise SuperCMError("A labeled data set must yield (image, label) pairs.")
    return item[1]


def classes_of(labels: Tensor, name: str) -> int | None:
    """Number of classes of a training set by its labels (N,); None where all are unknown."""
    count = int(labels.max()) + 1
    if count > len(labels):
        raise SuperCMError(
            f"{name}: labels up to {count - 1:,} for {len(labels):,} samples. Number the classes from 0 on."
        )
    return count or None


def whole_numbers(labels: Any, name: str) -> Tensor:
    """Labels as (N,) int64; others than whole numbers from 0, or -1, are an error that names whose they are."""
    try:
        found = torch.as_tensor(labels)
        whole = found.long()
    except (TypeError, ValueError, RuntimeError) as error:
        raise SuperCMError(f"{name}: its labels are no numbers ({error}). Give whole numbers from 0 on.") from error
    if whole.ndim > 1 and whole.numel() != len(whole):
        raise SuperCMError(f"{name}: labels of shape {tuple(whole.shape[1:])}, where one number each was expected.")
    if not torch.equal(whole.to(found.dtype), found) or bool((whole < -1).any()):
        raise SuperCMError(f"{name}: labels must be whole numbers from 0, or -1 where unknown.")
    return whole.flatten()
