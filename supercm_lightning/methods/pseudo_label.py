"""Pseudo-Label: the network's own confident predictions become labels."""

from typing import Any

from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.losses import pseudo_label_loss
from supercm_lightning.methods.base import Method
from supercm_lightning.utils.options import check_range


class PseudoLabel(Method):
    """Cross-entropy plus that of the unlabeled samples to their own confident predictions.

    Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML
    workshop 2013. The weight ramps up over the fraction `ramp_up` of the training.

    Args:
        pseudo_label_weight: Weight of the term, >= 0.
        pseudo_label_threshold: Confidence from which a prediction counts, in [0, 1].
        **kwargs: Options of the next method in a combination, and of `Method`.

    Raises:
        SuperCMError: If an option is outside its range.

    Examples:
        >>> PseudoLabel(num_classes=3, input_shape=(1, 8, 8)).hparams.pseudo_label_threshold
        0.95
    """

    terms: tuple[str, ...] = ("pseudo_label",)

    def __init__(self, pseudo_label_weight: float = 1.0, pseudo_label_threshold: float = 0.95, **kwargs: Any) -> None:
        check_range(0, pseudo_label_weight=pseudo_label_weight)
        check_range(0, 1, pseudo_label_threshold=pseudo_label_threshold)
        super().__init__(**kwargs)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the term `pseudo_label`."""
        logits = step.unlabeled_logits[0]
        loss = pseudo_label_loss(logits, logits, self.hparams.pseudo_label_threshold)
        return super().losses(step) | {"pseudo_label": self.ramp() * self.hparams.pseudo_label_weight * loss}

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds the fraction of the unlabeled samples above the threshold."""
        confidence = step.unlabeled_logits[0].float().softmax(dim=1).amax(dim=1)
        fraction = (confidence >= self.hparams.pseudo_label_threshold).float().mean()
        return super().diagnostics(step) | {"mask_ratio": fraction}
