"""k-means and its relatives: started from labeled samples, or without labels."""

from typing import Any

import numpy as np

from supercm_lightning.baselines.classifiers import nearest, reduced
from supercm_lightning.baselines.label_spreading import neighbor_graph
from supercm_lightning.baselines.registry import FEW_LABELS, NO_LABELS, TWO_DOMAINS, Problem, baseline, unit_length
from supercm_lightning.utils.merging import merge_clusters


@baseline(FEW_LABELS)
def seeded_kmeans(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """k-means of labeled and unlabeled samples, started from the labeled means (Basu et al., 2002)."""
    return _started(problem.train, problem), {}


@baseline(TWO_DOMAINS)
def source_kmeans(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """k-means of the target samples, started from the class means of the source."""
    return _started(problem.pool, problem), {}


@baseline(NO_LABELS)
def kmeans(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """k-means, the best of ten starts."""
    from sklearn.cluster import KMeans

    model = KMeans(problem.num_classes, n_init=10, random_state=problem.seed).fit(problem.pool)
    return model.predict(problem.test), {"starts": 10}


@baseline(NO_LABELS)
def gaussian_mixture(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """A mixture of Gaussians on the first 50 principal components."""
    pool, test = problem.pool, problem.test
    if pool.shape[1] > 50:
        pool, test = reduced(pool, test, 50, problem.seed)
    return _mixture(pool, test, problem), {"components": pool.shape[1]}


@baseline(NO_LABELS)
def spectral(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """Spectral clustering (Ng et al., 2001) on the graph of ten nearest neighbors.

    k-means of the leading eigenvectors of D^{-1/2} W D^{-1/2}, each sample's at unit length. A test sample belongs to
    the cluster of the nearest sample of the graph. Above 100 values samples are reduced as for label spreading.
    """
    from scipy.sparse import diags
    from scipy.sparse.linalg import eigsh
    from sklearn.cluster import KMeans

    pool, test = problem.pool, problem.test
    if pool.shape[1] > 100:
        pool, test = reduced(pool, test, 50, problem.seed)
    graph = neighbor_graph(pool, 10)
    scale = diags(1 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel()))
    start = np.random.default_rng(problem.seed).normal(size=len(pool))
    vectors = eigsh(scale @ graph @ scale, k=problem.num_classes, which="LA", v0=start)[1]
    model = KMeans(problem.num_classes, n_init=10, random_state=problem.seed)
    clusters = model.fit_predict(unit_length(vectors))
    return clusters[nearest(pool, test)], {"num_neighbors": 10}


@baseline(NO_LABELS, package="umap")
def umap_mixture(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """UMAP to as many dimensions as clusters, ten at most, and a mixture of Gaussians there (McConville et al., 2020).

    A test sample belongs to the cluster of the nearest sample in the original space.
    """
    points, settings = _umap(problem)
    return _mixture(points, points, problem)[nearest(problem.pool, problem.test)], settings


@baseline(NO_LABELS, package="umap")
def umap_merge(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """The same map, clustered by `merge_clusters`: large classes are not divided."""
    points, settings = _umap(problem)
    clusters = merge_clusters(points, problem.num_classes, problem.seed)
    return clusters[nearest(problem.pool, problem.test)], settings


def _umap(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """The pool, (n, at most 10), and the settings of the map."""
    from umap import UMAP

    settings = {"n_neighbors": 20, "min_dist": 0.0, "n_components": min(10, problem.num_classes)}
    return UMAP(**settings, random_state=problem.seed, n_jobs=1).fit_transform(problem.pool), settings


def _started(samples: np.ndarray, problem: Problem) -> np.ndarray:
    """Clusters of the test samples by k-means of `samples`, started from the class means; spherical on unit vectors."""
    centers = _on_sphere(problem.class_means, problem)
    for _ in range(300):
        own = nearest(centers, samples)
        means = [samples[own == k].mean(axis=0) if (own == k).any() else centers[k] for k in range(problem.num_classes)]
        before, centers = centers, _on_sphere(np.stack(means), problem)
        if np.allclose(before, centers, rtol=0, atol=1e-6):
            break
    return nearest(centers, problem.test)


def _on_sphere(centers: np.ndarray, problem: Problem) -> np.ndarray:
    return unit_length(centers) if problem.has_unit_length else centers


def _mixture(points: np.ndarray, test: np.ndarray, problem: Problem) -> np.ndarray:
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(problem.num_classes, n_init=3, reg_covar=1e-3, random_state=problem.seed)
    return model.fit(points.astype(np.float64)).predict(test.astype(np.float64))
