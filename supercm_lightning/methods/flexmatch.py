"""FlexMatch: FixMatch with a threshold per class that follows how well the class is learned."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.methods.fixmatch import FixMatch
from supercm_lightning.methods.per_sample import PerSampleState
from supercm_lightning.utils.collectives import all_gather_samples


class FlexMatch(FixMatch, PerSampleState):
    """FixMatch whose threshold for class c is τ · β_c / (2 - β_c), with β_c the learning status of the class.

    Zhang et al., "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling", NeurIPS 2021. The
    status is the number of unlabeled samples whose latest confident label is c, relative to the largest such number or
    to that of the samples that never had one (threshold warm-up). A sample's label is updated whenever its confidence
    reaches τ itself; the thresholds of a step are those before its own samples are counted.

    Args:
        **kwargs: Options of `FixMatch`: `fixmatch_threshold` is τ; and of `Method`.

    Attributes:
        selected_label: Latest confident label of every unlabeled sample, (number of unlabeled samples,), -1 for none.
        class_threshold: Thresholds of the present step, (K,).

    Examples:
        >>> FlexMatch(num_classes=3, input_shape=(1, 8, 8)).class_threshold
        tensor([0., 0., 0.])
    """

    terms: tuple[str, ...] = ("flexmatch",)
    fixmatch_term = "flexmatch"
    sample_buffers: ClassVar[dict[str, int | float | bool]] = {"selected_label": -1}
    selected_label: Tensor
    class_threshold: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("selected_label", torch.empty(0, dtype=torch.int64))
        self.register_buffer("class_threshold", torch.zeros(self.num_classes))

    def observe(self, step: Step) -> None:
        """Sets the thresholds of the step, then updates the labels of its samples."""
        super().observe(step)
        # Not bincount, for which the host waits on an accelerator.
        label = self.selected_label + 1
        count = label.new_zeros(self.num_classes + 1).scatter_add_(0, label, torch.ones_like(label))
        status = count[1:] / count.max().clamp_min(1)
        self.class_threshold.copy_(self.hparams.fixmatch_threshold * (status / (2 - status)))

        assert step.index is not None
        confidence, label = step.unlabeled_logits[0].float().softmax(dim=1).max(dim=1)
        # Samples below τ keep what they have: -2 marks them through the gathering.
        label = torch.where(confidence >= self.hparams.fixmatch_threshold, label, -2)
        index, label = all_gather_samples(torch.stack([step.index, label], dim=1)).unbind(dim=1)
        # A sample may be there twice, confident once.
        new = torch.full_like(self.selected_label, -2).scatter_reduce_(0, index, label, "amax")
        self.selected_label.copy_(torch.where(new >= 0, new, self.selected_label))

    def thresholds(self, logits: Tensor) -> Tensor:
        """τ · β / (2 - β) of each sample's predicted class, (U,)."""
        return self.class_threshold[logits.argmax(dim=1)]
