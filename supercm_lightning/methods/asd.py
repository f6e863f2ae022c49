"""ASD: labels made without labels, so that a semi-supervised method can cluster."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from supercm_lightning.contracts import Batch, Step, Terms
from supercm_lightning.methods.self_labeled import SelfLabeled
from supercm_lightning.nn import evaluating
from supercm_lightning.utils.collectives import mean_over_ranks
from supercm_lightning.utils.random import generator, run_seed
from supercm_lightning.utils.trainer import datamodule_of


class ASD(SelfLabeled):
    """Makes the labeled samples of every step itself; the method that it is combined with learns from them.

    Duan et al., "An Adaptor for Triggering Semi-Supervised Learning to Out-of-Box Serve Deep Image Clustering", IEEE
    TIP 2025 (arXiv 2509.20976). Beside the cluster head, a second head distinguishes n_l instance classes:

    1. Sample: n_l samples are chosen, without repetition until all were chosen.
    2. Align: each gets an instance label of its own, by optimal transport to what the labels meant before; the
       instance head learns them.
    3. Track: changes of the instance head's prediction between two visits to the same unlabeled sample are counted.
    4. Map: classes that are often confused are one cluster; k-medoids on the counts maps n_l classes to k clusters.
    5. Learn: the mapped labels are the labels y of the step, -1 where they are in doubt.

    Put it before the method in the bases: `class Mine(ASD, FreeMatch)`. No label of the data is read. Where the
    defaults depart from the paper, `docs/methods/asd.md` has the measurements.

    Args:
        **kwargs: Options `asd_*` of `SelfLabeled`, of the method that it is combined with, and of `Method`.

    Examples:
        >>> from supercm_lightning import FreeMatch
        >>> class Mine(ASD, FreeMatch):
        ...     pass
        >>> Mine(num_classes=3, input_shape=(1, 8, 8)).needs_labeled
        False
    """

    views = ("weak", "strong")
    terms: tuple[str, ...] = ("instance", "instance_consistency")

    @property
    def _step_number(self) -> int:
        return self.trainer.fit_loop.total_batch_idx

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Step 1: chooses the next set of samples, every `asd_hold` steps."""
        super().on_train_batch_start(batch, batch_idx)
        if self.labeler.starts_set(self._step_number):
            stream = generator(run_seed(self.trainer), "pseudo-labelled rows", self._step_number)
            self.labeler.sample(self._averaged_features, stream, self.progress)
        if self.labeler.merges(self._step_number, self.progress):
            stream = generator(run_seed(self.trainer), "merged samples", self._step_number)
            self.labeler.merge(self._averaged_features, stream)

    @torch.no_grad()
    def _averaged_features(self, index: Tensor) -> Tensor:
        """Features (n, d) of unlabeled samples without augmentation."""
        with evaluating(self.average):
            return self.of_samples("unlabeled", index, self.average)

    def labeled_samples(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The chosen samples in their views; y is the tensor that `observe` fills once there are features."""
        index, labels = self.labeler.samples.shard
        views = self.views[: self.labeler.num_views]
        x = torch.cat(datamodule_of(self.trainer).views_of("unlabeled", index, views, "pseudo-labelled"))
        return x, self.labeler.targets if self.training else self.labeler.clusters(labels).repeat(len(views))

    def observe(self, step: Step) -> None:
        """Steps 2 to 4, and the labels of step 5; then the other method's state, once there are clusters."""
        assert step.index is not None
        features = step.labeled_features[: len(self.labeler.samples.shard[0])]
        self.labeler.observe(features, step.unlabeled_features[0], step.index, self._step_number, self.progress)
        if self.labeler.has_clusters:
            super().observe(step)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Step 5: the instance head's terms, and those of the other method once there are clusters."""
        terms = super().losses(step) if self.labeler.has_clusters else Terms(ce=self.supervised_loss(step))
        return terms | self.labeler.losses(step.all_features, len(step.views))

    def supervised_loss(self, step: Step) -> Tensor:
        """Cross-entropy, mean over the chosen samples of all processes, of which those in doubt count zero."""
        return self.labeler.shard_weight * super().supervised_loss(step)

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds what tells, without labels, whether the labeling works."""
        clusters = step.labeled_logits[: len(self.labeler.samples.shard[0])].argmax(dim=1)
        frequency = mean_over_ranks(F.one_hot(clusters, self.num_classes).float().mean(dim=0))
        agreement = mean_over_ranks((step.y >= 0).float().mean())
        found = {"agreement_ratio": agreement, "coverage": (frequency > 0).float().mean()}
        return super().diagnostics(step) | self.labeler.diagnostics() | found
