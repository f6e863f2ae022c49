"""FreeMatch: FixMatch whose thresholds come from the network's own confidence."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.losses import fairness_loss
from supercm_lightning.methods.fixmatch import FixMatch
from supercm_lightning.utils.collectives import all_gather_samples, all_gather_samples_with_grad, mean_over_ranks
from supercm_lightning.utils.options import SuperCMError, check_decay, check_range


class FreeMatch(FixMatch):
    """FixMatch with self-adaptive thresholds τ · p̃_c / max p̃ and a fairness term.

    Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023. τ and p̃ are running
    means of the confidence and of the class probabilities of the weak view, updated with the batch before it is masked.

    Args:
        freematch_decay: Decay of the running means, in [0, 1).
        freematch_fairness_weight: Weight of the fairness term, >= 0. The term is negative by construction.
        freematch_clip: Lowest and highest threshold of a class, in [0, 1]; None: no limits. (0.9, 0.95) on SVHN, whose
            classes are of unequal size and whose thresholds would fall too low.
        **kwargs: Options of `FixMatch`, whose threshold is not used, and of `Method`.

    Attributes:
        confidence: τ, running mean of the largest class probability, a scalar; starts at 1 / K.
        mean_probability: p̃, running mean of the class probabilities, (K,).
        label_share: h̃, running frequency of the predicted labels, (K,).

    Raises:
        SuperCMError: If the decay or the limits are outside their range.

    Examples:
        >>> FreeMatch(num_classes=4, input_shape=(1, 8, 8)).confidence
        tensor(0.2500)
    """

    terms: tuple[str, ...] = ("freematch", "fairness")
    fixmatch_term = "freematch"
    confidence: Tensor
    mean_probability: Tensor
    label_share: Tensor

    def __init__(
        self,
        freematch_decay: float = 0.999,
        freematch_fairness_weight: float = 0.01,
        freematch_clip: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        check_decay(freematch_decay=freematch_decay)
        check_range(0, freematch_fairness_weight=freematch_fairness_weight)
        if freematch_clip is not None and not 0 <= freematch_clip[0] <= freematch_clip[1] <= 1:
            raise SuperCMError(
                f"freematch_clip={freematch_clip}: give the lowest and the highest threshold, in [0, 1], or null."
            )
        super().__init__(**kwargs)
        uniform = torch.full((self.num_classes,), 1 / self.num_classes)
        self.register_buffer("confidence", torch.tensor(1 / self.num_classes))
        self.register_buffer("mean_probability", uniform)
        self.register_buffer("label_share", uniform.clone())

    def observe(self, step: Step) -> None:
        """Updates the running means."""
        super().observe(step)
        p = step.unlabeled_logits[0].float().softmax(dim=1)
        confidence, label = p.max(dim=1)
        frequency = F.one_hot(label, self.num_classes).float().mean(dim=0)
        running = (self.confidence, self.mean_probability, self.label_share)
        batch = mean_over_ranks(torch.cat([confidence.mean()[None], p.mean(dim=0), frequency]))
        for mean, value in zip(running, batch.split([mean.numel() for mean in running]), strict=True):
            mean.lerp_(value.view_as(mean).to(mean.dtype), 1 - self.hparams.freematch_decay)

    def thresholds(self, logits: Tensor) -> Tensor:
        """τ · p̃ / max p̃ of each sample's predicted class, within the limits, (U,)."""
        per_class = self.confidence * self.mean_probability / self.mean_probability.max()
        if self.hparams.freematch_clip is not None:
            per_class = per_class.clamp(*self.hparams.freematch_clip)
        return per_class[logits.argmax(dim=1)]

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the term and `fairness`, whose histograms are those of the whole batch, of all processes together."""
        weak, strong = step.unlabeled_logits[:2]
        strong, mask = all_gather_samples_with_grad(strong), all_gather_samples(self.unlabeled_weights(weak)) > 0
        fairness = fairness_loss(strong, mask, self.mean_probability, self.label_share)
        return super().losses(step) | {"fairness": self.hparams.freematch_fairness_weight * fairness}

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds the global threshold."""
        return super().diagnostics(step) | {"threshold": self.confidence.clone()}
