"""The private names of Lightning and PyTorch that this package uses, all of them.

A new release may rename them without notice: `tests/utils/test_lightning_private.py` has a test for each, and
`pyproject.toml` bounds the versions for this reason. `SuperCMCLI` overrides one more, `LightningCLI._parse_ckpt_path`.
"""

import copy
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader


def before_batch_transfer(module: LightningModule, batch: Any, dataloader_idx: int) -> Any:
    """Calls `on_before_batch_transfer` of the data module, or of the module without one, as Lightning's loops do."""
    return module._on_before_batch_transfer(batch, dataloader_idx)


def datamodule_of_call(trainer: Trainer) -> Any:
    """The data module that was given to the running or last call of a trainer; `trainer.datamodule` is older, if any.

    None where that call had loaders: `fit` with a data module and then `test` with loaders of other samples.
    """
    selector = trainer._data_connector._datahook_selector
    return selector.datamodule if selector is not None else None


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called; a second call would compile again."""
    return module._compiled_call_impl is not None


def without_iterator(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A copy of a loader that shares its data but not its persistent workers, so that both can be iterated at once."""
    loader = copy.copy(loader)
    loader._iterator = None
    return loader


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer of a module; None where it has none, for which the attribute `trainer` raises."""
    return module._trainer
