"""The registered image sets."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits

from supercm_lightning.data import DATASETS, SemiSupervisedDataModule
from supercm_lightning.data.sources.registered import CIFAR20_OF_CIFAR100, _from_torchvision

# The table of the data set's own page: superclasses and their classes.
CIFAR100_TABLE = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}


def test_superclasses_of_cifar100_are_those_of_its_table():
    of = {name: kind for kind, (_, names) in enumerate(sorted(CIFAR100_TABLE.items())) for name in names.split()}
    assert [of[name] for name in sorted(of)] == list(CIFAR20_OF_CIFAR100)
    assert DATASETS["cifar20"].class_names == tuple(sorted(CIFAR100_TABLE))


def test_digits_are_complete_and_on_the_scale_of_bytes(gather):
    data = SemiSupervisedDataModule("digits", num_labeled=20)
    parts = [gather(data, part)[0] for part in ("labeled", "unlabeled", "val", "test")]
    assert [len(part) for part in parts] == [20, 1177, 150, 450]
    expected, labels = load_digits(return_X_y=True)
    # -1 … 1 back to the 0 … 16 of scikit-learn, bytes in between cost less than half a step.
    found = (torch.cat(parts).flatten(1) + 1) * 8
    order = torch.cat([data.samples[part].index for part in ("labeled", "unlabeled", "val", "test")])
    np.testing.assert_allclose(found.numpy(), expected[order.numpy()], atol=0.04)
    assert torch.equal(data.samples["test"].labels, torch.from_numpy(labels)[data.samples["test"].index])


@pytest.mark.parametrize(
    ("name", "folder", "sizes"), [("mnist", "", (60_000, 10_000)), ("usps", "USPS", (7_291, 2_007))]
)
def test_real_sets_equal_those_of_torchvision(data_root: Path, name, folder, sizes):
    data = SemiSupervisedDataModule(name, root=data_root, num_labeled=100)
    data.setup("fit")
    for part, size in zip(("unlabeled", "test"), sizes, strict=True):
        theirs = getattr(torchvision.datasets, name.upper())(data_root / folder, train=part != "test")
        store = data.samples[part].store
        assert len(store) == size
        assert np.array_equal(store.data[:, 0].numpy(), np.asarray(theirs.data))
        assert store.labels.tolist() == np.asarray(theirs.targets).tolist()
    assert torch.bincount(data.samples["labeled"].labels).tolist() == [10] * 10
    assert len(data.samples["val"]) == DATASETS[name].num_val


@pytest.mark.parametrize("labels", ["targets", "labels"])
@pytest.mark.parametrize("layout", ["grey", "channels first", "channels last"])
def test_arrays_of_torchvision_become_channels_first(layout, labels):
    """Stand-ins with the arrays that MNIST (grey), SVHN and STL10 (first) and CIFAR (last) hold."""
    images = np.random.default_rng(0).integers(0, 256, (5, 1 if layout == "grey" else 3, 4, 6), dtype=np.uint8)
    held = {"grey": images[:, 0], "channels first": images, "channels last": images.transpose(0, 2, 3, 1)}[layout]
    found, y = _from_torchvision(SimpleNamespace(data=held, **{labels: [3, 1, -1, 0, 2]}))
    assert np.array_equal(found.numpy(), images)
    assert found.is_contiguous()
    assert (y.dtype, y.tolist()) == (torch.int64, [3, 1, -1, 0, 2])


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_missing_files_say_where_what_and_how(name, tmp_path: Path):
    data = SemiSupervisedDataModule(name, root=tmp_path / "nowhere")
    assert (data.num_classes, data.input_shape) == (DATASETS[name].num_classes, DATASETS[name].input_shape)
    with pytest.raises(FileNotFoundError) as caught:
        data.setup("fit")
    fetch = "Set root" if DATASETS[name].of_files else "--data.download"
    for part in (name, str(tmp_path / "nowhere"), DATASETS[name].layout, fetch):
        assert part in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


def test_download_happens_only_when_asked(monkeypatch, tmp_path: Path):
    asked = []

    def no_network(root: Path, part: str, download: bool):
        asked.append((part, download))
        raise RuntimeError("no network")

    spec = DATASETS["stl10"]
    monkeypatch.setitem(DATASETS, "stl10", type(spec)(**(vars(spec) | {"load": no_network})))
    SemiSupervisedDataModule("stl10", root=tmp_path).prepare_data()
    assert asked == []
    # What went wrong in a download is not disguised as missing files.
    with pytest.raises(RuntimeError, match="no network"):
        SemiSupervisedDataModule("stl10", root=tmp_path, download=True).prepare_data()
    assert asked == [("train", True)]


def test_further_unlabelled_part_joins_the_unlabelled_rows(monkeypatch, tmp_path: Path):
    """STL-10: the labelled rows come from its training set, its unlabelled part is never labelled."""

    def small(root: Path, part: str, download: bool):
        count = {"train": 600, "test": 20, "unlabeled": 50}[part]
        labels = torch.full((count,), -1) if part == "unlabeled" else torch.arange(count) % 10
        return torch.zeros(count, 3, 96, 96, dtype=torch.uint8), labels

    spec = DATASETS["stl10"]
    monkeypatch.setitem(DATASETS, "stl10", type(spec)(**(vars(spec) | {"load": small})))
    data = SemiSupervisedDataModule("stl10", root=tmp_path, num_labeled=20)
    data.setup("fit")
    assert {part: len(rows) for part, rows in data.samples.items()} == {
        "labeled": 20, "val": 500, "test": 20, "unlabeled": 130,
    }  # fmt: skip
    assert data.samples["labeled"].labels.min() >= 0
    assert (data.samples["unlabeled"].labels < 0).sum() == 50


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"dataset='cifar': choose one of digits, mnist, .*stl10, .*folder"):
        SemiSupervisedDataModule("cifar")
