"""What Lightning's trainer knows, with types, and checks of its options."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from supercm_lightning.utils.options import SuperCMError


def datamodule_of(trainer: Trainer | None) -> Any:
    """The data module of a trainer; None without one."""
    return trainer.datamodule if trainer is not None else None  # type: ignore[attr-defined]


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks of a trainer, those of the model included."""
    return trainer.callbacks  # type: ignore[attr-defined]


def log_interval(trainer: Trainer) -> int:
    """Number of steps from one logged step to the next."""
    return trainer.log_every_n_steps or 1  # type: ignore[attr-defined]


def is_dry_run(trainer: Trainer) -> bool:
    """Whether the trainer only tries out the code (`fast_dev_run`) or its speed (`barebones`), and writes nothing."""
    return bool(trainer.fast_dev_run or trainer.barebones)  # type: ignore[attr-defined]


def is_rank_zero() -> bool:
    """Whether this process is the first of the run, which alone reports progress and writes."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def check_trainer(trainer: Trainer, name: str) -> None:
    """Refuses strategies and precisions with which buffers and averages of a method or callback would be wrong."""
    if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
        raise SuperCMError(
            f"trainer.strategy: {type(trainer.strategy).__name__} shards the model, but {name} keeps state of the "
            "whole model on every device. Use trainer.strategy=ddp."
        )
    if trainer.precision in ("bf16-true", "16-true"):
        raise SuperCMError(
            f"trainer.precision={trainer.precision}: small changes of weights and running means are rounded away in "
            "half precision. Use trainer.precision=bf16-mixed."
        )
