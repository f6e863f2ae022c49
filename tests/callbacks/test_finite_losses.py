"""A loss that is no number on one process stops all of them."""

from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from supercm_lightning.callbacks.training.finite_losses import FiniteLosses


def message_of_this_process() -> str:
    """What the check says where the second process has a NaN at the second of three steps."""
    check = FiniteLosses()
    trainer = SimpleNamespace(log_every_n_steps=3, global_step=3, state=SimpleNamespace(status="running"))
    rank = distributed.get_rank()
    try:
        for batch in range(3):
            value = float("nan") if rank == 1 and batch == 1 else 1.0
            terms = {"ce": torch.tensor(1.0), "cm": torch.tensor(value)}
            check.on_train_batch_end(trainer, None, {"terms": terms}, None, batch)
    except FloatingPointError as error:
        return str(error)
    return ""


def test_every_process_stops_where_one_has_a_nan(two_processes):
    for message in two_processes(message_of_this_process):
        assert "train/cm" in message
        assert "train/ce" not in message


def test_a_single_process_stops_at_the_next_logged_step():
    check = FiniteLosses()
    trainer = SimpleNamespace(log_every_n_steps=2, global_step=2, state=SimpleNamespace(status="running"))
    check.on_train_batch_end(trainer, None, {"terms": {"ce": torch.tensor(torch.inf)}}, None, 0)
    with pytest.raises(FloatingPointError, match="train/ce"):
        check.on_train_batch_end(trainer, None, {"terms": {"ce": torch.tensor(1.0)}}, None, 1)
    # What was read once is not read again.
    check.on_train_batch_end(trainer, None, {"terms": {"ce": torch.tensor(1.0)}}, None, 3)
