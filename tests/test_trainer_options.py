"""Options of the trainer: every method works with them, or stops at setup with a message."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn.utils import parameters_to_vector

from supercm_lightning import MeanTeacher, SemiSupervisedDataModule, Supervised, methods

METHODS = [getattr(methods, name) for name in methods.__all__ if name not in ("Method", "Clusterer", "Step")]


def fit(kind: Any, batch: int = 8, steps: int = 4, options: dict[str, Any] | None = None, **kwargs: Any) -> Trainer:
    """A short run on digits."""
    seed_everything(0)
    data = SemiSupervisedDataModule(
        num_labeled=20, labeled_batch_size=batch, unlabeled_batch_size=batch, steps_per_epoch=steps, shift=0
    )
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, **(options or {}),
    )  # fmt: skip
    trainer.fit(kind(num_classes=10, input_shape=(1, 8, 8), **kwargs), datamodule=data)
    return trainer


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_mixed_precision_keeps_state_in_single(kind: Any) -> None:
    module = fit(kind, steps=2, options={"precision": "bf16-mixed"}).lightning_module
    for name, value in module.state_dict().items():
        assert value.dtype not in (torch.bfloat16, torch.float16), name
        assert not value.is_floating_point() or value.isfinite().all(), name


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_in_half_precision_are_refused(precision: str) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.precision={precision}: .* Use trainer\.precision=bf16-mixed"):
        fit(Supervised, options={"precision": precision})


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_sharded_strategies_are_refused(kind: Any) -> None:
    model = kind(num_classes=10, input_shape=(1, 8, 8))
    # Lightning starts the strategy on GPUs alone.
    model._trainer = SimpleNamespace(strategy=FSDPStrategy(), precision="32-true", datamodule=None)
    with pytest.raises(ValueError, match=r"FSDPStrategy shards the model, .* Use trainer\.strategy=ddp"):
        model.setup("fit")


class Pixels(nn.Flatten):
    """Features without batch norm, which would see the small batches."""

    num_features = 64


def test_accumulated_gradients_are_those_of_the_larger_batch() -> None:
    plain = {
        "optimizer": "sgd",
        "optimizer_options": {"momentum": 0.0, "nesterov": False},
        "use_unlabeled": False,
    }
    whole = fit(Supervised, batch=8, steps=2, backbone=Pixels(), **plain)
    parts = fit(Supervised, batch=4, steps=4, backbone=Pixels(), options={"accumulate_grad_batches": 2}, **plain)
    assert whole.global_step == parts.global_step == 2
    for name, value in whole.lightning_module.state_dict().items():
        torch.testing.assert_close(parts.lightning_module.state_dict()[name], value, rtol=1e-5, atol=1e-6)


class Weights(Callback):
    """Keeps the weights that the optimizer moves, and the teacher's, after each batch."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.live, self.teacher = [], []
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.live.append(parameters_to_vector(p for p in pl_module.parameters() if p.requires_grad).detach().clone())
        if isinstance(pl_module, MeanTeacher):
            self.teacher.append(parameters_to_vector(pl_module.teacher.parameters()).clone())


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_every_method_steps_once_per_accumulated_batch(kind: Any) -> None:
    watch = Weights()
    trainer = fit(kind, options={"accumulate_grad_batches": 2, "callbacks": [watch]})
    assert trainer.global_step == 2
    for weights in filter(None, (watch.live, watch.teacher)):
        moved = [not torch.equal(before, after) for before, after in pairwise(weights)]
        assert moved == [False, True, False, True]


def test_while_gradients_accumulate_centroids_and_thresholds_move() -> None:
    options = {"accumulate_grad_batches": 3}
    supercm = fit(methods.SuperCM, steps=6, batch=20, options=options).lightning_module
    assert supercm.head.updates.tolist() == [6] * 10
    freematch = fit(methods.FreeMatch, steps=6, options=options, freematch_decay=0.5).lightning_module
    once = fit(methods.FreeMatch, steps=2, options=options, freematch_decay=0.5).lightning_module
    assert not torch.equal(freematch.mean_probability, once.mean_probability)
