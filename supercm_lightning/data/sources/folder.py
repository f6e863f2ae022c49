"""Layouts of a user's own folder of images."""

import os
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from supercm_lightning.data.sources.images import IMAGE_SUFFIXES, OTHER_IMAGES
from supercm_lightning.data.sources.names import normalized
from supercm_lightning.utils.options import MissingFileError, SuperCMError

Files = list[tuple[Path, int]]
"""Image files and their labels, -1 where unknown."""

_LAYOUT = (
    "labeled/<class>/*.jpg with unlabeled/**/*.jpg, or train/<class>/*.jpg, or <class>/*.jpg with num_labeled; "
    "optionally val/<class>/ and test/<class>/"
)
_PARTS = ("labelled", "labeled", "train", "unlabelled", "unlabeled")


def scan_folder(root: Path) -> tuple[dict[str, Files], tuple[str, ...]]:
    """Finds the image files of a folder: `labeled/<class>` and `unlabeled`, or `train/<class>`, or `<class>`.

    `labelled` and `unlabelled` are read likewise. Hidden files and folders are left out; links are followed, each
    folder once. What is missing is an error.

    Returns:
        Files of `labeled`, or of `train` where every training image has a label, and those of `unlabeled`, `val` and
        `test` that there are; names of the classes, sorted.
    """
    if not root.is_dir():
        raise MissingFileError(f"dataset=folder: root={root} is not a folder. Expected there: {_LAYOUT}.")
    parts = {name.replace("elled", "eled"): root / name for name in _PARTS if (root / name).is_dir()}
    tree = parts.get("labeled") or parts.get("train") or root
    classes = class_folders(tree)
    names = tuple(sorted(classes.keys() - ({"unlabeled", "unlabelled", "val", "test"} if tree == root else set())))
    if not names:
        raise MissingFileError(f"dataset=folder: no class folders in {tree}. Expected: {_LAYOUT}.")

    def labeled(folders: Mapping[str, Path]) -> Files:
        known = [(folders[name], label) for label, name in enumerate(names) if name in folders]
        return [(file, label) for folder, label in known for file in images_under(folder)]

    splits = {"labeled" if "labeled" in parts else "train": labeled(classes)}
    if not any(splits.values()):
        raise MissingFileError(f"dataset=folder: no images in the class folders of {tree}. Expected: {_LAYOUT}.")
    splits["unlabeled"] = [(file, -1) for file in images_under(parts.get("unlabeled", root / "unlabeled"))]
    for split in ("val", "test"):
        found = class_folders(root / split)
        if unexpected := found.keys() - set(names):
            raise SuperCMError(f"{root / split}: class {min(unexpected)!r} does not occur in {tree}.")
        splits[split] = labeled(found)
    return {split: files for split, files in splits.items() if files}, names


def scan_clusters(root: Path, num_classes: int | None) -> tuple[dict[str, Files], tuple[str, ...] | None]:
    """Finds the image files to be clustered: all under `root`, or those under `train` and `test` there.

    The folders right below are classes if every image is in one of them and, where `num_classes` is given, their number
    equals it; then they label the images and are returned, else all labels are -1. Missing images are an error.
    """
    trees = {split: root / split for split in ("train", "test") if (root / split).is_dir()}
    trees = trees if "train" in trees else {"train": root}
    if not root.is_dir():
        raise MissingFileError(f"root={root}: there is no folder {root}. Expected <class>/*.jpg there.")
    names = tuple(sorted(class_folders(trees["train"])))
    files = {split: images_under(tree) for split, tree in trees.items()}
    if not files["train"]:
        raise MissingFileError(f"root={root}: there are no images in {trees['train']}.")
    kinds = {
        file: normalized([*file.relative_to(trees[split]).parts[:-1], ""][0])
        for split, found in files.items()
        for file in found
    }
    known = len(names) > 1 and num_classes in (None, len(names)) and set(kinds.values()) <= set(names)
    labeled = {
        split: [(file, names.index(kinds[file]) if known else -1) for file in found] for split, found in files.items()
    }
    return labeled, names if known else None


def subfolders(folder: Path) -> set[str]:
    """Names of the folders in a folder, hidden ones left out; none where there is no such folder."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}


def class_folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder by their names in Unicode's composed form; two of one such name are an error."""
    found: dict[str, Path] = {}
    for name in sorted(subfolders(folder)):
        if normalized(name) in found:
            raise SuperCMError(f"{folder}: two folders are called {name!r}, in different Unicode forms. Merge them.")
        found[normalized(name)] = folder / name
    return found


def images_under(folder: Path) -> list[Path]:
    """Image files at any depth of a folder, sorted; hidden ones are left out, links followed once."""
    if not folder.is_dir():
        return []
    found, entered, others = [], set(), []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        folders.sort()  # where two links lead to one folder, the first by name counts
        # A link may lead to a folder that contains it.
        place = os.stat(parent)
        if (place.st_dev, place.st_ino) in entered:
            folders.clear()
            continue
        entered.add((place.st_dev, place.st_ino))
        # Hidden files such as ._photo.jpg have an image's suffix and hold metadata.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in (Path(parent, name) for name in names if not name.startswith(".")):
            suffix = file.suffix.lower()
            if suffix in IMAGE_SUFFIXES:
                found.append(file)
            elif suffix in OTHER_IMAGES:
                others.append(file)
    if others:
        kinds = ", ".join(sorted({file.suffix.lower() for file in others}))
        rank_zero_warn(
            f"{folder}: {len(others):,} images of kinds that are not read ({kinds}) are left out, {min(others)} among "
            "them. Convert them to PNG or JPEG."
        )
    return sorted(found)


def _raise(error: OSError) -> None:
    """Without this, os.walk skips folders that it may not read."""
    raise error
