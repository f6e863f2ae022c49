"""FixMatch: the confident prediction for a weak view is the label of a strong one."""

from typing import Any

import torch
from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.losses import pseudo_label_loss
from supercm_lightning.methods.base import Method
from supercm_lightning.utils.options import SuperCMError


class FixMatch(Method):
    """Cross-entropy plus that of strongly augmented rows to the confident predictions for their weak view.

    Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020. The
    recipe of the paper is SGD with lr 0.03, `cosine` schedule, weight decay 5e-4, seven unlabelled rows per labelled
    one, and the EMA callback with decay 0.999.

    Args:
        fixmatch_weight: Weight of the term, >= 0.
        fixmatch_threshold: Confidence from which a prediction counts, in [0, 1].
        **kwargs: Options of the next method in a combination, and of `Method`.

    Raises:
        ValueError: If the threshold is no confidence.
    """

    views = ("weak", "strong")
    fixmatch_term = "fixmatch"

    def __init__(self, fixmatch_weight: float = 1.0, fixmatch_threshold: float = 0.95, **kwargs: Any) -> None:
        if not 0 <= fixmatch_threshold <= 1:
            raise SuperCMError(f"fixmatch_threshold={fixmatch_threshold}: give a confidence between 0 and 1.")
        super().__init__(**kwargs)
        self.fixmatch_weight = fixmatch_weight
        self.fixmatch_threshold = fixmatch_threshold

    def thresholds(self, step: Step) -> float | Tensor:
        """Smallest confidence that counts, one for all rows or one for each, (U,)."""
        return self.fixmatch_threshold

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the term, named after the method."""
        weak, strong = step.unlabeled_logits[:2]
        loss = pseudo_label_loss(strong, weak, self.thresholds(step))
        return super().losses(step) | {self.fixmatch_term: self.fixmatch_weight * loss}

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds the share of the unlabelled rows that count."""
        confidence = step.unlabeled_logits[0].float().softmax(dim=1).amax(dim=1)
        share = (confidence >= torch.as_tensor(self.thresholds(step), device=confidence.device)).float().mean()
        return super().diagnostics(step) | {"mask_ratio": share}
