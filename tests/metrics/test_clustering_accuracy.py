"""Against all namings of the clusters; unequal numbers, empty clusters, rows without a class."""

from itertools import permutations

import pytest
import torch

from supercm_lightning.metrics import ClusteringAccuracy


@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (3, 5), (5, 3)])
def test_is_the_best_of_all_namings(clusters: int, classes: int) -> None:
    stream = torch.Generator().manual_seed(0)
    preds = torch.randint(clusters, (60,), generator=stream)
    target = torch.randint(classes, (60,), generator=stream)
    names = max(clusters, classes)
    best = max(sum(p[c] == t for c, t in zip(preds.tolist(), target.tolist(), strict=True))
               for p in permutations(range(names)))  # fmt: skip
    metric = ClusteringAccuracy(clusters, classes)
    for part in torch.arange(60).split(17):
        metric.update(preds[part], target[part])
    assert float(metric.compute()) == pytest.approx(best / 60)
    mapping = metric.mapping
    assert int((mapping[preds] == target).sum()) == best
    assert len(mapping[mapping >= 0].unique()) == min(clusters, classes)


def test_permuted_classes_are_all_right_and_the_mapping_undoes_the_permutation() -> None:
    target = torch.arange(50) % 5
    permutation = torch.tensor([3, 0, 4, 1, 2])
    metric = ClusteringAccuracy(5)
    metric.update(permutation[target], target)
    assert metric.compute() == 1
    assert metric.mapping[permutation].tolist() == [0, 1, 2, 3, 4]


def test_empty_clusters_and_one_cluster_for_all() -> None:
    metric = ClusteringAccuracy(4)
    metric.update(torch.zeros(8, dtype=torch.int64), torch.arange(8) % 4)
    assert metric.compute() == 0.25


def test_scores_count_as_their_largest() -> None:
    scores = torch.tensor([[0.1, 2.0], [3.0, 0.0], [0.0, 1.0]])
    metric = ClusteringAccuracy(2)
    metric.update(scores, torch.tensor([0, 1, 0]))
    assert metric.compute() == 1


def test_rows_without_a_class_are_left_out() -> None:
    metric = ClusteringAccuracy(3, 2)
    metric.update(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, -1, -1]))
    assert metric.compute() == 1
    assert int(metric.confusion.sum()) == 2


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="num_clusters=0"):
        ClusteringAccuracy(0)
