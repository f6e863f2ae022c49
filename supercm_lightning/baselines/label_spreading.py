"""Labels spread over a graph of nearest neighbors, without a matrix of all pairs."""

from typing import Any

import numpy as np

from supercm_lightning.utils.options import SuperCMError, check_decay, check_range


def spread_labels(
    graph: Any,
    labels: np.ndarray,
    *,
    num_classes: int,
    alpha: float = 0.99,
    proportions: np.ndarray | None = None,
) -> np.ndarray:
    """Label spreading (Zhou et al., 2004) over a graph.

    With S = D^{-1/2} W D^{-1/2}, the labels are the solution of (I − αS) F = Y, which conjugate gradients find for all
    classes at once; memory is proportional to n (neighbors + classes).

    Args:
        graph: Symmetric sparse matrix W (n, n) of weights >= 0, such as `neighbor_graph` gives, or a sum of several.
        labels: Labels (n,), -1 where unknown.
        num_classes: Number of classes K.
        alpha: How far labels spread, in [0, 1).
        proportions: Expected proportions of the classes, (K,) with sum 1, to which the columns of F are scaled (Zhu et
            al., 2003) before each sample's sum is made 1; None: those among the labels.

    Returns:
        Soft labels (n, K) float64, each row with sum 1. A sample that is not connected with any label has the classes'
        proportions among the labels.

    Raises:
        SuperCMError: If no sample has a label, a label is out of range, or an option is.

    Examples:
        >>> x = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
        >>> spread_labels(neighbor_graph(x, 2), np.array([0, -1, -1, -1, -1, 1]), num_classes=2).argmax(axis=1)
        array([0, 0, 0, 1, 1, 1])
    """
    from scipy import sparse

    check_decay(alpha=alpha)
    known = np.flatnonzero(labels >= 0)
    if not len(known):
        raise SuperCMError("labels: all are -1; label spreading needs labeled samples.")
    check_range(0, num_classes - 1, labels=int(labels.max()))
    given = np.zeros((len(labels), num_classes))
    given[known, labels[known]] = 1
    scale = sparse.diags(1 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel()))
    found = _solve(sparse.identity(len(labels), format="csr") - alpha * (scale @ graph @ scale), given).clip(0)
    proportions = given.sum(axis=0) / len(known) if proportions is None else proportions
    found *= proportions / np.maximum(found.sum(axis=0), 1e-300)
    total = found.sum(axis=1, keepdims=True)
    return np.where(total > 0, found / np.maximum(total, 1e-300), proportions)


def neighbor_graph(features: np.ndarray, num_neighbors: int = 10) -> Any:
    """The symmetric graph of nearest neighbors in Euclidean distance: A + Aᵀ, with 1 in A for each sample's neighbors.

    Args:
        features: Samples (n, d), at least two. For cosine distance, give them unit length.
        num_neighbors: Neighbors of each sample, itself not counted; all others where there are fewer.

    Returns:
        Sparse matrix (n, n) with zero diagonal.
    """
    from sklearn.neighbors import NearestNeighbors

    check_range(1, num_neighbors=num_neighbors)
    neighbors = NearestNeighbors(n_neighbors=min(num_neighbors, len(features) - 1), algorithm="brute")
    directed = neighbors.fit(np.asarray(features, np.float32)).kneighbors_graph()
    return directed + directed.T


def _solve(matrix: Any, right: np.ndarray, tolerance: float = 1e-6, max_steps: int = 1000) -> np.ndarray:
    """Conjugate gradients for a symmetric positive definite matrix (n, n) and several right sides (n, K)."""
    solution = np.zeros_like(right)
    residual, direction = right.copy(), right.copy()
    squared = (residual**2).sum(axis=0)
    limit = tolerance**2 * squared
    for _ in range(max_steps):
        if (squared <= limit).all():
            break
        product = matrix @ direction
        step = squared / np.maximum((direction * product).sum(axis=0), 1e-300)
        solution += step * direction
        residual -= step * product
        previous, squared = squared, (residual**2).sum(axis=0)
        direction = residual + squared / np.maximum(previous, 1e-300) * direction
    return solution
