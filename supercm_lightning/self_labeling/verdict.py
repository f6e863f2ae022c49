"""Whether a clustering is to be trusted, and whether another one of its features is better; no label is read."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from supercm_lightning.self_labeling.grouping import match_clusters
from supercm_lightning.utils.merging import crossing_edges, merge_clusters

LABEL_AGREEMENT, KMEANS_AGREEMENT = 0.88, 0.9
"""Lowest values of runs to be trusted; `docs/methods/asd.md` has the runs that they are from."""


@dataclass(frozen=True)
class Verdict:
    """What is known of a clustering without labels.

    Attributes:
        label_agreement: Fraction of the pseudo-labels with which the instance head agrees, recent mean.
        kmeans_agreement: Fraction of the samples that k-means on the features puts into the same cluster, under the
            best matching of clusters.
        crossing: `crossing_edges` of the cluster head (`head`), of k-means (`kmeans`) and of `merge_clusters`
            (`merge`) in the features.
        empty: Number of clusters without a sample.

    Examples:
        >>> print(Verdict(0.97, 0.98, {"head": 0.06, "kmeans": 0.024, "merge": 0.022}, empty=0))
        Clusters to be trusted; pseudo-labels agree 97 %, k-means 98 %. Fewest edges cross merge (2.2 %, head 6.0 %).
    """

    label_agreement: float
    kmeans_agreement: float
    crossing: Mapping[str, float]
    empty: int

    @property
    def is_trusted(self) -> bool:
        """Whether both agreements are those of good runs, and no cluster is empty."""
        agree = self.label_agreement >= LABEL_AGREEMENT and self.kmeans_agreement >= KMEANS_AGREEMENT
        return agree and not self.empty

    @property
    def best(self) -> str:
        """The clustering that the fewest edges cross: `head`, `kmeans` or `merge`."""
        return min(self.crossing, key=lambda name: self.crossing[name])

    def __str__(self) -> str:
        labels, means = f"{100 * self.label_agreement:.0f} %", f"{100 * self.kmeans_agreement:.0f} %"
        if self.is_trusted:
            text = f"Clusters to be trusted; pseudo-labels agree {labels}, k-means {means}."
        else:
            text = (
                f"Clusters NOT to be trusted; pseudo-labels agree {labels} (good: {100 * LABEL_AGREEMENT:.0f}), "
                f"k-means {means} (good: {100 * KMEANS_AGREEMENT:.0f}), empty clusters: {self.empty}."
            )
        least, head = 100 * self.crossing[self.best], 100 * self.crossing["head"]
        return f"{text} Fewest edges cross {self.best} ({least:.1f} %, head {head:.1f} %)."


def judge(features: Tensor, clusters: Tensor, k: int, label_agreement: float) -> Verdict:
    """Compares a clustering with k-means and `merge_clusters` on the features that it was learned with.

    Args:
        features: Features of samples in random order, (n, d).
        clusters: Their clusters, (n,) int64 in [0, k).
        k: Number of clusters, at most n.
        label_agreement: See `Verdict`.

    Examples:
        >>> features = torch.eye(3).repeat(10, 1) + 0.01 * torch.rand(30, 3, generator=torch.Generator().manual_seed(0))
        >>> found = judge(features, torch.arange(30) % 3, k=3, label_agreement=1.0)
        >>> found.kmeans_agreement, found.is_trusted
        (1.0, True)
    """
    from sklearn.cluster import KMeans

    points, clusters = F.normalize(features.float().cpu(), dim=1).numpy(), clusters.cpu()
    means = torch.from_numpy(KMeans(k, n_init=10, random_state=0).fit_predict(points)).long()
    all_found = {"head": clusters.numpy(), "kmeans": means.numpy(), "merge": merge_clusters(points, k)}
    crossing = {name: crossing_edges(points, found, k) for name, found in all_found.items()}
    matched = match_clusters(means, clusters, torch.ones(len(means)), k)
    agreement = float((matched == clusters).float().mean())
    return Verdict(label_agreement, agreement, crossing, empty=k - len(clusters.unique()))
