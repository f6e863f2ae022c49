"""The image files of several domains: folders of classes, or list files."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from supercm_lightning.data.sources.domains import DOMAIN_LAYOUT, Domain, DomainSet, plain_name
from supercm_lightning.data.sources.folder import Files, class_folders, images_under, subfolders
from supercm_lightning.data.sources.names import normalized
from supercm_lightning.utils.options import MissingFileError, SuperCMError

LIST_FOLDERS = ("image_list", "list", "lists")


@dataclass
class DomainFiles:
    """The image files of the requested domains below `base`: `files`, and `tests` where a domain has a test set.

    `class_names` are in the order of the labels, None where list files do not tell.
    """

    files: dict[str, Files]
    num_classes: int
    class_names: tuple[str, ...] | None
    tests: dict[str, Files]
    base: Path


def folder_set(root: Path) -> DomainSet:
    """The domains of a user's own folder: its subfolders, and the names of its list files."""
    if not root.is_dir():
        raise MissingFileError(f"dataset=folder: root={root} is not a folder. Expected there: {DOMAIN_LAYOUT}.")
    domains = [Domain(name, name) for name in sorted(subfolders(root) - set(LIST_FOLDERS))]
    for file in _list_files(root):
        if not any(_is_list_of(file, domain, suffix) for domain in domains for suffix in ("", "_train", "_test")):
            name = re.sub("_(train|test)$", "", file.stem)
            domains.append(Domain(name, name))
    if not domains:
        raise MissingFileError(f"dataset=folder: no domains in {root}. Expected there: {DOMAIN_LAYOUT}.")
    return DomainSet(tuple(domains))


def find_files(dataset: str, spec: DomainSet, root: Path, source: Sequence[Domain], target: Domain) -> DomainFiles:
    """Finds the files of the source and target domains: by list files where each domain has one, else by folders.

    A domain may have one list file, `<domain>.txt`, or two, `<domain>_train.txt` and `<domain>_test.txt`. The classes
    are the folders of the images in alphabetical order, whatever number each list file gives them: both readers then
    give the same labels. Where folders tell no classes, labels of list files stay as they are. `root` holds the data
    set's folder, or is it; images of the target may be without labels.

    Raises:
        MissingFileError: If a domain is missing; the message tells the layout and where to get the data.
        SuperCMError: If the classes of the domains differ, or a list file is not as expected.
    """
    domains = (*source, target)
    base = _base(dataset, spec, root, domains)
    lists = {split: {domain: _list_file(base, domain, split) for domain in domains} for split in ("train", "test")}
    if all(lists["train"].values()):
        found = _from_lists(lists, base, dataset != "folder")
    else:
        found = _from_folders(dataset, spec, base, source, target)
    if spec.num_classes is not None and found.num_classes != spec.num_classes:
        listed = f": {', '.join(found.class_names)}" if found.class_names else ""
        classes = f"{found.num_classes} classes in {base}, where {spec.num_classes} were expected"
        raise SuperCMError(f"{dataset}: {classes}{listed}.")
    for domain in source:
        if any(label < 0 for _, label in found.files[domain.name]):
            raise SuperCMError(f"{dataset}: images of the source domain {domain.name} have no label. Leave them out.")
    for domain in domains:
        count = len(found.files[domain.name]) + len(found.tests.get(domain.name, ()))
        if domain.count is not None and count != domain.count:
            rank_zero_warn(
                f"{dataset}: {domain.name} has {count:,} images in {base}, where {domain.count:,} were expected. "
                "Results are not comparable with those of the whole data set."
            )
    names = found.class_names
    _check_same_classes(dataset, {
        domain: {names[label] if names else str(label) for _, label in files if label >= 0}
        for domain, files in found.files.items()
    })  # fmt: skip
    return found


