"""Which source a user means: the one place where names, folders, files and torch data sets are told apart."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, TensorDataset

from supercm_lightning.data.sources.base import Defaults, Source
from supercm_lightning.data.sources.domain_files import find_files, folder_set
from supercm_lightning.data.sources.domains import DIGITS, DOMAIN_SETS
from supercm_lightning.data.sources.feature_store import located
from supercm_lightning.data.sources.features import FeatureSource
from supercm_lightning.data.sources.files import FileSource, Reading
from supercm_lightning.data.sources.folder import scan_clusters, scan_folder
from supercm_lightning.data.sources.registered import DATASETS, RegisteredSource
from supercm_lightning.data.sources.torch_datasets import TorchSource
from supercm_lightning.utils.options import MissingFileError, SuperCMError, check_choice

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_PHOTOGRAPHS = Defaults(flip=True, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop="resized")

Others = Mapping[str, Dataset[Any] | None]
"""Torch data sets of further splits, or None for each."""


def make_source(
    dataset: str | Dataset[Any], root: str | Path, reading: Reading, others: Others, num_classes: int | None = None
) -> Source:
    """The source of a data set with few labels, by the options of `SemiSupervisedDataModule`."""
    _check_others(dataset, others)
    if not isinstance(dataset, str):
        return TorchSource([dataset], others, num_classes, reading.in_memory)
    check_choice(dataset=(dataset, (*DATASETS, "folder")))
    root = Path(root).expanduser()
    if dataset != "folder":
        spec = DATASETS[dataset]
        splits = {"train": [(dataset, "train")] + [(dataset, "unlabeled")] * spec.has_unlabeled}
        splits |= {} if spec.num_test else {"test": [(dataset, "test")]}
        return RegisteredSource(dataset, root, splits, reading)
    files, classes = scan_folder(root)
    # Where a few images were labeled by hand, all of them are trained on unless the user decides otherwise.
    num_val = 0.1 if "train" in files else 0
    train = [*files.pop("labeled", []), *files.pop("train", []), *files.pop("unlabeled", [])]
    source = FileSource("folder", {"train": train, **files}, reading, classes, root=root)
    source.defaults = replace(source.defaults, num_val=num_val)
    return source


def make_cluster_source(
    dataset: str | Dataset[Any],
    root: str | Path,
    whole: bool,
    reading: Reading,
    test: Dataset[Any] | None = None,
    num_classes: int | None = None,
) -> Source:
    """The source of data to be clustered, by the options of `ClusteringDataModule`; `whole`: `train` holds all."""

    def arranged(splits: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        if whole:
            return {"train": [part for parts in splits.values() for part in parts]}
        return {split: list(parts) for split, parts in splits.items()}

    _check_others(dataset, {"test": test})
    root = Path(root).expanduser()
    features = Defaults(noise=0.1)
    if not isinstance(dataset, str):
        given: dict[str, Any] = {"train": [dataset]} | ({} if test is None else {"test": [test]})
        if isinstance(dataset, TensorDataset) and dataset.tensors[0].ndim == 2:
            policy: Any = dict.fromkeys(("train", "test"), "if known")
            return FeatureSource(arranged(given), policy, {"train": "dataset"}, defaults=features)
        splits = arranged(given)
        held_out = splits.get("test", [None])[0]
        return TorchSource(splits["train"], {"test": held_out}, None, reading.in_memory, without_labels=True)
    check_choice(dataset=(dataset, (*DATASETS, "folder", "features")))
    if dataset == "features":
        given = {"train": [root]}
        if root.is_dir():
            found = {split: located(split, root) for split in ("train", "test")}
            given = {split: [file] for split, file in found.items() if isinstance(file, Path) and file.is_file()}
            if "train" not in given:
                raise MissingFileError(f"dataset=features: there is no train.npz or train.pt in root={root}.")
        return FeatureSource(arranged(given), dict.fromkeys(given, "if known"), defaults=features)
    if dataset != "folder":
        parts = ("train",) if DATASETS[dataset].num_test else ("train", "test")
        return RegisteredSource(dataset, root, arranged({split: [(dataset, split)] for split in parts}), reading)
    files, classes = scan_clusters(root, num_classes)
    return FileSource("folder", arranged(files), reading, classes, root=root)


def make_domain_source(
    dataset: str | None,
    root: str | Path,
    source: Any,
    target: Any,
    reading: Reading,
    others: Others,
    num_classes: int | None = None,
) -> Source:
    """The source of two domains, by the options of `DomainAdaptationDataModule`.

    The splits are `train`, the source domain or several, `unlabeled`, the target, and what else there is of `val` and
    `test`; `others` holds torch data sets of these two.
    """
    names: Sequence[Any] = source if isinstance(source, list | tuple) else [source]
    known = ("digits", *DOMAIN_SETS, "folder")
    if dataset is None:
        if any(isinstance(data, str) for data in (*names, target)):
            raise SuperCMError(f"dataset: name the data set of the domains, one of {', '.join(known)}.")
        if any(data is target for data in names):
            raise SuperCMError("source and target are the same data set.")
        others = {"unlabeled": target, **others}
        size = reading.image_size
        return TorchSource(names, others, num_classes, reading.in_memory, option="source", image_size=size)
    _check_others(dataset, others)
    check_choice(dataset=(dataset, known))
    if not names or not all(isinstance(name, str) for name in (*names, target)):
        raise SuperCMError(f"dataset={dataset!r}: give source and target by name; torch data sets go without dataset.")
    root = Path(root).expanduser()
    spec = folder_set(root) if dataset == "folder" else {"digits": DIGITS, **DOMAIN_SETS}[dataset]
    sources, to = [spec.find(dataset, "source", name) for name in names], spec.find(dataset, "target", target)
    if to in sources:
        raise SuperCMError(f"source and target are the same domain, {to.name}.")
    if len(set(sources)) < len(sources):
        raise SuperCMError(f"source={names}: a domain is named twice.")
    if dataset == "digits":
        parts = {"train": [(domain.name, "train") for domain in sources]}
        parts |= {"unlabeled": [(to.name, "train")], "test": [(to.name, "test")]}
        shapes = [DATASETS[domain.name].input_shape for domain in (*sources, to)]
        size = reading.image_size or max(28, *(height for _, height, _ in shapes))
        return RegisteredSource(dataset, root, parts, reading, size, Defaults(shift=2))
    found = find_files(dataset, spec, root, sources, to)
    size = reading.image_size or 224
    stored = size * 8 // 7  # 256 for 224, as in published experiments; both sides are resized, whatever the aspect
    domains = [found.files[domain.name] for domain in sources]
    train = [entry for files in domains for entry in files]
    return FileSource(
        dataset,
        {"train": train, "unlabeled": found.files[to.name], "test": found.tests.get(to.name, [])},
        replace(reading, image_size=stored, keep_aspect=False),
        found.class_names,
        found.num_classes,
        (3, stored, stored),
        size,
        _PHOTOGRAPHS,
        domains,
        found.base,
        dataset != "folder",
    )


def _check_others(dataset: Any, others: Others) -> None:
    given = [name for name, data in others.items() if data is not None]
    if isinstance(dataset, str) and given:
        raise SuperCMError(f"{given[0]}: goes with torch data sets; dataset={dataset!r} brings its own.")
