"""The classifier for few labels, the adapter of two domains, and the clusterer."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from supercm_lightning.estimators import ASDClusterer, SuperCMAdapter, SuperCMClassifier
from supercm_lightning.estimators.features import common_scale
from supercm_lightning.methods import SuperCM
from supercm_lightning.utils.options import SuperCMError

FAST: dict[str, Any] = {"max_steps": 20, "batch_size": 16, "device": "cpu", "random_state": 0}
FAST |= {"method_options": {"lr": 0.02, "backbone_options": {"hidden_features": 16, "num_features": 16}}}


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, classes, and labels of three samples a class."""
    x, truth = make_blobs(150, centers=3, n_features=4, random_state=0)
    labeled = np.concatenate([np.flatnonzero(truth == k)[:3] for k in range(3)])
    y = np.full(150, -1)
    y[labeled] = truth[labeled]
    return x, truth, y


def digits_with_labels(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, truth = load_digits(return_X_y=True)
    stream = np.random.default_rng(seed)
    labeled = np.concatenate([stream.choice(np.flatnonzero(truth == k), 2, replace=False) for k in range(10)])
    y = np.full(len(x), -1)
    y[labeled] = truth[labeled]
    return x, truth, y


@pytest.mark.parametrize("missing", [-1, None, np.nan])
def test_classes_are_strings(blobs: Any, missing: Any) -> None:
    x, truth, y = blobs
    names = np.array(["ant", "bee", "cow"])
    labels = np.array([names[k] if k >= 0 else missing for k in y], dtype=object)
    model = SuperCMClassifier(**FAST).fit(x, labels)
    assert model.classes_.tolist() == names.tolist()
    assert model.score(x, names[truth]) > 0.9


def test_minus_one_among_strings_is_unlabeled(blobs: Any) -> None:
    x, _, y = blobs
    labels = np.array(["ant", "bee", "cow", -1])[y]  # NumPy makes "-1" of -1
    assert SuperCMClassifier(**FAST).fit(x, labels).classes_.tolist() == ["ant", "bee", "cow"]


def test_floats_with_nan_are_unlabeled(blobs: Any) -> None:
    x, _, y = blobs
    model = SuperCMClassifier(**FAST).fit(x, np.where(y < 0, np.nan, y))
    assert model.classes_.tolist() == [0, 1, 2]


def test_labels_are_needed(blobs: Any) -> None:
    with pytest.raises(ValueError, match="-1 means unlabeled"):
        SuperCMClassifier(**FAST).fit(blobs[0], np.full(150, -1))


def test_pickle_keeps_weights_and_holds_no_module(blobs: Any) -> None:
    x, _, y = blobs
    model = SuperCMClassifier(**FAST).fit(x, y)
    stored = pickle.dumps(model)
    assert b"torch" not in stored
    state = torch.get_rng_state()
    again = pickle.loads(stored)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))


def test_pickle_of_a_method_with_state_per_sample(blobs: Any) -> None:
    model = ASDClusterer(3, **FAST).fit(blobs[0])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(blobs[0]), model.labels_)


def test_same_seed_gives_the_same_model(blobs: Any) -> None:
    x, _, y = blobs
    torch.manual_seed(5)
    first = SuperCMClassifier(**FAST).fit(x, y)
    state = torch.get_rng_state()
    torch.manual_seed(6)
    second = clone(first).fit(x, y)
    np.testing.assert_array_equal(first.predict_proba(x), second.predict_proba(x))
    other = clone(first).set_params(random_state=1).fit(x, y)
    assert not np.array_equal(other.predict_proba(x), first.predict_proba(x))
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())  # a fit leaves the generator of the process alone


