"""Stored views of frozen features: read by every method, matched by network and class names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from supercm_lightning import ClusteringDataModule, FeatureDataModule, methods
from supercm_lightning.data.transforms.features import FeatureView, feature_views
from supercm_lightning.utils.options import SuperCMError

N, D = 60, 5
Y = np.arange(N) % 3
X = (np.random.default_rng(0).normal(size=(N, D)) + 3 * np.eye(3, D)[Y]).astype("f4")
WEAK, STRONG = X[:, None] + [[[100.0], [200.0]]], X[:, None] + [[[1000.0], [2000.0], [3000.0]]]


def write(name: str = "a.npz", views: bool = True, **more: Any) -> str:
    """Features whose views tell by their size which one they are."""
    stored = {"weak": WEAK.astype("f2"), "strong": STRONG.astype("f4")} if views else {}
    np.savez(name, **{"features": X, "labels": Y} | stored | more)
    return name


@pytest.mark.parametrize("kind", ["few labels", "clusters"])
def test_a_step_takes_one_stored_view_of_each_sample_at_random(kind: str) -> None:
    data: Any = FeatureDataModule(write(), num_labeled=6) if kind == "few labels" else None
    if data is None:
        write("train.npz")
        data = ClusteringDataModule("features", ".")
        data._standardize = lambda *_: None
    data.setup("fit")
    samples = data.samples["unlabeled"].fetch(torch.arange(40), torch.device("cpu"))
    number = data.samples["unlabeled"].index[:40]
    clean = data.normalize(samples)
    assert torch.equal(clean, torch.from_numpy(X[number]))
    for view, sizes in (("weak", {0, 100, 200}), ("strong", {1000, 2000, 3000})):
        made = [data.augmentations[view](samples, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
        assert torch.equal(made[0], made[1])
        assert not torch.equal(made[0], made[2])
        assert set((made[0] - clean).mean(1).div(100).round().mul(100).int().tolist()) == sizes


@pytest.mark.parametrize(
    "name",
    ["FixMatch", "FlexMatch", "FreeMatch", "SoftMatch", "MeanTeacher", "PiModel", "SuperCMFreeMatch", "ASDFreeMatch"],
)
def test_methods_of_several_views_run_on_stored_ones(name: str, trainer: Any) -> None:
    kind: Any = vars(methods)[name]
    write("train.npz")
    data: Any = FeatureDataModule("train.npz", num_labeled=6, steps_per_epoch=2)
    if not kind.needs_labeled:
        data = ClusteringDataModule("features", ".", unlabeled_batch_size=20, steps_per_epoch=2)
    run = trainer(max_epochs=1)
    run.fit(kind(num_classes=3, input_shape=(D,), backbone="mlp"), datamodule=data)
    assert run.global_step == 2


def test_methods_that_need_views_say_how_to_get_them(trainer: Any) -> None:
    model = methods.FixMatch(num_classes=3, input_shape=(D,), backbone="identity")
    with pytest.raises(ValueError, match=r"--strong_views.*strong_noise"):
        trainer().fit(model, datamodule=FeatureDataModule(write(views=False), num_labeled=6))
    noisy = FeatureDataModule("a.npz", num_labeled=6, strong_noise=0.5, steps_per_epoch=1)
    trainer().fit(model, datamodule=noisy)


def test_what_is_random_on_top() -> None:
    x, stream = torch.ones(2000, 4), torch.Generator().manual_seed(0)
    dropped = FeatureView(dropout=0.25)(x, stream)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
    mixed = FeatureView(mixup=0.3)(torch.arange(2000.0).view(-1, 1) % 2, stream)
    assert set(mixed.round().flatten().tolist()) == {0, 1}
    assert float((mixed - mixed.round()).abs().max()) == pytest.approx(0.3, abs=0.01)
    assert float(FeatureView(noise=2.0)(x, stream).std()) == pytest.approx(2, rel=0.05)
    for wrong in ({"strong_dropout": 1.0}, {"strong_mixup": 0.6}, {"strong_noise": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            feature_views((0, 0), **wrong)


def test_views_of_another_number_or_shape_are_refused() -> None:
    write("b.npz", strong=STRONG[:, :1])
    with pytest.raises(ValueError, match="weak_views"):
        FeatureDataModule(write(), unlabeled="b.npz").setup("fit")
    FeatureDataModule(write("c.npz", views=False), unlabeled="a.npz").setup("fit")  # few labels, without views
    with pytest.raises(ValueError, match="strong of shape"):
        FeatureDataModule(write("d.npz", strong=STRONG[:, 0]))


def test_validation_and_test_files_are_read_without_their_views() -> None:
    data = FeatureDataModule(write(), test=write("b.npz"))
    data.setup("fit")
    assert data.samples["test"].fetch(torch.arange(3), torch.device("cpu")).shape == (3, D)


class TestIdentity:
    """Files of one network, and classes by name."""

    @pytest.mark.parametrize("name", ["backbone", "weights", "image_size"])
    def test_files_of_another_network(self, name: str) -> None:
        write("b.npz", **{name: np.array("other")})
        with pytest.raises(ValueError, match=rf"test.*{name} other.*labeled"):
            FeatureDataModule(write(**{name: np.array("one")}), test="b.npz").setup("fit")
        data = FeatureDataModule("a.npz", predict_on="./b.npz")
        with pytest.raises(ValueError, match=f"predict_on.*{name} other"):
            data.setup("predict")

    def test_classes_are_matched_by_name(self) -> None:
        write("b.npz", classes=["cow", "ape", "bee"], labels=(Y + 1) % 3)
        data = FeatureDataModule(write(classes=["ape", "bee", "cow"]), test="b.npz")
        data.setup("fit")
        assert data.samples["test"].labels.tolist() == Y.tolist()

    def test_names_are_compared_as_unicode_means_them(self) -> None:
        write("b.npz", classes=["u\u0308n", "b", "c"])
        FeatureDataModule(write(classes=["\u00fcn", "b", "c"]), test="b.npz").setup("fit")

    def test_numbers_are_no_names(self) -> None:
        write("b.npz")
        with pytest.raises(ValueError, match=r"test: has no names of classes.*labeled"):
            FeatureDataModule(write(classes=["ape", "bee", "cow"]), test="b.npz").setup("fit")

    def test_tested_samples_are_not_trained_on(self) -> None:
        files = [f"{number}.jpg" for number in range(N)]
        write(files=files)
        write("b.npz", features=X[40:], labels=Y[40:], files=files[40:], views=False)
        with pytest.raises(ValueError, match=r"test: 20 samples are in labeled too \(40\.jpg"):
            FeatureDataModule("a.npz", test="b.npz").setup("fit")
        write("b.npz", features=X[40:] + 1, labels=Y[40:], files=files[40:], views=False)
        FeatureDataModule("a.npz", test="b.npz").setup("fit")

    def test_two_files_of_one_name(self) -> None:
        write()
        torch.save({"features": torch.from_numpy(X), "labels": torch.from_numpy(Y)}, "a.pt")
        with pytest.raises(ValueError, match=r"a\.npz and a\.pt"):
            FeatureDataModule("a")
        Path("a.npz").rename("train.npz")
        Path("a.pt").rename("train.pt")
        Path("train.txt").touch()
        with pytest.raises(ValueError, match=r"train\.npz and train\.pt"):
            ClusteringDataModule("features", ".")
        Path("train.pt").unlink()
        ClusteringDataModule("features", ".")

    def test_features_with_a_graph_are_detached(self, trainer: Any) -> None:
        x = torch.from_numpy(X).requires_grad_() * 2
        model = methods.Supervised(num_classes=3, input_shape=(D,), backbone="identity")
        trainer(max_epochs=2).fit(model, datamodule=FeatureDataModule((x, Y), steps_per_epoch=2))
        torch.save({"features": torch.nn.Parameter(torch.from_numpy(X)), "labels": torch.from_numpy(Y)}, "a.pt")
        data = FeatureDataModule("a.pt")
        data.setup("fit")
        assert not data.samples["labeled"].fetch(torch.arange(3), torch.device("cpu")).requires_grad

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"classes": np.array("ape")}, "classes must be a list"),
            ({"files": np.array("0.jpg")}, "files must be a list"),
        ],
    )
    def test_arrays_that_are_no_lists(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            FeatureDataModule(write(**wrong))

    @pytest.mark.filterwarnings("ignore:.*(quantize|Sparse|TypedStorage)")
    @pytest.mark.parametrize(
        "features",
        [
            lambda x: x.to("meta"),
            lambda x: x.to_sparse(),
            lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
            lambda x: x.to(torch.complex64),
        ],
        ids=["meta", "sparse", "quantized", "complex"],
    )
    def test_tensors_without_numbers(self, features: Any) -> None:
        torch.save({"features": features(torch.from_numpy(X)), "labels": torch.from_numpy(Y)}, "a.pt")
        with pytest.raises(SuperCMError, match="features must be"):
            FeatureDataModule("a.pt")

    def test_two_classes_of_one_name(self) -> None:
        with pytest.raises(SuperCMError, match=r"two classes have one name \(ape, ape, bee\)"):
            FeatureDataModule(write(classes=["ape", "bee", "ape"]))

    def test_labels_that_are_no_numbers_of_classes(self) -> None:
        with pytest.raises(SuperCMError, match="labels up to 1,000,000,000 for 60 samples"):
            FeatureDataModule(write(labels=np.where(Y == 2, 10**9, Y)))

    @pytest.mark.parametrize("split", ["val", "test", "unlabeled"])
    def test_a_link_to_the_file_of_the_training(self, split: str) -> None:
        Path("b.npz").symlink_to(write())
        with pytest.raises(SuperCMError, match=f"labeled and {split} are the same"):
            FeatureDataModule("a.npz", **{split: "b.npz"})
        if split == "unlabeled":
            with pytest.raises(SuperCMError, match="source and target are the same"):
                FeatureDataModule(source="a.npz", target="b.npz")

    def test_a_user_that_is_not_there(self) -> None:
        with pytest.raises(ValueError, match="user"):
            FeatureDataModule("a.npz", root="~nobody_of_this_name")
