import numpy as np
import pytest

from supercm_lightning.baselines import neighbor_graph, spread_labels
from supercm_lightning.utils.options import SuperCMError


def blobs(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(count) % classes
    return (3 * rng.normal(size=(classes, 4)))[y] + rng.normal(size=(count, 4)), y


def by_matrices(x, labels, num_classes, k, alpha):
    n = len(x)
    distance = ((x[:, None] - x[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    w = np.zeros((n, n))
    for i in range(n):
        for j in np.argsort(distance[i])[:k]:
            w[i, j] += 1
            w[j, i] += 1
    d = w.sum(1)
    y = np.zeros((n, num_classes))
    for i, label in enumerate(labels):
        if label >= 0:
            y[i, label] = 1
    f = np.linalg.inv(np.eye(n) - alpha * w / np.sqrt(d[:, None] * d[None])) @ y
    f = f / f.sum(0) * y.sum(0) / y.sum()
    return f / f.sum(1, keepdims=True)


@pytest.mark.parametrize("alpha", [0.5, 0.99])
def test_the_sparse_solution_is_that_of_the_full_matrix(alpha: float) -> None:
    x, y = blobs(90, 3)
    labels = np.where(np.arange(90) < 10, y, -1)
    found = spread_labels(neighbor_graph(x, 8), labels, num_classes=3, alpha=alpha)
    assert np.allclose(found, by_matrices(x, labels, 3, 8, alpha), atol=1e-4)


def test_a_part_without_labels_and_equal_samples_give_proportions() -> None:
    x = np.repeat(np.array([[0.0], [100.0], [1e4]]), [5, 4, 6], axis=0)
    labels = np.array([0, -1, -1, -1, 0, 1, -1, -1, -1, *[-1] * 6])
    found = spread_labels(neighbor_graph(x, 3), labels, num_classes=3)
    assert found.shape == (15, 3)
    assert np.allclose(found[:5], [1, 0, 0])
    assert np.allclose(found[5:9], [0, 1, 0])
    assert np.allclose(found[9:], [2 / 3, 1 / 3, 0])


def test_fewer_samples_than_neighbors() -> None:
    found = spread_labels(neighbor_graph(np.eye(3)), np.array([0, 1, -1]), num_classes=2)
    assert np.allclose(found.sum(1), 1)
    assert np.allclose(found[2], 0.5)


@pytest.mark.parametrize(
    ("labels", "options", "named"),
    [([-1, -1], {}, "labels"), ([0, 5], {}, "labels"), ([0, 1], {"alpha": 1.0}, "alpha")],
)
def test_what_cannot_be_spread_is_named(labels: list[int], options: dict[str, float], named: str) -> None:
    with pytest.raises(SuperCMError, match=named):
        spread_labels(neighbor_graph(np.eye(2)), np.array(labels), num_classes=2, **options)
