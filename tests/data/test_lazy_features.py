"""Feature files that are mapped are read where they are used, and nowhere else."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from supercm_lightning import ClusteringDataModule, FeatureDataModule, Supervised
from supercm_lightning.data.sources.feature_store import FeatureStore, statistics
from supercm_lightning.data.sources.stores import ArrayStore, ConcatStore, join

X = np.random.default_rng(0).normal(size=(90, 4)).astype("f4")
Y = np.arange(90) % 3


def broken(name: str, number: int = 70) -> str:
    """A file of which one sample, that nobody needs to read at first, is not a number."""
    x = X.copy()
    x[number, 2] = np.nan
    np.savez(name, features=x, labels=Y)
    return name


def test_nothing_is_read_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []
    raw = FeatureStore.raw

    def watched(self: FeatureStore, index: torch.Tensor, device: torch.device) -> torch.Tensor:
        fetched.append(len(index))
        return raw(self, index, device)

    monkeypatch.setattr(FeatureStore, "raw", watched)
    np.savez("a.npz", features=X, labels=Y)
    data = FeatureDataModule("a.npz", num_labeled=6, labeled_batch_size=5, unlabeled_batch_size=7)
    data.setup("fit")
    assert not fetched
    store = data.samples["labeled"].store
    assert isinstance(store, FeatureStore)
    assert data.arrays("labeled")[0].shape == (6, 4)
    assert fetched == [6]


@pytest.mark.parametrize("data", ["labels", "clusters"])
def test_a_sample_that_is_no_number_is_named_when_it_is_met(data: str, gather: Any) -> None:
    broken("a.npz")
    module: Any = (
        FeatureDataModule("a.npz", num_labeled=6, num_test=30)
        if data == "labels"
        else ClusteringDataModule("features", "a.npz")
    )
    if data == "clusters":  # which are standardized, so that every sample is read
        with pytest.raises(ValueError, match="sample 70 has a feature that is NaN or infinite"):
            module.setup("fit")
        return
    module.setup("fit")
    split = next(split for split, part in module.samples.items() if 70 in part.index)
    with pytest.raises(ValueError, match="labeled: sample 70 has a feature that is NaN or infinite"):
        gather(module, split)
    for other in set(module.samples) - {split, "val"}:
        assert len(gather(module, other)[0])


def test_a_training_step_names_it_too(trainer: Any) -> None:
    broken("a.npz")
    data = FeatureDataModule("a.npz", num_labeled=6, unlabeled_batch_size=84)
    model = Supervised(num_classes=3, input_shape=(4,), backbone="identity", use_unlabeled=True)
    with pytest.raises(ValueError, match="sample 70 has a feature that is NaN or infinite"):
        trainer().fit(model, datamodule=data)


def test_standardizing_finds_it_and_names_its_file() -> None:
    x = X.copy()
    x[70] = np.inf
    np.savez("a.npz", features=x, labels=Y, files=[f"{number}.jpg" for number in range(90)])
    data = FeatureDataModule("a.npz", num_labeled=6, standardize="joint")
    with pytest.raises(ValueError, match=r"labeled: sample 70 \(70\.jpg\) has a feature"):
        data.setup("fit")


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_features_of_any_precision(kind: str, gather: Any) -> None:
    np.savez("a.npz", features=X.astype(kind), labels=Y)
    data = FeatureDataModule("a.npz", num_labeled=6, num_test=30, standardize="joint")
    x, _, _ = gather(data, "test")
    assert x.dtype == torch.float32
    assert (
        data.samples["test"].store.data.dtype == {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}[kind]
    )


def test_statistics_are_those_of_the_whole_and_constant_features_stay_finite() -> None:
    x = torch.from_numpy(np.concatenate([X, np.full((90, 1), 0.1, "f4"), np.zeros((90, 1), "f4")], 1))
    stores = [FeatureStore(part, torch.zeros(len(part), dtype=torch.int64)) for part in x.split([30, 60])]
    parts = [(store, torch.arange(len(store))) for store in stores]
    for correction in (0, 1):
        mean, std = statistics(parts, correction)
        torch.testing.assert_close(mean, x.mean(0))
        torch.testing.assert_close(std[:4], x[:, :4].std(0, correction=correction))
        assert std[4:].tolist() == [1, 1]


def test_several_files_are_one_store_without_being_read() -> None:
    stores = [FeatureStore(torch.from_numpy(part), torch.arange(len(part))) for part in (X[:20], X[20:50], X[50:])]
    joined = join(stores)
    assert isinstance(joined, ConcatStore)
    index = torch.tensor([55, 3, 20, 19, 89, 3])
    assert torch.equal(joined.fetch(index, torch.device("cpu")), torch.from_numpy(X[index]))
    assert torch.equal(joined.labels[index], torch.tensor([5, 3, 0, 19, 39, 3]))
    assert not joined.needs_workers
    plain = join([ArrayStore(store.data, store.labels) for store in stores])
    assert isinstance(plain, ArrayStore)


@pytest.mark.parametrize("standardize", [None, "joint"])
def test_a_large_file_takes_memory_for_what_is_read_alone(standardize: Any) -> None:
    with zipfile.ZipFile("a.npz", "w") as archive, archive.open("features.npy", "w", force_zip64=True) as member:
        shape = (1 << 16, 1024)
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for _ in range(64):
            member.write(bytes(1 << 22))
    np.savez("b.npz", features=np.ones((30, 1024), "f4"), labels=Y[:30])
    before = anonymous_memory()
    data = FeatureDataModule("b.npz", unlabeled="a.npz", standardize=standardize)
    data.setup("fit")
    data.samples["unlabeled"].fetch(torch.arange(0, 1 << 16, 100), torch.device("cpu"))
    assert anonymous_memory() - before < 64 << 20


def anonymous_memory() -> int:
    """Bytes of this process that are on no disk."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        pytest.skip("the system does not tell")
    return int(found[1]) << 10
