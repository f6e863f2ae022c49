"""Image files as a source: in memory where they fit, else decoded by workers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from supercm_lightning.data.sources.base import Defaults, Source
from supercm_lightning.data.sources.folder import Files, images_under
from supercm_lightning.data.sources.images import BadImage, common_shape
from supercm_lightning.data.sources.stores import Store
from supercm_lightning.data.sources.worker_stores import FileStore
from supercm_lightning.utils.options import SuperCMError, check_choice, check_range

MEMORY = 4 * 2**30
"""Bytes up to which a data set is held in memory unless the user decides."""


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    Attributes:
        image_size: Images are brought to this square; None: they have one size.
        in_memory: Whether to read all images at once; None: if they take at most 4 GiB.
        on_bad_image: What to do about a file that cannot be read: `error`, or `skip`, which leaves it out and lists it.
        keep_aspect: Resize the shorter side and cut out the center square, instead of resizing both sides.
    """

    image_size: int | None = None
    in_memory: bool | None = None
    on_bad_image: BadImage = "error"
    keep_aspect: bool = True

    def __post_init__(self) -> None:
        check_choice(on_bad_image=(self.on_bad_image, get_args(BadImage)))
        check_range(1, image_size=self.image_size)


def file_stores(
    splits: Mapping[str, Files], shape: tuple[int, ...], reading: Reading, root: Path | None = None
) -> dict[str, Store]:
    """Stores of the image files of several splits, all in memory or all read by workers.

    Their samples are known by their paths below `root`. A file that is no image or not of this shape (C, H, W), or a
    split of which none can be read, is an error.
    """
    in_memory = reading.in_memory
    if in_memory is None:
        in_memory = sum(map(len, splits.values())) * math.prod(shape) <= MEMORY
    stores: dict[str, Store] = {}
    skipped: list[str] = []
    for split, files in splits.items():
        store = FileStore(files, shape[0], reading.image_size, reading.keep_aspect, shape, root)
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


class ImageSource(Source):
    """Images, read as `reading` says, to which a folder of further ones can be added for prediction."""

    reading: Reading

    @property
    def preparation(self) -> dict[str, Any]:
        """How new files are read, plain values for a checkpoint."""
        shape, aspect = list(self.sample_shape), self.reading.keep_aspect
        return {"stored_shape": shape, "keep_aspect": aspect, "interpolation": "bilinear"}

    def read_new(self, path: Path, preprocessing: Mapping[str, Any]) -> Store:
        """Reads the images at any depth of a folder, brought to the shape (C, H, W) of the stored ones."""
        files = images_under(path)
        if not files:
            raise SuperCMError(f"predict_on={path}: {'no images in this folder' if path.is_dir() else 'not a folder'}.")
        channels, height, width = self.sample_shape
        reading = replace(self.reading, image_size=height if height == width else None)
        if common_shape(files, reading.image_size, reading.on_bad_image)[0] > channels:
            rank_zero_warn(f"predict_on={path}: has images in color; they are read in gray, as those of the training.")
        return file_stores({"predict": [(file, -1) for file in files]}, self.sample_shape, reading)["predict"]


_OF_FOLDERS = Defaults(flip=True)


@dataclass(eq=False)
class FileSource(ImageSource):
    """Image files with labels.

    Without a `sample_shape` (C, H, W) it is that of `common_shape`, without a number of classes that of their names.
    `domains` has the files of each domain in `train`, where it has several.
    """

    name: str
    splits: Mapping[str, Files]
    reading: Reading
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None
    sample_shape: tuple[int, ...] = ()
    input_size: int | None = None
    defaults: Defaults = _OF_FOLDERS
    domains: Sequence[Files] = ()
    root: Path | None = None
    is_fixed: bool = False

    def __post_init__(self) -> None:
        self.splits = {split: files for split, files in self.splits.items() if files}
        if self.num_classes is None and self.class_names:
            self.num_classes = len(self.class_names)
        if not self.sample_shape:
            files = [file for files in self.splits.values() for file, _ in files]
            self.sample_shape = common_shape(files, self.reading.image_size, self.reading.on_bad_image)
        if self.defaults is _OF_FOLDERS:
            self.defaults = replace(self.defaults, shift=min(self.sample_shape[1:]) // 8)

    def read(self) -> dict[str, Store]:
        """Decodes the files, or checks them if workers are to decode them."""
        stores = file_stores(self.splits, self.sample_shape, self.reading, self.root)
        kept = set(stores["train"].names or ())
        self.train_sizes = [sum(str(file) in kept for file, _ in files) for files in self.domains]
        return stores
