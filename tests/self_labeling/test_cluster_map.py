"""The map from classes to clusters: made from planted transitions, with stable ids, stored in checkpoints."""

import pytest
import torch
from torch import Tensor

from supercm_lightning.self_labeling import ClusterMap, majority_clusters


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
