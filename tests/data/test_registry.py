"""New data sets are one entry: of arrays, of files too large for memory, of domains with a training and a test set."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from supercm_lightning import ClusteringDataModule, DomainAdaptationDataModule, SemiSupervisedDataModule
from supercm_lightning.data import DATASETS, DOMAIN_SETS, DatasetSpec
from supercm_lightning.data.sources.stores import ArrayStore


@pytest.fixture
def photographs(monkeypatch: pytest.MonkeyPatch, image_folder: Callable[..., Path]) -> Path:
    """A registered set of image files."""

    def load(root: Path, split: str, download: bool) -> Any:
        files = sorted((root / split).glob("*.png"))
        if split == "train" and not files:
            raise FileNotFoundError("no train folder")
        return [(file, int(file.stem) % 2) for file in files]

    spec = DatasetSpec(2, (3, 16, 16), load, num_val=4, flip=True, shift=2, layout="train/*.png", of_files=True)
    monkeypatch.setitem(DATASETS, "photographs", spec)
    return image_folder({"train": 20, "test": 6}, size=(21, 17))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_set_of_files_serves_few_labels_and_clustering(photographs: Path, in_memory: bool) -> None:
    options: dict[str, Any] = {"root": photographs, "in_memory": in_memory, "num_workers": 0}
    data: Any = SemiSupervisedDataModule("photographs", num_labeled=4, **options)
    data.setup("fit")
    assert {s: len(part) for s, part in data.samples.items()} == {"labeled": 4, "unlabeled": 12, "val": 4, "test": 6}
    assert isinstance(data.samples["labeled"].store, ArrayStore) == in_memory
    assert data.arrays("test")[0].shape == (6, 3, 16, 16)
    assert Path(data.describe_sample("test", 3)).parent == photographs / "test"
    data = ClusteringDataModule("photographs", image_size=8, **options)
    data.setup("fit")
    assert (data.num_unlabeled, data.input_shape, data.shift) == (26, (3, 8, 8), 1)


def test_a_set_of_files_without_a_test_set(photographs: Path) -> None:
    for file in (photographs / "test").iterdir():
        file.unlink()
    data = SemiSupervisedDataModule("photographs", photographs, num_labeled=4)
    data.setup("fit")
    assert not data.has_test
    with pytest.raises(ValueError, match="num_test"):
        data.test_dataloader()


def test_a_missing_set_of_files_names_root_and_layout(photographs: Path) -> None:
    data = SemiSupervisedDataModule("photographs", root="nowhere", num_labeled=4)
    with pytest.raises(FileNotFoundError, match=r"photographs: not found under root=nowhere.*train/\*\.png"):
        data.setup("fit")


def test_a_set_of_arrays_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(root: Path, split: str, download: bool) -> Any:
        return torch.zeros(30, 1, 6, 6, dtype=torch.uint8), torch.arange(30) % 3

    monkeypatch.setitem(DATASETS, "zeros", DatasetSpec(3, (1, 6, 6), load, 3, flip=False, shift=1, layout="nothing"))
    data = SemiSupervisedDataModule("zeros", num_labeled=6)
    data.setup("fit")
    assert [len(data.samples[split]) for split in ("labeled", "unlabeled", "val", "test")] == [6, 21, 3, 30]


@pytest.fixture
def domainnet(image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """DomainNet in small: two domains, three classes, list files with a training and a test set."""
    spec = DOMAIN_SETS["domainnet"]
    uncounted = tuple(replace(domain, count=None) for domain in spec.domains)
    monkeypatch.setitem(DOMAIN_SETS, "domainnet", replace(spec, num_classes=3, domains=uncounted))
    names = ("axe", "bed", "cow")
    root = image_folder({f"{domain}/{name}": 5 for domain in ("sketch", "real") for name in names})
    for domain in ("sketch", "real"):
        for split, numbers in (("train", range(3)), ("test", range(3, 5))):
            lines = [f"{domain}/{name}/{n}.png {label}" for label, name in enumerate(names) for n in numbers]
            (root / f"{domain}_{split}.txt").write_text("\n".join(lines))
    return root


def test_domains_with_a_training_and_a_test_list(domainnet: Path) -> None:
    data = DomainAdaptationDataModule("S", "real", "domainnet", domainnet, image_size=7, num_val=0, num_workers=0)
    data.setup("fit")
    assert {split: len(part) for split, part in data.samples.items()} == {
        "labeled": 9, "unlabeled": 9, "val": 0, "test": 6,
    }  # fmt: skip
    assert data.class_names == ("axe", "bed", "cow")
    assert {Path(data.describe_sample("test", n)).stem for n in range(6)} == {"3", "4"}
    assert {Path(data.describe_sample("unlabeled", n)).stem for n in range(9)} == {"0", "1", "2"}
    assert data.samples["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_folder_of_domains_may_have_such_lists(domainnet: Path) -> None:
    data = DomainAdaptationDataModule("sketch", "real", "folder", domainnet, image_size=7, num_workers=0)
    data.setup("fit")
    assert len(data.samples["test"]) == 6
