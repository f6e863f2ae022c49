"""The adaptor that labels samples without labels, so that a semi-supervised method can learn from them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supercm_lightning.losses import balanced_consistency_loss
from supercm_lightning.self_labeling.cluster_map import ClusterMap
from supercm_lightning.self_labeling.grouping import group_features
from supercm_lightning.self_labeling.initial_clusters import majority_clusters
from supercm_lightning.self_labeling.options import ASDOptions
from supercm_lightning.self_labeling.pseudo_labeled import PseudoLabeledSamples
from supercm_lightning.self_labeling.transitions import ClassTransitionTracker
from supercm_lightning.utils.collectives import mean_over_ranks, world_size
from supercm_lightning.utils.merging import merge_clusters

MERGED = 2000
"""Most samples whose features are clustered for a map by `merge`."""
LABEL_AGREEMENT_RATE = 0.01
"""Weight of the newest step in the running agreement of labels and instance head."""


class SelfLabeler(nn.Module):
    """Chooses n_l samples at a time and gives each a cluster label, from the features of a network that learns.

    `sample` chooses the next set, `observe` follows one training step and renews `targets`, `losses` trains the
    instance head. All state is in buffers. In a distributed run `sample` and `observe` are collective calls; all
    processes hold the same state, and each forwards its shard of the n_l samples.

    Args:
        num_features: Width d of the features.
        num_clusters: Number of clusters k.
        options: The options.
        num_samples: Number of samples to choose from; `reset` changes it.

    Attributes:
        instance_head: Linear classifier of the n_l instance classes.
        samples: The pseudo-labeled samples and their instance labels.
        tracker: Transitions between predicted instance classes.
        clusters: Map from instance classes to clusters.
        label_agreement: Running fraction of the labels in whose cluster the prediction of the instance head falls too.
        initial_clusters: Clustering to start from, (num_samples,) int64, -1 for none, or empty; not in the state dict.

    Source: Duan et al., "An Adaptor for Triggering Semi-Supervised Learning to Out-of-Box Serve Deep Image Clustering",
        IEEE TIP 2025 (arXiv 2509.20976).

    Examples:
        >>> labeler = SelfLabeler(num_features=8, num_clusters=2, options=ASDOptions(sampler="random"), num_samples=50)
        >>> features = torch.randn(50, 8)
        >>> labeler.sample(lambda index: features[index], torch.Generator().manual_seed(0), progress=0.0)
        >>> index, _ = labeler.samples.shard
        >>> labeler.observe(features[index], features, torch.arange(50), step=0, progress=0.0)
        >>> labeler.targets.shape  # 4 samples for each of 2 clusters, in a weak and a strong view
        torch.Size([16])
    """

    initial_clusters: Tensor
    agreement_sums: Tensor

    def __init__(
        self, num_features: int, num_clusters: int, options: ASDOptions | None = None, num_samples: int = 1
    ) -> None:
        super().__init__()
        self.options = options or ASDOptions()
        self.num_clusters = num_clusters
        self.instance_head = nn.Linear(num_features, self.options.num_samples(num_clusters))
        self.register_buffer("agreement_sums", torch.zeros(2))  # weighted sum, and weight: else short runs read low
        self.register_buffer("initial_clusters", torch.empty(0, dtype=torch.int64), persistent=False)
        self.reset(num_samples)

    def reset(self, num_samples: int) -> None:
        """Forgets everything but the instance head, and makes room for a number of samples."""
        n_l, num_features = self.instance_head.weight.shape
        device = self.instance_head.weight.device
        self.samples = PseudoLabeledSamples(num_samples, n_l, num_features).to(device)
        self.tracker = ClassTransitionTracker(num_samples, n_l, window=1).to(device)
        self.clusters = ClusterMap(n_l, self.num_clusters).to(device)
        # No buffer: DDP gives all processes the buffers of the first one, and each process has targets of its own.
        self.agreement_sums.zero_()
        self._targets = torch.full((len(self.samples.shard[0]) * self.num_views,), -1)

    @property
    def num_views(self) -> int:
        """Number of views in which the pseudo-labeled samples are trained on."""
        return 2 if self.options.strong_labels else 1

    @property
    def targets(self) -> Tensor:
        """Cluster labels of this process's shard in each of its views, (B,) int64, -1 where in doubt.

        `observe` renews them in place at every step, so that they are no part of the state dict.
        """
        self._targets = self._targets.to(self.samples.index.device)
        return self._targets

    @property
    def label_agreement(self) -> Tensor:
        """Running fraction of the labels in whose cluster the prediction of the instance head falls too, a scalar."""
        return self.agreement_sums[0] / self.agreement_sums[1].clamp_min(1e-12)

    @property
    def has_clusters(self) -> bool:
        """Whether cluster labels may be in use: there is a map, or a clustering to start from."""
        return self.clusters.is_known or len(self.initial_clusters) > 0

    @property
    def shard_weight(self) -> float:
        """Weight of a mean over this process's shard, with which the mean over processes is the mean over all n_l.

        It is 1 in one process; shards may differ by one sample.
        """
        return len(self.samples.shard[0]) * world_size() / len(self.samples)

    def starts_set(self, step: int) -> bool:
        """Whether a new set of samples is chosen at a step."""
        return step % self.options.hold == 0

    def sample(self, features_of: Callable[[Tensor], Tensor], generator: torch.Generator, progress: float) -> None:
        """Chooses the next set of samples.

        Args:
            features_of: Gives the features (m, d) of samples by position (m,), for prototypes.
            generator: Source of randomness, on the host, the same in all processes.
            progress: Fraction of the training that is done, in [0, 1].
        """
        if self.options.sampler == "random" or progress < self.options.prototype_start:
            self.samples.sample_randomly(generator)
        else:
            pool = self.options.pool * len(self.samples)
            self.samples.sample_prototypes(self.num_clusters, pool, features_of, generator)

    def merges(self, step: int, progress: float) -> bool:
        """Whether a map by `merge` is due at a step."""
        return self.options.map == "merge" and self._is_due(step, progress)

    def merge(self, features_of: Callable[[Tensor], Tensor], generator: torch.Generator) -> None:
        """Maps each instance class to the cluster of most of its samples, see `merge_clusters`; arguments of `sample`.

        Classes without a sample keep their cluster, or get the first one.
        """
        bank = self.tracker.bank
        index = torch.randperm(len(bank), generator=generator)[:MERGED].to(bank.device)
        found = merge_clusters(F.normalize(features_of(index).float(), dim=1).cpu().numpy(), self.num_clusters)
        clusters = torch.from_numpy(found).to(bank.device)
        groups = majority_clusters(bank[index], clusters, len(self.samples), self.num_clusters)
        if bool((groups >= 0).any()):
            old = self.clusters.cluster_of.clamp_min(0)
            self.clusters.follow(torch.where(groups < 0, old, groups), self._initial_names())

    def _is_due(self, step: int, progress: float) -> bool:
        return progress >= self.options.warmup and (step % self.options.map_every == 0 or not self.clusters.is_known)

    @torch.no_grad()
    def observe(self, features: Tensor, unlabeled_features: Tensor, index: Tensor, step: int, progress: float) -> None:
        """Follows one step: aligns a new set, counts transitions, renews the cluster map when due, renews `targets`.

        Args:
            features: Features of the pseudo-labeled samples of this process, weak view, (m, d).
            unlabeled_features: Features of the unlabeled samples of the batch, weak view, (U, d).
            index: Their positions in the unlabeled set, (U,).
            step: Number of the step (batch), from 0.
            progress: Fraction of the training that is done, in [0, 1].
        """
        logits = self.instance_head(features)
        if self.starts_set(step):
            self.samples.align(features, logits, self.options.cost, self.options.solver, self.options.reuse)
        # After the alignment, so that a permutation of the labels is not counted as transitions.
        unlabeled_logits = self.instance_head(unlabeled_features)
        self.tracker.update(index, unlabeled_logits.argmax(dim=1))
        self.clusters.update_frequencies(unlabeled_logits)
        if self.options.map != "merge" and self._is_due(step, progress):
            self.update_map()
        self.targets.copy_(self.label(logits).repeat(self.num_views))
        if self.clusters.is_known:
            agree = self.clusters(logits.argmax(dim=1)) == self.clusters(self.samples.shard[1])
            agree = mean_over_ranks(self.shard_weight * agree.float().mean())
            self.agreement_sums.lerp_(torch.stack([agree, torch.ones_like(agree)]), LABEL_AGREEMENT_RATE)

    def update_map(self) -> None:
        """Groups the instance classes into clusters, by their transitions or their mean features."""
        names = self._initial_names()
        if (by := self.options.map) == "kmedoids" or by == "spectral":
            self.clusters.update_map(self.tracker.matrix, by, names)
            return
        counts = torch.bincount(self.tracker.bank + 1, minlength=len(self.samples) + 1)[1:]  # without the unvisited
        groups = group_features(self.samples.mean_features, counts, self.num_clusters)
        if len(groups):
            self.clusters.follow(groups, names)

    def _initial_names(self) -> Tensor | None:
        """Cluster of each instance class in the clustering to start from, if there is one."""
        if not len(self.initial_clusters):
            return None
        return majority_clusters(self.tracker.bank, self.initial_clusters, len(self.samples), self.num_clusters)

    def label(self, logits: Tensor) -> Tensor:
        """Cluster labels (m,) int64 of this process's pseudo-labeled samples, -1 where in doubt.

        Args:
            logits: Their instance logits, weak view, (m, n_l).
        """
        index, labels = self.samples.shard
        if len(self.initial_clusters) and not self.clusters.is_known:
            return self.initial_clusters[index]
        cluster = self.clusters(labels)
        if self.options.agreement:
            cluster = torch.where(self.clusters(logits.argmax(dim=1)) == cluster, cluster, -1)
        return cluster

    def losses(self, features: Tensor, num_views: int) -> dict[str, Tensor]:
        """Weighted losses of the instance head: `instance`, and `instance_consistency` unless its weight is 0.

        Args:
            features: Features of the pseudo-labeled samples of this process in their views, then those of the
                unlabeled samples in theirs, weak and strong first, (B + V · U, d).
            num_views: Number V of unlabeled views, >= 2.
        """
        count, labels = len(self._targets), self.samples.shard[1]
        logits = self.instance_head(features)
        weak, strong = logits[count:].chunk(num_views)[:2]
        instance = F.cross_entropy(logits[:count], labels.repeat(self.num_views))
        terms = {"instance": self.shard_weight * instance}
        if self.options.consistency:
            consistency = balanced_consistency_loss(strong, weak, self.clusters.frequencies)
            terms["instance_consistency"] = self.options.consistency * consistency
        return terms

    def diagnostics(self) -> dict[str, Tensor]:
        """Scalars in [0, 1] that tell without labels whether the labels are stable."""
        return {
            "relabel_agreement": self.samples.agreement.clone(),
            "map_change": self.clusters.change.clone(),
            "labels_used": self.tracker.classes_used,
        }
