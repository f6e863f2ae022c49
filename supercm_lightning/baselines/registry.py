"""The registry of the methods, and the samples that one receives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

FEW_LABELS, TWO_DOMAINS, NO_LABELS = "few labels", "two domains", "no labels"

Method = Callable[["Problem"], tuple[np.ndarray, dict[str, Any]]]
"""Returns labels, or clusters, of the test samples (t,), and the settings that it used."""


@dataclass(frozen=True)
class Problem:
    """Samples of a data module as vectors.

    Attributes:
        x: Labeled (source) samples (n, d) float32; none where there are no labels.
        y: Their labels (n,).
        pool: Unlabeled (target) samples (m, d).
        test: Test samples (t, d), which may be those of `pool`. No method looks at them but to predict.
        num_classes: Number of classes, or of clusters.
        protocol: `few labels`, `two domains` or `no labels`.
        seed: Seed of what is random.
        has_unit_length: Whether all samples have unit length, so that cluster centers must.
    """

    x: np.ndarray
    y: np.ndarray
    pool: np.ndarray
    test: np.ndarray
    num_classes: int
    protocol: str
    seed: int
    has_unit_length: bool = False

    @property
    def train(self) -> np.ndarray:
        """Labeled samples, then unlabeled ones (n + m, d)."""
        return np.concatenate([self.x, self.pool])

    @property
    def class_means(self) -> np.ndarray:
        """Mean of the labeled samples of each class (K, d)."""
        return np.stack([self.x[self.y == label].mean(axis=0) for label in range(self.num_classes)])


@dataclass(frozen=True)
class Baseline:
    """A registered method, the problems that it solves, and the package that it needs to run by default."""

    method: Method
    protocols: tuple[str, ...]
    package: str | None = None


BASELINES: dict[str, Baseline] = {}
"""The methods by name."""


def baseline(*protocols: str, package: str | None = None) -> Callable[[Method], Method]:
    """Registers a function under its name for some problems; `package` is one that it needs beside the required."""

    def register(method: Method) -> Method:
        BASELINES[method.__name__] = Baseline(method, protocols, package)
        return method

    return register


def unit_length(x: np.ndarray) -> np.ndarray:
    """Vectors (n, d) divided by their length; zero stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
