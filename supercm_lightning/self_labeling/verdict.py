"""Whether a clustering is to be trusted, and whether k-means on its features is the better one; no label is read."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from supercm_lightning.self_labeling.grouping import match_clusters

LABEL_AGREEMENT, KMEANS_AGREEMENT = 0.88, 0.9
"""Lowest values of runs to be trusted; `docs/methods/asd.md` has the runs that they are from."""
MAX_COMPARED = 3000
"""Most samples whose distances to each other are computed."""


@dataclass(frozen=True)
class Verdict:
    """What is known of a clustering without labels.

    Attributes:
        label_agreement: Fraction of the pseudo-labels with which the instance head agrees, recent mean.
        kmeans_agreement: Fraction of the samples that k-means on the features puts into the same cluster, under the
            best matching of clusters.
        silhouette: Mean silhouette of the clusters in the features, in [-1, 1].
        kmeans_silhouette: The same of k-means.
        empty: Number of clusters without a sample.

    Examples:
        >>> print(Verdict(0.97, 0.98, 0.70, 0.71, empty=0))
        Clusters to be trusted; pseudo-labels agree 97 %, k-means 98 %. Prefer k-means (silhouette 0.71, here 0.70).
    """

    label_agreement: float
    kmeans_agreement: float
    silhouette: float
    kmeans_silhouette: float
    empty: int

    @property
    def is_trusted(self) -> bool:
        """Whether both agreements are those of good runs, and no cluster is empty."""
        agree = self.label_agreement >= LABEL_AGREEMENT and self.kmeans_agreement >= KMEANS_AGREEMENT
        return agree and not self.empty

    @property
    def prefers_kmeans(self) -> bool:
        """Whether k-means on the features has the larger silhouette."""
        return self.kmeans_silhouette > self.silhouette

    def __str__(self) -> str:
        labels, means = f"{100 * self.label_agreement:.0f} %", f"{100 * self.kmeans_agreement:.0f} %"
        if self.is_trusted:
            text = f"Clusters to be trusted; pseudo-labels agree {labels}, k-means {means}."
        else:
            text = (
                f"Clusters NOT to be trusted; pseudo-labels agree {labels} (good: {100 * LABEL_AGREEMENT:.0f}), "
                f"k-means {means} (good: {100 * KMEANS_AGREEMENT:.0f}), empty clusters: {self.empty}."
            )
        better, worse = sorted((self.silhouette, self.kmeans_silhouette), reverse=True)
        if self.prefers_kmeans:
            return f"{text} Prefer k-means (silhouette {better:.2f}, here {worse:.2f})."
        return f"{text} Better than k-means on the features (silhouette {better:.2f}, there {worse:.2f})."


def judge(features: Tensor, clusters: Tensor, k: int, label_agreement: float) -> Verdict:
    """Compares a clustering with k-means on the features that it was learned with.

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
    from sklearn.metrics import silhouette_score

    features, clusters = F.normalize(features.float().cpu(), dim=1), clusters.cpu()
    means = torch.from_numpy(KMeans(k, n_init=10, random_state=0).fit_predict(features.numpy())).long()

    def silhouette(found: Tensor) -> float:
        x, y = features[:MAX_COMPARED], found[:MAX_COMPARED]
        if not 1 < len(y.unique()) < len(y):
            return -1.0
        return float(silhouette_score(x.numpy(), y.numpy(), metric="cosine"))

    matched = match_clusters(means, clusters, torch.ones(len(means)), k)
    agreement = float((matched == clusters).float().mean())
    empty = k - len(clusters.unique())
    return Verdict(label_agreement, agreement, silhouette(clusters), silhouette(means), empty)
