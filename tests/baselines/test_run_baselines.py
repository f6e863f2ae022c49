from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from supercm_lightning.baselines import BASELINES, advise, below_floor, default_names, keep_rows, run_baselines
from supercm_lightning.baselines.classifiers import align, fitted
from supercm_lightning.baselines.registry import Problem
from supercm_lightning.data import ClusteringDataModule, FeatureDataModule
from supercm_lightning.utils.options import SuperCMError


def blobs(count: int, shift: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes, well apart in angle too."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = 8 * np.eye(6)[y] + rng.normal(size=(count, 6)) + shift
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def few_labels() -> FeatureDataModule:
    return FeatureDataModule(blobs(240), num_labeled=9, num_test=60)


def two_domains() -> FeatureDataModule:
    return FeatureDataModule(source=blobs(120), target=blobs(90, shift=1.0, seed=1))


def problem(x: np.ndarray, y: np.ndarray, pool: np.ndarray, test: np.ndarray, protocol: str) -> Problem:
    return Problem(x, y, pool, test, int(y.max()) + 1, protocol, 0)


@pytest.mark.parametrize("make", [few_labels, two_domains])
def test_every_method_with_labels_solves_what_is_easy(make) -> None:
    rows = run_baselines(make())
    assert [row["method"] for row in rows] == default_names(rows[0]["protocol"])
    assert all(row["test/acc"] > 0.9 for row in rows), rows
    assert all(row["seconds"] >= 0 for row in rows)


def test_every_method_without_labels_gives_clusters() -> None:
    torch.manual_seed(0)
    names = [name for name in default_names("no labels") if "umap" not in name]  # compiles for half a minute
    rows = run_baselines(ClusteringDataModule("digits", num_rows=600), names)
    assert [row["method"] for row in rows] == ["kmeans", "gaussian_mixture", "spectral"]
    assert all(row["test/acc"] > 0.5 and row["test/nmi"] > 0.5 and row["test/ari"] > 0.4 for row in rows), rows


@pytest.mark.parametrize("name", BASELINES)
def test_labels_of_pool_and_test_play_no_part(name: str) -> None:
    if "umap" in name:
        pytest.skip("compiles for half a minute")
    # A method receives neither; with the labels of a test twice as long, the first half is predicted alike.
    x, y = (part.numpy() for part in blobs(60))
    pool, test = blobs(90, seed=1)[0].numpy(), blobs(40, seed=2)[0].numpy()
    protocol = BASELINES[name].protocols[0]
    method = BASELINES[name].method
    whole, _ = method(problem(x, y, pool, test, protocol))
    half, _ = method(problem(x, y, pool, test[:20], protocol))
    assert (whole[:20] == half).all()


def test_coral_is_the_formula_with_matrix_roots() -> None:
    rng = np.random.default_rng(0)
    source, target = (
        rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5)),
        rng.normal(size=(70, 5)) @ rng.normal(size=(5, 5)),
    )
    cs, ct = np.cov(source.T) + np.eye(5), np.cov(target.T) + np.eye(5)
    expected = (source - source.mean(0)) @ np.linalg.inv(sqrtm(cs)) @ sqrtm(ct) + target.mean(0)
    assert np.allclose(align(source, target), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["seeded_kmeans", "source_kmeans"])
def test_k_means_starts_from_the_class_means(name: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 2)), np.arange(12) % 4
    pool, test = rng.normal(size=(200, 2)), rng.normal(size=(50, 2))
    samples = np.concatenate([x, pool]) if name == "seeded_kmeans" else pool
    centers = np.stack([x[y == label].mean(0) for label in range(4)])
    for _ in range(300):
        of = ((samples[:, None] - centers) ** 2).sum(-1).argmin(1)
        centers = np.stack([samples[of == label].mean(0) for label in range(4)])
    expected = ((test[:, None] - centers) ** 2).sum(-1).argmin(1)
    found, _ = BASELINES[name].method(problem(x, y, pool, test, BASELINES[name].protocols[0]))
    assert (found == expected).all()


