"""Classifiers of scikit-learn: of the labeled samples alone, or with pseudo-labels."""

from typing import Any

import numpy as np

from supercm_lightning.baselines.label_spreading import neighbor_graph, spread_labels
from supercm_lightning.baselines.registry import FEW_LABELS, TWO_DOMAINS, Problem, baseline

_GRID = (0.01, 0.1, 1.0, 10.0)
_MOST = 10_000
"""Most labels that choose C, and most unlabeled samples that are pseudo-labeled: the rest changes little."""


@baseline(FEW_LABELS, TWO_DOMAINS)
def logistic_regression(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """Logistic regression on the labeled samples."""
    model, settings = fitted(problem.x, problem.y, problem.seed)
    return model.predict(problem.test), settings


@baseline(FEW_LABELS)
def nearest_neighbour(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """The label of the nearest labeled sample."""
    return problem.y[nearest(problem.x, problem.test)], {}


@baseline(FEW_LABELS, TWO_DOMAINS)
def self_training(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """Logistic regression that takes its own predictions of a probability above 0.9 as labels, in ten rounds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import SelfTrainingClassifier

    model, settings = fitted(problem.x, problem.y, problem.seed)
    scale = model[:-1]
    chosen = np.random.default_rng(problem.seed).permutation(len(problem.pool))[:_MOST]
    x = np.concatenate([scale.transform(problem.x), scale.transform(problem.pool[chosen])])
    y = np.concatenate([problem.y, np.full(len(chosen), -1)])
    settings |= {"threshold": 0.9, "rounds": 10}
    learner = SelfTrainingClassifier(LogisticRegression(C=settings["C"], max_iter=300), threshold=0.9, max_iter=10)
    return learner.fit(x, y).predict(scale.transform(problem.test)), settings


@baseline(FEW_LABELS, TWO_DOMAINS)
def label_spreading(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """Labels spread over the graph of labeled and unlabeled samples; a test sample has the label of the nearest one.

    That is itself where the test samples are among the unlabeled ones, so that transductive and inductive data modules
    need no rules of their own. Above 100 values a sample is reduced to its 50 principal components, which also makes
    the search for neighbors ten times as fast.
    """
    x, test = problem.train, problem.test
    settings: dict[str, Any] = {"num_neighbors": 10, "alpha": 0.99, "class_mass": True}
    if x.shape[1] > 100:
        x, test = reduced(x, test, 50, problem.seed)
        settings["components"] = x.shape[1]
    labels = np.concatenate([problem.y, np.full(len(problem.pool), -1)])
    # A source's proportions of the classes need not be the target's.
    equal = np.full(problem.num_classes, 1 / problem.num_classes) if problem.protocol == TWO_DOMAINS else None
    spread = spread_labels(neighbor_graph(x), labels, num_classes=problem.num_classes, proportions=equal)
    return spread[nearest(x, test)].argmax(axis=1), settings


@baseline(TWO_DOMAINS)
def coral(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """Logistic regression on source samples with the covariance of the target (Sun et al., 2016)."""
    model, settings = fitted(align(problem.x, problem.pool), problem.y, problem.seed)
    return model.predict(problem.test), settings


def fitted(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[Any, dict[str, Any]]:
    """Logistic regression on samples (n, d), centered and divided by one number, so that C means the same everywhere.

    C is chosen among 0.01, 0.1, 1 and 10 by three-fold cross-validation where every class has five labels, else it is
    1. Returns the fitted pipeline, whose last step is the regression, and its `C`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    mean, deviation = x.mean(axis=0), float(np.sqrt(x.var(axis=0).mean())) or 1.0
    scale = FunctionTransformer(lambda samples: (samples - mean) / deviation)
    model, settings = LogisticRegression(max_iter=300), {"C": 1.0}
    if np.bincount(y).min() >= 5:
        few_x, few_y = (x, y) if len(y) <= _MOST else train_test_split(x, y, train_size=_MOST, stratify=y)[::2]
        folds = StratifiedKFold(3, shuffle=True, random_state=seed)
        search = GridSearchCV(model, {"C": _GRID}, cv=folds).fit(scale.transform(few_x), few_y)
        settings = search.best_params_
    return make_pipeline(scale, model.set_params(**settings)).fit(x, y), dict(settings)


def nearest(known: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Number of the nearest known sample (N, d) of each sample (n, d), by Euclidean distance."""
    from sklearn.metrics import pairwise_distances_argmin

    return pairwise_distances_argmin(samples, known)


def reduced(x: np.ndarray, test: np.ndarray, components: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of training samples (n, d), and those of the test samples; fitted on at most 20,000."""
    from sklearn.decomposition import PCA

    chosen = np.random.default_rng(seed).permutation(len(x))[:20_000]
    model = PCA(min(components, len(chosen), x.shape[1]), random_state=seed).fit(x[chosen])
    return model.transform(x), model.transform(test)


def align(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Whitens the source (n, d) and colors it as the target (m, d), whose mean is added: x C_S^{-1/2} C_T^{1/2}.

    C is the covariance plus I.
    """
    whiten = _power(np.cov(source, rowvar=False) + np.eye(source.shape[1]), -0.5)
    color = _power(np.cov(target, rowvar=False) + np.eye(target.shape[1]), 0.5)
    return ((source - source.mean(axis=0)) @ whiten @ color + target.mean(axis=0)).astype(np.float32)


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T