def test_a_pipeline_is_searched_over(blobs: Any) -> None:
    x, _, y = blobs
    pipeline = make_pipeline(StandardScaler(), SuperCMClassifier(**FAST))
    grid = {"supercmclassifier__method": ["SuperCM", "Supervised"]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(x, np.where(y < 0, 2, y))
    assert search.best_params_["supercmclassifier__method"] in grid["supercmclassifier__method"]


def test_nothing_is_written_or_printed(blobs: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    x, _, y = blobs
    SuperCMClassifier(**FAST).fit(x, y).predict(x)
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")


def test_verbose_shows_a_bar(blobs: Any, capfd: pytest.CaptureFixture[str]) -> None:
    SuperCMClassifier(**FAST, verbose=True).fit(blobs[0], blobs[2])
    assert "20/20" in "".join(capfd.readouterr())


def test_early_stopping_keeps_the_best_weights(blobs: Any) -> None:
    x, truth, _ = blobs
    model = SuperCMClassifier(**FAST | {"max_steps": 2000}, validation_fraction=0.2).fit(x, truth)
    assert 25 <= model.n_steps_ < 2000
    assert model.score(x, truth) > 0.9


def test_memory_map_is_read_by_batches(blobs: Any, tmp_path: Path) -> None:
    x, _, y = blobs
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = SuperCMClassifier(**FAST).fit(mapped, y)
    np.testing.assert_array_equal(model.predict(mapped), SuperCMClassifier(**FAST).fit(np.array(mapped), y).predict(x))


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_images(kind: Any) -> None:
    x, _, y = digits_with_labels(0)
    images = (x.reshape(-1, 1, 8, 8) * (15 if kind is np.uint8 else 1 / 16)).astype(kind)
    model = SuperCMClassifier("SuperCMFreeMatch", max_steps=30, batch_size=32, device="cpu", random_state=0)
    assert model.fit(images, y).predict_proba(images[:3]).shape == (3, 10)
    with pytest.raises(ValueError, match=r"1, 8, 7"):
        model.predict(images[..., :7])


def test_stored_views_reach_the_method(blobs: Any) -> None:
    x, _, y = blobs
    seen = []

    class Spy(SuperCM):
        views = ("weak", "strong")

        def losses(self, step: Any) -> Any:
            seen.append([view.mean().item() for view in step.views])
            return super().losses(step)

    far = np.stack([x + 1000, x + 1000], axis=1)
    SuperCMClassifier(**FAST | {"method": Spy, "noise": 0.0, "standardize": False}).fit(x, y, strong=far)
    assert all(weak < 100 and strong > 900 for weak, strong in seen)
    with pytest.raises(SuperCMError, match="strong"):
        SuperCMClassifier(**FAST).fit(x, y, strong=far[:, :, :2])


@pytest.mark.parametrize("labels", [[0], [0, 0], [0, 1], [0, 1, -1]])
def test_a_handful_of_samples(labels: list[int]) -> None:
    x = np.array([[0.0, 0], [1, 1], [2, 2]])[: len(labels)]
    model = SuperCMClassifier(**FAST).fit(x, labels)
    assert model.predict_proba(x).shape == (len(labels), len(set(labels) - {-1}))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "SuperC"}, "SuperCM"),
        ({"method": "ASDFreeMatch"}, "FreeMatch"),
        ({"method": 3}, "method"),
        ({"method_options": {"bta": 1}}, "bta"),
        ({"validation_fraction": 2}, "validation_fraction"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_wrong_options_are_named(blobs: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(SuperCMError, match=named):
        SuperCMClassifier(**FAST | options).fit(blobs[0], blobs[2])


def test_pixels_keep_their_proportions_and_columns_of_a_table_do_not() -> None:
    pixels = torch.tensor([1.0, 0.2, 0.3, 0.25, 0.3, 1.0])  # the first and the last are constant
    assert common_scale(pixels).unique().numel() == 1
    assert common_scale(pixels)[0] < 0.3
    table = torch.tensor([300.0, 0.5, 2, 0.1, 3, 14, 0.6, 0.8, 0.12])
    assert torch.equal(common_scale(table), table)


def test_default_is_above_logistic_regression_on_digits() -> None:
    x, truth, y = digits_with_labels(0)
    known = y >= 0
    floor = LogisticRegression(max_iter=1000).fit(x[known], y[known]).score(x[~known], truth[~known])
    model = SuperCMClassifier(max_steps=200, device="cpu", random_state=0).fit(x, y)
    assert model.score(x[~known], truth[~known]) > floor


# ------------------------------------------------------------------------------------------------------- two domains
@pytest.fixture(scope="module")
def shifted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of two domains, the target turned and moved."""
    x, y = make_blobs(400, centers=4, n_features=2, cluster_std=0.6, random_state=4)
    domain = np.where(np.arange(400) < 200, 1, -2)
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    x[domain < 0] = x[domain < 0] @ turn * 1.5 + 6
    return x, y, domain


def test_adaptation_is_above_source_only(shifted: Any) -> None:
    x, y, domain = shifted
    target = domain < 0
    only = SuperCMClassifier(**FAST | {"method": "Supervised"}).fit(x[~target], y[~target])
    model = SuperCMAdapter(**FAST | {"max_steps": 100}).fit(x, y, sample_domain=domain)
    assert model.score(x[target], y[target]) > only.score(x[target], y[target]) + 0.1
    assert (model.predict(x, sample_domain=domain)[~target] == y[~target]).mean() > 0.9


def test_labels_of_the_target_are_not_read(shifted: Any) -> None:
    x, y, domain = shifted
    hidden = np.where(domain < 0, -1, y)
    models = [
        SuperCMAdapter(**FAST).fit(x, labels, sample_domain=given).predict_proba(x)
        for labels, given in ((y, domain), (hidden, domain), (hidden, None), (np.where(domain < 0, 3 - y, y), domain))
    ]
    for other in models[1:]:
        np.testing.assert_array_equal(models[0], other)


def test_domains_are_signed_numbers(shifted: Any) -> None:
    with pytest.raises(SuperCMError, match="sample_domain"):
        SuperCMAdapter(**FAST).fit(*shifted[:2], sample_domain=np.zeros(400))


def test_images_of_two_domains() -> None:
    x, truth, _ = digits_with_labels(0)
    images = (x[:200].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    domain = np.where(np.arange(200) < 100, 1, -1)
    model = SuperCMAdapter(max_steps=5, batch_size=16, device="cpu", random_state=0)
    assert model.fit(images, truth[:200], sample_domain=domain).predict(images).shape == (200,)


# --------------------------------------------------------------------------------------------------------- clusters
def test_blobs_are_clustered() -> None:
    x, truth = make_blobs(300, centers=3, random_state=0, cluster_std=0.5)
    model = ASDClusterer(3, device="cpu", max_steps=200, random_state=0).fit(x)
    assert adjusted_rand_score(truth, model.labels_) > 0.95
    np.testing.assert_array_equal(model.predict(x), model.labels_)


def test_images_are_clustered_and_more_clusters_than_samples_refused() -> None:
    images = np.random.default_rng(0).random((40, 1, 8, 8), np.float32)
    model = ASDClusterer(3, max_steps=5, batch_size=16, device="cpu", random_state=0)
    assert set(model.fit_predict(images)) <= {0, 1, 2}
    with pytest.raises(SuperCMError, match="n_clusters"):
        model.fit(images[:2])
