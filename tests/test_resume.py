"""A run that is resumed from any of its checkpoints ends as the uninterrupted run does."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from supercm_lightning import EMA, SWA, CentroidUpdate, Method, SemiSupervisedDataModule, SuperCM, Supervised

STEPS, EPOCHS = 6, 3


def fit(
    kind: type[Method],
    folder: str,
    callbacks: list[Callback],
    ckpt_path: Path | None = None,
    data: type[SemiSupervisedDataModule] = SemiSupervisedDataModule,
) -> Trainer:
    """Three epochs of six steps with a checkpoint every four steps."""
    # The resumed process starts from another random state: only the checkpoint may decide.
    seed_everything(0 if ckpt_path is None else 123)
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, log_every_n_steps=1, callbacks=[*callbacks, saving],
    )  # fmt: skip
    module = data(num_labeled=20, steps_per_epoch=STEPS, noise=0.1, unlabeled_batch_size=70)
    model = kind(num_classes=10, input_shape=(1, 8, 8), lr_schedule="cosine")
    trainer.fit(model, datamodule=module, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize(
    ("kind", "callbacks"),
    [
        (Supervised, list),
        (SuperCM, list),
        (SuperCM, lambda: [CentroidUpdate("eval_forward"), EMA(decay=0.8, refresh_batches=2)]),
        (SuperCM, lambda: [SWA(start=0.5, every_n_steps=2, refresh_batches=2)]),
    ],
    ids=["supervised", "supercm", "supercm_eval_forward_ema", "supercm_swa"],
)
def test_resumed_run_is_bit_identical(kind: type[Method], callbacks: Any) -> None:
    whole = fit(kind, "whole", callbacks())
    checkpoints = sorted(Path("whole").glob("*.ckpt"))
    assert [c.name for c in checkpoints] == ["step=12.ckpt", "step=16.ckpt", "step=4.ckpt", "step=8.ckpt"]
    for checkpoint in checkpoints:
        resumed = fit(kind, f"from_{checkpoint.stem}", callbacks(), checkpoint)
        assert resumed.global_step == STEPS * EPOCHS
        expected = whole.lightning_module.state_dict()
        for name, value in resumed.lightning_module.state_dict().items():
            assert torch.equal(value, expected[name]), f"{name} differs after resuming from {checkpoint.name}"


class NoisyData(SemiSupervisedDataModule):
    """Data with an augmentation of a user, who draws from NumPy's and Python's own generators."""

    def configure_augmentations(self) -> dict[str, Any]:
        weak = super().configure_augmentations()["weak"]

        def noisy(samples: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
            scale = random.uniform(0.5, 1.5) + torch.from_numpy(np.random.normal(0, 0.1, len(samples))).float()  # noqa: NPY002
            return weak(samples, stream) * scale[:, None, None, None]

        return super().configure_augmentations() | {"weak": noisy}


def test_an_augmentation_that_draws_from_numpy_is_resumed_too() -> None:
    whole = fit(Supervised, "whole", [], data=NoisyData)
    for checkpoint in sorted(Path("whole").glob("*.ckpt")):
        resumed = fit(Supervised, f"from_{checkpoint.stem}", [], checkpoint, data=NoisyData)
        for name, value in resumed.lightning_module.state_dict().items():
            assert torch.equal(value, whole.lightning_module.state_dict()[name]), f"{name} after {checkpoint.name}"
