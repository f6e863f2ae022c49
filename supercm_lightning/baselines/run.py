"""Runs the methods on the samples of a data module."""

import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from supercm_lightning.baselines.classifiers import reduced
from supercm_lightning.baselines.registry import BASELINES, FEW_LABELS, NO_LABELS, TWO_DOMAINS, Problem, unit_length
from supercm_lightning.contracts import ArrayData
from supercm_lightning.metrics import ClusteringAccuracy
from supercm_lightning.utils.options import SuperCMError


def run_baselines(datamodule: ArrayData, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Fits simple methods to the samples, split and preprocessing of a data module, and tests them on its test samples.

    Training is told the labels of the labeled samples only, as every method of the package is. The unlabeled samples
    are all used; the validation samples are not.

    Args:
        datamodule: The data.
        names: The methods; None: all of the data's problem whose packages are installed.

    Returns:
        One row for each method: `method`, `protocol` (`few labels`, `two domains` or `no labels`), `test/acc` in
        [0, 1], without labels `test/nmi` and `test/ari` too, `seconds`, and `settings`, what the method chose.

    Raises:
        SuperCMError: If a name is not one of the problem's methods, or there are no test samples with labels.

    Examples:
        >>> from supercm_lightning.data import FeatureDataModule
        >>> x, y = torch.rand(300, 3), torch.arange(300) % 3
        >>> x[torch.arange(300), y] += 9
        >>> (row,) = run_baselines(FeatureDataModule((x, y), num_labeled=6, num_test=90), ["label_spreading"])
        >>> row["test/acc"]
        1.0
    """
    problem, labels = prepare(datamodule)
    return [run_baseline(name, problem, labels) for name in (names or default_names(problem.protocol))]


def default_names(protocol: str) -> list[str]:
    """Names of a problem's methods whose packages are installed."""
    known = [(name, entry.package) for name, entry in BASELINES.items() if protocol in entry.protocols]
    return [name for name, package in known if package is None or find_spec(package)]


def prepare(datamodule: ArrayData) -> tuple[Problem, np.ndarray]:
    """Samples of a data module as vectors, and the labels of its test samples.

    Samples that are vectors, which frozen features are, get unit length. Samples of more than 2,048 values are reduced
    to 256 principal components.

    Raises:
        SuperCMError: If there are no test samples with labels, or no unlabeled samples.
    """
    datamodule.setup("fit")
    if not datamodule.has_test:
        raise SuperCMError("The data has no test samples with labels: give a test set.")
    (pool, _), (test, labels) = (_vectors(datamodule, split) for split in ("unlabeled", "test"))
    protocol = TWO_DOMAINS if datamodule.is_domain_adaptation else FEW_LABELS
    if "labeled" in datamodule.samples:
        x, y = _vectors(datamodule, "labeled")
    else:
        x, y, protocol = pool[:0], labels[:0], NO_LABELS
    unit = len(datamodule.input_shape) == 1
    if test.shape[1] > 2048:
        train, test = reduced(np.concatenate([x, pool]), test, 256, 0)
        x, pool, unit = train[: len(x)], train[len(x) :], False
    seed = torch.initial_seed() % 2**31
    return Problem(x, y, pool, test, datamodule.num_classes, protocol, seed, unit), labels


def run_baseline(name: str, problem: Problem, labels: np.ndarray) -> dict[str, Any]:
    """One row of `run_baselines`, for the problem and the test labels that `prepare` gives."""
    if name not in (known := [known for known, entry in BASELINES.items() if problem.protocol in entry.protocols]):
        raise SuperCMError(f"names={name!r}: for {problem.protocol} there are {', '.join(known)}.")
    start = time.monotonic()
    predictions, settings = BASELINES[name].method(problem)
    seconds = round(time.monotonic() - start, 3)
    if problem.protocol == NO_LABELS:
        scores = _clustering_scores(predictions, labels, problem.num_classes)
    else:
        scores = {"acc": float((predictions == labels).mean())}
    metrics = {f"test/{key}": value for key, value in scores.items()}
    return {"method": name, "protocol": problem.protocol, **metrics, "seconds": seconds, "settings": settings}


def _clustering_scores(clusters: np.ndarray, classes: np.ndarray, count: int) -> dict[str, float]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    accuracy = ClusteringAccuracy(count)(torch.as_tensor(clusters).long(), torch.from_numpy(classes))
    nmi, ari = normalized_mutual_info_score(classes, clusters), adjusted_rand_score(classes, clusters)
    return {"acc": float(accuracy), "nmi": float(nmi), "ari": float(ari)}


def _vectors(datamodule: ArrayData, split: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = datamodule.arrays(split)
    if x.ndim == 2:
        x = unit_length(x)
    return x.reshape(len(x), -1), y
