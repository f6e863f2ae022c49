"""Layouts of a user's own folder of images."""

import os
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from supercm_lightning.data.sources.images import IMAGE_SUFFIXES, OTHER_IMAGES
from supercm_lightning.data.sources.names import normalized
from supercm_lightning.utils.options import MissingFileError, SuperCMError


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
        """Whether every training image has a label, so that few are drawn; else all given labels are used."""
        return self.tree != "labeled"


_LAYOUT = (
    "labeled/<class>/*.jpg with unlabeled/**/*.jpg, or train/<class>/*.jpg, or <class>/*.jpg with num_labeled; "
    "optionally val/<class>/ and test/<class>/"
)


def scan_folder(root: Path) -> FolderLayout:
    """Finds the image files of a folder: `labeled/<class>` and `unlabeled`, or `train/<class>`, or `<class>`.

    Hidden files and folders are left out; links are followed, each folder once.

    Raises:
        MissingFileError: If the folder, its class folders or its images are missing.
        PermissionError: If a folder may not be read.
        SuperCMError: If `val` or `test` has a class that the labeled tree lacks.

    Examples:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (root / name).mkdir()
        ...     (root / name / "0.png").touch()
        >>> scan_folder(root).class_names
        ('cat', 'dog')
    """
    if not root.is_dir():
        raise MissingFileError(f"dataset=folder: root={root} is not a folder. Expected there: {_LAYOUT}.")
    tree = next((root / name for name in ("labeled", "train") if (root / name).is_dir()), root)
    classes = class_folders(tree)
    class_names = classes.keys() - ({"unlabeled", "val", "test"} if tree == root else set())
    if not class_names:
        raise MissingFileError(f"dataset=folder: no class folders in {tree}. Expected: {_LAYOUT}.")

    def with_labels(folder: Path) -> list[tuple[Path, int]]:
        found = classes if folder == tree else class_folders(folder) if folder.is_dir() else {}
        return [
            (file, label)
            for label, name in enumerate(sorted(class_names))
            for file in (images_under(found[name]) if name in found else ())
        ]

    def held_out(folder: Path) -> list[tuple[Path, int]] | None:
        if folder.is_dir() and (unexpected := class_folders(folder).keys() - class_names):
            raise SuperCMError(f"{folder}: class {min(unexpected)!r} does not occur in {tree}.")
        return with_labels(folder) or None

    labeled = with_labels(tree)
    if not labeled:
        raise MissingFileError(f"dataset=folder: no images in the class folders of {tree}. Expected: {_LAYOUT}.")
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


def class_folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder by their names in Unicode's composed form.

    Raises:
        SuperCMError: If two have names that look the same and differ in their bytes.
    """
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
        for name in (name for name in names if not name.startswith(".")):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                found.append(Path(parent, name))
            elif suffix in OTHER_IMAGES:
                others.append(Path(parent, name))
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


def scan_clusters(
    root: Path, class_names: tuple[str, ...] | None, num_classes: int | None
) -> tuple[dict[str, list[tuple[Path, int]]], tuple[str, ...] | None]:
    """Finds the image files to be clustered: all under `root`, or those under `train` and `test` there.

    The folders right below are classes if every image is in one of them and, where `num_classes` is given, their number
    equals it; then they label the images, else all labels are -1.

    Args:
        root: The folder.
        class_names: Folders to read; None: all.
        num_classes: Number of clusters, or None.

    Returns:
        Files and labels of `train` and, where there is such a folder, `test`; names of the classes, or None.

    Raises:
        MissingFileError: If a folder or its images are missing.
    """
    trees = {split: root / split for split in ("train", "test") if (root / split).is_dir()}
    if "train" not in trees:
        trees = {"train": root}
    for tree in trees.values():
        if missing := [name for name in class_names or (".",) if not (tree / name).is_dir()]:
            raise MissingFileError(
                f"root={root}: there is no folder {tree / missing[0]}. Expected <class>/*.jpg there."
            )
    names = class_names or tuple(sorted(class_folders(trees["train"])))
    files = {
        split: [file for name in class_names or (".",) for file in images_under(tree / name)]
        for split, tree in trees.items()
    }
    if not files["train"]:
        raise MissingFileError(f"root={root}: there are no images in {trees['train']}.")
    folders = {
        split: [tuple(map(normalized, file.relative_to(trees[split]).parts)) for file in found]
        for split, found in files.items()
    }
    known = all(len(path) > 1 and path[0] in names for paths in folders.values() for path in paths)
    if not known or len(names) < 2 or num_classes not in (None, len(names)):
        return {split: [(file, -1) for file in found] for split, found in files.items()}, None
    labeled = {
        split: [(file, names.index(path[0])) for file, path in zip(found, folders[split], strict=True)]
        for split, found in files.items()
    }
    return labeled, names
