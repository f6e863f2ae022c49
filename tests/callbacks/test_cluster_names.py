"""Names of clusters from a few examples."""

from pathlib import Path

import pytest

from supercm_lightning.callbacks.evaluation.cluster_names import name_clusters
from supercm_lightning.utils.options import SuperCMError

FILES = [f"photos/{folder}/{name}.png" for folder in ("a", "b") for name in "123"]
CLUSTERS = [0, 0, 1, 1, 2, 3]


def names(*rows: str) -> tuple[list[str], list[str]]:
    Path("labels.csv").write_text("\n".join(["file,class", *rows]))
    return name_clusters("labels.csv", FILES, CLUSTERS, num_clusters=5)


def test_the_majority_names_a_cluster_and_splits_are_told() -> None:
    found, notes = names("a/1.png,dog", "a/2.png,cat", "photos/a/3.png,cat", "b/1.png,cat", "b/2.png,owl")
    assert found == ["dog", "cat", "owl", "", ""]
    assert "without: 3, 4" in notes[0]
    assert sum("examples of dog (1), cat (1)" in note for note in notes) == 1
    assert [note for note in notes if "split" in note] == ["cat is split over clusters 1 (2), 0 (1)."]
    assert len(names("b/2.png,owl")[1]) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [(["c/1.png,dog"], "none of the samples"), (["1.png,dog"], "2 of the samples"), ([], "columns")],
)
def test_examples_that_are_no_samples_are_refused(rows: list[str], message: str) -> None:
    with pytest.raises(SuperCMError, match=message):
        names(*rows)


def test_a_table_filled_in_in_part_names_what_it_can() -> None:
    assert names("a/1.png,", "a/2.png,cat", "a/3.png,")[0] == ["cat", "", "", "", ""]


def test_a_whole_name_is_not_the_end_of_another_one() -> None:
    Path("labels.csv").write_text("file,class\n1.png,dog\n")
    assert name_clusters("labels.csv", ["1.png", "a/1.png"], [0, 1], num_clusters=2)[0] == ["dog", ""]


def test_a_table_in_another_encoding_is_named() -> None:
    Path("labels.csv").write_bytes("file,class\na/1.png,Bär\n".encode("cp1252"))
    with pytest.raises(SuperCMError, match="UTF-8"):
        name_clusters("labels.csv", FILES, CLUSTERS, num_clusters=5)