def _base(dataset: str, spec: DomainSet, root: Path, domains: Sequence[Domain]) -> Path:
    """The data set's folder."""
    wanted = {plain_name(name) for name in spec.folders}
    inside = sorted(root / name for name in subfolders(root) if plain_name(name) in wanted)
    places = [*inside, root]
    first: list[str] = []
    for place in places:
        missing = [d.name for d in domains if _domain_folder(place, d) is None and _list_file(place, d) is None]
        if not missing:
            return place
        first = first or missing
    where = f" Get it from {spec.origin}." if spec.origin else ""
    folder = f" or {root / spec.folders[0]}" if spec.folders and not inside else ""
    message = f"{dataset}: {' and '.join(first)} not found in {places[0]}{folder}"
    raise MissingFileError(f"{message}. Expected there: {spec.layout}.{where} It is not downloaded.")


def _domain_folder(base: Path, domain: Domain) -> Path | None:
    found = sorted(name for name in subfolders(base) if domain.is_called(name))
    if len(found) > 1:
        raise SuperCMError(f"{base}: {' and '.join(found)} are both names of the domain {domain.name}. Remove one.")
    return base / found[0] if found else None


def _list_files(base: Path) -> list[Path]:
    return [file for name in LIST_FOLDERS for file in sorted((base / name).glob("*.txt"))]


def _list_file(base: Path, domain: Domain, split: str = "train") -> Path | None:
    """The list file of a domain: of this split, or the only one, which counts as that of the training set."""
    files, suffix = _list_files(base), f"_{split}"
    found = [file for file in (*files, *sorted(base.glob(f"*{suffix}.txt"))) if _is_list_of(file, domain, suffix)]
    found += [file for file in files if split == "train" and _is_list_of(file, domain, "")]
    return found[0] if found else None


def _is_list_of(file: Path, domain: Domain, suffix: str) -> bool:
    names = file.stem.removesuffix(suffix), plain_name(file.stem.removesuffix(suffix)).removesuffix("list")
    return file.stem.endswith(suffix) and any(map(domain.is_called, names))


def _from_folders(dataset: str, spec: DomainSet, base: Path, source: Sequence[Domain], target: Domain) -> DomainFiles:
    trees = {}
    for domain in (*source, target):
        folder = _domain_folder(base, domain)
        if folder is None:  # another domain has a list file, this one has only that
            raise MissingFileError(
                f"{dataset}: {base} has a list file for some of the domains, not for all. Expected: {spec.layout}."
            )
        images = folder / "images"
        nested = images.is_dir() and (bool(subfolders(images)) or subfolders(folder) == {"images"})
        trees[domain.name] = images if nested else folder
    folders = {name: class_folders(tree) for name, tree in trees.items()}
    for domain in source:
        if not folders[domain.name]:
            place = f"the source domain {domain.name} has no class folders in {trees[domain.name]}"
            raise MissingFileError(f"{dataset}: {place}. Expected: {spec.layout}.")
    _check_same_classes(dataset, {name: set(found) for name, found in folders.items()})
    names = tuple(sorted(folders[source[0].name]))
    files = {}
    for name, tree in trees.items():
        places = [(folders[name][kind], k) for k, kind in enumerate(names)] if folders[name] else [(tree, -1)]
        files[name] = [(file, label) for place, label in places for file in images_under(place)]
        if not files[name]:
            raise MissingFileError(f"{dataset}: no images of {name} in {tree}. Expected: {spec.layout}.")
    return DomainFiles(files, len(names), names, {}, base)


