"""The registry of image data sets and the layouts of a user's own folder."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from supercm_lightning.data.stores import IMAGE_SUFFIXES, ArrayStore, BadImage, Store, file_stores, sampled_shapes

Part = tuple[Tensor, Tensor]
"""uint8 images (N, C, H, W) and their labels (N,), -1 where unknown."""


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a data set before it is read.

    Attributes:
        num_classes: Number of classes.
        input_shape: (C, H, W).
        load: Reads one part: (root, "train" | "test" | "unlabeled", download) to images and labels.
        num_val: Rows of the training set held out for validation by default.
        flip: Whether mirrored images keep their class.
        shift: Default shift of the weak augmentation, in pixels.
        layout: What is expected under the root folder, for the message when it is missing.
        noise: Default noise of the weak augmentation, in units of the normalised pixels.
        class_names: Names of the classes, or None for numbers.
        num_test: Rows held out of the training set where there is no test set of its own.
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


@dataclass(frozen=True)
class FolderLayout:
    """The image files of a user's own folder.

    Attributes:
        tree: Which folder carries the labels: `labeled`, `train` or, for the root itself, the empty string.
        class_names: Names of the class folders, sorted; a class's label is its place.
        labeled: Files and labels of the tree that carries labels.
        unlabeled: Files without labels.
        val: Files and labels of `val`, or None where there are none.
        test: Files and labels of `test`, likewise.
    """

    tree: str
    class_names: tuple[str, ...]
    labeled: list[tuple[Path, int]]
    unlabeled: list[Path]
    val: list[tuple[Path, int]] | None
    test: list[tuple[Path, int]] | None

    @property
    def fully_labeled(self) -> bool:
        """Whether the labels are those of a whole training set, to draw few from, rather than few given ones."""
        return self.tree != "labeled"


_LAYOUT = (
    "labeled/<class>/*.jpg with unlabeled/**/*.jpg, or train/<class>/*.jpg, or <class>/*.jpg with num_labeled; "
    "optionally val/<class>/ and test/<class>/"
)


def scan_folder(root: Path) -> FolderLayout:
    """Finds the image files of a folder: `labeled/<class>` and `unlabeled`, or `train/<class>`, or `<class>`.

    Hidden files and folders are left out; links are followed, each folder once.

    Raises:
        FileNotFoundError: If the folder, its class folders or its images are missing.
        PermissionError: If a folder may not be read.
        ValueError: If `val` or `test` has a class that the labelled tree lacks.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"dataset=folder: root={root} is not a folder. Expected there: {_LAYOUT}.")
    tree = next((root / name for name in ("labeled", "train") if (root / name).is_dir()), root)
    class_names = subfolders(tree) - ({"unlabeled", "val", "test"} if tree == root else set())
    if not class_names:
        raise FileNotFoundError(f"dataset=folder: no class folders in {tree}. Expected: {_LAYOUT}.")

    def labelled(folder: Path) -> list[tuple[Path, int]]:
        return [(file, label) for label, name in enumerate(sorted(class_names)) for file in images_under(folder / name)]

    def held_out(folder: Path) -> list[tuple[Path, int]] | None:
        if folder.is_dir() and (strange := subfolders(folder) - class_names):
            raise ValueError(f"{folder}: class {min(strange)!r} does not occur in {tree}.")
        return labelled(folder) or None

    labeled = labelled(tree)
    if not labeled:
        raise FileNotFoundError(f"dataset=folder: no images in the class folders of {tree}. Expected: {_LAYOUT}.")
    return FolderLayout(
        tree=tree.name if tree != root else "",
        class_names=tuple(sorted(class_names)),
        labeled=labeled,
        unlabeled=images_under(root / "unlabeled"),
        val=held_out(root / "val"),
        test=held_out(root / "test"),
    )


def subfolders(folder: Path) -> set[str]:
    """Names of the folders in a folder, hidden ones left out."""
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}


def images_under(folder: Path) -> list[Path]:
    """Image files at any depth of a folder, sorted; hidden ones are left out, links followed once."""
    if not folder.is_dir():
        return []
    found, entered = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        # A link may lead to a folder that is being walked through.
        place = os.stat(parent)
        if (place.st_dev, place.st_ino) in entered:
            folders.clear()
            continue
        entered.add((place.st_dev, place.st_ino))
        # Systems leave hidden files such as ._photo.jpg behind, which have an image's name and are none.
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def new_images(
    folder: Path, shape: tuple[int, ...], in_memory: bool | None, on_bad_image: BadImage, keep_aspect: bool = True
) -> Store:
    """Images at any depth of a folder, brought to the shape of those that a model was trained on.

    Args:
        folder: The folder.
        shape: That shape, (C, H, W).
        in_memory: As in `file_stores`.
        on_bad_image: Likewise.
        keep_aspect: Likewise.

    Raises:
        ValueError: If it is no folder, has no images, or one of them cannot be read.
    """
    files = images_under(folder)
    if not files:
        raise ValueError(f"predict_on={folder}: {'no images in this folder' if folder.is_dir() else 'not a folder'}.")
    size = shape[1] if shape[1] == shape[2] else None
    sampled_shapes(files, size, on_bad_image)
    parts = {"predict": [(file, -1) for file in files]}
    return file_stores(parts, shape, size, in_memory, keep_aspect, on_bad_image)["predict"]


def _raise(error: OSError) -> None:
    """Without this, os.walk passes over folders that it may not read."""
    raise error


def scan_clusters(
    root: Path, class_names: tuple[str, ...] | None, num_classes: int | None
) -> tuple[dict[str, list[tuple[Path, int]]], tuple[str, ...] | None]:
    """Finds the image files to be clustered: all under `root`, or those under `train` and `test` there.

    The folders right below are classes if every image is in one of them and their number is not another than
    `num_classes`; then they label the images, else all labels are -1.

    Args:
        root: The folder.
        class_names: Folders to read; None: all.
        num_classes: Number of clusters asked for, or None.

    Returns:
        Files and labels of `train` and, where there is such a folder, `test`; names of the classes, or None.

    Raises:
        FileNotFoundError: If a folder or its images are missing.
    """
    trees = {part: root / part for part in ("train", "test") if (root / part).is_dir()}
    if "train" not in trees:
        trees = {"train": root}
    for tree in trees.values():
        if missing := [name for name in class_names or (".",) if not (tree / name).is_dir()]:
            raise FileNotFoundError(
                f"root={root}: there is no folder {tree / missing[0]}. Expected <class>/*.jpg there."
            )
    names = class_names or tuple(sorted(subfolders(trees["train"])))
    files = {
        part: [file for name in class_names or (".",) for file in images_under(tree / name)]
        for part, tree in trees.items()
    }
    if not files["train"]:
        raise FileNotFoundError(f"root={root}: there are no images in {trees['train']}.")
    folder_of = {part: [file.relative_to(trees[part]).parts for file in found] for part, found in files.items()}
    known = all(len(path) > 1 and path[0] in names for paths in folder_of.values() for path in paths)
    if not known or len(names) < 2 or num_classes not in (None, len(names)):
        return {part: [(file, -1) for file in found] for part, found in files.items()}, None
    labelled = {
        part: [(file, names.index(path[0])) for file, path in zip(found, folder_of[part], strict=True)]
        for part, found in files.items()
    }
    return labelled, names
