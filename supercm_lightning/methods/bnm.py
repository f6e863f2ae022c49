"""BNM: predictions on the target that are certain and of many classes."""

from typing import Any

from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.losses import batch_nuclear_norm, fast_batch_nuclear_norm
from supercm_lightning.methods.base import Method
from supercm_lightning.utils.collectives import all_gather_samples_with_grad
from supercm_lightning.utils.options import check_range


class BNM(Method):
    """Cross-entropy on the source minus the nuclear norm of the target predictions.

    Cui et al., "Towards Discriminability and Diversity: Batch Nuclear-norm Maximization under Label Insufficient
    Situations", CVPR 2020. The norm is that of the whole batch, of all processes together. The term is negative.

    Args:
        bnm_weight: Weight of the term, >= 0.
        bnm_fast: Approximate the norm by column norms instead of a singular value decomposition.
        **kwargs: Options of the next method in a combination, and of `Method`.

    Raises:
        SuperCMError: If the weight is negative.

    Examples:
        >>> BNM(num_classes=3, input_shape=(8,), backbone="mlp", bnm_fast=True).hparams.bnm_fast
        True
    """

    terms: tuple[str, ...] = ("bnm",)

    def __init__(self, bnm_weight: float = 1.0, bnm_fast: bool = False, **kwargs: Any) -> None:
        check_range(0, bnm_weight=bnm_weight)
        super().__init__(**kwargs)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the term `bnm`."""
        logits = all_gather_samples_with_grad(step.unlabeled_logits[0])
        loss = fast_batch_nuclear_norm(logits) if self.hparams.bnm_fast else batch_nuclear_norm(logits)
        return super().losses(step) | {"bnm": self.hparams.bnm_weight * loss}
