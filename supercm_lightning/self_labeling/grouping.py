"""Groups of classes by how often they are confused: k-medoids, spectral clustering, stable ids."""

from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from supercm_lightning.utils.options import SuperCMError, check_choice


def kmedoids(dissimilarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Partitions n items around k of them, the medoids, with a small sum of dissimilarities to the own medoid.

    Partitioning around medoids: BUILD adds the medoid that lowers the sum most, SWAP exchanges a medoid for another
    item as long as that lowers the sum. Deterministic; of equal choices the first is taken. A medoid belongs to its own
    cluster; an item equally far from several medoids goes to the smallest of their clusters, so that a matrix without
    any information gives clusters of equal size.

    Args:
        dissimilarity: Symmetric, (n, n), finite.
        k: Number of clusters, from 1 to n.

    Returns:
        Cluster of each item, (n,) int64 in [0, k), and the medoids, (k,) int64, in the order of their cluster.

    Raises:
        SuperCMError: If the matrix is not square, or k is outside its range.

    Source: Kaufman and Rousseeuw, "Finding Groups in Data", 1990, chapter 2; the sums of SWAP are those of Schubert and
        Rousseeuw, "Faster k-Medoids Clustering", 2019.

    Examples:
        >>> points = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1]])
        >>> labels, medoids = kmedoids(torch.cdist(points, points), k=2)
        >>> labels, medoids
        (tensor([0, 0, 0, 1, 1]), tensor([1, 3]))
    """
    n = len(dissimilarity)
    if tuple(dissimilarity.shape) != (n, n):
        raise SuperCMError(f"dissimilarity of shape {tuple(dissimilarity.shape)}: must be square.")
    if not 1 <= k <= n:
        raise SuperCMError(f"k={k}: must be from 1 to the {n} items.")
    d = dissimilarity.detach().cpu().double().numpy()
    medoids = _swap(d, _build(d, k))
    label, place = torch.from_numpy(_members(d, medoids)), torch.from_numpy(medoids)
    return label.to(dissimilarity.device), place.to(dissimilarity.device)


def _build(d: np.ndarray, k: int) -> np.ndarray:
    """Greedy initialization: adds the medoid that lowers the sum most, k times."""
    medoids = [int(d.sum(axis=0).argmin())]
    for _ in range(k - 1):
        gain = np.maximum(d[:, medoids].min(axis=1)[:, None] - d, 0).sum(axis=0)
        gain[medoids] = -1
        medoids.append(int(gain.argmax()))
    return np.array(medoids)


def _swap(d: np.ndarray, medoids: np.ndarray) -> np.ndarray:
    """Exchanges medoids for other items while the sum of the dissimilarities falls."""
    items, k = np.arange(len(d)), len(medoids)
    while True:
        to_medoids = d[:, medoids]
        own = to_medoids.argmin(axis=1)
        nearest = to_medoids[items, own]
        to_medoids[items, own] = np.inf
        second = to_medoids.min(axis=1)
        # Candidate c in place of medoid i: items of other medoids can only gain, items of i go to c or to their second.
        gained = np.minimum(d - nearest[:, None], 0)
        lost = np.minimum(d, second[:, None]) - nearest[:, None] - gained
        change = gained.sum(axis=0) + (own == np.arange(k)[:, None]).astype(float) @ lost
        change[:, medoids] = 0
        medoid, candidate = np.unravel_index(change.argmin(), change.shape)
        if change[medoid, candidate] >= -1e-9 * max(nearest.sum(), 1e-300):
            return medoids
        medoids = medoids.copy()
        medoids[medoid] = candidate


def _members(d: np.ndarray, medoids: np.ndarray) -> np.ndarray:
    """Cluster of each item; ties go to the smallest cluster."""
    to_medoids = d[:, medoids]
    nearest = to_medoids == to_medoids.min(axis=1, keepdims=True)
    nearest[medoids] = np.eye(len(medoids), dtype=bool)
    label = nearest.argmax(axis=1)
    tied = nearest.sum(axis=1) > 1
    size = np.bincount(label[~tied], minlength=len(medoids))
    for item in tied.nonzero()[0]:
        label[item] = np.where(nearest[item], size, len(d)).argmin()
        size[label[item]] += 1
    return label


def group_classes(transitions: Tensor, k: int, by: Literal["kmedoids", "spectral"] = "kmedoids") -> Tensor:
    """Groups classes that are often confused.

    The similarity of two classes is S = (T + Tᵀ) / 2. `kmedoids` partitions by 1 − S / max S. `spectral` clusters S
    divided by the square roots of its row sums; it compares whole rows, and so finds groups also where single cells
    hold few counts.

    Args:
        transitions: Counts of changes a → b, (C, C); the diagonal is ignored.
        k: Number of groups, from 1 to C.
        by: `kmedoids` or `spectral`.

    Returns:
        Group of each class, (C,) int64 in [0, k), on the host.

    Raises:
        SuperCMError: If `by` is unknown or k is outside its range.

    Examples:
        >>> group_classes(torch.tensor([[0, 9, 0, 0], [9, 0, 0, 0], [0, 0, 0, 7], [0, 0, 7, 0]]), k=2)
        tensor([0, 0, 1, 1])
    """
    from sklearn.cluster import SpectralClustering

    check_choice(by=(by, ("kmedoids", "spectral")))
    similarity = (transitions + transitions.T).cpu().double() / 2
    similarity.fill_diagonal_(0)
    top = similarity.max()
    if by == "kmedoids" or top == 0:
        dissimilarity = 1 - similarity / top.clamp_min(1)
        return kmedoids(dissimilarity.fill_diagonal_(0), k)[0]
    # Without regularization classes with few changes become groups of their own. Amini et al. (2013) add a constant of
    # the size of the mean similarity.
    similarity += similarity.mean()
    root = similarity.sum(dim=1).sqrt()
    affinity = similarity / (root[:, None] * root)
    spectral = SpectralClustering(k, affinity="precomputed", assign_labels="kmeans", n_init=10, random_state=0)
    return torch.from_numpy(spectral.fit_predict(affinity.numpy())).long()


def group_features(features: Tensor, counts: Tensor, k: int) -> Tensor:
    """Groups classes by the cosine distance of their mean features: average linkage, which does not need equal groups.

    Classes with fewer than a tenth of the mean count are left out, and join the group of the nearest class.

    Args:
        features: Normalized mean feature of each class, (C, d); zero for a class without samples.
        counts: Number of samples of each class, (C,).
        k: Number of groups.

    Returns:
        Group of each class, (C,) int64 in [0, k), on the host, or (0,) as long as fewer than k classes have samples.

    Examples:
        >>> features = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [9, 1], [8, 1], [0, 1], [1, 2]]), dim=1)
        >>> group_features(features, counts=torch.tensor([9, 9, 9, 9, 0]), k=2)
        tensor([0, 0, 0, 1, 1])
    """
    from sklearn.cluster import AgglomerativeClustering

    features, counts = features.cpu(), counts.cpu()
    known = features.any(dim=1)
    frequent = known & (10 * counts >= counts.float().mean())
    used = (frequent if int(frequent.sum()) >= k else known).nonzero()[:, 0]
    if len(used) < max(k, 2):
        return torch.empty(0, dtype=torch.int64)
    similarity = features @ features[used].T
    linkage = AgglomerativeClustering(k, metric="precomputed", linkage="average")
    group = torch.from_numpy(linkage.fit_predict((1 - similarity[used]).clamp_min(0).numpy())).long()
    found = group[similarity.argmax(dim=1)]
    found[used] = group
    return found


def match_clusters(new: Tensor, old: Tensor, weight: Tensor, k: int) -> Tensor:
    """Permutes cluster ids so that the overlap with an earlier clustering of the same items is largest.

    Args:
        new: Cluster of each item, (n,) int64 in [0, k).
        old: Its earlier cluster, (n,) int64 in [0, k); below 0 for none.
        weight: Weight of each item, (n,), >= 0.
        k: Number of clusters.

    Returns:
        `new` with permuted ids, (n,) int64.

    Examples:
        >>> match_clusters(torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 1, 1]), torch.ones(4), k=2)
        tensor([0, 0, 1, 1])
    """
    known = old >= 0
    overlap = torch.zeros(k * k, dtype=torch.float64)
    overlap.index_add_(0, (new * k + old)[known].cpu(), weight[known].cpu().double())
    _, name = linear_sum_assignment(overlap.view(k, k).numpy(), maximize=True)
    return torch.from_numpy(name).to(new.device)[new]
