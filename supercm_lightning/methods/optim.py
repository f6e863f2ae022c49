"""Optimizers by name and learning rate schedules by step."""

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from supercm_lightning.utils.options import SuperCMError

SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, total: 1.0,
    "step": lambda step, total: 0.2 if step >= 0.8 * total else 1.0,
    "cosine": lambda step, total: math.cos(7 * math.pi / 16 * min(step / max(total, 1), 1.0)),
    "inverse": lambda step, total: (1 + 0.001 * step) ** -0.75,
}
"""Factor on the learning rate at a step of a training of `total` steps."""

_TORCH = {name.lower(): kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
_DEFAULTS: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9, "nesterov": True}}


def build_optimizer(
    name: str, groups: Sequence[dict[str, Any]], lr: float, weight_decay: float, options: dict[str, Any] | None = None
) -> Optimizer:
    """Builds an optimizer.

    Args:
        name: Name of a class of `torch.optim` in lower case, such as `adam` or `sgd` (momentum 0.9 and Nesterov unless
            the options say otherwise), or a name that `timm.optim` knows, such as `lamb`.
        groups: Parameter groups; where a parameter is in several, the last counts.
        lr: Learning rate of groups without their own.
        weight_decay: Weight decay of groups without their own.
        options: Further arguments of the optimizer's constructor.

    Raises:
        SuperCMError: If the name or an option is unknown.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> build_optimizer("sgd", [{"params": [weight]}], lr=0.1, weight_decay=0.0).defaults["momentum"]
        0.9
    """
    distinct: list[dict[str, Any]] = []
    for group in reversed(groups):
        taken = {id(p) for later in distinct for p in later["params"]}
        if parameters := [p for p in group["params"] if id(p) not in taken]:
            distinct.insert(0, group | {"params": parameters})
    options = _DEFAULTS.get(name, {}) | (options or {})
    if not options.get("momentum"):
        options.pop("nesterov", None)
    try:
        if name in _TORCH and issubclass(_TORCH[name], Optimizer) and name != "optimizer":
            return _TORCH[name](distinct, lr=lr, weight_decay=weight_decay, **options)
        from timm.optim import create_optimizer_v2, list_optimizers

        if name in list_optimizers():
            return create_optimizer_v2(distinct, opt=name, lr=lr, weight_decay=weight_decay, **options)
    except TypeError as error:
        raise SuperCMError(f"optimizer_options={options}: optimizer={name} refuses them ({error}).") from error
    close = get_close_matches(name, {*_TORCH, *list_optimizers()})
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise SuperCMError(f"optimizer={name!r}: neither torch.optim nor timm.optim has it.{hint}")


def build_schedule(name: str, optimizer: Optimizer, total_steps: Callable[[], int]) -> LambdaLR | None:
    """Builds the learning rate schedule, to be stepped once a training step; None for a constant rate.

    Args:
        name: A key of `SCHEDULES`.
        optimizer: The optimizer.
        total_steps: Gives the number of steps of the training; only asked where the schedule depends on it.
    """
    if name == "constant":
        return None
    total = 1 if name == "inverse" else total_steps()
    return LambdaLR(optimizer, lambda step: SCHEDULES[name](step, total))
