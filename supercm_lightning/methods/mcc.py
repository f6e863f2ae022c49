"""MCC: minimizes the pairwise class confusion of the target predictions."""

from typing import Any

from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.losses import minimum_class_confusion
from supercm_lightning.methods.base import Method
from supercm_lightning.utils.collectives import all_gather_samples_with_grad
from supercm_lightning.utils.options import check_positive, check_range


class MCC(Method):
    """Cross-entropy on the source plus the class confusion of the target predictions.

    Jin et al., "Minimum Class Confusion for Versatile Domain Adaptation", ECCV 2020. The confusion is that of the whole
    batch, of all processes together.

    Args:
        mcc_weight: Weight of the term, >= 0.
        mcc_temperature: Softmax temperature of the predictions, > 0.
        **kwargs: Options of the next method in a combination, and of `Method`.

    Raises:
        SuperCMError: If an option is outside its range.

    Examples:
        >>> MCC(num_classes=3, input_shape=(8,), backbone="mlp").hparams.mcc_temperature
        2.5
    """

    terms: tuple[str, ...] = ("mcc",)

    def __init__(self, mcc_weight: float = 1.0, mcc_temperature: float = 2.5, **kwargs: Any) -> None:
        check_range(0, mcc_weight=mcc_weight)
        check_positive(mcc_temperature=mcc_temperature)
        super().__init__(**kwargs)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the term `mcc`."""
        logits = all_gather_samples_with_grad(step.unlabeled_logits[0])
        loss = minimum_class_confusion(logits, self.hparams.mcc_temperature)
        return super().losses(step) | {"mcc": self.hparams.mcc_weight * loss}
