"""MCC: predictions on the target that do not hesitate between the same classes again and again."""

from typing import Any

from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.losses import minimum_class_confusion
from supercm_lightning.methods.base import Method
from supercm_lightning.utils.collectives import all_gather_samples_with_grad
from supercm_lightning.utils.options import SuperCMError


class MCC(Method):
    """Cross-entropy on the source plus the class confusion of the target predictions.

    Jin et al., "Minimum Class Confusion for Versatile Domain Adaptation", ECCV 2020. The confusion is that of the whole
    batch, of all processes together.

    Args:
        mcc_weight: Weight of the term, >= 0.
        mcc_temperature: Softmax temperature of the predictions, > 0.
        **kwargs: Options of the next method in a combination, and of `Method`.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(self, mcc_weight: float = 1.0, mcc_temperature: float = 2.5, **kwargs: Any) -> None:
        if not mcc_temperature > 0:
            raise SuperCMError(f"mcc_temperature={mcc_temperature}: must be positive.")
        super().__init__(**kwargs)
        self.mcc_weight = mcc_weight
        self.mcc_temperature = mcc_temperature

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the term `mcc`."""
        logits = all_gather_samples_with_grad(step.unlabeled_logits[0])
        loss = minimum_class_confusion(logits, self.mcc_temperature)
        return super().losses(step) | {"mcc": self.mcc_weight * loss}
