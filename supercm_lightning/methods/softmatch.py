"""SoftMatch: every unlabeled sample counts, by a Gaussian of its confidence."""

from typing import Any

import torch
from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.methods.fixmatch import FixMatch
from supercm_lightning.utils.collectives import all_gather_samples, mean_over_ranks
from supercm_lightning.utils.options import check_decay, check_positive


class SoftMatch(FixMatch):
    """FixMatch with the weight exp(−min(c − μ, 0)² · n_σ² / (2 σ²)) of a confidence c in place of a threshold.

    Chen et al., "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning", ICLR 2023. μ and σ²
    are running means of mean and variance of the confidence, updated with the batch before it is weighted. Uniform
    alignment weights by p · (1/K) / p̃, renormalized, with p̃ the running mean of the probabilities; labels and the
    statistics μ, σ² are those of p itself, as in the paper.

    Args:
        softmatch_decay: Decay of the running means, in [0, 1).
        softmatch_n_sigma: Width n_σ of the Gaussian, > 0: the weight falls as fast as if σ were σ / n_σ.
        softmatch_uniform_alignment: Align the probabilities before weighting.
        **kwargs: Options of `FixMatch`, whose threshold is not used, and of `Method`.

    Attributes:
        confidence_mean: μ, a scalar; starts at 1 / K.
        confidence_var: σ², a scalar; starts at 1.
        mean_probability: p̃, (K,); starts uniform.

    Raises:
        SuperCMError: If an option is outside its range.

    Examples:
        >>> model = SoftMatch(num_classes=2, input_shape=(1, 8, 8))
        >>> model.unlabeled_weights(torch.tensor([[9.0, 0.0], [0.0, 0.0]])).tolist()
        [1.0, 1.0]
    """

    terms: tuple[str, ...] = ("softmatch",)
    fixmatch_term = "softmatch"
    confidence_mean: Tensor
    confidence_var: Tensor
    mean_probability: Tensor

    def __init__(
        self,
        softmatch_decay: float = 0.999,
        softmatch_n_sigma: float = 2.0,
        softmatch_uniform_alignment: bool = True,
        **kwargs: Any,
    ) -> None:
        check_decay(softmatch_decay=softmatch_decay)
        check_positive(softmatch_n_sigma=softmatch_n_sigma)
        super().__init__(**kwargs)
        self.register_buffer("confidence_mean", torch.tensor(1 / self.num_classes))
        self.register_buffer("confidence_var", torch.tensor(1.0))
        self.register_buffer("mean_probability", torch.full((self.num_classes,), 1 / self.num_classes))

    def observe(self, step: Step) -> None:
        """Updates the running means with the batch of all processes."""
        super().observe(step)
        p = step.unlabeled_logits[0].float().softmax(dim=1)
        confidence = all_gather_samples(p.amax(dim=1))
        for running, value in (
            (self.confidence_mean, confidence.mean()),
            (self.confidence_var, confidence.var(correction=min(1, len(confidence) - 1))),
            (self.mean_probability, mean_over_ranks(p.mean(dim=0))),
        ):
            running.lerp_(value, 1 - self.hparams.softmatch_decay)

    def unlabeled_weights(self, logits: Tensor) -> Tensor:
        """Truncated Gaussian of the confidence, (U,), in (0, 1]."""
        p = logits.detach().float().softmax(dim=1)
        if self.hparams.softmatch_uniform_alignment:
            p = p / self.mean_probability
            p = p / p.sum(dim=1, keepdim=True)
        below = (p.amax(dim=1) - self.confidence_mean).clamp_max(0)
        return (-(below**2) * self.hparams.softmatch_n_sigma**2 / (2 * self.confidence_var)).exp()

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds μ as the threshold from which a sample counts fully."""
        return super().diagnostics(step) | {"threshold": self.confidence_mean.clone()}
