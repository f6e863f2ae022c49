"""An averaged copy of a module."""

import copy
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from supercm_lightning.utils.options import check_decay

Warmup: TypeAlias = Literal["mean", "ratio"] | None


def ema_decay(step: int, decay: float, warmup: Warmup = None) -> float:
    """Decay of an exponential moving average at step t, smaller in the first steps if there is a warm-up.

    `mean`: min(decay, 1 − 1 / t), the plain mean of the first steps, as in Mean Teacher, t at least 1. `ratio`:
    min(decay, (1 + t) / (10 + t)), a mean of about the last tenth of the steps, as in TensorFlow. Without a warm-up the
    average keeps the fraction decay^t of the weights that it started from, 37 % after 1,000 steps with 0.999.

    Examples:
        >>> ema_decay(4, decay=0.999, warmup="mean")
        0.75
    """
    if warmup == "mean":
        return min(1 - 1 / step, decay)
    if warmup == "ratio":
        return min((1 + step) / (10 + step), decay)
    return decay


class Ema(nn.Module):
    """Exponential moving average of the weights of a module: average ← d · average + (1 − d) · weights.

    The copy is made by `copy.deepcopy`; its parameters receive no gradient. The whole average is in `state_dict`, under
    `module`.

    Args:
        module: The module to follow.
        decay: Decay d after the warm-up, in [0, 1).
        warmup: Warm-up of the decay, `mean`, `ratio` or None; see `ema_decay`.
        average_buffers: Average the floating-point buffers too, such as the running statistics of batch norm. False:
            copy them. Other buffers are always copied.

    Attributes:
        module: The averaged copy.

    Examples:
        >>> student = nn.Linear(8, 2)
        >>> teacher = Ema(student, decay=0.999, warmup="mean")
        >>> teacher.update(student, step=1)
        >>> teacher(torch.rand(4, 8)).shape
        torch.Size([4, 2])
    """

    def __init__(self, module: nn.Module, decay: float, warmup: Warmup = None, average_buffers: bool = False) -> None:
        super().__init__()
        check_decay(decay=decay)
        self.decay = decay
        self.warmup = warmup
        self.average_buffers = average_buffers
        self.module = copy.deepcopy(module).requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Output of the averaged copy."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards the present weights, without waiting for the device; the warm-up goes by `step`."""
        averaged, copied = self._pairs(module)
        if averaged:
            averages, weights = map(list, zip(*averaged, strict=True))
            torch._foreach_lerp_(averages, weights, 1 - ema_decay(step, self.decay, self.warmup))
        for average, live in copied:
            average.copy_(live)

    @torch.no_grad()
    def reset(self, module: nn.Module) -> None:
        """Starts again from the present weights and buffers of a module of the same structure."""
        averaged, copied = self._pairs(module)
        for average, live in averaged + copied:
            average.copy_(live)

    def _pairs(self, module: nn.Module) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
        """Tensors of the copy and of the module that are averaged, and those that are copied."""
        averaged: list[tuple[Tensor, Tensor]] = list(zip(self.module.parameters(), module.parameters(), strict=True))
        copied: list[tuple[Tensor, Tensor]] = []
        for average, live in zip(self.module.buffers(), module.buffers(), strict=True):
            floating = self.average_buffers and average.is_floating_point()
            (averaged if floating else copied).append((average, live))
        return averaged, copied
