"""Planted groups, optimality on small matrices, matrices without information, ids that stay."""

from itertools import combinations

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from supercm_lightning.self_labeling import group_classes, kmedoids, match_clusters


def planted(k: int, size: int, within: float, between: float, seed: int, shuffle: bool = True) -> tuple[Tensor, Tensor]:
    """Poisson counts of transitions between classes of k groups, and the groups."""
    stream = torch.Generator().manual_seed(seed)
    group = torch.arange(k * size) % k
    if shuffle:
        group = group[torch.randperm(k * size, generator=stream)]
    rate = torch.where(group[:, None] == group, within, between)
    counts = torch.poisson(rate.double(), generator=stream).long()
    return counts.fill_diagonal_(0), group


def warm_started(counts: Tensor, k: int, seed: int) -> list[int]:
    """The variant of the literature: assignment seeded by old medoids, rows compared with the new ones."""
    n = len(counts)
    medoids = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k].tolist()
    similarity = (counts + counts.T) / 2
    seen: list[set[int]] = []
    while set(medoids) not in seen:
        seen.append(set(medoids))
        members: list[list[int]] = [[medoid] for medoid in medoids]
        for row in range(n):
            if row not in medoids:
                members[int(similarity[row, medoids].argmax())].append(row)
        medoids = [part[int(counts[part][:, part].sum(1).argmax())] for part in members]
    return similarity[:, medoids].argmax(1).tolist()


@pytest.mark.parametrize("by", ["kmedoids", "spectral"])
def test_planted_groups_are_recovered_with_certainty(by: str) -> None:
    for seed in range(10):
        counts, group = planted(10, 4, 20, 1, seed)
        assert adjusted_rand_score(group, group_classes(counts, 10, by)) == 1.0  # type: ignore[arg-type]


def test_the_warm_started_variant_of_the_literature_fails_there() -> None:
    scores = [
        adjusted_rand_score(group, warm_started(counts, 10, seed))
        for seed in range(10)
        for counts, group in [planted(10, 4, 20, 1, seed)]
    ]
    assert max(scores) < 1.0


def test_spectral_finds_groups_in_thin_matrices_where_kmedoids_does_not() -> None:
    scores = {"kmedoids": 0.0, "spectral": 0.0}
    for seed in range(3):
        counts, group = planted(8, 10, 1.5, 0.1, seed)
        for by in scores:
            scores[by] += adjusted_rand_score(group, group_classes(counts, 8, by)) / 3  # type: ignore[arg-type]
    assert scores["spectral"] > 0.9
    assert scores["kmedoids"] < 0.8


def test_swap_reaches_the_best_medoids_of_small_matrices() -> None:
    reached = 0
    for seed in range(20):
        points = torch.rand(12, 2, generator=torch.Generator().manual_seed(seed))
        d = torch.cdist(points, points)
        _, medoids = kmedoids(d, 3)
        best = min(float(d[:, list(m)].amin(1).sum()) for m in combinations(range(12), 3))
        found = float(d[:, medoids].amin(1).sum())
        assert found <= 1.1 * best
        reached += found <= best + 1e-6
    assert reached >= 15


def test_labels_are_the_nearest_medoids_and_medoids_are_their_own() -> None:
    points = torch.rand(30, 3, generator=torch.Generator().manual_seed(0))
    d = torch.cdist(points, points)
    labels, medoids = kmedoids(d, 4)
    assert labels.tolist() == d[:, medoids].argmin(1).tolist()
    assert labels[medoids].tolist() == [0, 1, 2, 3]
    assert torch.equal(labels, kmedoids(d, 4)[0])


def test_one_cluster_and_as_many_clusters_as_items() -> None:
    d = torch.cdist(torch.arange(5.0)[:, None], torch.arange(5.0)[:, None])
    assert kmedoids(d, 1)[1].tolist() == [2]
    assert sorted(kmedoids(d, 5)[1].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("by", ["kmedoids", "spectral"])
def test_a_matrix_without_transitions_gives_groups_of_equal_size(by: str) -> None:
    groups = group_classes(torch.zeros(40, 40, dtype=torch.int64), 10, by)  # type: ignore[arg-type]
    assert groups.bincount().tolist() == [4] * 10


def test_classes_without_any_transition_do_not_stop_the_others() -> None:
    counts, group = planted(3, 6, 20, 1, 0, shuffle=False)
    counts[:2], counts[:, :2] = 0, 0
    for by in ("kmedoids", "spectral"):
        found = group_classes(counts, 3, by)  # type: ignore[arg-type]
        assert adjusted_rand_score(group[2:], found[2:]) == 1.0


def test_ids_stay_when_clusters_are_made_again() -> None:
    stream = torch.Generator().manual_seed(0)
    old = torch.arange(40) % 10
    for _ in range(20):
        permuted = torch.randperm(10, generator=stream)[old]
        permuted[:3] = torch.randint(10, (3,), generator=stream)
        renamed = match_clusters(permuted, old, torch.ones(40), 10)
        assert renamed[3:].tolist() == old[3:].tolist()
        assert adjusted_rand_score(renamed, permuted) == 1.0


def test_heavy_items_decide_the_names() -> None:
    old, new = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 1, 1, 0])
    assert match_clusters(new, old, torch.ones(5), 2).tolist() == [1, 0, 0, 0, 1]
    assert match_clusters(new, old, torch.tensor([9.0, 1, 1, 9, 1]), 2).tolist() == [0, 1, 1, 1, 0]


def test_items_without_an_earlier_cluster_do_not_count() -> None:
    old, new = torch.tensor([-1, -1, -1, 1]), torch.tensor([1, 1, 1, 0])
    assert match_clusters(new, old, torch.ones(4), 2).tolist() == [0, 0, 0, 1]


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="k=4"):
        kmedoids(torch.zeros(3, 3), 4)
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        kmedoids(torch.zeros(3, 2), 1)
    with pytest.raises(ValueError, match="by='average'"):
        group_classes(torch.ones(3, 3), 2, "average")  # type: ignore[arg-type]
