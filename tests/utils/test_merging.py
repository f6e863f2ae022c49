"""Clusters of unequal size, where k-means divides the large ones."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from supercm_lightning.utils.merging import crossing_edges, merge_clusters


def unequal() -> tuple[np.ndarray, np.ndarray]:
    """A wide class of 600 samples beside two narrow ones of 60 that are close to each other."""
    draw, sizes = np.random.default_rng(0), (600, 60, 60)
    centers = [(0, 0, 0), (9, 0, 0), (9, 2, 0)]
    points = [draw.normal(c, s, (n, 3)) for c, s, n in zip(centers, (1.5, 0.25, 0.25), sizes, strict=True)]
    return np.concatenate(points), np.repeat(np.arange(3), sizes)


@pytest.mark.parametrize("seed", range(3))
def test_a_large_class_is_not_divided_and_small_ones_are_not_joined(seed: int) -> None:
    points, labels = unequal()
    means = KMeans(3, n_init=10, random_state=seed).fit_predict(points)
    found = merge_clusters(points, 3, seed)
    assert adjusted_rand_score(labels, means) < 0.9
    assert adjusted_rand_score(labels, found) > 0.97
    assert crossing_edges(points, found, 3) < crossing_edges(points, means, 3)


@pytest.mark.parametrize(("n", "k"), [(2, 2), (4, 4), (7, 3), (40, 1)])
def test_every_size_gives_k_clusters(n: int, k: int) -> None:
    points = np.arange(2.0 * n).reshape(n, 2)
    assert np.unique(merge_clusters(points, k)).tolist() == list(range(k))


def test_where_no_edge_is_left_the_nearest_are_joined() -> None:
    """Four distant groups of 40: each sample's neighbors are of its own group."""
    place = np.array([0.0, 100, 1000, 1100])
    points = (place[:, None] + np.random.default_rng(0).normal(0, 1, (4, 40))).reshape(-1, 1)
    assert adjusted_rand_score(np.repeat([0, 1], 80), merge_clusters(points, 2)) == 1


def test_an_empty_cluster_counts_as_crossed_by_all_edges() -> None:
    points = np.random.default_rng(0).normal(size=(30, 2))
    assert crossing_edges(points, np.zeros(30, dtype=int), 1) == 0
    assert crossing_edges(points, np.zeros(30, dtype=int), 4) == 0.75
