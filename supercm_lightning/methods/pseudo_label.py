"""Pseudo-Label: the network's own confident predictions become labels."""

from typing import Any

from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.losses import pseudo_label_loss
from supercm_lightning.methods.base import Method
from supercm_lightning.utils.options import SuperCMError


class PseudoLabel(Method):
    """Cross-entropy plus that of the unlabelled rows to their own confident predictions.

    Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML
    workshop 2013. The weight ramps up over the fraction `ramp_up` of the training.

    Args:
        pseudo_label_weight: Weight of the term, >= 0.
        pseudo_label_threshold: Confidence from which a prediction counts, in [0, 1].
        **kwargs: Options of the next method in a combination, and of `Method`.

    Raises:
        ValueError: If the threshold is no confidence.
    """

    def __init__(self, pseudo_label_weight: float = 1.0, pseudo_label_threshold: float = 0.95, **kwargs: Any) -> None:
        if not 0 <= pseudo_label_threshold <= 1:
            raise SuperCMError(f"pseudo_label_threshold={pseudo_label_threshold}: give a confidence between 0 and 1.")
        super().__init__(**kwargs)
        self.pseudo_label_weight = pseudo_label_weight
        self.pseudo_label_threshold = pseudo_label_threshold

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the term `pseudo_label`."""
        logits = step.unlabeled_logits[0]
        loss = pseudo_label_loss(logits, logits, self.pseudo_label_threshold)
        return super().losses(step) | {"pseudo_label": self.ramp() * self.pseudo_label_weight * loss}

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds the share of the unlabelled rows above the threshold."""
        confidence = step.unlabeled_logits[0].float().softmax(dim=1).amax(dim=1)
        share = (confidence >= self.pseudo_label_threshold).float().mean()
        return super().diagnostics(step) | {"mask_ratio": share}
