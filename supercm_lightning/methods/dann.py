"""DANN: adversarially learned domain-invariant features."""

import math
from typing import Any

import torch
from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.losses import domain_adversarial_loss
from supercm_lightning.methods.base import Method
from supercm_lightning.nn import DomainDiscriminator, frozen_batch_norm_stats, reverse_gradient
from supercm_lightning.utils.options import check_positive, check_range


class DANN(Method):
    """Cross-entropy on the source plus a domain discriminator whose gradient reaches the features reversed.

    Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016. Source samples are the labeled, target
    samples the unlabeled ones. The reversed gradient is scaled by λ = 2 / (1 + exp(−10 p)) − 1, p the progress of the
    training; the discriminator itself learns at full strength from the start.

    Args:
        dann_weight: Weight of the domain loss, >= 0, for discriminator and features alike.
        dann_hidden_features: Width of the discriminator's two hidden layers.
        **kwargs: Options of the next method in a combination, and of `Method`.

    Raises:
        SuperCMError: If an option is outside its range.

    Examples:
        >>> model = DANN(num_classes=3, input_shape=(8,), backbone="mlp", bottleneck=16)
        >>> model.discriminator(torch.rand(4, 16)).shape
        torch.Size([4, 1])
    """

    terms: tuple[str, ...] = ("dann",)
    dann_term = "dann"

    def __init__(self, dann_weight: float = 1.0, dann_hidden_features: int = 1024, **kwargs: Any) -> None:
        check_range(0, dann_weight=dann_weight)
        check_positive(dann_hidden_features=dann_hidden_features)
        super().__init__(**kwargs)
        self.discriminator = DomainDiscriminator(self.discriminator_width(), dann_hidden_features)

    def discriminator_width(self) -> int:
        """Width of the discriminator's input; called once by the constructor."""
        return self.num_features

    def discriminator_inputs(self, features: Tensor, logits: Tensor) -> Tensor:
        """Input of the discriminator, (n, width), from features (n, d) and class logits (n, K)."""
        return features

    def domain_weights(self, logits: Tensor) -> Tensor | None:
        """Weight of each sample (n,) within its domain, from class logits (n, K); None: equal weights."""
        return None

    @property
    def adaptation_factor(self) -> float:
        """λ, the factor of the reversed gradient, from 0 at the first step to almost 1 at the last."""
        return 2 / (1 + math.exp(-10 * self.progress)) - 1

    def domain_logits(self, step: Step) -> tuple[Tensor, Tensor]:
        """The discriminator's logits of the source samples (B, 1) and of the target samples (U, 1)."""
        inputs = self.discriminator_inputs(step.features, step.logits)
        logits = self.discriminator(reverse_gradient(inputs, self.adaptation_factor))
        return logits[: len(step.y)], logits[len(step.y) :]

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the domain loss, named after the method."""
        source, target = self.domain_logits(step)
        weights = [self.domain_weights(logits) for logits in (step.labeled_logits, step.unlabeled_logits[0])]
        loss = domain_adversarial_loss(source, target, *weights)
        return super().losses(step) | {self.dann_term: self.hparams.dann_weight * loss}

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds λ and the discriminator's accuracy, mean over the domains: 0.5 where it cannot tell them apart."""
        with frozen_batch_norm_stats(self.discriminator):
            source, target = self.domain_logits(step)
        accuracy = ((source > 0).float().mean() + (target <= 0).float().mean()) / 2
        factor = torch.tensor(self.adaptation_factor)
        return super().diagnostics(step) | {"lambda": factor, "domain_acc": accuracy}
