"""A model that gives all samples one class is named."""

import json
import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, TensorDataset

from supercm_lightning import Supervised
from supercm_lightning.callbacks import PredictionCollapse, RunSummary

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def judged(labels: torch.Tensor, favored: float) -> str | None:
    """What the callback says of a model whose logit of class 2 is raised."""
    model = Supervised(num_classes=3, input_shape=(4,), backbone="identity")
    with torch.no_grad():
        model.head.bias += torch.tensor([0.0, 0.0, favored])
    rows = TensorDataset(torch.randn(len(labels), 4), labels, torch.arange(len(labels)))
    collapse = PredictionCollapse()
    Trainer(**QUIET, callbacks=[collapse, RunSummary()]).test(model, DataLoader(rows, 8), verbose=False)
    return collapse.message


def test_one_class_for_all_is_named_in_words_and_in_the_summary(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert judged(torch.arange(60) % 3, 1e3) == "100 % of 60 samples are predicted to be 2"
    assert "collapsed. Try" in caplog.text
    assert json.loads(Path("summary.json").read_text())["collapse"] == "100 % of 60 samples are predicted to be 2"


@pytest.mark.parametrize(
    ("labels", "favored"),
    [(torch.arange(60) % 3, 0.0), (torch.arange(12) % 3, 1e3), (torch.full((60,), 2), 1e3)],
    ids=["varied", "few", "one class indeed"],
)
def test_other_predictions_are_left_alone(labels: torch.Tensor, favored: float) -> None:
    assert judged(labels, favored) is None


def test_the_check_before_training_is_no_validation() -> None:
    model = Supervised(num_classes=3, input_shape=(4,), backbone="identity")
    with torch.no_grad():
        model.head.bias += torch.tensor([0.0, 0.0, 1e3])
    rows = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3, torch.arange(60))
    collapse = PredictionCollapse()
    options = {"max_epochs": 1, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 8, "limit_train_batches": 1}
    trainer = Trainer(**QUIET, **options, callbacks=[collapse], log_every_n_steps=1, enable_model_summary=False)
    trainer.fit(
        model, CombinedLoader({"labeled": DataLoader(TensorDataset(*rows.tensors[:2]), 8)}), DataLoader(rows, 8)
    )
    assert collapse.message is None
