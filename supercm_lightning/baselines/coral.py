"""Correlation alignment of two domains."""

from typing import Any

import numpy as np

from supercm_lightning.baselines.classifiers import fitted
from supercm_lightning.baselines.registry import TWO_DOMAINS, Problem, baseline


@baseline(TWO_DOMAINS)
def coral(problem: Problem) -> tuple[np.ndarray, dict[str, Any]]:
    """Logistic regression on source samples with the covariance of the target (Sun et al., 2016)."""
    model, settings = fitted(align(problem.x, problem.pool), problem.y, problem.seed)
    return model.predict(problem.test), settings


def align(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Whitens the source and colors it as the target: x C_S^{-1/2} C_T^{1/2}, where C is the covariance plus I.

    Both domains are centered, and the target's mean is added at the end.

    Args:
        source: Samples (n, d).
        target: Samples (m, d).

    Returns:
        The aligned source samples (n, d) float32.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> source, target = rng.normal(size=(500, 3)) * 30, rng.normal(size=(500, 3)) * [20, 60, 90] + 5
        >>> aligned = align(source, target)
        >>> bool(np.allclose(np.cov(aligned.T), np.cov(target.T), rtol=0.1, atol=10))
        True
    """
    whiten = _power(np.cov(source, rowvar=False) + np.eye(source.shape[1]), -0.5)
    color = _power(np.cov(target, rowvar=False) + np.eye(target.shape[1]), 0.5)
    return ((source - source.mean(axis=0)) @ whiten @ color + target.mean(axis=0)).astype(np.float32)


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T
