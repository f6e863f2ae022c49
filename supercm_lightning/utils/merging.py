"""Clusters of unequal size: many small cells, joined where many nearest-neighbor edges cross."""

from typing import Any

import numpy as np

CELLS, NEIGHBORS, STARTS = 6, 15, 3
"""Cells per cluster, neighbors of a sample, and starts of k-means."""
MAX_COMPARED = 3000
"""Most samples whose distances to each other are computed for the silhouette."""


def merge_clusters(points: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """Groups samples into clusters that are separated by gaps, whatever their sizes.

    k-means, and mixtures started from it, divide a large class before they separate two similar ones. Here k-means
    makes six cells per cluster, and the two clusters that share the largest fraction of the edges of the smaller one
    are joined until k are left; edges lead to the 15 nearest neighbors. Of three starts of k-means the clustering with
    the largest silhouette is kept.

    Args:
        points: Samples, (n, d), n >= 2: features of unit length, or a map such as UMAP's.
        k: Number of clusters, from 1 to n.
        seed: Seed of k-means.

    Returns:
        Cluster of each sample, (n,) int64 in [0, k).

    Examples:
        >>> draw = np.random.default_rng(0)
        >>> points = np.concatenate([draw.normal(0, 1, (500, 2)), draw.normal((6, 0), 0.5, (25, 2))])
        >>> sorted(np.bincount(merge_clusters(points, k=2)).tolist())
        [25, 500]
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    cells = max(k, min(CELLS * k, len(points) // 5))
    graph = _edges(points)
    some = np.random.default_rng(seed).permutation(len(points))[:MAX_COMPARED]
    found, best = np.zeros(len(points), dtype=np.int64), -2.0
    for start in range(STARTS):
        means = KMeans(cells, n_init=1, random_state=seed + start).fit(points)
        count = _count(graph, means.labels_, cells)
        clusters = _join(count, means.cluster_centers_, k)[means.labels_]
        several = 1 < len(np.unique(clusters[some])) < len(some)
        score = float(silhouette_score(points[some], clusters[some])) if several else -1.0
        if score > best:
            found, best = clusters, score
    return found


def crossing_edges(points: np.ndarray, clusters: np.ndarray, k: int) -> float:
    """Fraction of the edges to the 15 nearest neighbors that leave a cluster, mean over clusters, in [0, 1].

    It is the normalized cut divided by k. A cluster without a sample counts 1.

    Args:
        points: Samples, (n, d), n >= 2.
        clusters: Their clusters, (n,) in [0, k).
        k: Number of clusters.

    Source: Shi and Malik, "Normalized Cuts and Image Segmentation", TPAMI 2000.

    Examples:
        >>> points = np.arange(40.0)[:, None] + 100 * (np.arange(40) >= 20)[:, None]
        >>> crossing_edges(points, np.arange(40) // 20, k=2), round(crossing_edges(points, np.arange(40) % 2, k=2), 1)
        (0.0, 0.5)
    """
    count = _count(_edges(points), clusters, k)
    total = count.sum(axis=1)
    return float(np.where(total > 0, 1 - count.diagonal() / np.maximum(total, 1), 1).mean())


def _edges(points: np.ndarray) -> Any:
    """The directed graph of nearest neighbors."""
    from sklearn.neighbors import kneighbors_graph

    return kneighbors_graph(points, min(NEIGHBORS, len(points) - 1)).tocoo()


def _count(graph: Any, clusters: np.ndarray, k: int) -> np.ndarray:
    """Number of edges between clusters in either direction, (k, k)."""
    count = np.zeros((k, k))
    np.add.at(count, (clusters[graph.row], clusters[graph.col]), 1)
    return count + count.T


def _join(edges: np.ndarray, centers: np.ndarray, k: int) -> np.ndarray:
    """Cluster of each cell (m,) by the edges between cells (m, m); where there are none, the nearest are joined."""
    edges, cluster, total = edges.copy(), np.arange(len(edges)), np.maximum(edges.sum(axis=1), 1)
    distance = np.linalg.norm(centers[:, None] - centers, axis=2)
    near = 1e-6 * (1 - distance / max(distance.max(), 1e-9))
    alive = cluster.tolist()
    while len(alive) > k:
        left = np.ix_(alive, alive)
        shared = edges[left] / np.minimum.outer(total[alive], total[alive]) + near[left]
        np.fill_diagonal(shared, -1)
        first, second = (alive[place] for place in np.unravel_index(shared.argmax(), shared.shape))
        edges[first] += edges[second]
        edges[:, first] += edges[:, second]
        total[first] += total[second]
        near[first] = near[:, first] = np.maximum(near[first], near[second])
        cluster[cluster == second] = first
        alive.remove(second)
    return np.unique(cluster, return_inverse=True)[1]
