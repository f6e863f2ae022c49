"""Π-Model: two views of an image get the same prediction."""

from typing import Any

import torch
from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.losses import consistency_loss
from supercm_lightning.methods.base import Method
from supercm_lightning.utils.options import check_range


class PiModel(Method):
    """Cross-entropy plus the squared distance between the predictions for two random views of the unlabeled samples.

    Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017. The second view is the target and
    gets no gradient. The weight ramps up over the fraction `ramp_up` of the training.

    Args:
        pi_weight: Weight of the term, >= 0.
        **kwargs: Options of the next method in a combination, and of `Method`.

    Raises:
        SuperCMError: If the weight is negative.

    Examples:
        >>> PiModel(num_classes=3, input_shape=(1, 8, 8)).all_views
        ('weak', 'weak')
    """

    terms: tuple[str, ...] = ("pi",)
    target_views = ("weak",)

    def __init__(self, pi_weight: float = 20.0, **kwargs: Any) -> None:
        check_range(0, pi_weight=pi_weight)
        super().__init__(**kwargs)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the term `pi`."""
        with torch.no_grad():
            target = self.forward_matched(step, step.target_views[0])
        loss = consistency_loss(step.unlabeled_logits[0], target)
        return super().losses(step) | {"pi": self.ramp() * self.hparams.pi_weight * loss}
