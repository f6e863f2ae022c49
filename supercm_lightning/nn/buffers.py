"""Buffers whose size is that of the data."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def resize_buffers(module: nn.Module, names: Iterable[str], state_dict: Mapping[str, Any], prefix: str = "") -> None:
    """Gives buffers the shapes that they have in a state dict, so that it loads into a module built for other data.

    To be called from `_load_from_state_dict`, before that of the base class. Names have a dot for buffers of a
    submodule.

    Examples:
        >>> module = nn.BatchNorm1d(2)
        >>> resize_buffers(module, ["running_mean"], {"running_mean": torch.zeros(5)})
        >>> module.running_mean.shape
        torch.Size([5])
    """
    for name in names:
        owner, _, buffer = name.rpartition(".")
        holder = module.get_submodule(owner)
        saved, current = state_dict.get(prefix + name), getattr(holder, buffer)
        if isinstance(saved, Tensor) and saved.shape != current.shape:
            setattr(holder, buffer, torch.empty_like(saved, device=current.device))
