"""The image files of several domains: folders of classes, or list files."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from supercm_lightning.data.sources.domains import DOMAIN_LAYOUT, Domain, DomainSet, plain_name
from supercm_lightning.data.sources.folder import class_folders, images_under, subfolders
from supercm_lightning.data.sources.names import normalized
from supercm_lightning.utils.options import MissingFileError, SuperCMError

LIST_FOLDERS = ("image_list", "list", "lists")

Files = list[tuple[Path, int]]


@dataclass
class DomainFiles:
    """The image files of the requested domains.

    Attributes:
        files: Files and labels of each domain, -1 where unknown; the training set, where a domain has a test set too.
        num_classes: Number of classes.
        class_names: Their names in the order of the labels, or None where list files do not tell.
        tests: Files and labels of the test set of each domain that has one.
        base: The data set's folder.
    """

    files: dict[str, Files]
    num_classes: int
    class_names: tuple[str, ...] | None
    tests: dict[str, Files] = field(default_factory=dict)
    base: Path = Path()


def folder_set(root: Path) -> DomainSet:
    """The domains of a user's own folder: its subfolders, and the names of its list files.

    Raises:
        MissingFileError: If it is no folder, or has no domain.
    """
    if not root.is_dir():
        raise MissingFileError(f"dataset=folder: root={root} is not a folder. Expected there: {DOMAIN_LAYOUT}.")
    domains = [Domain(name, name) for name in sorted(subfolders(root) - set(LIST_FOLDERS))]
    for file in (file for folder in _list_folders(root) for file in sorted(folder.glob("*.txt"))):
        if not any(_is_list_of(file, domain) for domain in domains):
            name = re.sub("_(train|test)$", "", file.stem)
            domains.append(Domain(name, name))
    if not domains:
        raise MissingFileError(f"dataset=folder: no domains in {root}. Expected there: {DOMAIN_LAYOUT}.")
    return DomainSet(tuple(domains))


def find_files(dataset: str, spec: DomainSet, root: Path, source: Sequence[Domain], target: Domain) -> DomainFiles:
    """Finds the files of the source and target domains: by list files where each domain has one, else by folders.

    A domain may have one list file, `<domain>.txt`, or two, `<domain>_train.txt` and `<domain>_test.txt`. The classes
    are the folders of the images in alphabetical order, whatever number each list file gives them: both readers then
    give the same labels. Where folders tell no classes, labels of list files stay as they are.

    Args:
        dataset: Name of the data set, for messages.
        spec: Its domains and classes.
        root: The folder that holds the data set's folder, or is that folder.
        source: The source domains.
        target: The target domain; its images may be without labels.

    Returns:
        The files.

    Raises:
        MissingFileError: If a domain is missing; the message tells the layout and where to get the data.
        SuperCMError: If the classes of the domains differ, or a list file is not as expected.
    """
    base = _base(dataset, spec, root, (*source, target))
    lists = {domain.name: _list_file(base, domain) for domain in (*source, target)}
    if all(lists.values()):
        tests = {domain.name: _list_file(base, domain, "test") for domain in (*source, target)}
        found = _from_lists(lists, tests, base, (*source, target), dataset != "folder")
    else:
        found = _from_folders(dataset, spec, base, source, target)
    if spec.num_classes is not None and found.num_classes != spec.num_classes:
        names = f": {', '.join(found.class_names)}" if found.class_names else ""
        raise SuperCMError(
            f"{dataset}: {found.num_classes} classes in {base}, where {spec.num_classes} were expected{names}."
        )
    for domain in source:
        if any(label < 0 for _, label in found.files[domain.name]):
            raise SuperCMError(f"{dataset}: images of the source domain {domain.name} have no label. Leave them out.")
    for domain in (*source, target):
        count = len(found.files[domain.name]) + len(found.tests.get(domain.name, ()))
        if domain.count is not None and count != domain.count:
            rank_zero_warn(
                f"{dataset}: {domain.name} has {count:,} images in {base}, where {domain.count:,} were expected. "
                "Results are not comparable with those of the whole data set."
            )
    _check_same_classes(dataset, found, source, target)
    return replace(found, base=base)


# ---------------------------------------------------------------------------------------------------- locations
def _base(dataset: str, spec: DomainSet, root: Path, domains: Sequence[Domain]) -> Path:
    """The data set's folder."""
    wanted = {plain_name(name) for name in spec.folders}
    inside = sorted(root / name for name in subfolders(root) if plain_name(name) in wanted) if root.is_dir() else []
    places = [*inside, root]
    for place in places:
        missing = [d.name for d in domains if _domain_folder(place, d) is None and _list_file(place, d) is None]
        if not missing:
            return place
    missing = [d.name for d in domains if _domain_folder(places[0], d) is None and _list_file(places[0], d) is None]
    where = f" Get it from {spec.origin}." if spec.origin else ""
    folder = f" or {root / spec.folders[0]}" if spec.folders and not inside else ""
    raise MissingFileError(
        f"{dataset}: {' and '.join(missing)} not found in {places[0]}{folder}. Expected there: {spec.layout}.{where} "
        "It is not downloaded."
    )


