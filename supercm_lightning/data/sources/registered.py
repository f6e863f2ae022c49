"""The registry of image data sets."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from supercm_lightning.data.sources.stores import ArrayStore

Part = tuple[Tensor, Tensor]
"""uint8 images (N, C, H, W) and their labels (N,), -1 where unknown."""


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a data set before it is read.

    Attributes:
        num_classes: Number of classes.
        input_shape: (C, H, W).
        load: Reads one part: (root, "train" | "test" | "unlabeled", download) to images and labels.
        num_val: Samples of the training set held out for validation by default.
        flip: Whether mirrored images keep their class.
        shift: Default shift of the weak augmentation, in pixels.
        layout: What is expected under the root folder, for the message when it is missing.
        noise: Default noise of the weak augmentation, in units of the normalised pixels.
        class_names: Names of the classes, or None for numbers.
        num_test: Samples held out of the training set where there is no test set of its own.
        has_unlabeled: Whether there is a further part without labels.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    load: Callable[[Path, str, bool], Part]
    num_val: int
    flip: bool
    shift: int
    layout: str
    noise: float = 0.0
    class_names: tuple[str, ...] | None = None
    num_test: int = 0
    has_unlabeled: bool = False

    def store(self, name: str, root: Path, part: str, download: bool) -> ArrayStore:
        """Reads one part.

        Raises:
            FileNotFoundError: If the files are not there; the message gives the layout and the download flag.
        """
        try:
            images, labels = self.load(root, part, download)
        except (RuntimeError, OSError) as error:
            if download:
                raise
            raise FileNotFoundError(
                f"{name}: not found under root={root} (expected {self.layout}). "
                "Set root to the folder that holds it, or fetch it with --data.download true (download=True in Python)."
            ) from error
        return ArrayStore(images, labels)


def _digits(root: Path, part: str, download: bool) -> Part:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).mul(255 / 16).round().to(torch.uint8)
    return pixels.view(-1, 1, 8, 8), torch.from_numpy(labels).long()


def _from_torchvision(dataset: Any) -> Part:
    """Arrays of a torchvision data set: (N, H, W), (N, H, W, 3) or (N, 3, H, W)."""
    images = torch.as_tensor(dataset.data)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    return images.contiguous(), torch.as_tensor(np.asarray(labels), dtype=torch.int64)


def _torchvision(name: str, parts: dict[str, dict[str, Any]], folder: str = "") -> Callable[[Path, str, bool], Part]:
    def load(root: Path, part: str, download: bool) -> Part:
        return _from_torchvision(getattr(torchvision.datasets, name)(root / folder, download=download, **parts[part]))

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


def _cifar20(root: Path, part: str, download: bool) -> Part:
    images, labels = _cifar100(root, part, download)
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

DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec(
        num_classes=10,
        input_shape=(1, 8, 8),
        load=_digits,
        num_val=150,
        num_test=450,
        flip=False,
        shift=1,
        layout="nothing: scikit-learn has it built in",
    ),
    "mnist": DatasetSpec(
        num_classes=10,
        input_shape=(1, 28, 28),
        load=_torchvision("MNIST", _TRAIN_TEST),
        num_val=5000,
        flip=False,
        shift=2,
        layout="MNIST/raw/train-images-idx3-ubyte …",
    ),
    "fashion_mnist": DatasetSpec(
        num_classes=10,
        input_shape=(1, 28, 28),
        load=_torchvision("FashionMNIST", _TRAIN_TEST),
        num_val=5000,
        flip=True,
        shift=2,
        layout="FashionMNIST/raw/train-images-idx3-ubyte …",
        class_names=_FASHION_CLASSES,
    ),
    "usps": DatasetSpec(
        num_classes=10,
        input_shape=(1, 16, 16),
        load=_torchvision("USPS", _TRAIN_TEST, "USPS"),
        num_val=1000,
        flip=False,
        shift=1,
        layout="USPS/usps.bz2 and USPS/usps.t.bz2",
    ),
    "svhn": DatasetSpec(
        num_classes=10,
        input_shape=(3, 32, 32),
        load=_torchvision("SVHN", _SPLITS, "SVHN"),
        num_val=7326,
        flip=False,
        shift=2,
        layout="SVHN/train_32x32.mat and SVHN/test_32x32.mat",
    ),
    "cifar10": DatasetSpec(
        num_classes=10,
        input_shape=(3, 32, 32),
        load=_torchvision("CIFAR10", _TRAIN_TEST),
        num_val=5000,
        flip=True,
        shift=2,
        noise=0.15,
        layout="cifar-10-batches-py/data_batch_1 …",
        class_names=_CIFAR10_CLASSES,
    ),
    "cifar100": DatasetSpec(
        num_classes=100,
        input_shape=(3, 32, 32),
        load=_cifar100,
        num_val=5000,
        flip=True,
        shift=2,
        noise=0.15,
        layout="cifar-100-python/train …",
    ),
    "cifar20": DatasetSpec(
        num_classes=20,
        input_shape=(3, 32, 32),
        load=_cifar20,
        num_val=5000,
        flip=True,
        shift=2,
        noise=0.15,
        layout="cifar-100-python/train …",
        class_names=_CIFAR20_CLASSES,
    ),
    "stl10": DatasetSpec(
        num_classes=10,
        input_shape=(3, 96, 96),
        load=_torchvision("STL10", _SPLITS),
        num_val=500,
        flip=True,
        shift=8,
        layout="stl10_binary/train_X.bin …",
        class_names=_STL10_CLASSES,
        has_unlabeled=True,
    ),
}


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
