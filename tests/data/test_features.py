"""Frozen features from files and data sets."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from supercm_lightning.callbacks import PredictionWriter
from supercm_lightning.data import FeatureDataModule

STREAM = np.random.default_rng(0)
X = STREAM.normal(size=(60, 5)).astype(np.float32)
Y = np.arange(60) % 3


def save(name: str, **arrays: Any) -> str:
    """Writes .npz or .pt."""
    if name.endswith(".npz"):
        np.savez(name, **arrays)
    else:
        torch.save({key: torch.as_tensor(value) for key, value in arrays.items()}, name)
    return name


def module(labeled: Any, **kwargs: Any) -> FeatureDataModule:
    data = FeatureDataModule(labeled, **kwargs)
    data.setup("fit")
    return data


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_three_files(gather, suffix):
    data = module(
        save(f"labeled.{suffix}", features=X[:30].astype(np.float64), labels=Y[:30]),
        unlabeled=save(f"unlabeled.{suffix}", features=X[30:50]),
        test=save(f"test.{suffix}", features=X[50:], labels=Y[50:].astype(np.int32)),
    )
    assert (data.num_classes, data.input_shape) == (3, (5,))
    for part, rows in (("labeled", slice(30)), ("unlabeled", slice(30, 50)), ("test", slice(50, 60))):
        x, y, index = gather(data, part)
        assert x.dtype == torch.float32
        assert np.array_equal(x.numpy(), X[rows])
        assert y.tolist() == ([-1] * 20 if part == "unlabeled" else Y[rows].tolist())
        assert index.tolist() == list(range(len(x)))


def test_one_file_of_which_few_rows_keep_their_label(gather):
    data = module(save("all.npz", features=X, labels=Y), num_labeled=6, num_val=9, num_test=12)
    assert {part: len(rows) for part, rows in data.samples.items()} == {
        "labeled": 6, "val": 9, "test": 12, "unlabeled": 33,
    }  # fmt: skip
    rows = torch.cat([data.samples[part].index for part in data.samples])
    assert rows.sort().values.tolist() == list(range(60))
    x, y, _ = gather(data, "labeled")
    assert sorted(y.tolist()) == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(x.numpy(), X[data.samples["labeled"].index])


def test_class_names_count_the_classes():
    data = FeatureDataModule(save("a.npz", features=X, labels=Y, classes=np.array(["ape", "bee", "cow"])))
    assert data.class_names == ("ape", "bee", "cow")
    with pytest.raises(ValueError, match=r"labeled: 1 of 4 classes have no labeled sample \(dog\)"):
        module(save("b.npz", features=X, labels=Y, classes=np.array(["ape", "bee", "cow", "dog"])))


def test_labels_of_the_unlabelled_file_are_never_read():
    # Objects: numpy refuses to read them.
    np.savez("unlabeled.npz", features=X, labels=np.array([object()] * 60))
    data = module(save("labeled.npz", features=X, labels=Y), unlabeled="unlabeled.npz")
    assert data.samples["unlabeled"].labels.unique().tolist() == [-1]


def test_labels_of_an_unlabelled_data_set_are_never_read():
    class Unreadable:
        def __int__(self) -> int:
            raise AssertionError("a label of the unlabelled data was read")

        __index__ = __int__

    class Labelled(Dataset[Any]):
        targets = [Unreadable()] * 20

        def __len__(self) -> int:
            return 20

        def __getitem__(self, row: int) -> Any:
            return X[row], Unreadable()

    data = module(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), unlabeled=Labelled())
    assert np.array_equal(data.samples["unlabeled"].store.data.numpy(), X[:20])


def test_data_sets_in_place_of_files(gather):
    data = module(
        TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
        unlabeled=TensorDataset(torch.from_numpy(X[:7])),
        val=TensorDataset(torch.from_numpy(X[7:9]), torch.from_numpy(Y[7:9])),
    )
    assert np.array_equal(gather(data, "unlabeled")[0].numpy(), X[:7])
    assert gather(data, "val")[1].tolist() == Y[7:9].tolist()


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_arrays_in_place_of_files(gather, kind):
    data = module((kind(X[:40]), kind(Y[:40])), unlabeled=kind(X[40:50]), test=(kind(X[50:]), kind(Y[50:])))
    for part, rows in (("labeled", slice(40)), ("unlabeled", slice(40, 50)), ("test", slice(50, 60))):
        x, y, _ = gather(data, part)
        assert np.array_equal(x.numpy(), X[rows])
        assert y.tolist() == ([-1] * 10 if part == "unlabeled" else Y[rows].tolist())


def test_arrays_of_several_sources_and_a_target(gather):
    data = FeatureDataModule(source=[(X[:20], Y[:20]), (X[20:30], Y[20:30])], target=(X[30:], Y[30:]), num_val=0)
    data.setup("fit")
    assert np.array_equal(gather(data, "labeled")[0].numpy(), X[:30])
    assert gather(data, "unlabeled")[1].unique().tolist() == [-1]
    assert gather(data, "test")[1].tolist() == Y[30:].tolist()


def test_standardising_uses_the_training_rows_alone(gather):
    x = X * np.array([1, 10, 100, 0, 3]) + 7
    data = module(save("all.npz", features=x, labels=Y), num_labeled=6, num_val=9, num_test=12, standardize="joint")
    training = np.concatenate([data.samples[part].index for part in ("labeled", "unlabeled")])
    mean, std = x[training].mean(0), x[training].std(0)
    expected = (x - mean) / np.where(std > 0, std, 1)  # a constant feature becomes zero
    for part in ("labeled", "unlabeled", "val", "test"):
        np.testing.assert_allclose(gather(data, part)[0].numpy(), expected[data.samples[part].index], atol=1e-4)


def test_standardising_counts_the_unlabelled_file(gather):
    data = module(
        save("a.npz", features=X, labels=Y),
        unlabeled=save("b.npz", features=X + 4),
        test=save("c.npz", features=X, labels=Y),
        standardize="joint",
    )
    both = np.concatenate([X, X + 4])
    np.testing.assert_allclose(gather(data, "test")[0].numpy(), (X - both.mean(0)) / both.std(0), atol=1e-5)


def test_noise_is_for_training_alone(fit, gather):
    data = module(save("a.npz", features=X, labels=Y), num_labeled=6, num_test=10, noise=0.1)
    batch = fit(data).batches[0]
    clean = torch.from_numpy(X)[data.samples["unlabeled"].index][batch["unlabeled"][1]]
    assert 0.07 < (batch["unlabeled"][0][0] - clean).std() < 0.13
    assert np.array_equal(gather(data, "test")[0].numpy(), X[data.samples["test"].index])


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_rows_are_called_by_their_files(suffix, tmp_path, trainer, model):
    def write(name: str, rows: slice, prefix: str) -> str:
        files = [f"{prefix}/{number}.jpg" for number in range(len(X))[rows]]
        if suffix == "npz":
            return save(f"{name}.npz", features=X[rows], labels=Y[rows], files=np.array(files))
        torch.save({"features": torch.from_numpy(X[rows]), "labels": torch.from_numpy(Y[rows]), "files": files}, name)
        return str(Path(name).rename(f"{name}.pt"))

    sources = [write("one", slice(30), "day"), write("two", slice(30, 40), "dusk")]
    data = FeatureDataModule(source=sources, target=write("target", slice(40, 60), "night"), standardize="domain")
    data.setup("fit")
    for row, number in enumerate(data.samples["labeled"].index.tolist()):
        assert data.describe_sample("labeled", row) == f"{'day' if number < 30 else 'dusk'}/{number}.jpg"
    trainer(callbacks=[PredictionWriter()], default_root_dir=tmp_path).predict(model(data), datamodule=data)
    with (tmp_path / "predictions.csv").open() as table:
        assert [row["file"] for row in csv.DictReader(table)] == [f"night/{number}.jpg" for number in range(40, 60)]


def test_two_sources_of_which_one_has_no_files_are_numbered():
    save("one.npz", features=X[:30], labels=Y[:30], files=np.array([f"{n}.jpg" for n in range(30)]))
    save("two.npz", features=X[30:], labels=Y[30:])
    data = FeatureDataModule(source=["one.npz", "two.npz"], target=save("target.npz", features=X), num_val=0)
    data.setup("fit")
    assert data.describe_sample("labeled", 3) == "3"


def test_a_target_without_labels_is_predicted_as_the_unlabelled_rows(gather):
    data = FeatureDataModule(source=save("a.npz", features=X, labels=Y), target=save("b.npz", features=X[:9]))
    data.setup("predict")
    with pytest.raises(
        ValueError, match=r"no test samples.*To predict samples without labels, set predict_on: unlabeled"
    ):
        data.predict_dataloader()
    assert len(gather(data, "unlabeled")[0]) == 9


class TestBadInput:
    """Messages name the option, the file and what it lacks."""

    @pytest.mark.parametrize("suffix", ["npz", "pt"])
    def test_not_a_number(self, suffix):
        bad = X.copy()
        bad[17, 3] = np.nan
        data = module(save(f"a.{suffix}", features=bad, labels=Y))
        with pytest.raises(ValueError, match="labeled: sample 17 has a feature that is NaN or infinite"):
            data.arrays("labeled")

    def test_infinite_in_the_test_file(self):
        bad = X.copy()
        bad[5, 0] = np.inf
        data = module(save("a.npz", features=X, labels=Y), test=save("b.npz", features=bad, labels=Y))
        data.arrays("labeled")
        with pytest.raises(ValueError, match="test: sample 5 has a feature"):
            data.arrays("test")

    def test_missing_names(self):
        with pytest.raises(ValueError, match=r"labeled=a\.npz: has x, y, lacks features and labels"):
            FeatureDataModule(save("a.npz", x=X, y=Y))
        with pytest.raises(ValueError, match=r"test=c\.npz: has features, lacks labels"):
            module(save("b.npz", features=X, labels=Y), test=save("c.npz", features=X))

    def test_file_that_is_no_dictionary(self):
        torch.save(torch.from_numpy(X), "a.pt")
        with pytest.raises(ValueError, match=r"labeled=a\.pt: has nothing by name, lacks features and labels"):
            FeatureDataModule("a.pt")

    def test_file_that_could_run_code(self):
        torch.save({"features": X, "labels": Path("x")}, "a.pt")
        with pytest.raises(ValueError, match=r"labeled=a\.pt: holds more than tensors"):
            FeatureDataModule("a.pt")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (X, "labeled: features without labels; give"),
            ((X, Y[:7]), r"features of shape \(60, 5\) with 7 labels"),
            ((X, Y + 0.5), "labeled: labels must be whole numbers"),
            ((X, Y, Y), "ndarray is no set|features without labels"),
            ({"features": X, "labels": Y}, r"dict is no set of features"),
            ([1.0, 2.0], "float is no set of features"),
        ],
    )
    def test_arrays_that_are_no_set(self, given, message):
        with pytest.raises(ValueError, match=message):
            module(given)

    def test_files_of_other_rows(self):
        with pytest.raises(ValueError, match="labeled: 2 files for 60 samples; each needs one, or leave files out"):
            FeatureDataModule(save("a.npz", features=X, labels=Y, files=np.array(["a.jpg", "b.jpg"])))

    def test_missing_file(self):
        with pytest.raises(FileNotFoundError, match=r"labeled=nowhere\.npz: no such file. Expected .npz or .pt"):
            FeatureDataModule("nowhere.npz")

    def test_other_format(self):
        Path("a.csv").write_text("1,2")
        with pytest.raises(ValueError, match=r"labeled=a\.csv: features are read from \.npz or \.pt"):
            FeatureDataModule("a.csv")

    def test_dimensions_differ(self):
        with pytest.raises(ValueError, match=r"unlabeled: features of shape \(4,\), but labeled has \(5,\)"):
            module(save("a.npz", features=X, labels=Y), unlabeled=save("b.npz", features=X[:, :4]))

    def test_images_instead_of_vectors(self):
        with pytest.raises(ValueError, match=r"labeled: features of shape \(60, 5, 1\) with 60 labels"):
            FeatureDataModule(save("a.npz", features=X[..., None], labels=Y))

    def test_numbers_of_rows_differ(self):
        with pytest.raises(ValueError, match=r"features of shape \(60, 5\) with 59 labels"):
            FeatureDataModule(save("a.npz", features=X, labels=Y[:-1]))

    def test_no_rows(self):
        with pytest.raises(ValueError, match=r"features of shape \(0, 5\) with 0 labels"):
            FeatureDataModule(save("a.npz", features=X[:0], labels=Y[:0]))

    def test_class_that_the_labelled_file_lacks(self):
        with pytest.raises(ValueError, match="test set: labels run from 0 to 2, but num_classes=2"):
            module(save("a.npz", features=X, labels=Y % 2), test=save("b.npz", features=X, labels=Y))
        with pytest.raises(ValueError, match=r"labeled: 1 of 4 classes have no labeled sample \(2\)"):
            module(save("a.npz", features=X, labels=np.where(Y == 2, 3, Y)))

    def test_numbers_that_do_not_fit(self):
        file = save("a.npz", features=X, labels=np.where(np.arange(60) < 30, Y, -1))
        with pytest.raises(ValueError, match="num_labeled=2: fewer labels than the 3 classes"):
            module(file, num_labeled=2)
        with pytest.raises(
            ValueError, match="num_labeled=20, num_val=11 and num_test=0 ask for more than the 30 samples"
        ):
            module(file, num_labeled=20, num_val=11)

    def test_negative_noise(self):
        with pytest.raises(ValueError, match="noise=-1"):
            FeatureDataModule(save("a.npz", features=X, labels=Y), noise=-1)


class TestTwoDomains:
    """A source and a target in place of labelled and unlabelled rows."""

    @pytest.fixture
    def pair(self) -> dict[str, str]:
        names = np.array(["ape", "bee", "cow"])
        save("one.npz", features=X, labels=Y, classes=names)
        save("two.npz", features=2 * X[:30] + 5, labels=Y[:30], classes=names)
        return {"source": "one", "target": "two"}

    def test_parts(self, pair, gather):
        data = FeatureDataModule(**pair)
        data.setup("fit")
        assert {part: len(rows) for part, rows in data.samples.items()} == {
            "labeled": 54, "unlabeled": 30, "val": 6, "test": 30,
        }  # fmt: skip
        assert data.samples["val"].labels.bincount().tolist() == [2, 2, 2]
        assert data.class_names == ("ape", "bee", "cow")
        assert gather(data, "unlabeled")[1].tolist() == [-1] * 30
        x, y, _ = gather(data, "test")
        np.testing.assert_allclose(x, 2 * X[:30] + 5, rtol=1e-6)
        assert y.tolist() == Y[:30].tolist()

    def test_each_domain_by_its_own_statistics(self, pair, gather):
        x = np.concatenate([X * 3, X[:40] - 8])
        save("three.npz", features=X[:40] - 8, labels=Y[:40])
        save("one.npz", features=X * 3, labels=Y)
        save("two.npz", features=2 * X[:30] + 5, labels=Y[:30])
        data = module(None, source=["one", "three"], target="two", num_val=20, standardize="domain")
        training, held_out = (data.samples[part].index.numpy() for part in ("labeled", "val"))
        expected = np.empty_like(x)
        for mine in (np.arange(100) < 60, np.arange(100) >= 60):
            seen = x[training[mine[training]]]
            expected[mine] = (x[mine] - seen.mean(0)) / seen.std(0)
        np.testing.assert_allclose(gather(data, "labeled")[0], expected[training], atol=1e-5)
        np.testing.assert_allclose(gather(data, "val")[0], expected[held_out], atol=1e-5)
        target = X[:30]  # scale and shift do not survive
        for part in ("unlabeled", "test"):
            np.testing.assert_allclose(gather(data, part)[0], (target - target.mean(0)) / target.std(0), atol=1e-5)
        assert (held_out >= 60).sum() == 8  # each source gives its share

    def test_validation_and_test_have_two_loaders(self, pair):
        data = module(None, **pair)
        lengths = [
            [len(loader.dataset) for loader in loaders] for loaders in (data.val_dataloader(), data.test_dataloader())
        ]
        assert lengths == [[6, 30], [30, 6]]
        assert not isinstance(module(save("a.npz", features=X, labels=Y), num_val=6).val_dataloader(), list)

    def test_oracle_labels(self, pair, gather):
        assert gather(module(None, **pair, oracle_labels=True), "unlabeled")[1].tolist() == Y[:30].tolist()

    def test_target_without_labels(self, pair, fit):
        save("two.npz", features=X[:30])
        data = FeatureDataModule(source="one", target="two.npz", num_val=9)
        assert len(fit(data).batches) == 1
        assert not len(data.samples["test"])
        assert len(data.samples["val"]) == 9

    def test_own_test_and_validation_files(self, pair, gather):
        names = np.array(["ape", "bee", "cow"])
        save("val.npz", features=X[:12] * 3, labels=Y[:12], classes=names)
        save("test.npz", features=X[30:40], labels=Y[30:40], classes=names)
        data = module(None, **pair, val="val", test="test", standardize="domain")
        assert {part: len(rows) for part, rows in data.samples.items()} == {
            "labeled": 60, "unlabeled": 30, "val": 12, "test": 10,
        }  # fmt: skip
        np.testing.assert_allclose(gather(data, "val")[0], (X[:12] * 3 - X.mean(0)) / X.std(0), atol=1e-5)
        seen = 2 * X[:30] + 5
        np.testing.assert_allclose(gather(data, "test")[0], (X[30:40] - seen.mean(0)) / seen.std(0), atol=1e-5)

    def test_names_count_from_the_root(self):
        Path("deep").mkdir()
        save("deep/a.npz", features=X, labels=Y)
        save("deep/b.v2.npz", features=X, labels=Y)
        assert len(module("a.npz", root="deep").samples["labeled"]) == 60
        data = module(None, root="deep", source="a", target="b.v2")
        assert len(data.samples["test"]) == 60
        assert len(module(Path("deep/a.npz").absolute(), root="elsewhere").samples["labeled"]) == 60

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"source": "one"}, "Give either labeled, with or without unlabeled, or both source and target"),
            ({"labeled": "one", "target": "two"}, "Give either labeled"),
            ({"labeled": "one", "source": "one", "target": "two"}, "Give either labeled"),
            ({}, "Give either labeled"),
            ({"source": "one", "target": "two", "unlabeled": "two"}, "unlabeled: the samples of target are"),
            ({"source": "one", "target": "one.npz"}, "source and target are the same, one.npz"),
            ({"source": ["two", "one"], "target": "one"}, "source and target are the same"),
            ({"labeled": "one", "standardize": "domain"}, "standardize='domain' needs two domains"),
            ({"labeled": "one", "standardize": "each"}, "standardize='each': choose one of joint, domain"),
            ({"labeled": "one", "oracle_labels": True}, "oracle_labels: only a target has labels"),
        ],
    )
    def test_contradictions(self, pair, options, message):
        with pytest.raises(ValueError, match=message):
            FeatureDataModule(**options)

    def test_classes_differ(self, pair):
        save("other.npz", features=X, labels=Y, classes=np.array(["ape", "bee", "dog"]))
        with pytest.raises(ValueError, match=r"target: other classes than those of source \(dog\)"):
            module(None, source="one", target="other")
        save("other.npz", features=X, labels=Y)
        with pytest.raises(ValueError, match="target: has no names of classes"):
            module(None, source="one", target="other")

    def test_real_features(self, data_root, gather):
        data = module(
            None, root=data_root / "office_caltech10_features", source="amazon", target="webcam", standardize="domain"
        )
        assert {part: len(rows) for part, rows in data.samples.items()} == {
            "labeled": 862, "unlabeled": 295, "val": 96, "test": 295,
        }  # fmt: skip
        x, _, _ = gather(data, "unlabeled")
        torch.testing.assert_close(x.mean(0), torch.zeros(1024), rtol=0, atol=1e-5)
        assert data.class_names[:2] == ("backpack", "bike")
