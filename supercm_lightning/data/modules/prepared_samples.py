"""Options and preprocessing as a checkpoint stores them: what was trained on one preparation fits no other."""

from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.parsing import collect_init_args
from torch import Tensor

from supercm_lightning.data.modules.pipeline import ViewPipeline
from supercm_lightning.data.sources.base import Source
from supercm_lightning.utils.options import SuperCMError

OPTIONS = ("image_size", "mean", "std", "whitening", "standardize")
"""Options of data modules by which samples are prepared; the command line takes them from a checkpoint."""


class PreparedSamples(ViewPipeline):
    """The part of a data module that stores how its samples are prepared, and compares that with a checkpoint."""

    source: Source | None

    def __init__(self) -> None:
        super().__init__()
        self.preprocessing: dict[str, Any] = {}
        self.measured: dict[str, Tensor] = {}

    @property
    def preparation(self) -> dict[str, Any]:
        """How a file becomes an input of the model, plain values."""
        return (self.source.preparation if self.source is not None else {}) | self.preprocessing

    def preparation_state(self) -> dict[str, Any]:
        """What a checkpoint stores of the preparation, and the options that led to it."""
        options = {name: self.hparams[name] for name in OPTIONS if name in self.hparams}
        return {"preprocessing": self.preparation, "measured": self.measured, "options": options}

    def restore_preparation(self, state: Mapping[str, Any]) -> bool:
        """Takes what a checkpoint measured; says whether the samples that were read are outdated by that."""
        check_preparation(state["preprocessing"], self.preparation)
        saved, own = state["measured"], self.measured
        same = own.keys() == saved.keys() and all(torch.equal(own[name], saved[name]) for name in own)
        self.measured = dict(saved)
        return not same


def check_preparation(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Compares the preparation of a checkpoint with that of the data; the error has both.

    Examples:
        >>> check_preparation({"mean": (0.5,)}, {"mean": [0.5, 0.5, 0.5]})
    """
    measured = {"mean", "std"} if "standardize" in {**saved, **own} else set()
    both = saved.keys() & own.keys()  # how files are read says nothing about samples of another kind
    for name in sorted(({*OPTIONS} & (saved.keys() | own.keys()) | both) - measured):
        if _spread(saved.get(name)) != _spread(own.get(name)):
            shown = [s if len(s := str(at.get(name))) < 60 else f"{s[:50]} …" for at in (own, saved)]
            raise SuperCMError(
                f"ckpt_path: the samples are prepared with {name}={shown[0]}, those of the checkpoint with "
                f"{name}={shown[1]}. Give the data the options of the training."
            )


def _spread(value: Any) -> Any:
    """One value for all channels where all have the same."""
    if not isinstance(value, list | tuple):
        return value
    values = [round(one, 6) if isinstance(one, float) else one for one in value]
    return values[:1] if len(set(values)) == 1 else values


_PLAIN = (bool, int, float, str, Path, type(None))


def save_options(module: LightningDataModule, frame: FrameType | None) -> None:
    """Keeps the plain arguments of the constructors of a module's subclasses in `hparams`.

    Torch data sets, arrays and tensors are left out; paths become strings, which checkpoints load safely. `frame` is
    that of the base's constructor, which a constructor of a subclass has called.
    """
    frame = frame.f_back if frame is not None else None
    assert frame is not None
    given: dict[str, Any] = {}
    for arguments in collect_init_args(frame, [], classes=(LightningDataModule,)):
        given |= arguments
    ignored = [name for name, value in given.items() if not _is_plain(value)]
    # Not to the logger: a model's option of the same name would clash with it there.
    module.save_hyperparameters(ignore=ignored, frame=frame, logger=False)
    for name, value in module.hparams.items():
        module.hparams[name] = _without_paths(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, _PLAIN)


def _without_paths(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_without_paths, value))
    return str(value) if isinstance(value, Path) else value
