"""A clustering to start from: its file, and the clusters that it gives to instance classes."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from supercm_lightning.data.sources.names import normalized
from supercm_lightning.utils.options import MissingFileError, SuperCMError
from supercm_lightning.utils.text import cell_text


def read_clusters(path: str | Path, num_samples: int, num_clusters: int, names: Sequence[str] | None = None) -> Tensor:
    """Reads a clustering, one whole number per sample.

    Args:
        path: A `.npy` file in the order of the samples, or a table with a column `cluster` as `PredictionWriter` writes
            it; its lines are matched by their `file` or `index`, whatever their order.
        num_samples: Expected number of samples.
        num_clusters: Number of clusters k.
        names: File of each sample, or its path below the data's folder; None: the samples have none.

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
                rows = list(csv.DictReader(table))
            clusters = torch.tensor([int(row["cluster"]) for row in rows], dtype=torch.int64)
        else:
            numbers = np.load(path, allow_pickle=False)
            if not isinstance(numbers, np.ndarray):
                raise SuperCMError("several arrays")
            if numbers.dtype.kind not in "iu":
                raise SuperCMError(f"numbers of type {numbers.dtype}")
            clusters = torch.from_numpy(numbers).long()
    except (ValueError, KeyError, TypeError, EOFError, OSError) as error:
        raise SuperCMError(
            f"{path}: not a clustering ({error}). Expected .npy of whole numbers, or a table written by predict, with "
            "a column `cluster`."
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
    return clusters if path.suffix != ".csv" else clusters[_places(path, rows, names)]


def _places(path: Path, rows: Sequence[Mapping[str, str]], names: Sequence[str] | None) -> Tensor:
    """The line of each sample in a table."""
    if rows and "file" in rows[0] and names is not None:
        known = {normalized(name): number for number, name in enumerate(names)}
        wanted = [_number_of(normalized(cell_text(row["file"])), known) for row in rows]
    elif rows and "index" in rows[0]:
        wanted = [int(row["index"]) if row["index"].isdecimal() else -1 for row in rows]
    else:
        wanted = list(range(len(rows)))
    if sorted(wanted) != list(range(len(rows))):
        wrong = next(
            line for line, number in enumerate(wanted) if not 0 <= number < len(rows) or number in wanted[:line]
        )
        what = rows[wrong].get("file") or rows[wrong].get("index")
        raise SuperCMError(f"{path}: line {wrong + 2} ({what}) is none of the samples, or is there twice.")
    return torch.tensor(wanted).argsort()


def _number_of(file: str, known: Mapping[str, int]) -> int:
    """The sample of a file, which may have further folders in front; -1 for none."""
    parts = file.split("/")
    names = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((known[name] for name in names if name in known), -1)


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
