"""Registered data sets as a source, alone or as domains of one task."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from supercm_lightning.data.sources.base import Defaults, Source
from supercm_lightning.data.sources.files import Reading, file_stores, new_images, preparation_of
from supercm_lightning.data.sources.registered import DATASETS
from supercm_lightning.data.sources.stores import ArrayStore, Store, join


class RegisteredSource(Source):
    """Registered data sets, alone or as domains of one task.

    Args:
        name: Name of the task.
        root: Folder of the data.
        splits: For each split the registered sets and their splits that make it up, in order; those of `train` are the
            domains. Their images are brought to one shape.
        reading: How to read files.
        image_size: Side of the images; None: the largest of the sets'.
        defaults: Values of options; None: those of the set.

    """

    can_download = True
    is_fixed = True

    def __init__(
        self,
        name: str,
        root: Path,
        splits: Mapping[str, Sequence[tuple[str, str]]],
        reading: Reading,
        image_size: int | None = None,
        defaults: Defaults | None = None,
    ) -> None:
        self.name = name
        self.root = root
        self.splits = splits
        self.reading = reading
        specs = [DATASETS[dataset] for parts in splits.values() for dataset, _ in parts]
        spec = specs[0]
        largest = max(spec.input_shape[1] for spec in specs)
        size = image_size or largest
        self.sample_shape = (max(spec.input_shape[0] for spec in specs), size, size)
        self.num_classes, self.class_names = spec.num_classes, spec.class_names
        shift = spec.shift * size // largest
        self.defaults = defaults or Defaults(spec.flip, shift, spec.noise, spec.num_val, spec.num_test)

    def download(self) -> None:
        """Fetches what is missing."""
        for dataset, split in chain(*self.splits.values()):
            DATASETS[dataset].read(dataset, self.root, split, download=True)

    def read(self) -> dict[str, Store]:
        """Reads the sets and brings them to one shape."""
        found = {split: [DATASETS[d].read(d, self.root, p) for d, p in parts] for split, parts in self.splits.items()}
        if all(DATASETS[dataset].of_files for dataset, _ in chain(*self.splits.values())):
            files = {split: list(chain(*parts)) for split, parts in found.items()}
            reading = Reading(self.sample_shape[1], self.reading.in_memory, self.reading.on_bad_image)
            return file_stores({s: part for s, part in files.items() if part}, self.sample_shape, reading, self.root)
        self.train_sizes = [len(labels) for _, labels in found["train"]]
        return {
            split: join([ArrayStore(_as_shape(images, self.sample_shape), labels) for images, labels in parts])
            for split, parts in found.items()
        }

    @property
    def preparation(self) -> dict[str, Any]:
        """How new files are read."""
        return preparation_of(self.sample_shape, self.reading)

    def read_new(self, path: Path) -> Store:
        """Reads the images of a folder."""
        return new_images(path, self.sample_shape, self.reading)


def _as_shape(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Brings uint8 images (n, C, H, W) to one size and number of channels."""
    if images.shape[2:] != torch.Size(shape[1:]):
        resized = F.interpolate(images.float(), tuple(shape[1:]), mode="bilinear", antialias=True)
        images = resized.round_().clamp_(0, 255).to(torch.uint8)
    return images.expand(-1, shape[0], -1, -1).contiguous()
