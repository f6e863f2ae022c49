"""The registry of image data sets, and the source that reads them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from supercm_lightning.data.sources.base import Defaults
from supercm_lightning.data.sources.files import ImageSource, Reading, file_stores
from supercm_lightning.data.sources.folder import Files, images_under
from supercm_lightning.data.sources.stores import ArrayStore, Store, join
from supercm_lightning.utils.options import MissingFileError

Content = tuple[Tensor, Tensor] | Files
"""uint8 images (N, C, H, W) with their labels (N,), -1 where unknown; or image files with their labels."""


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a data set before it is read.

    Sets that fit in memory are loaded as arrays; for others `load` gives files, which are brought to `input_shape`, and
    held in memory or decoded by workers as a user's own folder is. No file: the set has no such split.

    Examples:
        >>> def load(root, split, download):
        ...     return [(file, 0) for file in sorted((root / split).glob("*.jpg"))]
        >>> DATASETS["mine"] = DatasetSpec(2, (3, 64, 64), load, num_val=10, flip=True, shift=8, layout="train/*.jpg")
        >>> del DATASETS["mine"]

    Attributes:
        num_classes: Number of classes.
        input_shape: (C, H, W).
        load: Reads one split: (root, "train" | "test" | "unlabeled", download) to images and labels, or to files.
        num_val: Samples of the training set held out for validation by default.
        flip: Whether mirrored images keep their class.
        shift: Default shift of the weak augmentation, in pixels.
        layout: What is expected under the root folder, for the message when it is missing.
        noise: Default noise of the weak augmentation, in units of the normalized pixels.
        class_names: Names of the classes, or None for numbers.
        num_test: Samples held out of the training set where there is no test set of its own.
        has_unlabeled: Whether there is a further split without labels.
        of_files: Whether `load` gives files.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    load: Callable[[Path, str, bool], Content]
    num_val: int
    flip: bool
    shift: int
    layout: str
    noise: float = 0.0
    class_names: tuple[str, ...] | None = None
    num_test: int = 0
    has_unlabeled: bool = False
    of_files: bool = False

    def read(self, name: str, root: Path, split: str, download: bool = False) -> Any:
        """Reads one split; if files are not there, the error gives the layout and the download option."""
        try:
            return self.load(root, split, download)
        except (RuntimeError, OSError) as error:
            if download:
                raise
            fetch = "" if self.of_files else ", or fetch it with --data.download true (download=True in Python)"
            found = f"; {error}" if self.of_files else ""
            raise MissingFileError(
                f"{name}: not found under root={root} (expected {self.layout}{found}). Set root to the folder that "
                f"holds it{fetch}."
            ) from error


@cache
def _digits(root: Path, split: str, download: bool) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).mul(255 / 16).round().to(torch.uint8)
    return pixels.view(-1, 1, 8, 8), torch.from_numpy(labels).long()


def _from_torchvision(dataset: Any) -> tuple[Tensor, Tensor]:
    """Arrays of a torchvision data set: (N, H, W), (N, H, W, 3) or (N, 3, H, W)."""
    images = torch.as_tensor(dataset.data)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    return images.contiguous(), torch.as_tensor(np.asarray(labels), dtype=torch.int64)


def _torchvision(name: str, options: dict[str, dict[str, Any]], folder: str = "") -> Any:
    def load(root: Path, split: str, download: bool) -> tuple[Tensor, Tensor]:
        dataset = getattr(torchvision.datasets, name)(root / folder, download=download, **options[split])
        return _from_torchvision(dataset)

    return load


_TRAIN_TEST: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_SPLITS: dict[str, dict[str, Any]] = {name: {"split": name} for name in ("train", "test", "unlabeled")}

# Superclass of each of CIFAR-100's classes, in the order of its own coarse labels (aquatic mammals … vehicles 2).
CIFAR20_OF_CIFAR100 = (
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1),
    *(10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12),
    *(12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0),
    *(17, 8, 14, 13),
)
_cifar100 = _torchvision("CIFAR100", _TRAIN_TEST)


def _cifar20(root: Path, split: str, download: bool) -> tuple[Tensor, Tensor]:
    images, labels = _cifar100(root, split, download)
    return images, torch.tensor(CIFAR20_OF_CIFAR100)[labels]


_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR20_CLASSES = (
    *("aquatic mammals", "fish", "flowers", "food containers", "fruit and vegetables"),
    *("household electrical devices", "household furniture", "insects", "large carnivores"),
    *("large man-made outdoor things", "large natural outdoor scenes", "large omnivores and herbivores"),
    *("medium-sized mammals", "non-insect invertebrates", "people", "reptiles", "small mammals", "trees"),
    *("vehicles 1", "vehicles 2"),
)
_FASHION_CLASSES = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def _class_folders(class_names: tuple[str, ...]) -> Callable[[Path, str, bool], Files]:
    """Reads `<class>/*` or, where there is a folder `train`, `train/<class>/*` and `test/<class>/*`."""

    def load(root: Path, split: str, download: bool) -> Files:
        tree = root / split
        if not tree.is_dir():
            if split != "train":
                return []
            tree = root
        for name in class_names:
            if not (tree / name).is_dir():
                raise MissingFileError(f"there is no folder {tree / name}")
        return [(file, label) for label, name in enumerate(class_names) for file in images_under(tree / name)]

    return load


IMAGENET_SUBSETS: dict[str, tuple[str, ...]] = {
    "imagenet10": (
        *("n02056570", "n02085936", "n02128757", "n02690373", "n02692877"),
        *("n03095699", "n04254680", "n04285008", "n04467665", "n07747607"),
    ),
    "imagenet_dogs": (
        *("n02085936", "n02086646", "n02088238", "n02091467", "n02097130"),
        *("n02099601", "n02101388", "n02101556", "n02102177", "n02105056"),
        *("n02105412", "n02105855", "n02107142", "n02110958", "n02112137"),
    ),
}
"""Classes of two subsets of ILSVRC-2012's training images that the clustering literature uses (Chang et al., 2017)."""

DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec(10, (1, 8, 8), _digits, 150, False, 1, "nothing: scikit-learn has it built in", num_test=450),
    "mnist": DatasetSpec(
        10, (1, 28, 28), _torchvision("MNIST", _TRAIN_TEST), 5000, False, 2, "MNIST/raw/train-images-idx3-ubyte …"
    ),
    "fashion_mnist": DatasetSpec(
        *(10, (1, 28, 28), _torchvision("FashionMNIST", _TRAIN_TEST), 5000, True, 2),
        layout="FashionMNIST/raw/train-images-idx3-ubyte …",
        class_names=_FASHION_CLASSES,
    ),
    "usps": DatasetSpec(
        *(10, (1, 16, 16), _torchvision("USPS", _TRAIN_TEST, "USPS"), 1000, False, 1),
        layout="USPS/usps.bz2 and USPS/usps.t.bz2",
    ),
    "svhn": DatasetSpec(
        *(10, (3, 32, 32), _torchvision("SVHN", _SPLITS, "SVHN"), 7326, False, 2),
        layout="SVHN/train_32x32.mat and SVHN/test_32x32.mat",
    ),
    "cifar10": DatasetSpec(
        *(10, (3, 32, 32), _torchvision("CIFAR10", _TRAIN_TEST), 5000, True, 2),
        layout="cifar-10-batches-py/data_batch_1 …",
        noise=0.15,
        class_names=_CIFAR10_CLASSES,
    ),
    "cifar100": DatasetSpec(100, (3, 32, 32), _cifar100, 5000, True, 2, "cifar-100-python/train …", noise=0.15),
    "cifar20": DatasetSpec(
        20, (3, 32, 32), _cifar20, 5000, True, 2, "cifar-100-python/train …", 0.15, class_names=_CIFAR20_CLASSES
    ),
    "stl10": DatasetSpec(
        *(10, (3, 96, 96), _torchvision("STL10", _SPLITS), 500, True, 8),
        layout="stl10_binary/train_X.bin …",
        class_names=_STL10_CLASSES,
        has_unlabeled=True,
    ),
}
"""Registered image data sets by name, the numbers in the order of `DatasetSpec`."""

DATASETS |= {
    name: DatasetSpec(
        *(len(ids), (3, 96, 96), _class_folders(ids), 50 * len(ids), True, 12),
        layout="<class id>/*.JPEG, or train/<class id>/*.JPEG and test/<class id>/*.JPEG",
        class_names=ids,
        of_files=True,
    )
    for name, ids in IMAGENET_SUBSETS.items()
}


class RegisteredSource(ImageSource):
    """Registered data sets, alone or as domains of one task.

    `splits` has for each split the registered sets and their splits that make it up, in order; those of `train` are the
    domains. Images are brought to one shape, the largest of the sets' unless `image_size` is given.
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
        self.name, self.root, self.splits, self.reading = name, root, splits, reading
        specs = [DATASETS[dataset] for parts in splits.values() for dataset, _ in parts]
        spec, largest = specs[0], max(spec.input_shape[1] for spec in specs)
        size = image_size or (reading.image_size if spec.of_files else None) or largest
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
            files = {split: list(chain(*parts)) for split, parts in found.items() if any(parts)}
            reading = Reading(self.sample_shape[1], self.reading.in_memory, self.reading.on_bad_image)
            return file_stores(files, self.sample_shape, reading, self.root)
        self.train_sizes = [len(labels) for _, labels in found["train"]]
        return {
            split: join([ArrayStore(_as_shape(images, self.sample_shape), labels) for images, labels in parts])
            for split, parts in found.items()
        }


def _as_shape(images: Tensor, shape: Sequence[int]) -> Tensor:
    if images.shape[2:] != torch.Size(shape[1:]):
        resized = F.interpolate(images.float(), tuple(shape[1:]), mode="bilinear", antialias=True)
        images = resized.round_().clamp_(0, 255).to(torch.uint8)
    return images.expand(-1, shape[0], -1, -1).contiguous()
