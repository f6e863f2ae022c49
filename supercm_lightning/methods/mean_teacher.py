"""Mean Teacher: an average of the network's own past weights sets the targets."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from supercm_lightning.contracts import Step
from supercm_lightning.losses import consistency_loss
from supercm_lightning.methods.base import Method
from supercm_lightning.utils.options import SuperCMError


class MeanTeacher(Method):
    """Cross-entropy plus the squared distance to the predictions of a teacher for another view.

    Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017. The teacher's parameters are the
    exponential moving average of the student's over the optimiser steps; its batch norm normalises with the batch,
    labelled rows included, and its running statistics are the student's. It never gets a gradient. The weight ramps up
    over the fraction `ramp_up` of the training.

    Args:
        mean_teacher_weight: Weight of the term, >= 0.
        mean_teacher_decay: Decay of the average, in [0, 1); in the first steps 1 - 1 / step where that is less, so that
            the teacher forgets the initial weights.
        **kwargs: Options of the next method in a combination, and of `Method`.

    Raises:
        ValueError: If the decay is outside its range.
    """

    target_views = ("weak",)

    def __init__(self, mean_teacher_weight: float = 8.0, mean_teacher_decay: float = 0.95, **kwargs: Any) -> None:
        if not 0 <= mean_teacher_decay < 1:
            raise SuperCMError(f"mean_teacher_decay={mean_teacher_decay}: must be in [0, 1).")
        super().__init__(**kwargs)
        self.mean_teacher_weight = mean_teacher_weight
        self.mean_teacher_decay = mean_teacher_decay
        self.teacher = copy.deepcopy(self._student).requires_grad_(False)
        self._updated_at = 0

    @property
    def _student(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.bottleneck, self.head)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the term `mean_teacher`."""
        with torch.no_grad():
            target = self.forward_matched(step, step.target_views[0], self.teacher)
        loss = consistency_loss(step.unlabeled_logits[0], target)
        return super().losses(step) | {"mean_teacher": self.ramp() * self.mean_teacher_weight * loss}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Moves the teacher to the weights of the last optimiser step.

        Here and not at the end of that step, where a checkpoint may be written before the module's turn has come.
        """
        super().on_train_batch_start(batch, batch_idx)
        step = self.trainer.global_step
        if step in (0, self._updated_at):  # the first step, or gradients are still accumulating
            return
        self._updated_at = step
        decay = min(1 - 1 / step, self.mean_teacher_decay)
        student = self._student
        with torch.no_grad():
            torch._foreach_lerp_(list(self.teacher.parameters()), list(student.parameters()), 1 - decay)
            for mine, theirs in zip(self.teacher.buffers(), student.buffers(), strict=True):
                mine.copy_(theirs)
