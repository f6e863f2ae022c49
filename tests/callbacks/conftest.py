"""A small network and short runs on the digits, shared by the tests of the callbacks."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

from supercm_lightning.data import SemiSupervisedDataModule
from supercm_lightning.methods import SuperCM

STEPS_PER_EPOCH = 4
STEPS = 12


class Net(nn.Module):
    """Two batch norms, and dropout, so that a disturbed random state shows."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Linear(64, 16), nn.BatchNorm1d(16)
        self.second, self.norm2 = nn.Linear(16, 8), nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(self.norm1(self.first(x.flatten(1))).relu())
        return self.norm2(self.second(hidden))


class Recorder(Callback):
    """State of the module after every training step, and what every validation saw."""

    def __init__(self) -> None:
        self.trained: dict[int, dict[str, torch.Tensor]] = {}
        self.validated: dict[int, dict[str, torch.Tensor]] = {}
        self.metrics: dict[int, float] = {}
        self.rates: dict[int, list[float]] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained[trainer.global_step] = snapshot(pl_module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates[trainer.global_step + 1] = [group["lr"] for group in optimizer.param_groups]

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validated[trainer.global_step] = snapshot(pl_module)

    def on_validation_end(self, trainer, pl_module):
        self.metrics[trainer.global_step] = float(trainer.callback_metrics["val/acc"])


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def make_data(**options) -> SemiSupervisedDataModule:
    sizes = {"labeled_batch_size": 20, "unlabeled_batch_size": 30, "steps_per_epoch": STEPS_PER_EPOCH}
    return SemiSupervisedDataModule(dataset="digits", num_labeled=40, **(sizes | options))


def make_model(kind: type[LightningModule] = SuperCM, **options) -> LightningModule:
    torch.manual_seed(1)
    settings = {"optimizer": "sgd", "lr": 0.1, "backbone": Net()}
    return kind(num_classes=10, input_shape=(1, 8, 8), **(settings | options))


def make_trainer(callbacks=(), max_steps=STEPS, **options) -> Trainer:
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": Path.cwd()}
    return Trainer(max_steps=max_steps, callbacks=list(callbacks), **(settings | options))


def run(callbacks=(), model=None, data=None, ckpt_path=None, **options):
    """Fits the small SuperCM on digits; gives trainer, model and a recorder that ran before the callbacks."""
    recorder = Recorder()
    model = model if model is not None else make_model()
    seed_everything(3, verbose=False)
    trainer = make_trainer([recorder, *callbacks], **options)
    trainer.fit(model, datamodule=data if data is not None else make_data(), ckpt_path=ckpt_path)
    return trainer, model, recorder


class Helpers:
    """The functions above; test modules cannot import a conftest."""

    Net, Recorder, STEPS, STEPS_PER_EPOCH = Net, Recorder, STEPS, STEPS_PER_EPOCH
    snapshot, make_data = staticmethod(snapshot), staticmethod(make_data)
    make_model, make_trainer, run = staticmethod(make_model), staticmethod(make_trainer), staticmethod(run)


@pytest.fixture(scope="session")
def short() -> type[Helpers]:
    """Builders of short runs."""
    return Helpers


@pytest.fixture(scope="session")
def plain() -> dict[int, dict[str, torch.Tensor]]:
    """State after every step of the run without any callback."""
    return run()[2].trained