def _domain_folder(base: Path, domain: Domain) -> Path | None:
    found = sorted(name for name in subfolders(base) if domain.is_called(name)) if base.is_dir() else []
    if len(found) > 1:
        raise SuperCMError(f"{base}: {' and '.join(found)} are both names of the domain {domain.name}. Remove one.")
    return base / found[0] if found else None


def _list_folders(base: Path) -> list[Path]:
    return [folder for name in LIST_FOLDERS if (folder := base / name).is_dir()]


def _list_file(base: Path, domain: Domain, split: str = "train") -> Path | None:
    """The list file of a domain: of this split, or the only one, which counts as that of the training set."""
    files = [file for folder in _list_folders(base) for file in sorted(folder.glob("*.txt"))]
    of_split = [*files, *sorted(base.glob(f"*_{split}.txt"))]
    whole = [file for file in files if split == "train" and _is_list_of(file, domain, "")]
    return next((file for file in of_split if _is_list_of(file, domain, f"_{split}")), whole[0] if whole else None)


def _is_list_of(file: Path, domain: Domain, suffix: str | None = None) -> bool:
    """Whether a list file is that of a domain: with this suffix, or, without one given, of any split."""
    if suffix is None:
        return any(_is_list_of(file, domain, each) for each in ("", "_train", "_test"))
    stem = file.stem.removesuffix(suffix)
    if suffix and stem == file.stem:
        return False
    return domain.is_called(stem) or domain.is_called(plain_name(stem).removesuffix("list"))


# ------------------------------------------------------------------------------------------------------ readers
def _from_folders(dataset: str, spec: DomainSet, base: Path, source: Sequence[Domain], target: Domain) -> DomainFiles:
    trees = {}
    for domain in (*source, target):
        folder = _domain_folder(base, domain)
        if folder is None:  # another domain has a list file, this one has only that
            raise MissingFileError(
                f"{dataset}: {base} has a list file for some of the domains and none for "
                f"{domain.name}, or the other way round. Expected there: {spec.layout}."
            )
        images = folder / "images"
        nested = images.is_dir() and (bool(subfolders(images)) or subfolders(folder) == {"images"})
        trees[domain.name] = images if nested else folder
    folders = {name: class_folders(tree) for name, tree in trees.items()}
    classes = {name: set(found) for name, found in folders.items()}
    first = source[0].name
    for domain in source:
        if not classes[domain.name]:
            raise MissingFileError(
                f"{dataset}: the source domain {domain.name} has no class folders in {trees[domain.name]}. Expected "
                f"there: {spec.layout}."
            )
    names = tuple(sorted(classes[first]))
    for domain in (*source, target):
        if classes[domain.name] and (differ := classes[domain.name] ^ classes[first]):
            raise _classes_differ(dataset, source[0], domain, differ & classes[first], differ - classes[first])
    files = {}
    for name, tree in trees.items():
        if classes[name]:
            files[name] = [(file, k) for k, kind in enumerate(names) for file in images_under(folders[name][kind])]
        else:
            files[name] = [(file, -1) for file in images_under(tree)]
        if not files[name]:
            raise MissingFileError(f"{dataset}: no images of {name} in {tree}. Expected: {spec.layout}.")
    return DomainFiles(files, len(names), names)