def test_k_means_of_unit_vectors_keeps_its_centers_on_the_sphere() -> None:
    # Opposite to a tight class lies a spread one, whose mean is short and near to everything if it stays where it is.
    narrow, wide = np.array([[1.0, 0.1], [1.0, -0.1]]), np.array([[-0.5, 1.0], [-0.5, -1.0]])
    x = np.concatenate([narrow, wide]) / np.linalg.norm(np.concatenate([narrow, wide]), axis=1, keepdims=True)
    test = np.array([[np.cos(1.5), np.sin(1.5)]])
    labels = np.array([0, 0, 1, 1])
    data = Problem(x, labels, x, test, 2, "two domains", 0, has_unit_length=True)
    assert BASELINES["source_kmeans"].method(data)[0] == [0]
    assert BASELINES["source_kmeans"].method(replace(data, has_unit_length=False))[0] == [1]


def test_spectral_clustering_finds_rings() -> None:
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 400)
    ring = np.arange(400) % 2
    x = (1 + 4 * ring)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found, _ = BASELINES["spectral"].method(Problem(x[:0], ring[:0], x, x, 2, "no labels", 0))
    assert (found == ring).mean() in (0, 1)


def test_c_is_chosen_where_every_class_has_five_labels_and_units_do_not_matter() -> None:
    x, y = (part.numpy() for part in blobs(30))
    assert fitted(x[:12], y[:12], 0)[1] == {"C": 1.0}
    (one, found), (other, _) = fitted(x, y, 0), fitted(1000 * x + 5, y, 0)
    assert found["C"] in (0.01, 0.1, 1, 10)
    assert np.allclose(one.predict_proba(x), other.predict_proba(1000 * x + 5), atol=1e-3)


def test_test_samples_among_the_unlabeled_ones_have_the_labels_that_were_spread() -> None:
    x, y = (part.numpy() for part in blobs(30))
    pool = np.random.default_rng(0).normal(size=(90, 6)) * 4
    (own, _), (other, _) = (
        BASELINES["label_spreading"].method(problem(x, y, pool, test, "few labels")) for test in (pool, pool + 1e-6)
    )
    assert (own == other).all()


@pytest.mark.parametrize(("names", "named"), [(["kmeans"], "label_spreading"), (["nothing"], "names='nothing'")])
def test_a_method_of_another_problem_is_refused(names: list[str], named: str) -> None:
    with pytest.raises(SuperCMError, match=named):
        run_baselines(few_labels(), names)


def test_data_without_test_labels_is_refused() -> None:
    with pytest.raises(SuperCMError, match="test"):
        run_baselines(FeatureDataModule(blobs(60), num_labeled=9))


def row(method: str, accuracy: float, protocol: str = "few labels") -> dict[str, object]:
    return {"method": method, "protocol": protocol, "test/acc": accuracy}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("logistic_regression", 0.7), row("label_spreading", 0.9)], "20.0 points above logistic regression"),
        ([row("logistic_regression", 0.9), row("label_spreading", 0.905)], "within a point"),
        ([row("logistic_regression", 0.9), row("label_spreading", 0.8)], "logistic regression (90.0 %) is the best"),
        ([row("logistic_regression", 0.99), row("coral", 0.98, "two domains")], "scikit-learn is enough"),
        ([row("kmeans", 0.5, "no labels"), row("spectral", 0.7, "no labels")], "above k-means"),
    ],
)
def test_advice_follows_from_the_numbers(rows, said: str) -> None:
    assert said in advise(rows, 20)


def test_rows_are_kept_by_data_and_seed(tmp_path) -> None:
    file = tmp_path / "baselines.json"
    keep_rows(file, {"split_seed": 0, "num_workers": 1}, 0, [row("a", 0.5)])
    keep_rows(file, {"split_seed": 0, "num_workers": 4}, 0, [row("a", 0.8)])  # in place of the one before
    keep_rows(file, {"split_seed": 1}, 0, [row("a", 0.9)])
    assert below_floor(file, {"split_seed": 0}, 0.79) is not None
    assert below_floor(file, {"split_seed": 0}, 0.8) is None
    assert below_floor(file, {"split_seed": 2}, 0.1) is None
    assert below_floor(tmp_path / "none.json", {}, 0.1) is None
