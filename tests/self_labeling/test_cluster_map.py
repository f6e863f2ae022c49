"""The map from classes to clusters: made from planted transitions, with stable ids, stored in checkpoints."""

import pytest
import torch
from torch import Tensor

from supercm_lightning.self_labeling import ClusterMap, group_classes, group_features, majority_clusters


def planted(group: Tensor) -> Tensor:
    """Transitions within the groups alone."""
    return (5 * (group[:, None] == group)).fill_diagonal_(0)


def test_a_map_groups_connected_classes_and_keeps_its_ids() -> None:
    clusters, group = ClusterMap(12, 3), torch.arange(12) % 3
    assert clusters(torch.arange(12)).tolist() == [-1] * 12
    clusters.update_map(planted(group))
    first = clusters.cluster_of.clone()
    assert clusters.is_known
    assert clusters.change == 1.0
    assert all(len(first[group == k].unique()) == 1 for k in range(3))
    moved = group.clone()
    moved[0] = 1
    clusters.update_map(planted(moved))
    assert (clusters.cluster_of != first).nonzero().flatten().tolist() == [0]
    assert clusters.change.item() == pytest.approx(1 / 12)


def test_no_transitions_leave_everything_as_it_is() -> None:
    clusters = ClusterMap(4, 2)
    clusters.update_map(torch.zeros(4, 4, dtype=torch.int64))
    assert not clusters.is_known
    clusters.set_map(torch.tensor([1, 0, 0, 1]))
    clusters.update_map(torch.zeros(4, 4, dtype=torch.int64))
    assert clusters.cluster_of.tolist() == [1, 0, 0, 1]


def test_given_clusters_give_their_ids_to_the_first_map_only() -> None:
    group = torch.arange(12) % 3
    given = torch.tensor([2, 0, 1])[group]
    clusters = ClusterMap(12, 3)
    clusters.update_map(planted(group), names=given)
    assert clusters.cluster_of.tolist() == given.tolist()
    clusters.update_map(planted(group), names=group)
    assert clusters.cluster_of.tolist() == given.tolist()


def test_frequent_classes_decide_the_ids() -> None:
    clusters = ClusterMap(5, 2)
    clusters.set_map(torch.tensor([0, 0, 0, 1, 1]))
    logits = torch.tensor([[9.0, 0, 0, 0, 0], [0, 0, 0, 9.0, 0]])
    for _ in range(400):
        clusters.update_frequencies(logits)
    assert clusters.frequencies[[0, 3]].tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    clusters.update_map(planted(torch.tensor([1, 0, 0, 0, 1])))
    assert clusters.cluster_of[[0, 3]].tolist() == [0, 1]


def test_a_loaded_map_is_known_if_the_saved_one_was() -> None:
    saved, loaded = ClusterMap(4, 2), ClusterMap(4, 2)
    loaded.load_state_dict(saved.state_dict())
    assert not loaded.is_known
    saved.set_map(torch.tensor([1, 0, 0, 1]))
    loaded.load_state_dict(saved.state_dict())
    assert loaded.is_known
    assert loaded(torch.tensor([0, 1])).tolist() == [1, 0]


def test_the_cluster_of_a_class_is_that_of_most_of_its_samples() -> None:
    classes = torch.tensor([0, 0, 0, 1, 1, 2, -1, 3], dtype=torch.int32)
    clusters = torch.tensor([1, 1, 0, 2, 2, -1, 0, 0])
    assert majority_clusters(classes, clusters, 5, 3).tolist() == [1, 2, -1, 0, -1]


def test_one_class_of_a_rare_cluster_is_not_merged_to_make_sizes_equal() -> None:
    """Nine classes stand for a large cluster and one each for two rare ones; a class without samples follows."""
    centers = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])[[0] * 9 + [1, 2, 2]]
    spread = 0.3 * torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(centers + spread * torch.tensor([1.0, 0, 0]), dim=1)
    counts = torch.tensor([20] * 11 + [0])
    groups = group_features(features, counts, k=3)
    assert len(groups[:9].unique()) == 1
    assert len(groups.unique()) == 3
    assert groups[10] == groups[11]
    # With a label for each sample, samples of rare classes get labels of large ones, which k-medoids then takes apart.
    transitions = torch.ones(11, 11, dtype=torch.int64)
    transitions[:5, :5] = transitions[5:9, 5:9] = 6
    transitions[9, 0] = transitions[10, 1] = 9
    assert len(group_classes(transitions, 3)[:9].unique()) > 1


def test_there_is_no_map_before_enough_classes_have_samples() -> None:
    assert len(group_features(torch.zeros(4, 3), torch.zeros(4), k=2)) == 0