def _from_lists(
    lists: Mapping[str, Path | None],
    tests: Mapping[str, Path | None],
    base: Path,
    domains: Sequence[Domain],
    published: bool,
) -> DomainFiles:
    folder_of = {domain.name: _domain_folder(base, domain) for domain in domains}

    def read(files: Mapping[str, Path | None]) -> dict[str, Files]:
        return {name: read_list(file, base, folder_of[name]) for name, file in files.items() if file is not None}

    train, test = read(lists), read(tests)
    listed = {str(file): train[name] for name, file in lists.items() if file is not None}
    listed |= {str(file): test[name] for name, file in tests.items() if file is not None}
    told = {file: _told_classes(entries) for file, entries in listed.items()}
    labeled = {file for file, entries in listed.items() if any(label >= 0 for _, label in entries)}
    several = {file for file in labeled if len({label for _, label in listed[file]} - {-1}) > 1}
    labeled = several or labeled  # one class alone tells nothing
    if not all(told[file] for file in labeled):
        # The lists of a published set number the classes alike.
        if not published and (named := sorted(file for file in labeled if told[file])):
            other = min(labeled - set(named))
            raise SuperCMError(
                f"{named[0]} and {other}: the folders of the first tell the classes, those of the second do not, and "
                "nothing says that their numbers mean the same. Put the images of each class into a folder of its name."
            )
        return DomainFiles(train, max(label for entries in listed.values() for _, label in entries) + 1, None, test)
    # Lists may number the classes differently: the folders' names say what a number means in each.
    classes = sorted({name for names in told.values() for name in names.values()})
    place = {file: {label: classes.index(name) for label, name in names.items()} for file, names in told.items()}

    def renumbered(of: Mapping[str, Files], files: Mapping[str, Path | None]) -> dict[str, Files]:
        return {
            name: [(image, place[str(files[name])].get(label, -1)) for image, label in entries]
            for name, entries in of.items()
        }

    return DomainFiles(renumbered(train, lists), len(classes), tuple(classes), renumbered(test, tests))


def _told_classes(entries: Files) -> dict[int, str]:
    """The folder that the images of each label lie in; empty where a label has several, or a folder has."""
    folders: dict[int, set[str]] = {}
    for file, label in entries:
        if label >= 0:
            folders.setdefault(label, set()).add(normalized(file.parent.name))
    names = {label: min(found) for label, found in folders.items()}
    clear = all(len(found) == 1 for found in folders.values()) and len(set(names.values())) == len(names)
    return names if clear else {}


def read_list(file: Path, base: Path, folder: Path | None = None) -> list[tuple[Path, int]]:
    """Reads a list file: lines of a path, which may contain spaces, and a label.

    Lists come with the paths of their authors' machines. Leading folders are removed until the first image is found
    in `base` or the domain's folder; as many are removed from the other lines.

    Args:
        file: The list file.
        base: The data set's folder.
        folder: The domain's folder, or None.

    Returns:
        Files and labels; -1 stands for an unknown label.

    Raises:
        SuperCMError: If a line has no path or no label, an image is listed twice, or there is no line; the message
            names the line.
        MissingFileError: If the first image is nowhere to be found.
    """
    entries: list[tuple[Path, int]] = []
    line_of: dict[str, int] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SuperCMError(f"{file}: not a list of images in UTF-8 ({error}).") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, label = [*line.strip().rsplit(maxsplit=1), ""][:2]
        if not label.removeprefix("-").isdecimal() or int(label) < -1:
            raise SuperCMError(f"{file}, line {number}: {line.strip()!r} is not a path, a space and a label from 0 on.")
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
    raise MissingFileError(
        f"{file}: its first image {first} does not exist, and neither does a part of that path under {base}."
    )


def _located(file: Path, place: Path, start: int, entries: Files) -> Files:
    """The images of a list by their places in a folder, out of which no line may lead."""
    found: dict[Path, int] = {}
    for path, label in entries:
        image = Path(os.path.normpath(place.joinpath(*path.parts[start:])))
        if not image.is_relative_to(os.path.normpath(place)):
            raise SuperCMError(
                f"{file}: {path} leads out of {place}. Move the image there, or set root to a folder above."
            )
        if image in found:
            raise SuperCMError(f"{file}: {image} is listed twice, in two spellings. Remove one.")
        found[image] = label
    return list(found.items())


# ------------------------------------------------------------------------------------------------------ classes
def _check_same_classes(dataset: str, found: DomainFiles, source: Sequence[Domain], target: Domain) -> None:
    labels = {name: {label for _, label in files} - {-1} for name, files in found.files.items()}
    names = found.class_names or {label: str(label) for known in labels.values() for label in known}
    first = labels[source[0].name]
    for domain in (*source, target):
        if labels[domain.name] and (differ := labels[domain.name] ^ first):
            less, more = ({names[k] for k in kind} for kind in (differ & first, differ - first))
            raise _classes_differ(dataset, source[0], domain, less, more)


def _classes_differ(dataset: str, first: Domain, other: Domain, less: set[str], more: set[str]) -> SuperCMError:
    parts = [
        f"{', '.join(sorted(kind)[:10])}{', …' if len(kind) > 10 else ''} only in {domain.name}"
        for domain, kind in ((first, less), (other, more))
        if kind
    ]
    return SuperCMError(
        f"{dataset}: the classes of {first.name} and {other.name} differ: {'; '.join(parts)}. Both "
        "domains must have the same classes: rename or remove those that differ."
    )
