"""Mixin of methods that keep state for every unlabeled sample."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from supercm_lightning.contracts import KnownUnlabeledData, UnlabeledData
from supercm_lightning.methods.base import Method
from supercm_lightning.nn import resize_buffers
from supercm_lightning.utils.collectives import all_gather_shards, rank_slice
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.trainer import datamodule_of

CHUNK = 500
"""Samples that are forwarded at a time beside a training step."""


class PerSampleState(Method):
    """Sizes buffers by the number of unlabeled samples, in training and when a checkpoint is loaded.

    The buffers are registered by the subclass, with any first dimension. `setup("fit")` gives them one entry per
    unlabeled sample; a checkpoint loads with its own number of samples, also without data. Where samples have come or
    gone since, each of the others keeps its state, and a new one starts.

    Examples:
        >>> import torch
        >>> class Visits(PerSampleState):
        ...     sample_buffers = {"visits": 0}
        ...
        ...     def __init__(self, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.register_buffer("visits", torch.zeros(1, dtype=torch.int64))
        >>> model = Visits(num_classes=2, input_shape=(4,), backbone="identity")
        >>> model.reset_samples(7)
        >>> model.visits
        tensor([0, 0, 0, 0, 0, 0, 0])

    Attributes:
        sample_buffers: Names of the buffers that the class adds (with a dot for those of a submodule) and the value
            that each starts from; a combination has those of all its bases.
    """

    sample_buffers: ClassVar[dict[str, int | float | bool]] = {}

    @classmethod
    def _all_sample_buffers(cls) -> dict[str, int | float | bool]:
        merged: dict[str, int | float | bool] = {}
        for base in cls.__mro__:
            merged |= vars(base).get("sample_buffers", {})
        return merged

    def reset_samples(self, num_samples: int) -> None:
        """Sets the state of `num_samples` unlabeled samples to its start; extend it to reset what belongs to it."""
        for name, start in self._all_sample_buffers().items():
            owner, _, buffer = name.rpartition(".")
            holder = self.get_submodule(owner)
            current = getattr(holder, buffer)
            setattr(holder, buffer, current.new_full((num_samples, *current.shape[1:]), start, device=self.device))

    def setup(self, stage: str) -> None:
        """Sizes the buffers.

        Raises:
            SuperCMError: If the data module does not tell the number of its unlabeled samples.
        """
        super().setup(stage)
        if stage == "fit":
            data = datamodule_of(self.trainer)
            if not isinstance(data, UnlabeledData):
                raise SuperCMError(
                    f"{type(self).__name__} keeps state for every unlabeled sample: it needs a data module with an "
                    "attribute num_unlabeled. Use one of supercm_lightning.data."
                )
            self.reset_samples(data.num_unlabeled)

    def on_train_start(self) -> None:
        """Gives the state of a loaded checkpoint to the samples that had it.

        Raises:
            SuperCMError: If the data has another number of samples and does not know them by name.
        """
        super().on_train_start()
        data = datamodule_of(self.trainer)
        if isinstance(data, KnownUnlabeledData) and data.former_unlabeled is not None:
            self.move_samples(data.former_unlabeled.to(self.device))
            data.former_unlabeled = None
        count = data.num_unlabeled
        for name in self._all_sample_buffers():
            if (saved := len(self.get_buffer(name))) != count:
                raise SuperCMError(
                    f"ckpt_path: the checkpoint keeps state for {saved} unlabeled samples, and the data has {count}. "
                    "Resume with the data of the checkpoint."
                )

    def move_samples(self, former: Tensor) -> None:
        """Brings the state of the unlabeled samples into the order of the data.

        Args:
            former: Position that each sample had, (n,) int64, -1 for one that is new.
        """
        for name, start in self._all_sample_buffers().items():
            owner, _, buffer = name.rpartition(".")
            saved = self.get_buffer(name)
            known = (former >= 0) & (former < len(saved))
            moved = saved.new_full((len(former), *saved.shape[1:]), start)
            moved[known] = saved[former[known]]
            setattr(self.get_submodule(owner), buffer, moved)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_buffers(self, self._all_sample_buffers(), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def of_samples(self, split: str, index: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """What a function makes of samples without augmentation, (n, d); each process computes its shard.

        Args:
            split: Split of the samples.
            index: Their positions, (n,).
            function: From inputs (m, *input_shape) to (m, d).
        """
        data, found = datamodule_of(self.trainer), []
        for chunk in index[rank_slice()].split(CHUNK):
            found.append(function(data.views_of(split, chunk, ("clean",), "chosen")[0]))
        return all_gather_shards(torch.cat(found), len(index))
