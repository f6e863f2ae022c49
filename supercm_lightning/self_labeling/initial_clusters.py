"""A clustering to start from: its file, and the clusters that it gives to instance classes."""

import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from supercm_lightning.utils.options import MissingFileError, SuperCMError


def read_clusters(path: str | Path, num_samples: int, num_clusters: int) -> Tensor:
    """Reads a clustering, one whole number per sample.

    Args:
        path: A `.npy` file, or a table with a column `class` as `PredictionWriter` writes it.
        num_samples: Expected number of samples.
        num_clusters: Number of clusters k.

    Returns:
        Cluster of each sample, (num_samples,) int64 in [0, k), -1 for none.

    Raises:
        MissingFileError: If there is no such file.
        SuperCMError: If it is no clustering of that many samples into that many clusters.

    Examples:
        >>> import os, tempfile
        >>> file = os.path.join(tempfile.mkdtemp(), "clusters.npy")
        >>> np.save(file, [0, 1, -1, 1])
        >>> read_clusters(file, num_samples=4, num_clusters=2)
        tensor([ 0,  1, -1,  1])
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise MissingFileError(f"{path}: no such file. Expected .npy, or a table written by predict.")
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as table:
                clusters = torch.tensor([int(row["class"]) for row in csv.DictReader(table)], dtype=torch.int64)
        else:
            numbers = np.load(path, allow_pickle=False)
            if numbers.dtype.kind not in "iu":
                raise SuperCMError(f"numbers of type {numbers.dtype}")
            clusters = torch.from_numpy(numbers).long()
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise SuperCMError(
            f"{path}: not a clustering ({error}). Expected .npy of whole numbers, or a table written by predict, with "
            "a column `class`."
        ) from error
    if tuple(clusters.shape) != (num_samples,):
        raise SuperCMError(
            f"{path}: clusters of shape {tuple(clusters.shape)}; expected one for each of {num_samples} samples."
        )
    if int(clusters.min()) < -1 or int(clusters.max()) >= num_clusters:
        raise SuperCMError(
            f"{path}: clusters from {int(clusters.min())} to {int(clusters.max())}; expected 0 to {num_clusters - 1}, "
            "or -1 for none."
        )
    return clusters


def majority_clusters(classes: Tensor, clusters: Tensor, num_classes: int, num_clusters: int) -> Tensor:
    """Most frequent cluster among the samples of each class.

    Args:
        classes: Class of each sample, (n,) integer in [0, C), -1 for none.
        clusters: Cluster of each sample, (n,) int64 in [0, k), -1 for none.
        num_classes: Number of classes C.
        num_clusters: Number of clusters k.

    Returns:
        Cluster of each class, (C,) int64, -1 where no sample has both.

    Examples:
        >>> majority_clusters(torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 0, 0]), num_classes=3, num_clusters=2)
        tensor([ 1,  0, -1])
    """
    known = (classes >= 0) & (clusters >= 0)
    cells = classes[known].long() * num_clusters + clusters[known]
    count, cluster = torch.bincount(cells, minlength=num_classes * num_clusters).view(num_classes, -1).max(dim=1)
    return torch.where(count > 0, cluster, -1)
