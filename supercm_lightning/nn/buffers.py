"""Buffers whose size is that of the data."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def resize_buffers(module: nn.Module, names: Iterable[str], state_dict: Mapping[str, Any], prefix: str) -> None:
    """Gives buffers the shapes that they have in a state dict, so that it loads into a module made for other data.

    To be called from `_load_from_state_dict`, before that of the base class.

    Args:
        module: The module that has the buffers.
        names: Their names.
        state_dict: What is about to be loaded.
        prefix: Prefix of the module's entries.
    """
    for name in names:
        saved, mine = state_dict.get(prefix + name), getattr(module, name)
        if isinstance(saved, Tensor) and saved.shape != mine.shape:
            setattr(module, name, torch.empty_like(saved, device=mine.device))
