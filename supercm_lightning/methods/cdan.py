"""CDAN: DANN whose discriminator sees features together with class predictions."""

from typing import Any

from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.losses import certainty_weight
from supercm_lightning.methods.dann import DANN
from supercm_lightning.nn import MultilinearMap
from supercm_lightning.utils.collectives import all_gather_samples, all_gather_samples_with_grad
from supercm_lightning.utils.options import check_positive


class CDAN(DANN):
    """DANN on the product of features and class probabilities, so that the domains are aligned class by class.

    Long et al., "Conditional Adversarial Domain Adaptation", NeurIPS 2018. No gradient reaches the probabilities.

    Args:
        cdan_entropy: Weight each sample by 1 + exp(−entropy) of its prediction, relative to its domain in the whole
            batch, of all processes together (CDAN+E).
        cdan_random_features: Width of a random sketch of the product, for many classes or wide features (the paper:
            1024); None: the product itself, d · K wide.
        **kwargs: Options of `DANN`: `dann_weight` and `dann_hidden_features`; and of `Method`.

    Raises:
        SuperCMError: If the width is not positive.

    Examples:
        >>> model = CDAN(num_classes=3, input_shape=(8,), backbone="mlp", bottleneck=16)
        >>> model.discriminator_width()
        48
    """

    terms: tuple[str, ...] = ("cdan",)
    dann_term = "cdan"

    def __init__(self, cdan_entropy: bool = False, cdan_random_features: int | None = None, **kwargs: Any) -> None:
        check_positive(cdan_random_features=cdan_random_features)
        super().__init__(**kwargs)

    def discriminator_width(self) -> int:
        """Width of the product or of its sketch."""
        options = self.hparams
        self.multilinear_map = MultilinearMap(self.num_features, self.num_classes, options.cdan_random_features)
        return self.multilinear_map.out_features

    def discriminator_inputs(self, features: Tensor, logits: Tensor) -> Tensor:
        """The product of features and class probabilities."""
        return self.multilinear_map(features, logits.detach().float().softmax(dim=1).to(features.dtype))

    def domain_logits(self, step: Step) -> tuple[Tensor, Tensor]:
        """With weights, the logits of all processes' samples, because the weights count relative to each other."""
        source, target = super().domain_logits(step)
        if not self.hparams.cdan_entropy:
            return source, target
        return all_gather_samples_with_grad(source), all_gather_samples_with_grad(target)

    def domain_weights(self, logits: Tensor) -> Tensor | None:
        """With `cdan_entropy`, larger weights for certain samples, of all processes."""
        return all_gather_samples(certainty_weight(logits)) if self.hparams.cdan_entropy else None
