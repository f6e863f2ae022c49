"""Mean Teacher: an average of the network's own past weights sets the targets."""

from typing import Any

import torch
from torch import Tensor, nn

from supercm_lightning.contracts import Step
from supercm_lightning.losses import consistency_loss
from supercm_lightning.methods.base import Method
from supercm_lightning.nn import Ema
from supercm_lightning.utils.options import check_decay, check_range


class MeanTeacher(Method):
    """Cross-entropy plus the squared distance to the predictions of a teacher for another view.

    Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017. The teacher's parameters are the
    exponential moving average of the student's over the optimizer steps; its batch norm normalizes with the batch,
    labeled samples included, and its running statistics are the student's. It never gets a gradient. The weight ramps
    up over the fraction `ramp_up` of the training.

    Args:
        mean_teacher_weight: Weight of the term, >= 0.
        mean_teacher_decay: Decay of the average, in [0, 1); in the first steps 1 - 1 / step where that is less, so that
            the teacher forgets the initial weights.
        **kwargs: Options of the next method in a combination, and of `Method`.

    Attributes:
        teacher: The average.

    Raises:
        SuperCMError: If an option is outside its range.

    Examples:
        >>> model = MeanTeacher(num_classes=3, input_shape=(1, 8, 8))
        >>> model.teacher(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """

    terms: tuple[str, ...] = ("mean_teacher",)
    target_views = ("weak",)

    def __init__(self, mean_teacher_weight: float = 8.0, mean_teacher_decay: float = 0.95, **kwargs: Any) -> None:
        check_range(0, mean_teacher_weight=mean_teacher_weight)
        check_decay(mean_teacher_decay=mean_teacher_decay)
        super().__init__(**kwargs)
        self.teacher = Ema(self._student, mean_teacher_decay, warmup="mean")

    @property
    def _student(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.bottleneck, self.head)

    def setup(self, stage: str) -> None:
        """Lets the teacher start where the student does, whose weights may have been loaded."""
        super().setup(stage)
        if stage == "fit" and self.hparams.backbone_checkpoint is not None:
            self.teacher.reset(self._student)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the term `mean_teacher`."""
        with torch.no_grad():
            target = self.forward_matched(step, step.target_views[0], self.teacher)
        loss = consistency_loss(step.unlabeled_logits[0], target)
        return super().losses(step) | {"mean_teacher": self.ramp() * self.hparams.mean_teacher_weight * loss}

    def observe_weights(self) -> None:
        """Moves the teacher towards the student."""
        super().observe_weights()
        self.teacher.update(self._student, self.trainer.global_step + 1)
