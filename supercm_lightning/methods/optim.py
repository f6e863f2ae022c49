"""How a method is optimized: optimizer by name, learning rate schedule by step, ramp-up, state after a step."""

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from supercm_lightning.methods.classifier import Classifier
from supercm_lightning.utils.options import SuperCMError, check_choice, check_positive, check_range

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

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> build_optimizer("sgd", [{"params": [weight]}], lr=0.1, weight_decay=0.0).defaults["momentum"]
        0.9
    """
    import timm.optim  # slow to import

    distinct: list[dict[str, Any]] = []
    for group in reversed(groups):
        taken = {id(p) for later in distinct for p in later["params"]}
        if parameters := [p for p in group["params"] if id(p) not in taken]:
            distinct.insert(0, group | {"params": parameters})
    options = _DEFAULTS.get(name, {}) | (options or {})
    check_range(0, 1, momentum=options.get("momentum"))
    if not options.get("momentum"):
        options.pop("nesterov", None)
    try:
        if name in _TORCH and issubclass(_TORCH[name], Optimizer) and name != "optimizer":
            return _TORCH[name](distinct, lr=lr, weight_decay=weight_decay, **options)
        if name in (known := timm.optim.list_optimizers()):
            return timm.optim.create_optimizer_v2(distinct, opt=name, lr=lr, weight_decay=weight_decay, **options)
    except TypeError as error:
        raise SuperCMError(f"optimizer_options={options}: optimizer={name} refuses them ({error}).") from error
    close = get_close_matches(name, [*_TORCH, *map(str, known)])
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


class Optimized(Classifier):
    """A classifier with an optimizer, a learning rate schedule and the progress of its training.

    Args:
        optimizer: `adam`, `adamw`, `sgd` (momentum 0.9, Nesterov), or any other name of torch.optim or timm.optim.
        optimizer_options: Further arguments of the optimizer.
        lr: Learning rate, > 0.
        weight_decay: Weight decay, >= 0, on all parameters.
        lr_schedule: Factor on `lr` at every step: `constant`; `step`, x 0.2 after 80 % of the steps; `cosine`,
            cos(7π/16 · progress) (FixMatch); `inverse`, (1 + 0.001 step)^-0.75 (DANN).
        backbone_lr_scale: Factor on `lr` for the backbone's parameters, for pretrained backbones.
        ramp_up: Fraction of the training, in [0, 1], over which unlabeled terms that ramp up reach their full weight.
        **kwargs: Options of `Classifier`.

    Raises:
        SuperCMError: If an option is outside its range.
    """

    def __init__(
        self,
        optimizer: str = "adam",
        optimizer_options: dict[str, Any] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        lr_schedule: Literal["constant", "step", "cosine", "inverse"] = "constant",
        backbone_lr_scale: float = 1.0,
        ramp_up: float = 0.4,
        **kwargs: Any,
    ) -> None:
        check_choice(lr_schedule=(lr_schedule, SCHEDULES))
        check_positive(lr=lr)
        check_range(0, weight_decay=weight_decay, backbone_lr_scale=backbone_lr_scale)
        check_range(0, 1, ramp_up=ramp_up)
        super().__init__(**kwargs)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer; extend to give parameters their own settings, of which the last count."""
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        seen = {id(p) for p in backbone}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in seen]
        lr = self.hparams.lr
        return [{"params": backbone, "lr": lr * self.hparams.backbone_lr_scale}, {"params": rest, "lr": lr}]

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule, stepped every training step."""
        given, groups = self.hparams, self.parameter_groups()
        optimizer = build_optimizer(given.optimizer, groups, given.lr, given.weight_decay, given.optimizer_options)
        schedule = build_schedule(given.lr_schedule, optimizer, lambda: self.total_steps)
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets a resumed training have another learning rate and weight decay than before.

        Raises:
            SuperCMError: If optimizer or schedule differ, or a rate differs and there are several optimizers.
        """
        super().on_load_checkpoint(checkpoint)
        saved, given = checkpoint.get("hyper_parameters", {}), self.hparams
        for name in ("optimizer", "lr_schedule"):
            if name in saved and saved[name] != given[name] and checkpoint.get("optimizer_states"):
                raise SuperCMError(
                    f"{name}={given[name]}: the checkpoint was trained with {saved[name]}; resume with it."
                )
        changed = [n for n in ("lr", "weight_decay", "backbone_lr_scale") if n in saved and saved[n] != given[n]]
        if not changed or not (states := checkpoint.get("optimizer_states")):
            return
        if len(states) > 1:
            raise SuperCMError(
                f"{changed[0]}={given[changed[0]]}: with several optimizers it stays {saved[changed[0]]}."
            )
        groups = self.parameter_groups()
        fresh = build_optimizer(given.optimizer, groups, given.lr, given.weight_decay, given.optimizer_options)
        for old, new in zip(states[0]["param_groups"], fresh.param_groups, strict=True):
            factor = old["lr"] / old.get("initial_lr", old["lr"])  # of the schedule
            old |= {"lr": factor * new["lr"], "weight_decay": new["weight_decay"]}
            old |= {"initial_lr": new["lr"]} if "initial_lr" in old else {}
        for schedule in checkpoint.get("lr_schedulers", ()):
            schedule["base_lrs"] = [group["lr"] for group in fresh.param_groups]
            schedule["_last_lr"] = [group["lr"] for group in states[0]["param_groups"]]

    def observe_weights(self) -> None:
        """Moves the state that follows the weights, after an optimizer step (number `trainer.global_step + 1`)."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, then moves the state that follows the weights, before any callback can save a checkpoint."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.observe_weights()

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of the whole training.

        Raises:
            SuperCMError: If the trainer has no end.
        """
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise SuperCMError("The length of the training is unknown: set trainer.max_epochs or trainer.max_steps.")
        return int(steps)

    @property
    def progress(self) -> float:
        """Fraction of the training that is done, in [0, 1]."""
        return min(self.trainer.global_step / max(self.total_steps, 1), 1.0)

    def ramp(self) -> float:
        """Weight exp(-5 (1 - t)²) of a term that ramps up; t reaches 1 after the fraction `ramp_up` of the training."""
        t = min(self.progress / self.hparams.ramp_up, 1.0) if self.hparams.ramp_up else 1.0
        return math.exp(-5.0 * (1.0 - t) ** 2)
