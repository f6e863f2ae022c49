"""SuperCM: a clustering module whose encoder is the classifier and whose centroids follow the labeled features."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from supercm_lightning.contracts import Batch, Step
from supercm_lightning.losses import clustering_loss, clustering_loss_terms
from supercm_lightning.methods.base import Method
from supercm_lightning.nn import ClusteringHead, class_totals, initialize_head
from supercm_lightning.utils.collectives import sum_over_ranks
from supercm_lightning.utils.options import check_range


class SuperCM(Method):
    """Cross-entropy plus `beta` times the soft k-means distortion to the class means of the labeled features.

    Singh et al., "SuperCM: Revisiting Clustering for Semi-Supervised Learning", ICASSP 2025 (arXiv 2506.23824).
    The loss is `clustering_loss` over labeled and unlabeled samples; its centroids are a buffer of `ClusteringHead`
    that follows the labeled features of every step. The callback `CentroidUpdate` chooses other features.

    Args:
        beta: Weight of the clustering loss, >= 0. The published weight for WRN-28-2 (CIFAR-10, MNIST, SVHN) is 0.372 in
            this convention; with a small net on digits 0.372, 1 and 5 end alike.
        temperature: Softmax temperature of the assignments, > 0.
        pseudo_centroids: Confidence from which unlabeled samples join the centroid update under their predicted class,
            in [0, 1]; None: labeled samples alone. The published code uses 0.95.
        counter: What a centroid's cumulative mean divides by: `per_class`, the updates of that class, or `global`, all
            steps (the published rule).
        **kwargs: Options of the next method in a combination, and of `Method`.

    Attributes:
        follows_step: Whether `observe` moves the centroids; `CentroidUpdate` sets it to false and moves them itself.

    Raises:
        SuperCMError: If an option is outside its range.

    Examples:
        >>> model = SuperCM(num_classes=3, input_shape=(1, 8, 8), beta=0.5)
        >>> model.head.centroids.shape == (3, model.num_features)
        True
    """

    terms: tuple[str, ...] = ("cm",)
    head: ClusteringHead
    follows_step = True

    def __init__(
        self,
        beta: float = 1.0,
        temperature: float = 1.0,
        pseudo_centroids: float | None = None,
        counter: Literal["per_class", "global"] = "per_class",
        **kwargs: Any,
    ) -> None:
        check_range(0, beta=beta)
        check_range(0, 1, pseudo_centroids=pseudo_centroids)
        super().__init__(**kwargs)

    def build_head(self, in_features: int) -> ClusteringHead:
        """A linear classifier that also owns the centroids."""
        head = ClusteringHead(in_features, self.num_classes, self.hparams.temperature, self.hparams.counter)
        return initialize_head(head, self.hparams.head_init)

    @property
    def temperature(self) -> float:
        """Softmax temperature of the assignments."""
        return self.head.temperature

    def observe(self, step: Step) -> None:
        """Moves the centroids to the features of the step."""
        super().observe(step)
        if self.follows_step:
            self.head.update(*self.centroid_samples(step))

    def centroid_samples(self, step: Step) -> tuple[Tensor, Tensor]:
        """Features (n, d) and labels (n,) that the centroids follow; samples with label -1 are ignored."""
        if self.hparams.pseudo_centroids is None:
            return step.labeled_features.detach(), step.y
        confidence, label = step.assignments.detach()[len(step.y) :].max(dim=1)
        pseudo = torch.where(confidence >= self.hparams.pseudo_centroids, label, -1)
        return step.features.detach(), torch.cat([step.y, pseudo])

    def seen_centroids(self) -> Tensor:
        """Centroids (K, d) in float32; NaN for classes without an update."""
        return torch.where((self.head.updates > 0)[:, None], self.head.centroids.float(), torch.nan)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the clustering term `cm`."""
        cm = clustering_loss(step.features, step.assignments, self.head.centroids)
        return super().losses(step) | {"cm": self.hparams.beta * cm}

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds the parts of the clustering loss (unweighted) and the scale of centroids against features."""
        terms = clustering_loss_terms(step.features, step.assignments, self.head.centroids)
        parts = {f"cm_{name}": terms[name] for name in ("reconstruction", "sparsity", "merging")}
        norm = torch.linalg.vector_norm
        ratio = norm(self.head.centroids, dim=1).mean() / norm(step.features.float(), dim=1).mean()
        return super().diagnostics(step) | parts | {"centroid_norm_ratio": ratio}

    def weight_statistics(self) -> tuple[str, ...]:
        """The centroids belong to the weights."""
        return (*super().weight_statistics(), "head.centroids")

    def estimate_statistics(self, batches: Iterable[Batch]) -> None:
        """Sets the centroids to the class means of the labeled features; a class without samples keeps its own."""
        super().estimate_statistics(batches)
        centroids = self.head.centroids
        totals = torch.zeros(len(centroids), centroids.shape[1] + 1, device=centroids.device)
        for batch in batches:
            x, y = self.labeled_samples(batch)
            with self.trainer.precision_plugin.forward_context():
                features = self.features(x)
            totals += class_totals(features, y, len(centroids))
        totals = sum_over_ranks(totals)
        sums, counts = totals[:, :-1], totals[:, -1:]
        centroids.copy_(torch.where(counts > 0, sums / counts.clamp_min(1), centroids))
