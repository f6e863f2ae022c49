"""Image files as a source: in memory where they fit, else decoded by workers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from supercm_lightning.data.sources.base import Defaults, Source
from supercm_lightning.data.sources.folder import images_under
from supercm_lightning.data.sources.images import BadImage, check_bad_image_policy, common_shape
from supercm_lightning.data.sources.stores import Store
from supercm_lightning.data.sources.worker_stores import FileStore
from supercm_lightning.utils.options import SuperCMError, check_range

MEMORY = 4 * 2**30
"""Bytes up to which a data set is held in memory unless the user decides."""

Files = Sequence[tuple[Path, int]]
"""Image files and their labels, -1 where unknown."""


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    Attributes:
        image_size: Images are brought to this square; None: they have one size.
        in_memory: Whether to read all images at once; None: if they take at most 4 GiB.
        on_bad_image: What to do about a file that cannot be read as an image: `error` or `skip`, which leaves it out,
            counts and lists it.
        keep_aspect: Resize the shorter side and cut out the center square, instead of resizing both sides.
    """

    image_size: int | None = None
    in_memory: bool | None = None
    on_bad_image: BadImage = "error"
    keep_aspect: bool = True

    def __post_init__(self) -> None:
        check_bad_image_policy(self.on_bad_image)
        check_range(1, image_size=self.image_size)


def file_stores(
    splits: Mapping[str, Files], shape: tuple[int, ...], reading: Reading, root: Path | None = None
) -> dict[str, Store]:
    """Stores of the image files of several splits, all in memory or all read by workers.

    Their samples are known by their paths below `root`.

    Raises:
        SuperCMError: If a file is no image or is not of this shape (C, H, W), or none of a split can be read.
    """
    in_memory = reading.in_memory
    if in_memory is None:
        in_memory = sum(map(len, splits.values())) * math.prod(shape) <= MEMORY
    stores: dict[str, Store] = {}
    skipped: list[str] = []
    for split, files in splits.items():
        labels = torch.tensor([label for _, label in files], dtype=torch.int64)
        store = FileStore([f for f, _ in files], labels, shape[0], reading.image_size, reading.keep_aspect, shape, root)
        if reading.on_bad_image == "skip":
            store, messages = store.readable()
            skipped += messages
            if files and not len(store):
                raise SuperCMError(f"{split}: none of its {len(files)} images can be read, {files[0][0]} among them.")
        if not in_memory:
            store.check()
        stores[split] = store.in_memory() if in_memory else store
    if skipped:
        total = sum(map(len, splits.values()))
        rank_zero_warn(f"{len(skipped)} of {total} images are left out:\n" + "\n".join(skipped))
    return stores


class FileSource(Source):
    """Image files with labels.

    Args:
        name: Name of the data set.
        splits: Files and labels of each split.
        class_names: Names of the classes, or None.
        num_classes: Number of classes; None: that of the names.
        reading: How to read the files.
        shape: Shape (C, H, W) to which all images are brought; None: that of `common_shape`.
        input_size: Side of what the model receives, if smaller.
        defaults: Values of options; None: those of photographs of a user.
        domains: Files of each domain in `train`, where it has several.
        root: Folder below which a file's path is the name of its sample.
        is_fixed: Whether these are the files of a published set.
    """

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Files],
        class_names: tuple[str, ...] | None,
        reading: Reading,
        num_classes: int | None = None,
        shape: tuple[int, ...] | None = None,
        input_size: int | None = None,
        defaults: Defaults | None = None,
        domains: Sequence[Files] = (),
        root: Path | None = None,
        is_fixed: bool = False,
    ) -> None:
        self.name, self.root, self.is_fixed = name, root, is_fixed
        self.splits = {split: files for split, files in splits.items() if files}
        self.class_names = class_names
        self.num_classes = len(class_names) if num_classes is None and class_names else num_classes
        self.reading = reading
        files = [file for files in self.splits.values() for file, _ in files]
        self.sample_shape = shape or common_shape(files, reading.image_size, reading.on_bad_image)
        self.input_size = input_size
        self.defaults = defaults or Defaults(flip=True, shift=min(self.sample_shape[1:]) // 8)
        self.domains = domains

    def read(self) -> dict[str, Store]:
        """Decodes the files, or checks them if workers are to decode them."""
        stores = file_stores(self.splits, self.sample_shape, self.reading, self.root)
        kept = set(stores["train"].names or ())
        self.train_sizes = [sum(str(file) in kept for file, _ in files) for files in self.domains]
        return stores

    @property
    def preparation(self) -> dict[str, Any]:
        """How new files are read."""
        return preparation_of(self.sample_shape, self.reading)

    def read_new(self, path: Path) -> Store:
        """Reads the images at any depth of a folder."""
        return new_images(path, self.sample_shape, self.reading)


def preparation_of(shape: Sequence[int], reading: Reading) -> dict[str, Any]:
    """What `new_images` does to the images of a folder, as plain values for a checkpoint."""
    return {"stored_shape": list(shape), "keep_aspect": reading.keep_aspect, "interpolation": "bilinear"}


def new_images(folder: Path, shape: tuple[int, ...], reading: Reading) -> Store:
    """Images at any depth of a folder, brought to the shape (C, H, W) of those that a model was trained on."""
    files = images_under(folder)
    if not files:
        raise SuperCMError(f"predict_on={folder}: {'no images in this folder' if folder.is_dir() else 'not a folder'}.")
    reading = replace(reading, image_size=shape[1] if shape[1] == shape[2] else None)
    if common_shape(files, reading.image_size, reading.on_bad_image)[0] > shape[0]:
        rank_zero_warn(f"predict_on={folder}: has images in color; they are read in gray, as those of the training.")
    return file_stores({"predict": [(file, -1) for file in files]}, shape, reading)["predict"]
