"""`arrays`: what baselines, estimators and outsiders compare on; and the options that summaries report."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from supercm_lightning import (
    ClusteringDataModule,
    DomainAdaptationDataModule,
    FeatureDataModule,
    SemiSupervisedDataModule,
)

STREAM = np.random.default_rng(0)
X, Y = STREAM.normal(3, 5, (60, 4)).astype("f4"), np.arange(60) % 3
COUNTS = {"train/a": 8, "train/b": 8, "val/a": 2, "val/b": 2, "test/a": 3, "test/b": 3}


def images(count: int, seed: int = 0) -> TensorDataset:
    stream = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 10, 10), generator=stream).to(torch.uint8)
    return TensorDataset(pixels, torch.arange(count) % 3)


def module(kind: str, image_folder: Any) -> Any:
    files = {"num_workers": 0, "image_size": 7, "mean": (0.3,)}
    if kind.startswith("folder"):
        in_memory = kind == "folder in memory"
        root = image_folder(COUNTS, size=(11, 9))
        return SemiSupervisedDataModule("folder", root, num_labeled=4, in_memory=in_memory, **files)
    if kind == "whitened":
        return SemiSupervisedDataModule("digits", num_labeled=20, whitening=True)
    if kind == "domains":
        root = image_folder(COUNTS, size=(11, 9))
        return DomainAdaptationDataModule("train", "test", "folder", root, in_memory=False, oracle_labels=True, **files)
    if kind == "torch":
        return DomainAdaptationDataModule(images(30), images(12, 1), test=images(6, 2), num_workers=0)
    if kind == "features":
        return FeatureDataModule((X, Y), num_labeled=6, num_val=6, num_test=12, standardize="joint", noise=0.5)
    if kind == "two feature domains":
        return FeatureDataModule(source=[(X, Y), (X + 1, Y)], target=(X[:30] * 2, Y[:30]), standardize="domain")
    np.savez("f.npz", features=X, labels=Y)
    return ClusteringDataModule(*(("features", "f.npz") if kind == "clustered features" else ("digits",)))


KINDS = (
    "folder in memory", "folder of workers", "whitened", "domains", "torch", "features", "two feature domains",
    "clustered features", "clustered digits",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_what_evaluation_sees(kind: str, image_folder: Any, gather: Any) -> None:
    data = module(kind, image_folder)
    data.setup("fit")
    for split in [split for split, samples in data.samples.items() if len(samples)]:
        x, y = data.arrays(split)
        seen, labels, _ = gather(data, split)
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert x.shape == (len(data.samples[split]), *data.input_shape)
        np.testing.assert_array_equal(x, seen.numpy())
        assert y.tolist() == ([-1] * len(y) if split == "unlabeled" else labels.tolist())


def test_arrays_of_a_split_without_samples_say_what_to_do() -> None:
    data = SemiSupervisedDataModule("digits", num_labeled=20, num_val=0)
    with pytest.raises(RuntimeError, match="setup"):
        data.arrays("labeled")
    data.setup("fit")
    with pytest.raises(ValueError, match="num_val"):
        data.arrays("val")


@pytest.mark.parametrize("kind", KINDS)
def test_reading_again_changes_nothing(kind: str, image_folder: Any) -> None:
    data = module(kind, image_folder)
    data.setup("fit")
    before = {split: data.arrays(split) for split, samples in data.samples.items() if len(samples)}
    preprocessing = dict(data.preprocessing)
    data.samples = data.read()
    assert data.preprocessing == preprocessing
    for split, (x, y) in before.items():
        again = data.arrays(split)
        np.testing.assert_array_equal(again[0], x)
        np.testing.assert_array_equal(again[1], y)


@pytest.mark.parametrize("kind", KINDS)
def test_options_are_plain_values_without_the_data(kind: str, image_folder: Any) -> None:
    data = module(kind, image_folder)
    options = dict(data.hparams)

    def plain(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is None or type(value) in (bool, int, float, str)

    assert all(map(plain, options.values()))
    expected = {
        "folder in memory": {"dataset": "folder", "num_labeled": 4, "in_memory": True, "mean": (0.3,), "std": (0.5,)},
        "domains": {"source": "train", "target": "test", "dataset": "folder", "image_size": 7, "source_batch_size": 32},
        "features": {"num_labeled": 6, "standardize": "joint", "noise": 0.5, "unlabeled": None},
        "clustered features": {"dataset": "features", "root": "f.npz", "protocol": "whole"},
    }.get(kind, {})
    assert expected.items() <= options.items()
    assert "labeled_batch_size" in options or kind not in ("features", "folder in memory")
    torch.save(options, "options.pt")
    torch.load("options.pt", weights_only=True)


def test_options_of_a_subclass_are_kept_too() -> None:
    class Mine(SemiSupervisedDataModule):
        def __init__(self, largest: int = 4, folder: Path = Path("x"), **kwargs: Any) -> None:
            super().__init__(dataset=images(12), **kwargs)

    data = Mine(largest=7, num_labeled=6)
    assert (data.hparams.largest, data.hparams.folder, data.hparams.num_labeled) == (7, "x", 6)
    assert "dataset" not in data.hparams


@pytest.mark.parametrize("kind", ["folder in memory", "folder of workers", "torch", "features", "two feature domains"])
def test_samples_travel_to_other_processes(kind: str, image_folder: Any) -> None:
    data = module(kind, image_folder)
    data.setup("fit")
    samples = data.samples["unlabeled"]
    position = torch.arange(len(samples))
    moved = pickle.loads(pickle.dumps(samples))
    assert torch.equal(moved.fetch(position, torch.device("cpu")), samples.fetch(position, torch.device("cpu")))
    assert torch.equal(moved.labels, samples.labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_lies_on_a_device_stays_there_when_samples_travel(image_folder: Any) -> None:
    data = module("folder in memory", image_folder)
    data.setup("fit")
    samples, device = data.samples["unlabeled"], torch.device("cuda")
    position = torch.arange(3, device=device)
    expected = samples.fetch(position, device)
    assert samples.store.data.is_cuda
    moved = pickle.loads(pickle.dumps(samples))
    assert not moved.store.data.is_cuda
    assert moved._on_device is None
    assert torch.equal(moved.fetch(position, device), expected)
    assert torch.equal(samples.fetch(position.cpu(), torch.device("cpu")), expected.cpu())


@pytest.mark.parametrize("count", [2, 3])
def test_labels_are_not_read_before_the_data_when_the_classes_are_known(count: int) -> None:
    class Costly(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.read: list[int] = []
            if count == 2:
                self.classes = ["a", "b"]

        def __len__(self) -> int:
            return 30

        def __getitem__(self, number: int) -> Any:
            self.read.append(number)
            return torch.zeros(1, 8, 8, dtype=torch.uint8), number % count

    dataset = Costly()
    data = SemiSupervisedDataModule(dataset, num_workers=0, num_classes=None if count == 2 else 3)
    assert data.num_classes == count
    assert set(dataset.read) == {0}
    data.setup("fit")
    assert set(dataset.read) == set(range(30))
