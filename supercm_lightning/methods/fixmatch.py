"""FixMatch: the confident prediction for a weak view is the label of a strong one."""

from typing import Any

from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.losses import pseudo_label_loss
from supercm_lightning.methods.base import Method
from supercm_lightning.utils.options import check_range


class FixMatch(Method):
    """Cross-entropy plus that of strongly augmented samples to the confident predictions for their weak view.

    Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020. The
    recipe of the paper is SGD with lr 0.03, `cosine` schedule, weight decay 5e-4, seven unlabeled samples per labeled
    one, and the EMA callback with decay 0.999.

    Args:
        fixmatch_weight: Weight of the term, >= 0.
        fixmatch_threshold: Confidence from which a prediction counts, in [0, 1].
        **kwargs: Options of the next method in a combination, and of `Method`.

    Raises:
        SuperCMError: If an option is outside its range.

    Examples:
        >>> FixMatch(num_classes=3, input_shape=(1, 8, 8)).views
        ('weak', 'strong')
    """

    terms: tuple[str, ...] = ("fixmatch",)
    fixmatch_term = "fixmatch"
    views = ("weak", "strong")

    def __init__(self, fixmatch_weight: float = 1.0, fixmatch_threshold: float = 0.95, **kwargs: Any) -> None:
        check_range(0, fixmatch_weight=fixmatch_weight)
        check_range(0, 1, fixmatch_threshold=fixmatch_threshold)
        super().__init__(**kwargs)

    def unlabeled_weights(self, logits: Tensor) -> Tensor:
        """Weight of each unlabeled sample (U,), of the logits (U, K) of its weak view; here 1 or 0."""
        confidence = logits.detach().float().softmax(dim=1).amax(dim=1)
        return (confidence >= self.thresholds(logits)).float()

    def thresholds(self, logits: Tensor) -> float | Tensor:
        """Smallest confidence that counts, one for all samples or one for each, (U,)."""
        return self.hparams.fixmatch_threshold

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the term, named after the method."""
        weak, strong = step.unlabeled_logits[:2]
        loss = pseudo_label_loss(strong, weak, weight=self.unlabeled_weights(weak))
        return super().losses(step) | {self.fixmatch_term: self.hparams.fixmatch_weight * loss}

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds the mean weight of the unlabeled samples, which is the fraction that counts."""
        return super().diagnostics(step) | {"mask_ratio": self.unlabeled_weights(step.unlabeled_logits[0]).mean()}
