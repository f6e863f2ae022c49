"""Preprocessing belongs to a checkpoint: what was trained on samples of one preparation fits no others."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from supercm_lightning.data.modules.pipeline import ViewPipeline
from supercm_lightning.data.sources.base import Source
from supercm_lightning.utils.options import SuperCMError

OPTIONS = ("image_size", "mean", "std", "whitening", "standardize")
"""Options of data modules by which samples are prepared; the command line takes them from a checkpoint."""


class PreparedSamples(ViewPipeline):
    """The part of a data module that stores how its samples are prepared, and compares that with a checkpoint.

    Attributes:
        preprocessing: What was done to the samples that the model receives, plain values.
        measured: Tensors that this was measured by, on training samples or by the run of a checkpoint.
    """

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
        """Compares the preparation of a checkpoint with that of the data, and takes what was measured.

        Returns:
            Whether the samples that were read are outdated.

        Raises:
            SuperCMError: If they differ; the message has both.
        """
        check_preparation(state["preprocessing"], self.preparation)
        saved, own = state["measured"], self.measured
        same = own.keys() == saved.keys() and all(torch.equal(own[name], saved[name]) for name in own)
        self.measured = dict(saved)
        return not same


def check_preparation(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Compares the preparation of a checkpoint with that of the data.

    Args:
        saved: That of the checkpoint, plain values.
        own: That of the data.

    Raises:
        SuperCMError: If they differ; the message has both.

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
