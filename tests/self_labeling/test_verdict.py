"""The verdict tells good clusterings from bad ones, and names the best of the cluster head and two others."""

from typing import Any

import pytest
import torch

from supercm_lightning.self_labeling import Verdict, judge


def groups(sizes: list[int], noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    order = torch.randperm(len(labels), generator=stream)
    features = torch.eye(len(sizes), 8)[labels] + noise * torch.randn(len(labels), 8, generator=stream)
    return features[order], labels[order]


def test_the_right_clusters_are_trusted_whatever_their_ids() -> None:
    features, labels = groups([40, 40, 40])
    found = judge(features, (labels + 1) % 3, k=3, label_agreement=0.99)
    assert found.is_trusted
    assert found.kmeans_agreement == 1.0
    assert found.crossing["head"] == found.crossing["kmeans"] < 0.1


def test_merged_and_split_groups_are_not_and_another_is_better() -> None:
    features, labels = groups([40, 40, 40])
    wrong = torch.where(labels == 2, 1, torch.where((labels == 0) & (features[:, 5] > 0), 2, labels))
    found = judge(features, wrong, k=3, label_agreement=0.99)
    assert not found.is_trusted
    assert found.best != "head"
    assert "NOT" in str(found)


@pytest.mark.parametrize("change", [{"label_agreement": 0.8}, {"kmeans_agreement": 0.7}, {"empty": 1}], ids=str)
def test_every_sign_counts(change: dict[str, float]) -> None:
    good: dict[str, Any] = {"label_agreement": 0.99, "kmeans_agreement": 0.99, "crossing": {"head": 0.1}, "empty": 0}
    assert Verdict(**good).is_trusted
    assert not Verdict(**good | change).is_trusted


def test_one_cluster_for_all_is_no_error() -> None:
    features, labels = groups([20, 20])
    found = judge(features, torch.zeros_like(labels), k=2, label_agreement=1.0)
    assert (found.empty, found.crossing["head"]) == (1, 0.5)
    assert found.best != "head"
