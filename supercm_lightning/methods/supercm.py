"""SuperCM: a clustering module whose encoder is the classifier and whose centroids follow the labelled features."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from torch import Tensor

from supercm_lightning.callbacks.training.centroid_update import CentroidUpdate
from supercm_lightning.contracts import Step
from supercm_lightning.losses import clustering_loss, clustering_loss_terms
from supercm_lightning.methods.base import Method
from supercm_lightning.nn import ClusteringHead
from supercm_lightning.nn.clustering_head import class_totals
from supercm_lightning.utils.options import SuperCMError


class SuperCM(Method):
    """Cross-entropy plus `beta` times the soft k-means distortion to the class means of the labelled features.

    Singh et al., "SuperCM: Revisiting Clustering for Semi-Supervised Learning", ICASSP 2025 (arXiv 2506.23824).
    The loss is `clustering_loss` over labelled and unlabelled rows; its centroids are a buffer of `ClusteringHead` that
    a `CentroidUpdate` callback moves (one with its defaults is added when the trainer has none).

    Args:
        beta: Weight of the clustering loss, >= 0. The published weight for WRN-28-2 (CIFAR-10, MNIST, SVHN) is 0.372 in
            this convention; with a small net on digits 0.372, 1 and 5 are not told apart.
        temperature: Softmax temperature of the assignments, > 0.
        pseudo_centroids: Confidence from which unlabelled rows join the centroid update under their predicted class, in
            [0, 1]; None: labelled rows alone. The published code uses 0.95.
        counter: What a centroid's cumulative mean divides by: `per_class`, the updates of that class, or `global`, all
            steps (the published rule).
        **kwargs: Options of the next method in a combination, and of `Method`.

    Raises:
        ValueError: If `beta` is negative, `temperature` is not positive or `pseudo_centroids` is no confidence.
    """

    head: ClusteringHead

    def __init__(
        self,
        beta: float = 1.0,
        temperature: float = 1.0,
        pseudo_centroids: float | None = None,
        counter: Literal["per_class", "global"] = "per_class",
        **kwargs: Any,
    ) -> None:
        if beta < 0:
            raise SuperCMError(f"beta={beta}: the weight of the clustering loss must not be negative.")
        if pseudo_centroids is not None and not 0 <= pseudo_centroids <= 1:
            raise SuperCMError(f"pseudo_centroids={pseudo_centroids}: give a confidence between 0 and 1, or null.")
        self._head_options = {"temperature": temperature, "counter": counter}
        super().__init__(**kwargs)
        self.beta = beta
        self.pseudo_centroids = pseudo_centroids

    def build_head(self, in_features: int) -> ClusteringHead:
        """A linear classifier that also owns the centroids."""
        return ClusteringHead(in_features, self.num_classes, **self._head_options)  # type: ignore[arg-type]

    def centroid_samples(self, step: Step) -> tuple[Tensor, Tensor]:
        """Features (n, d) and labels (n,) that the centroids follow; rows with label -1 are ignored."""
        if self.pseudo_centroids is None:
            return step.labeled_features.detach(), step.y
        confidence, label = step.assignments.detach()[len(step.y) :].max(dim=1)
        pseudo = torch.where(confidence >= self.pseudo_centroids, label, -1)
        return step.features.detach(), torch.cat([step.y, pseudo])

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the clustering term `cm`."""
        cm = clustering_loss(step.features, step.assignments, self.head.centroids)
        return super().losses(step) | {"cm": self.beta * cm}

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds the parts of the clustering loss (unweighted) and the scale of centroids against features."""
        terms = clustering_loss_terms(step.features, step.assignments, self.head.centroids)
        parts = {f"cm_{name}": terms[name] for name in ("reconstruction", "sparsity", "merging")}
        norm = torch.linalg.vector_norm
        ratio = norm(self.head.centroids, dim=1).mean() / norm(step.features.float(), dim=1).mean()
        return super().diagnostics(step) | parts | {"centroid_norm_ratio": ratio}

    def weight_statistics(self) -> tuple[str, ...]:
        """The centroids belong to the weights: they are class means of the features."""
        return (*super().weight_statistics(), "head.centroids")

    @torch.no_grad()
    def estimate_statistics(self, batches: Any) -> None:
        """Sets the centroids to the class means of the labeled features, over all ranks, in evaluation mode.

        A class without labeled samples keeps its centroid.
        """
        super().estimate_statistics(batches)
        centroids = self.head.centroids
        totals = centroids.new_zeros(len(centroids), centroids.shape[1] + 1, dtype=torch.float32)
        for batch in batches:
            x, y = self.labeled_samples(batch)
            features = self.features(x)
            with torch.autocast(features.device.type, enabled=False):
                totals += class_totals(features, y, len(centroids))
        totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        sums, counts = totals[:, :-1], totals[:, -1:]
        centroids.copy_(torch.where(counts > 0, sums / counts.clamp_min(1), centroids))

    def configure_callbacks(self) -> list[Callback]:
        """Adds `CentroidUpdate` unless the trainer has one."""
        given = any(isinstance(callback, CentroidUpdate) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [*super().configure_callbacks(), *([] if given else [CentroidUpdate()])]  # type: ignore[misc]
