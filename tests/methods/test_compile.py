"""A compiled backbone trains as the plain one does, extra forwards, channels-last and low precision included."""

from typing import Any

import pytest
from lightning.pytorch import Trainer, seed_everything

from supercm_lightning import (
    ASDFreeMatch,
    Method,
    SemiSupervisedDataModule,
    SuperCMDANN,
    SuperCMFreeMatch,
    SuperCMMeanTeacher,
    SuperCMVAT,
)


def terms_after_three_steps(kind: type[Method], precision: Any, compile_backbone: bool) -> dict[str, float]:
    """The logged terms of the third step."""
    seed_everything(0)
    model = kind(
        num_classes=10, input_shape=(1, 8, 8), compile=compile_backbone, channels_last=True, ramp_up=0.0
    )  # fmt: skip
    trainer = Trainer(
        max_steps=3, accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20))
    assert (model.backbone._compiled_call_impl is not None) == compile_backbone
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler warns of its own parts
@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        (SuperCMVAT, "32-true"),
        (SuperCMMeanTeacher, "bf16-mixed"),
        (SuperCMFreeMatch, "32-true"),
        (SuperCMDANN, "32-true"),
        (ASDFreeMatch, "bf16-mixed"),
    ],
)
def test_compiled_backbone_trains_as_the_plain_one(kind: type[Method], precision: str) -> None:
    plain = terms_after_three_steps(kind, precision, compile_backbone=False)
    compiled = terms_after_three_steps(kind, precision, compile_backbone=True)
    assert compiled.keys() == plain.keys()
    for name in plain.keys() & {"train/ce", "train/cm", "train/instance", "train/loss"}:
        assert compiled[name] == pytest.approx(plain[name], rel=0.05), name
