"""Data to be clustered: which rows each protocol trains and tests on, and that labels show in the test alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from supercm_lightning import ClusteringDataModule
from supercm_lightning.cli import run
from supercm_lightning.data import DATASETS
from supercm_lightning.data.sources.registered import IMAGENET_SUBSETS


def set_up(*args: Any, **kwargs: Any) -> ClusteringDataModule:
    data = ClusteringDataModule(*args, **kwargs)
    data.setup("predict")
    return data


def clustered(data: ClusteringDataModule) -> torch.Tensor:
    samples = data.samples["unlabeled"]
    return samples.fetch(torch.arange(len(samples)), torch.device("cpu"))


@pytest.fixture
def mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty training and twenty test images in place of MNIST; a pixel tells which is which."""

    def load(root: Path, part: str, download: bool) -> Any:
        count, first = (30, 0) if part == "train" else (20, 100)
        pixels = (first + torch.arange(count)).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
        return pixels.clone(), torch.arange(count) % 10

    monkeypatch.setitem(DATASETS, "mnist", dataclasses.replace(DATASETS["mnist"], load=load))


def test_whole_clusters_and_tests_all_images(mnist: None) -> None:
    data = set_up("mnist")
    assert clustered(data)[:, 0, 0, 0].tolist() == [*range(30), *range(100, 120)]
    assert data.samples["test"].index.tolist() == list(range(50))
    assert data.samples["test"].labels.tolist() == [
        *(torch.arange(30) % 10).tolist(),
        *(torch.arange(20) % 10).tolist(),
    ]


def test_split_clusters_the_training_set_and_tests_the_test_set(mnist: None) -> None:
    data = set_up("mnist", protocol="split")
    assert clustered(data)[:, 0, 0, 0].tolist() == list(range(30))
    tested = data.samples["test"]
    assert tested.store.data[tested.index][:, 0, 0, 0].tolist() == list(range(100, 120))


def test_the_first_rows_alone(mnist: None) -> None:
    data = set_up("mnist", num_rows=7)
    assert clustered(data)[:, 0, 0, 0].tolist() == list(range(7))
    assert data.samples["test"].index.tolist() == list(range(7))


def test_the_first_rows_of_class_folders_are_of_all_classes(image_folder: Callable[..., Path]) -> None:
    data = set_up("folder", str(image_folder({f"c{k}": 8 for k in range(5)})), num_rows=20)
    assert set(data.samples["test"].labels.tolist()) == set(range(5))


@pytest.mark.parametrize("protocol", ["whole", "split"])
def test_clustered_rows_show_no_label(mnist: None, protocol: str) -> None:
    data = set_up("mnist", protocol=protocol)
    assert set(data.samples["unlabeled"].labels.tolist()) == {-1}
    assert "labeled" not in data.samples
    assert "val" not in data.samples


def test_digits_split_holds_out_the_same_rows_for_every_seed() -> None:
    torch.manual_seed(0)
    first = set_up(protocol="split").samples
    torch.manual_seed(1)
    second = set_up(protocol="split").samples
    assert torch.equal(first["test"].index, second["test"].index)
    assert len(first["test"]) == 450
    assert sorted(torch.cat([first["test"].index, first["unlabeled"].index]).tolist()) == list(range(1797))


def test_class_folders_label_the_test(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 4})
    whole = set_up("folder", root)
    assert whole.num_classes == 2
    assert whole.class_names is None  # or predictions would bear the names of classes that they are not
    assert whole.samples["test"].labels.tolist() == [0, 0, 0, 1, 1, 0, 1, 1, 1, 1]
    split = set_up("folder", root, protocol="split")
    assert len(split.samples["unlabeled"]) == 5
    assert split.samples["test"].labels.tolist() == [0, 1, 1, 1, 1]


def test_folders_that_are_no_classes_label_nothing(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"monday": 3, "tuesday": 2})
    data = set_up("folder", root, num_classes=4)
    assert data.num_classes == 4
    assert "test" not in data.samples
    assert len(data.samples["unlabeled"]) == 5
    assert data.describe_sample("predict", 3).endswith("tuesday/0.png")


def test_loose_images_need_the_number_of_clusters(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"": 6})
    with pytest.raises(ValueError, match="num_classes: the data has no labels"):
        ClusteringDataModule("folder", root)
    assert len(set_up("folder", root, num_classes=2).samples["unlabeled"]) == 6


@pytest.mark.parametrize(("name", "count"), [("imagenet10", 10), ("imagenet_dogs", 15)])
def test_imagenet_subsets_read_their_classes_and_no_other(
    name: str, count: int, image_folder: Callable[..., Path]
) -> None:
    ids = IMAGENET_SUBSETS[name]
    assert len(set(ids)) == count
    root = image_folder({**dict.fromkeys(ids, 2), "n99999999": 2}, size=(40, 30), suffix=".JPEG")
    data = set_up(name, root, image_size=16)
    assert (data.num_classes, data.input_shape) == (count, (3, 16, 16))
    assert data.samples["test"].labels.bincount().tolist() == [2] * count
    for file in (root / ids[-1]).iterdir():
        file.unlink()
    (root / ids[-1]).rmdir()
    with pytest.raises(FileNotFoundError, match=ids[-1]):
        set_up(name, root)


