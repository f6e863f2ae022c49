"""A clustering to start from: files that are read, and files that are refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from supercm_lightning.self_labeling import read_clusters
from supercm_lightning.utils.options import MissingFileError, SuperCMError


@pytest.mark.parametrize("name", ["clusters.npy", "clusters.csv"])
def test_a_clustering_is_read_from_either_kind_of_file(name: str) -> None:
    if name.endswith("npy"):
        np.save(name, np.array([1, 0, -1], dtype=np.int32))
    else:
        Path(name).write_text("file,cluster,probability\na.png,1,0.9\nb.png,0,0.8\nc.png,-1,0.5\n", encoding="utf-8")
    assert read_clusters(name, num_samples=3, num_clusters=2).tolist() == [1, 0, -1]


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (np.zeros(7, int), r"\(7,\).* 3 samples"),
        (np.array([0, 1, 2]), "0 to 1"),
        (np.array([0, -2, 1]), "0 to 1"),
        (np.array([0.0, 1.0, 1.0]), "float64"),
        (np.array([None, 1, 1]), "whole numbers"),
        (b"no array", "whole numbers"),
    ],
)
def test_a_clustering_that_does_not_fit_is_refused_by_name(content: Any, fragment: str) -> None:
    if isinstance(content, bytes):
        Path("bad.npy").write_bytes(content)
    else:
        np.save("bad.npy", content, allow_pickle=True)
    with pytest.raises(SuperCMError, match=rf"bad\.npy.*{fragment}"):
        read_clusters("bad.npy", num_samples=3, num_clusters=2)


def test_a_table_without_classes_is_refused_by_name() -> None:
    Path("bad.csv").write_text("file,label\na.png,1\n", encoding="utf-8")
    with pytest.raises(SuperCMError, match=r"bad\.csv.*cluster"):
        read_clusters("bad.csv", num_samples=1, num_clusters=2)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(MissingFileError, match=r"absent\.npy"):
        read_clusters("absent.npy", num_samples=1, num_clusters=2)
