"""Accuracy of clusters under the best one-to-one assignment to classes."""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.clustering import AdjustedRandScore, NormalizedMutualInfoScore

from supercm_lightning.utils.options import check_range


class ClusteringAccuracy(Metric):
    """Accuracy under the best one-to-one assignment of clusters to classes.

    The assignment is that of the Hungarian method on the confusion matrix, which is the only state. With more clusters
    than classes, samples of clusters without a class count as wrong; with fewer, samples of the remaining classes.
    Empty clusters are allowed. Unlike `torchmetrics.clustering.ClusterAccuracy` it allows unequal numbers of clusters
    and classes, and needs scipy only.

    Args:
        num_clusters: Number of clusters.
        num_classes: Number of classes; None: the number of clusters.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Attributes:
        confusion: Number of samples of cluster i and class j, (num_clusters, num_classes) int64.

    Raises:
        SuperCMError: If a number is not positive.

    Examples:
        >>> accuracy = ClusteringAccuracy(num_clusters=2)
        >>> accuracy(torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 1, 0]))
        tensor(0.7500)
        >>> accuracy.mapping
        tensor([1, 0])
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, num_clusters: int, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range(1, num_clusters=num_clusters, num_classes=num_classes)
        shape = (num_clusters, num_classes or num_clusters)
        self.add_state("confusion", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds samples.

        Args:
            preds: Clusters, (n,) integer in [0, num_clusters), or scores of the clusters, (n, num_clusters).
            target: Classes, (n,) integer in [0, num_classes); samples with a negative class are left out.
        """
        clusters = preds.argmax(dim=1) if preds.ndim == 2 else preds
        num_clusters, num_classes = self.confusion.shape
        # Samples without a class are counted in a column of their own, which is dropped: nothing waits for the device.
        column = torch.where(target >= 0, target, num_classes)
        cells = torch.bincount(clusters * (num_classes + 1) + column, minlength=num_clusters * (num_classes + 1))
        self.confusion += cells.view(num_clusters, num_classes + 1)[:, :-1]

    def compute(self) -> Tensor:
        """Accuracy in [0, 1], a scalar; NaN without samples."""
        cluster, name = self._assignment()
        return self.confusion[cluster, name].sum() / self.confusion.sum()

    @property
    def mapping(self) -> Tensor:
        """Class of each cluster, (num_clusters,) int64, -1 for clusters without one."""
        names = self.confusion.new_full((len(self.confusion),), -1)
        cluster, name = self._assignment()
        names[cluster] = name
        return names

    def _assignment(self) -> tuple[Tensor, Tensor]:
        pairs = linear_sum_assignment(self.confusion.cpu().numpy(), maximize=True)
        cluster, name = (torch.from_numpy(numbers).to(self.confusion.device) for numbers in pairs)
        return cluster, name


def clustering_scores(num_clusters: int) -> dict[str, Metric]:
    """The metrics of a clustering by name: `acc`, `nmi` (arithmetic mean of the entropies) and `ari`.

    Args:
        num_clusters: Number of clusters, and of classes.

    Examples:
        >>> clusters, classes = torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 1, 1])
        >>> {name: float(score(clusters, classes)) for name, score in clustering_scores(2).items()}
        {'acc': 1.0, 'nmi': 1.0, 'ari': 1.0}
    """
    return {
        "acc": ClusteringAccuracy(num_clusters),
        "nmi": NormalizedMutualInfoScore("arithmetic"),
        "ari": AdjustedRandScore(),
    }