def _from_lists(lists: Mapping[str, Mapping[Domain, Path | None]], base: Path, published: bool) -> DomainFiles:
    listed = {
        file: read_list(file, base, _domain_folder(base, domain))
        for files in lists.values()
        for domain, file in files.items()
        if file is not None
    }
    told = {file: _told_classes(entries) for file, entries in listed.items()}
    labels = {file: {label for _, label in entries} - {-1} for file, entries in listed.items()}
    labeled = {file for file in listed if len(labels[file]) > 1}  # one class alone tells nothing
    labeled = labeled or {file for file in listed if labels[file]}
    count = max(max(found, default=-1) for found in labels.values()) + 1
    place = {file: {label: label for label in found} for file, found in labels.items()}
    classes: tuple[str, ...] | None = None
    if all(told[file] for file in labeled):
        # Lists may number the classes differently: the folders' names say what a number means in each.
        classes = tuple(sorted({name for names in told.values() for name in names.values()}))
        place = {file: {label: classes.index(name) for label, name in names.items()} for file, names in told.items()}
    # The lists of a published set number the classes alike.
    elif not published and (named := sorted(file for file in labeled if told[file])):
        raise SuperCMError(
            f"{named[0]} and {min(labeled - set(named))}: the folders of the first tell the classes, those of the "
            "second do not. Put the images of each class into a folder of its name."
        )
    train, test = (
        {
            domain.name: [(image, place[file].get(label, -1)) for image, label in listed[file]]
            for domain, file in lists[split].items()
            if file is not None
        }
        for split in ("train", "test")
    )
    return DomainFiles(train, len(classes or ()) or count, classes, test, base)


def _told_classes(entries: Files) -> dict[int, str]:
    """The folder that the images of each label lie in; empty where a label has several, or a folder has."""
    folders: dict[int, set[str]] = {}
    for file, label in entries:
        if label >= 0:
            folders.setdefault(label, set()).add(normalized(file.parent.name))
    names = {label: min(found) for label, found in folders.items()}
    clear = all(len(found) == 1 for found in folders.values()) and len(set(names.values())) == len(names)
    return names if clear else {}


def read_list(file: Path, base: Path, folder: Path | None = None) -> Files:
    """Reads a list file: lines of a path, which may contain spaces, and a label.

    Lists come with the paths of their authors' machines. Leading folders are removed until the first image is found
    in `base`, the data set's folder, or in `folder`, the domain's; as many are removed from the other lines.
    """
    entries: Files = []
    line_of: dict[str, int] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SuperCMError(f"{file}: not a list of images in UTF-8 ({error}).") from error
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        path, label = [*line.rsplit(maxsplit=1), ""][:2]
        if not label.removeprefix("-").isdecimal() or int(label) < -1:
            raise SuperCMError(f"{file}, line {number}: {line!r} is not a path, a space and a label from 0 on.")
        if line_of.setdefault(path, number) != number:
            raise SuperCMError(f"{file}, line {number}: {path} is already listed in line {line_of[path]}. Remove one.")
        entries.append((Path(path), int(label)))
    if not entries:
        raise SuperCMError(f"{file}: the list is empty.")
    first = entries[0][0]
    for start in range(int(first.is_absolute()), len(first.parts)):
        for place in (base, folder):
            if place is not None and place.joinpath(*first.parts[start:]).is_file():
                return _located(file, place, start, entries)
    raise MissingFileError(f"{file}: its first image {first} does not exist, nor any part of that path under {base}.")


def _located(file: Path, place: Path, start: int, entries: Files) -> Files:
    """The images of a list by their places in a folder, out of which no line may lead."""
    found: dict[Path, int] = {}
    for path, label in entries:
        image = Path(os.path.normpath(place.joinpath(*path.parts[start:])))
        if not image.is_relative_to(os.path.normpath(place)):
            raise SuperCMError(f"{file}: {path} leads out of {place}. Move the image, or set root to a folder above.")
        if image in found:
            raise SuperCMError(f"{file}: {image} is listed twice, in two spellings. Remove one.")
        found[image] = label
    return list(found.items())


def _check_same_classes(dataset: str, classes: Mapping[str, set[str]]) -> None:
    """Compares the classes of each domain that has any with those of the first."""
    (first, expected), *others = classes.items()
    for name, found in others:
        if not found or found == expected:
            continue
        parts = [
            f"{', '.join(sorted(kind)[:10])}{', …' if len(kind) > 10 else ''} only in {domain}"
            for domain, kind in ((first, expected - found), (name, found - expected))
            if kind
        ]
        raise SuperCMError(
            f"{dataset}: the classes of {first} and {name} differ: {'; '.join(parts)}. Rename or remove those."
        )
