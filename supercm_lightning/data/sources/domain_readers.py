"""What a source and a target are read from: registered digits, image files, or torch data sets."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from supercm_lightning.data.sources.domain_files import find_files
from supercm_lightning.data.sources.domains import DIGITS, Domain, DomainSet
from supercm_lightning.data.sources.images import BadImage
from supercm_lightning.data.sources.registered import DATASETS
from supercm_lightning.data.sources.stores import ArrayStore, DatasetStore, Store, file_stores
from supercm_lightning.utils.options import SuperCMError


@dataclass(frozen=True)
class DomainStores:
    """Where the rows of both domains are.

    Attributes:
        source: Labelled rows, those of several source domains one after the other.
        sizes: Number of rows of each source domain.
        target: Samples of the target.
        val: Further source rows for validation, or None.
        test: Further target rows for the test, or None.
    """

    source: Store
    sizes: list[int]
    target: Store
    val: Store | None = None
    test: Store | None = None


class DomainReader(ABC):
    """What is known of two domains before their rows are read.

    Attributes:
        num_classes: Number of classes.
        class_names: Their names, or None.
        sample_shape: (C, H, W) of a stored image.
        input_shape: (C, H, W) of what the model receives, at most as large.
        photographs: Whether the customs of photographs (crop, flip, ImageNet's mean) apply.
        shift: Default shift of the augmentation, in pixels.
    """

    num_classes: int
    class_names: tuple[str, ...] | None = None
    sample_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    photographs = False
    shift = 0

    @abstractmethod
    def read(self) -> DomainStores:
        """Reads the rows."""


class DigitReader(DomainReader):
    """Domains among the registered digits; the test set of the target is its own.

    Args:
        root: Folder of the data sets.
        source: The source domains.
        target: The target domain.
        image_size: Side of the images; None: the largest of the domains', at least 28.
    """

    shift = 2

    def __init__(self, root: Path, source: Sequence[Domain], target: Domain, image_size: int | None) -> None:
        self.root = root
        self.parts = [*((domain.name, "train") for domain in source), (target.name, "train"), (target.name, "test")]
        shapes = [DATASETS[name].input_shape for name, _ in self.parts]
        size = image_size or max(28, *(height for _, height, _ in shapes))
        self.sample_shape = self.input_shape = (max(channels for channels, _, _ in shapes), size, size)
        self.num_classes = DIGITS.num_classes or 0

    def download(self) -> None:
        """Fetches what is missing."""
        for name, part in self.parts:
            DATASETS[name].store(name, self.root, part, download=True)

    def read(self) -> DomainStores:
        """Reads the digits and brings them to one shape."""
        stores = [DATASETS[name].store(name, self.root, part, download=False) for name, part in self.parts]
        stores = [ArrayStore(_as_shape(store.data, self.sample_shape), store.labels) for store in stores]
        *sources, target, test = stores
        source = ArrayStore(torch.cat([s.data for s in sources]), torch.cat([s.labels for s in sources]))
        return DomainStores(source, [len(store) for store in sources], target, test=test)


class FileReader(DomainReader):
    """Domains of image files, found by `find_files`.

    Args:
        dataset: Name of the data set.
        spec: What is known of it.
        root: Where it is.
        source: The source domains.
        target: The target domain.
        image_size: Side of the images that the model receives; images are stored at 8/7 of it, as 256 is for 224.
        in_memory: As in `file_stores`.
        on_bad_image: Likewise.
    """

    photographs = True

    def __init__(
        self,
        dataset: str,
        spec: DomainSet,
        root: Path,
        source: Sequence[Domain],
        target: Domain,
        image_size: int,
        in_memory: bool | None,
        on_bad_image: BadImage,
    ) -> None:
        found = find_files(dataset, spec, root, source, target)
        self.num_classes, self.class_names = found.num_classes, found.class_names
        self.files = [found.files[domain.name] for domain in source], found.files[target.name]
        self.input_shape = (3, image_size, image_size)
        self.sample_shape = (3, image_size * 8 // 7, image_size * 8 // 7)
        self.in_memory = in_memory
        self.on_bad_image = on_bad_image

    def read(self) -> DomainStores:
        """Decodes the files, or checks them if workers are to decode them."""
        sources, target = self.files
        parts = {"source": [row for files in sources for row in files], "target": target}
        # Both sides are resized, whatever the aspect: so it is done wherever results on these sets were published.
        stores = file_stores(
            parts,
            self.sample_shape,
            self.sample_shape[1],
            self.in_memory,
            keep_aspect=False,
            on_bad_image=self.on_bad_image,
        )
        kept = set(stores["source"].names or ())
        sizes = [sum(str(file) in kept for file, _ in files) for files in sources]
        return DomainStores(stores["source"], sizes, stores["target"])


class DatasetReader(DomainReader):
    """Torch data sets.

    Args:
        sources: Source domains, of (image, label).
        target: The target; labels, if its items have any, are not read.
        val: Validation rows of the source, or None.
        test: Test rows of the target with labels, or None.
        num_classes: Number of classes; None: that of the first source's `classes`, else the largest label + 1.
        image_size: Side of the images that the model receives; None: as they are.
        in_memory: Whether to read all images at once.

    Raises:
        ValueError: If the items are no images or of different types.
    """

    def __init__(
        self,
        sources: Sequence[Dataset[Any]],
        target: Dataset[Any],
        val: Dataset[Any] | None,
        test: Dataset[Any] | None,
        num_classes: int | None,
        image_size: int | None,
        in_memory: bool | None,
    ) -> None:
        self.sources = [DatasetStore(data) for data in sources]
        self.others = {
            "target": DatasetStore(target, torch.full((len(target),), -1)),  # type: ignore[arg-type]
            **{part: DatasetStore(data) for part, data in (("val", val), ("test", test)) if data is not None},
        }
        names = getattr(sources[0], "classes", None)
        self.class_names = tuple(map(str, () if names is None else names)) or None
        largest = max(int(store.labels.max()) for store in self.sources)
        self.num_classes = num_classes or (len(self.class_names) if self.class_names else largest + 1)
        first = self.sources[0][0]
        self.sample_shape = self.input_shape = tuple(first.shape)
        if first.ndim != 3:
            raise SuperCMError(
                f"source: items of shape {self.sample_shape}, where images (C, H, W) were expected. Vectors go into "
                "FeatureDataModule."
            )
        if image_size is not None:
            self.input_shape = (first.shape[0], image_size, image_size)
        for part, store in self.others.items():
            # uint8 images are normalised and floats are not: together they would be two different inputs.
            if (found := store[0].dtype) != first.dtype:
                raise SuperCMError(f"{part}: images of type {found}, but those of the source are {first.dtype}.")
        self.in_memory = in_memory

    def read(self) -> DomainStores:
        """Joins the sources; reads all images if asked to."""
        labels = torch.cat([store.labels for store in self.sources])
        source = DatasetStore(ConcatDataset([store.dataset for store in self.sources]), labels)
        stores: dict[str, Any] = {"source": source, **self.others}
        if self.in_memory:
            stores = {part: store.in_memory(self.sample_shape) for part, store in stores.items()}
        return DomainStores(sizes=[len(store) for store in self.sources], **stores)


def _as_shape(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Brings uint8 images (n, C, H, W) to one size and number of channels."""
    if images.shape[2:] != torch.Size(shape[1:]):
        resized = F.interpolate(images.float(), tuple(shape[1:]), mode="bilinear", antialias=True)
        images = resized.round_().clamp_(0, 255).to(torch.uint8)
    return images.expand(-1, shape[0], -1, -1).contiguous()
