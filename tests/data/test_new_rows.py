"""Prediction of rows that are in none of the sets: a folder of images, a file of features."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from supercm_lightning import (
    ClusteringDataModule,
    DomainAdaptationDataModule,
    FeatureDataModule,
    SemiSupervisedDataModule,
)
from supercm_lightning.cli import run

Gather = Callable[..., tuple[torch.Tensor, ...]]
COUNTS = {"train/a": 6, "train/b": 6, "test/a": 4, "test/b": 4}
QUIET = [
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1"),
    *("--trainer.enable_model_summary", "false"),
]


def moved(root: Path, to: str = "new") -> Path:
    """The images of the test set in a folder elsewhere, one part flat, the other nested, in the same order."""
    target = Path(to)
    target.mkdir()
    for file in sorted((root / "test").rglob("*.*")):
        folder = target / "z/deep" if file.parent.name == "b" else target
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / file.name)
    return target


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as table:
        return list(csv.DictReader(table))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_folder_is_predicted_as_the_test_set_is(image_folder: Callable[..., Path]) -> None:
    root = image_folder(COUNTS, size=(11, 9))
    options = ["--data", "SemiSupervisedDataModule", "--data.dataset", "folder", "--data.root", str(root)]
    options += ["--data.image_size", "8", "--data.num_labeled", "4", "--data.steps_per_epoch", "2"]
    run(["fit", "--model", "FlexMatch", *options, *QUIET])
    (config,), (checkpoint,) = Path().rglob("config.yaml"), Path().rglob("*.ckpt")
    again = ["predict", "--config", str(config), "--ckpt_path", str(checkpoint)]
    new = moved(root)
    tables = []
    for number, predict_on in enumerate(("test", str(new)), start=1):
        run([*again, "--data.predict_on", predict_on])
        tables.append(read(Path(f"lightning_logs/version_{number}/predictions.csv")))
    tested, predicted = tables
    assert [row["file"] for row in predicted] == [str(new / f"{at}{n}.png") for at in ("", "z/deep/") for n in range(4)]
    assert {row["class"] for row in predicted} <= {"a", "b"}
    for column in ("class", "confidence"):
        assert [row[column] for row in predicted] == [row[column] for row in tested]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kind", ["few labels", "clustering", "domains"])
def test_pixels_are_those_of_the_test_set(
    kind: str, in_memory: bool, image_folder: Callable[..., Path], gather: Gather
) -> None:
    root = image_folder(COUNTS, size=(13, 9))
    options: dict[str, Any] = {"root": root, "image_size": 7, "in_memory": in_memory, "num_workers": 0}
    data: Any
    if kind == "few labels":
        data = SemiSupervisedDataModule("folder", mean=(0.3,), **options)
    elif kind == "clustering":
        data = ClusteringDataModule("folder", protocol="split", mean=(0.3,), **options)
    else:
        data = DomainAdaptationDataModule("train", "test", "folder", **options)
    new = moved(root)
    x, y, index = gather(data, str(new))
    assert y.tolist() == [-1] * 8
    assert torch.equal(x, gather(data, "test")[0])
    assert data.describe_sample("test", 5) == str(root / "test/b/1.png")
    data.predict_on = str(new)
    assert data.describe_sample("predict", int(index[5])) == str(new / "z/deep/1.png")


def test_the_images_of_the_training_are_not_read(image_folder: Callable[..., Path], gather: Gather) -> None:
    new = image_folder({"some": 3}, size=(40, 30), mode="L")
    data = SemiSupervisedDataModule("mnist", root="nowhere", predict_on=str(new))
    assert gather(data, str(new))[0].shape == (3, 1, 28, 28)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.setup("fit")


def test_whitened_images_are_whitened_as_the_training_was(image_folder: Callable[..., Path], gather: Gather) -> None:
    root = image_folder(COUNTS)
    new = moved(root)
    data = SemiSupervisedDataModule("folder", root=root, whitening=True)
    x, *_ = gather(data, str(new))
    assert torch.equal(x, gather(data, "test")[0])


def test_bad_images_are_named_or_left_out(image_folder: Callable[..., Path], gather: Gather) -> None:
    new = image_folder({"": 3}, mode="L")
    (new / "1.png").write_text("this is no image")
    with pytest.raises(ValueError, match=r"1\.png: cannot be read as an image"):
        gather(SemiSupervisedDataModule(), str(new))
    data = SemiSupervisedDataModule(on_bad_image="skip")
    with pytest.warns(UserWarning, match=r"1 of 3 images are left out:\n.*1\.png"):
        x, *_ = gather(data, str(new))
    assert len(x) == 2
    data.predict_on = str(new)
    assert data.describe_sample("predict", 1) == str(new / "2.png")


def test_wrong_paths_are_named(image_folder: Callable[..., Path], gather: Gather) -> None:
    for word in ("tset", "nowhere/at/all"):
        with pytest.raises(ValueError, match=rf"predict_on='{word}': choose one of .*; there is no such path"):
            SemiSupervisedDataModule(predict_on=word)
    Path("empty").mkdir()
    with pytest.raises(ValueError, match="predict_on=empty: no images in this folder"):
        gather(SemiSupervisedDataModule(), "empty")
    Path("a.txt").touch()
    with pytest.raises(ValueError, match=r"predict_on=a\.txt: not a folder"):
        gather(SemiSupervisedDataModule(), "a.txt")
    items = [(torch.rand(1, 8, 8), row % 2) for row in range(6)]
    with pytest.raises(ValueError, match=r"predict_on=empty: .* Give trainer\.predict a loader"):
        gather(SemiSupervisedDataModule(items), "empty")


@pytest.mark.parametrize("standardize", [None, "joint", "domain"])
def test_new_features_are_standardised_as_the_test_rows_are(standardize: Any, gather: Gather) -> None:
    stream = np.random.default_rng(0)
    Path("f").mkdir()
    for name, count in (("first", 30), ("second", 24)):
        np.savez(f"f/{name}.npz", features=stream.normal(3, 5, (count, 4)), labels=np.arange(count) % 3)
    shutil.copy("f/second.npz", "f/new.npz")
    data = FeatureDataModule(source="first", target="second", root="f", standardize=standardize, predict_on="new")
    assert data.predict_on == "f/new.npz"
    x, y, _ = gather(data, data.predict_on)
    assert torch.equal(x, gather(data, "test")[0])
    assert y.tolist() == [-1] * 24


def test_new_features_to_be_clustered(gather: Gather) -> None:
    x = np.random.default_rng(0).normal(3, 5, (24, 4))
    for name in ("old", "new"):
        np.savez(f"{name}.npz", features=x, labels=np.arange(24) % 3)
    data = ClusteringDataModule("features", "old.npz", predict_on="new.npz")
    assert torch.equal(gather(data, "new.npz")[0], gather(data, "test")[0])


def test_wrong_features_are_named(gather: Gather) -> None:
    np.savez("a.npz", features=np.eye(6, 3), labels=np.arange(6) % 2)
    np.savez("b.npz", features=np.eye(6, 4))
    with pytest.raises(ValueError, match=r"predict_on=b\.npz: features of shape \(4,\), but the model was trained on"):
        gather(FeatureDataModule("a.npz"), "b.npz")
    with pytest.raises(ValueError, match=r"predict_on='c': choose one of .*; there is no such path"):
        FeatureDataModule("a.npz", predict_on="c")


def test_a_new_image_may_be_of_any_size_and_colour(gather: Gather) -> None:
    Path("new").mkdir()
    Image.new("RGB", (30, 20), (200, 200, 200)).save("new/a.png")
    with pytest.warns(UserWarning, match="predict_on=new: has images in color; they are read in gray"):
        x, *_ = gather(SemiSupervisedDataModule(), "new")
    torch.testing.assert_close(x, torch.full((1, 1, 8, 8), 200 / 127.5 - 1))
