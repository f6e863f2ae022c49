"""Preprocessing and options belong to a checkpoint: used, or refused with both values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from supercm_lightning import (
    DomainAdaptationDataModule,
    FeatureDataModule,
    SemiSupervisedDataModule,
    Supervised,
)
from supercm_lightning.cli import run
from supercm_lightning.utils.options import SuperCMError

DIGITS = ["--data", "SemiSupervisedDataModule", "--data.num_labeled", "20", "--data.steps_per_epoch", "2"]
QUICK = [
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1"),
    *("--trainer.limit_test_batches", "1", "--trainer.limit_val_batches", "1"),
]


def trainer(**options: Any) -> Trainer:
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
    return Trainer(accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **options)


def trained(data: Any, **options: Any) -> Supervised:
    """A model after a few steps; its checkpoint is `a.ckpt`."""
    model = Supervised(num_classes=data.num_classes, input_shape=data.input_shape, **options)
    fitting = trainer(max_steps=3, limit_val_batches=0)
    fitting.fit(model, datamodule=data)
    fitting.save_checkpoint("a.ckpt")
    return model


def test_options_beside_a_checkpoint_are_used_or_refused() -> None:
    run(["fit", "--model", "SuperCM", "--model.lr", "0.005", *DIGITS, "--data.mean", "[0.3]", *QUICK])
    (file,) = Path().rglob("*.ckpt")
    again = ["--model", "SuperCM", *DIGITS, *QUICK, "--ckpt_path", str(file)]
    for option, value, saved in [
        ("model.beta", "9", r"9\.0: .* trained with 1\.0"),
        ("model.backbone", "wrn_28_2", "wrn_28_2: .* trained with small_cnn"),
        ("data.mean", "[0.5]", r"\[0\.5\]: .* trained with \[0\.3\]"),
        ("data.whitening", "true", "True: .* trained with False"),
    ]:
        for command in ("test", "predict", *(() if option == "model.beta" else ("fit",))):
            with pytest.raises(SuperCMError, match=f"{option}={saved}"):
                run([command, *again, f"--{option}", value])
    tested = run(["test", *again, "--model.lr", "0.005"])
    assert (tested.model.hparams.lr, tested.datamodule.normalization.mean) == (0.005, (0.3,))
    longer = ["--trainer.max_epochs", "2", "--model.beta", "9", "--model.lr", "0.01", "--model.compile", "false"]
    resumed = run(["fit", *again, *longer])
    assert (resumed.model.hparams.beta, resumed.model.hparams.lr) == (9, 0.01)
    assert resumed.trainer.optimizers[0].param_groups[0]["lr"] == 0.01
    assert resumed.trainer.global_step == 4


def test_a_resumed_schedule_has_the_new_rate() -> None:
    def fit(lr: float, steps: int, ckpt_path: str | None = None) -> Trainer:
        data = SemiSupervisedDataModule(num_labeled=20, steps_per_epoch=2)
        model = Supervised(num_classes=10, input_shape=(1, 8, 8), lr=lr, lr_schedule="inverse", backbone_lr_scale=0.1)
        fitting = trainer(max_epochs=9, max_steps=steps, limit_val_batches=0)
        fitting.fit(model, datamodule=data, ckpt_path=ckpt_path)
        return fitting

    fit(0.1, 4).save_checkpoint("a.ckpt")
    rates = [[group["lr"] for group in fit(lr, 6, "a.ckpt").optimizers[0].param_groups] for lr in (0.1, 0.2)]
    assert rates[1] == pytest.approx([2 * rate for rate in rates[0]])
    assert rates[0] == pytest.approx([0.01 * 1.006**-0.75, 0.1 * 1.006**-0.75])


@pytest.mark.parametrize("change", [{"optimizer": "sgd"}, {"lr_schedule": "constant"}], ids=str)
def test_another_optimizer_or_schedule_is_refused(change: dict[str, Any]) -> None:
    data = SemiSupervisedDataModule(num_labeled=20, steps_per_epoch=2)
    trained(data, lr_schedule="cosine")
    model = Supervised(num_classes=10, input_shape=(1, 8, 8), **{"lr_schedule": "cosine"} | change)
    with pytest.raises(SuperCMError, match=f"{next(iter(change))}=.*: the checkpoint was trained with"):
        trainer(max_steps=5).fit(model, datamodule=data, ckpt_path="a.ckpt")


@pytest.mark.parametrize("standardize", ["joint", "domain"])
def test_features_are_standardized_as_in_the_training(standardize: Any) -> None:
    stream = np.random.default_rng(0)

    def write(name: str, offset: float) -> None:
        labels = np.arange(40) % 2
        features = stream.normal(size=(40, 4)) + 3 * labels[:, None] + offset
        names = [f"{name}{n}" for n in range(40)]
        np.savez(f"{name}.npz", features=features.astype("f4"), labels=labels, files=names)

    for name in ("one", "two", "new"):
        write(name, 0)

    def data(**options: Any) -> FeatureDataModule:
        return FeatureDataModule(source="one", target="two", standardize=standardize, **options)

    model = trained(data(), backbone="identity")
    expected = trainer().predict(model, datamodule=data(predict_on="new"), ckpt_path="a.ckpt")
    tested = trainer().test(model, datamodule=data(), ckpt_path="a.ckpt", verbose=False)
    write("one", 50)  # the same names, other numbers
    changed = data(predict_on="new")
    found = trainer().predict(model, datamodule=changed, ckpt_path="a.ckpt")
    assert torch.equal(found[0]["probabilities"], expected[0]["probabilities"])
    assert trainer().test(model, datamodule=data(), ckpt_path="a.ckpt", verbose=False) == tested
    with pytest.raises(SuperCMError, match=f"standardize=None, those of the checkpoint with standardize={standardize}"):
        trainer().test(model, datamodule=FeatureDataModule(source="one", target="two"), ckpt_path="a.ckpt")


def folder(name: str, count: int = 12, size: int = 8) -> str:
    stream = np.random.default_rng(len(name))
    for label in ("cat", "dog"):
        for split in ("train", "test"):
            Path(name, split, label).mkdir(parents=True)
            for number in range(count):
                pixels = stream.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path(name, split, label, f"{number}.png"))
    return name


def test_images_are_whitened_as_in_the_training() -> None:
    def data() -> SemiSupervisedDataModule:
        return SemiSupervisedDataModule("folder", "photos", num_labeled=8, num_val=4, whitening=True, num_workers=0)

    folder("photos")
    before = data()
    model = trained(before)
    x, _ = before.arrays("test")
    for file in Path("photos/train").rglob("1*.png"):
        Image.new("RGB", (8, 8), (250, 0, 0)).save(file)
    after = data()
    after.setup("test")
    assert not np.allclose(after.arrays("test")[0], x)
    trainer().test(model, datamodule=after, ckpt_path="a.ckpt", verbose=False)
    np.testing.assert_array_equal(after.arrays("test")[0], x)
    plain = SemiSupervisedDataModule("folder", "photos", num_labeled=8, num_val=4)
    with pytest.raises(SuperCMError, match=r"mean=\(0\.5,\), those of the checkpoint with mean=None"):
        trainer().test(model, datamodule=plain, ckpt_path="a.ckpt")


def test_another_data_module_is_compared_too() -> None:
    root = folder("photos")
    model = trained(SemiSupervisedDataModule("folder", root, num_labeled=8, num_workers=0), lr=1e-3)
    other = DomainAdaptationDataModule("train", "test", "folder", root, image_size=8, num_workers=0)
    with pytest.raises(SuperCMError, match=r"prepared with keep_aspect=False, those of the checkpoint with"):
        trainer().test(model, datamodule=other, ckpt_path="a.ckpt")