@pytest.mark.parametrize("labels", [True, False])
def test_features_with_and_without_labels(labels: bool) -> None:
    features = np.random.default_rng(0).normal(3, 5, (20, 4)).astype("f4")
    np.savez("f.npz", features=features, **({"labels": np.arange(20) % 2} if labels else {}))
    data = set_up("features", "f.npz", num_classes=None if labels else 2)
    assert data.input_shape == (4,)
    assert ("test" in data.samples) == labels
    torch.testing.assert_close(clustered(data).mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(clustered(data).std(0), torch.ones(4))


def test_features_of_a_training_and_a_test_file() -> None:
    Path("both").mkdir()
    for part, count in (("train", 12), ("test", 6)):
        np.savez(f"both/{part}.npz", features=np.eye(12, 3)[:count], labels=np.arange(count) % 3)
    assert len(set_up("features", "both").samples["test"]) == 18
    split = set_up("features", "both", protocol="split")
    assert (len(split.samples["unlabeled"]), len(split.samples["test"])) == (12, 6)


def test_clustered_features_are_called_by_their_files() -> None:
    Path("both").mkdir()
    for part, count in (("train", 12), ("test", 6)):
        np.savez(f"both/{part}.npz", features=np.eye(12, 3)[:count], files=[f"{part}/{n}.jpg" for n in range(count)])
    data = set_up("features", "both", num_classes=3)
    assert [data.describe_sample("unlabeled", row) for row in (0, 11, 12, 17)] == [
        "train/0.jpg", "train/11.jpg", "test/0.jpg", "test/5.jpg",
    ]  # fmt: skip


def test_torch_data_sets() -> None:
    train = [(torch.full((1, 8, 8), float(row) / 10), row % 2) for row in range(6)]
    test = [(torch.zeros(1, 8, 8), 1)] * 3
    whole = set_up(train, test=test)
    assert whole.samples["test"].labels.tolist() == [0, 1, 0, 1, 0, 1, 1, 1, 1]
    assert set(whole.samples["unlabeled"].labels.tolist()) == {-1}
    split = set_up(train, test=test, protocol="split")
    assert split.samples["test"].labels.tolist() == [1, 1, 1]
    images = [item for item, _ in train]
    assert "test" not in set_up(images, num_classes=2).samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "both"}, "protocol='both'"),
        ({"dataset": "letters"}, "dataset='letters'"),
        ({"num_classes": 7}, "num_classes=7: the data has 10 classes"),
        ({"num_rows": 0}, "num_rows=0"),
        ({"shift": 8}, "shift=8"),
        ({"noise": -1.0}, "noise=-1.0"),
        ({"strong": "blur"}, "strong='blur'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusteringDataModule(**options)


def test_a_split_needs_a_test_set(image_folder: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="protocol='split': the data has no test set"):
        set_up("folder", image_folder({"cat": 2, "dog": 2}), protocol="split")


def unlabelled(kind: str, image_folder: Callable[..., Path]) -> ClusteringDataModule:
    """Nine rows to cluster and four of a test set, all without labels."""
    if kind == "folder":
        return ClusteringDataModule("folder", image_folder({"train": 9, "test": 4}), "split", num_classes=3)
    if kind == "features":
        Path("parts").mkdir()
        for part, count in (("train", 9), ("test", 4)):
            np.savez(f"parts/{part}.npz", features=np.eye(9, 3)[:count])
        return ClusteringDataModule("features", "parts", "split", num_classes=3)
    images = list(torch.rand(13, 1, 8, 8))
    return ClusteringDataModule(images[:9], protocol="split", num_classes=3, num_workers=0, test=images[9:])


@pytest.mark.parametrize("kind", ["folder", "features", "images"])
def test_a_test_set_without_labels_is_predicted_and_not_tested(
    kind: str,
    image_folder: Callable[..., Path],
    gather: Callable[..., Any],
) -> None:
    data = unlabelled(kind, image_folder)
    x, y, _ = gather(data, "test")
    assert x.shape == (4, *data.input_shape)
    assert y.tolist() == [-1] * 4
    assert len(data.samples["unlabeled"]) == 9
    assert not data.has_test
    with pytest.raises(ValueError, match="no labels, so that there is nothing to test"):
        data.test_dataloader()


def test_a_run_without_labels_ends_without_a_test(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"train": 30, "test": 4})
    data = ["--data.dataset", "folder", "--data.root", str(root), "--data.protocol", "split", "--data.num_classes", "2"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1"]
    model = ["--model", "ASD", "--model.asd_samples", "20"]
    cli = run(["fit", *model, "--data", "ClusteringDataModule", *data, "--data.unlabeled_batch_size", "10", *quiet])
    assert cli.trainer.global_step == 3
    assert not any(name.startswith("test/") for name in cli.trainer.callback_metrics)
