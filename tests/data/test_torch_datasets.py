"""Ready-made torch data sets in place of a registered name."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from supercm_lightning.data import SemiSupervisedDataModule
from supercm_lightning.utils.options import SuperCMError

IMAGES = torch.randint(0, 256, (40, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 4


class Items(Dataset[Any]):
    """A data set of a user: items made by a function, attributes as given."""

    def __init__(self, make, count: int = 40, **attributes: Any) -> None:
        self.make = make
        self.count = count
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        if not 0 <= row < self.count:
            raise IndexError(row)
        return self.make(row)


class Unreadable:
    """A label that must not be looked at."""

    def __int__(self) -> int:
        raise AssertionError("a label of the unlabelled data was read")

    __index__ = __eq__ = __hash__ = __int__  # type: ignore[assignment]


def pil(row: int) -> Image.Image:
    return Image.fromarray(IMAGES[row].permute(1, 2, 0).numpy())


def module(dataset: Any, read: bool = True, **kwargs: Any) -> SemiSupervisedDataModule:
    data = SemiSupervisedDataModule(dataset, num_workers=0, **kwargs)
    if read:
        data.setup("fit")
    return data


@pytest.mark.parametrize("in_memory", [None, True])
@pytest.mark.parametrize("make", [lambda row: (IMAGES[row], row % 4), lambda row: (pil(row), row % 4)])
def test_bytes_as_tensors_and_as_pil_are_normalised(gather, make, in_memory):
    data = module(Items(make), num_labeled=8, in_memory=in_memory)
    assert (data.num_classes, data.input_shape) == (4, (3, 6, 5))
    x, y, _ = gather(data, "unlabeled")
    rows = data.samples["unlabeled"].index
    torch.testing.assert_close(x, IMAGES[rows] / 127.5 - 1)
    assert torch.equal(y, LABELS[rows])


@pytest.mark.parametrize(("cores", "workers"), [({5}, 1), (set(range(16)), 4)])
def test_workers_are_no_more_than_the_cores(monkeypatch, cores, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores, raising=False)
    items = Items(lambda row: (IMAGES[row], int(LABELS[row])))
    data = SemiSupervisedDataModule(items, num_labeled=8, num_test=8)
    data.setup("test")
    assert data.test_dataloader().num_workers == workers


def test_floats_arrive_unchanged(gather, fit):
    floats = torch.randn(40, 3, 6, 5)
    data = module(TensorDataset(floats, LABELS), num_labeled=8)
    x, _, _ = gather(data, "unlabeled")
    assert torch.equal(x, floats[data.samples["unlabeled"].index])
    views, index = fit(data).batches[0]["unlabeled"]
    assert torch.equal(views[0], floats[data.samples["unlabeled"].index][index])


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGBA", 3), ("P", 3), ("LA", 1)])
def test_other_pil_modes(mode, channels):
    data = module(Items(lambda row: (pil(row).convert(mode), row % 4)), num_labeled=4)
    assert data.input_shape == (channels, 6, 5)
    assert next(iter(data.train_dataloader()["labeled"])).pixels.shape == (50, channels, 6, 5)


@pytest.mark.parametrize("name", ["targets", "labels"])
def test_listed_labels_are_used_without_reading_the_items(name):
    def costly(row: int) -> Any:
        assert row == 0, "only the first item tells the shape"
        return IMAGES[row], LABELS[row]

    data = module(Items(costly, **{name: LABELS.tolist()}), num_labeled=8)
    assert torch.equal(data.samples["labeled"].labels, LABELS[data.samples["labeled"].index])


def test_labels_changed_by_a_transform_are_read_from_the_items():
    data = Items(lambda row: (IMAGES[row], row % 2), targets=LABELS.tolist(), target_transform=lambda label: label % 2)
    assert module(data, num_labeled=8).num_classes == 2


def test_names_instead_of_numbers_in_labels_are_not_mistaken_for_them():
    data = Items(lambda row: (IMAGES[row], row % 4), labels=["a", "b"] * 20)
    assert module(data, num_labeled=8).num_classes == 4


def test_subset_of_a_data_set():
    data = module(Subset(TensorDataset(IMAGES, LABELS), list(range(20, 40))), num_labeled=8)
    rows = data.samples["labeled"].index
    assert torch.equal(data.samples["labeled"].labels, LABELS[20:][rows])
    assert torch.equal(next(iter(data.train_dataloader()["labeled"])).pixels[0], IMAGES[20:][rows][_first(data)])


def _first(data: SemiSupervisedDataModule) -> int:
    return int(next(iter(data.train_dataloader()["labeled"])).position[0])


def test_class_names_come_with_the_data_set():
    data = Items(lambda row: (IMAGES[row], row % 4), classes=["a", "b", "c", "d"])
    assert module(data, read=False).class_names == ("a", "b", "c", "d")


@pytest.mark.parametrize("make", [lambda row: IMAGES[row], lambda row: (IMAGES[row], Unreadable()), pil])
def test_further_unlabelled_images_with_or_without_labels(gather, make):
    data = module(TensorDataset(IMAGES, LABELS), num_labeled=8, unlabeled=Items(make, 10))
    assert len(data.samples["unlabeled"]) == 32 + 10
    x, y, _ = gather(data, "unlabeled")
    torch.testing.assert_close(x[-10:], IMAGES[:10] / 127.5 - 1)
    assert y[-10:].tolist() == [-1] * 10


def test_own_validation_and_test_sets_are_not_cut_from_the_training_set(gather):
    data = module(
        TensorDataset(IMAGES, LABELS),
        num_labeled=8,
        num_val=3,
        num_test=3,
        val=TensorDataset(IMAGES[:6], LABELS[:6]),
        test=TensorDataset(IMAGES[6:8], LABELS[6:8]),
    )
    assert (len(data.samples["unlabeled"]), len(data.samples["val"]), len(data.samples["test"])) == (32, 6, 2)
    assert gather(data, "test")[1].tolist() == [2, 3]
    assert data.describe_sample("test", 1) == "1"


def test_negative_labels_of_a_training_set_mean_unlabelled():
    labels = torch.where(torch.arange(40) < 20, LABELS, -1)
    data = module(TensorDataset(IMAGES, labels))
    assert (len(data.samples["labeled"]), len(data.samples["unlabeled"])) == (20, 20)


class TestBadInput:
    """Messages name the data set and the remedy."""

    def test_label_out_of_range(self):
        with pytest.raises(ValueError, match=r"training set: labels run from 0 to 3, but num_classes=3 allows 0 to 2"):
            module(TensorDataset(IMAGES, LABELS), num_classes=3)

    @pytest.mark.parametrize("label", [4, -1])
    @pytest.mark.parametrize("part", ["val", "test"])
    def test_label_out_of_range_in_a_held_out_set(self, part, label):
        held_out = TensorDataset(IMAGES[:2], torch.tensor([0, label]))
        with pytest.raises(ValueError, match=rf"{part} set: labels run from .*num_classes=4 allows 0 to 3"):
            module(TensorDataset(IMAGES, LABELS), **{part: held_out})

    def test_class_without_any_row(self):
        with pytest.raises(ValueError, match=r"training set: 1 of 5 classes have no labeled sample \(4\)"):
            module(TensorDataset(IMAGES, LABELS), num_classes=5)

    def test_items_without_label(self):
        with pytest.raises(ValueError, match=r"must yield \(image, label\) pairs"):
            module(Items(lambda row: IMAGES[row]))

    @pytest.mark.parametrize("kind", ["items", "targets", "tensors"])
    @pytest.mark.parametrize("labels", [LABELS + 0.7, torch.eye(4)[LABELS], LABELS - 5], ids=["0.7", "one hot", "-5"])
    def test_labels_that_are_no_whole_numbers(self, kind, labels):
        data = {
            "items": Items(lambda row: (IMAGES[row], labels[row])),
            "targets": Items(lambda row: (IMAGES[row], row % 4), targets=labels),
            "tensors": TensorDataset(IMAGES, labels),
        }[kind]
        with pytest.raises(SuperCMError, match="labels"):
            module(data)

    @pytest.mark.parametrize("label", ["abcd", [None] * 4], ids=["words", "none"])
    def test_labels_that_are_no_numbers(self, label):
        with pytest.raises(SuperCMError, match="its labels are no numbers"):
            module(Items(lambda row: (IMAGES[row], label[row % 4])))

    def test_listed_labels_that_items_contradict(self):
        with pytest.raises(SuperCMError, match="lists the label 0 for its first item, which has 1"):
            module(Items(lambda row: (IMAGES[row], (row + 1) % 4), targets=LABELS.tolist()))

    def test_fewer_items_than_the_length_says(self):
        with pytest.raises(SuperCMError, match="no sample 40, but its length is 50"):
            module(Items(lambda row: (IMAGES[row], row % 4), 50))

    @pytest.mark.parametrize("kind", ["dataset", "unlabeled"])
    @pytest.mark.parametrize("length", [None, 40])
    def test_samples_that_come_in_turn(self, kind, length):
        class Stream(IterableDataset[Any]):
            def __iter__(self):
                return zip(IMAGES, LABELS, strict=True)

        if length:
            Stream.__len__ = lambda self: length  # type: ignore[attr-defined]
        sets = {"dataset": TensorDataset(IMAGES, LABELS)} | {kind: Stream()}
        with pytest.raises(SuperCMError, match=f"{kind}: Stream gives its samples in turn"):
            module(**sets)

    @pytest.mark.parametrize("kind", ["unlabeled", "val", "test"])
    def test_one_data_set_for_training_and_another_split(self, kind):
        data = TensorDataset(IMAGES, LABELS)
        with pytest.raises(SuperCMError, match=f"{kind}: is the data set of dataset itself"):
            module(data, **{kind: data})

    @pytest.mark.parametrize("kind", [Items, TensorDataset])
    def test_an_image_that_is_not_a_number(self, kind, gather):
        floats = torch.rand(40, 3, 6, 5)
        floats[17, 0, 0, 0] = torch.nan
        data = TensorDataset(floats, LABELS) if kind is TensorDataset else Items(lambda row: (floats[row], row % 4))
        with pytest.raises(SuperCMError, match="sample 17 has a value that is NaN"):
            gather(module(data), "labeled")

    @pytest.mark.parametrize("array", [np.array([[["a"]]]), np.array([[[{}]]], dtype=object)], ids=["words", "objects"])
    def test_arrays_that_are_no_numbers(self, array):
        with pytest.raises(SuperCMError, match="sample 0 is no image of Pillow and no array of numbers"):
            module(Items(lambda row: (array, row % 4)))

    def test_one_hot_labels(self):
        with pytest.raises(ValueError, match="labels of shape"):
            module(Items(lambda row: (IMAGES[row], 0), targets=torch.eye(4)[LABELS]))

    def test_empty(self):
        with pytest.raises(ValueError, match="TensorDataset: the data set is empty"):
            module(TensorDataset(IMAGES[:0], LABELS[:0]))

    def test_vectors(self):
        with pytest.raises(ValueError, match=r"items of shape \(7,\).*FeatureDataModule"):
            module(TensorDataset(torch.randn(40, 7), LABELS))

    def test_bytes_beside_floats(self):
        with pytest.raises(ValueError, match=r"unlabeled: images of type torch.float32, but .* torch.uint8"):
            module(TensorDataset(IMAGES, LABELS), unlabeled=TensorDataset(torch.rand(4, 3, 6, 5)))

    @pytest.mark.parametrize("in_memory", [None, True])
    def test_images_of_several_sizes(self, in_memory):
        def make(row: int) -> tuple[Tensor, int]:
            return IMAGES[row, :, : 6 - (row == 30)], row % 4

        with pytest.raises(ValueError, match=r"sample 30: shape \(3, 5, 5\) where \(3, 6, 5\) was expected.*transform"):
            list(module(Items(make), in_memory=in_memory, predict_on="labeled").predict_dataloader())

    def test_further_sets_beside_a_registered_name(self):
        with pytest.raises(ValueError, match="test: goes with torch data sets; dataset='digits'"):
            module("digits", test=TensorDataset(IMAGES, LABELS))


def test_data_set_is_read_by_one_thread_at_a_time():
    """An open file, say, has one position."""
    position = [0]

    def make(row: int) -> tuple[Tensor, int]:
        position[0] = row
        np.linalg.norm(np.ones(20_000))  # gives other threads their chance
        return IMAGES[position[0]], position[0] % 4

    data = module(Items(make), in_memory=True)
    store = data.samples["labeled"].store
    assert torch.equal(store.data, IMAGES)


def test_a_checkpoint_of_other_classes_is_refused():
    def named(classes: Any) -> SemiSupervisedDataModule:
        return module(Items(lambda row: (IMAGES[row], row % 4), classes=classes))

    state = named(np.array(["cat", "dog", "elk", "owl"])).state_dict()
    with pytest.raises(ValueError, match=r"other classes than the data \(cat, tomcat\)"):
        named(["dog", "elk", "owl", "tomcat"]).load_state_dict(state)
    unnamed = named(None)
    unnamed.load_state_dict(state | {"seed": 5})
    assert unnamed.seed == 5
