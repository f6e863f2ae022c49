"""VAT: predictions withstand the worst small perturbation of the input."""

from functools import partial
from typing import Any

from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.losses import entropy, virtual_adversarial_loss
from supercm_lightning.methods.base import Method
from supercm_lightning.utils.options import check_positive, check_range


class VAT(Method):
    """Cross-entropy plus the divergence of the prediction under the perturbation that changes it most.

    Miyato et al., "Virtual Adversarial Training: A Regularization Method for Supervised and Semi-Supervised Learning",
    TPAMI 2019. The perturbation is added to the same view that was forwarded. The weight ramps up over the fraction
    `ramp_up` of the training.

    Args:
        vat_weight: Weight of the term, >= 0.
        vat_eps: L2 norm of the perturbation, > 0, in units of the normalized input: 6 for whitened
            CIFAR-10, 2 for MNIST, 1 for SVHN.
        vat_xi: Step of the power iteration, > 0, large enough to survive the rounding of float32.
        vat_iterations: Number of power iterations, >= 1, each one more forward and backward.
        vat_entropy_weight: Weight of the entropy of the predictions (VAT + EntMin), >= 0; it ramps up as well.
        **kwargs: Options of the next method in a combination, and of `Method`.

    Raises:
        SuperCMError: If an option is outside its range.

    Examples:
        >>> VAT(num_classes=3, input_shape=(1, 8, 8), vat_eps=2.0).hparams.vat_eps
        2.0
    """

    terms: tuple[str, ...] = ("vat", "entropy")

    def __init__(
        self,
        vat_weight: float = 0.3,
        vat_eps: float = 6.0,
        vat_xi: float = 1e-2,
        vat_iterations: int = 1,
        vat_entropy_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_range(0, vat_weight=vat_weight, vat_entropy_weight=vat_entropy_weight)
        check_positive(vat_eps=vat_eps, vat_xi=vat_xi, vat_iterations=vat_iterations)
        super().__init__(**kwargs)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the terms `vat` and, with a weight, `entropy`."""
        options, logits = self.hparams, step.unlabeled_logits[0]
        model = partial(self.forward_matched, step)
        lds = virtual_adversarial_loss(
            model, step.views[0], logits, options.vat_eps, options.vat_xi, options.vat_iterations
        )
        terms = {"vat": self.ramp() * options.vat_weight * lds}
        if options.vat_entropy_weight:
            terms["entropy"] = self.ramp() * options.vat_entropy_weight * entropy(logits)
        return super().losses(step) | terms
