"""Alignment recovers planted permutations, always gives one, and the two solvers meet."""

from itertools import permutations

import pytest
import torch

from supercm_lightning.self_labeling import align_labels


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_recovers_a_planted_permutation(solver: str) -> None:
    stream = torch.Generator().manual_seed(0)
    planted = torch.randperm(40, generator=stream)
    references = torch.nn.functional.normalize(torch.randn(40, 16, generator=stream), dim=1)
    samples = references[planted] + 0.05 * torch.randn(40, 16, generator=stream)
    cost = 1 - torch.nn.functional.normalize(samples, dim=1) @ references.T
    assert align_labels(cost, solver).tolist() == planted.tolist()  # type: ignore[arg-type]


def test_exact_is_the_best_of_all_permutations() -> None:
    cost = torch.rand(6, 6, generator=torch.Generator().manual_seed(1))
    best = min(permutations(range(6)), key=lambda p: sum(float(cost[i, j]) for i, j in enumerate(p)))
    assert tuple(align_labels(cost).tolist()) == best


def test_sinkhorn_meets_the_exact_solution_as_entropy_vanishes() -> None:
    stream = torch.Generator().manual_seed(2)
    costs = torch.rand(20, 12, 12, generator=stream)
    exact = [align_labels(cost) for cost in costs]

    def excess(eps: float, iterations: int) -> float:
        rows = torch.arange(12)
        found = [align_labels(cost, "sinkhorn", eps, iterations) for cost in costs]
        return sum(float(c[rows, f].sum() - c[rows, e].sum()) for c, f, e in zip(costs, found, exact, strict=True))

    assert excess(1e-3, 3000) == pytest.approx(0, abs=1e-5)
    assert excess(1.0, 100) > 0.01


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e20])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_result_is_a_permutation_at_any_scale(solver: str, scale: float, offset: float) -> None:
    cost = offset + scale * torch.rand(15, 15, generator=torch.Generator().manual_seed(3))
    assert align_labels(cost, solver).sort().values.tolist() == list(range(15))  # type: ignore[arg-type]


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        align_labels(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="solver='fast'"):
        align_labels(torch.zeros(3, 3), "fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(("reuse", "expected"), [(0.05, [1, 1]), (0.15, [0, 1]), (None, [0, 1])])
def test_a_label_is_used_again_where_another_one_costs_more(reuse: float | None, expected: list[int]) -> None:
    """Once each: 0.1 + 0.2; label 1 twice: 0.0 + 0.2 and the price."""
    assert align_labels(torch.tensor([[0.1, 0.0], [0.9, 0.2]]), reuse=reuse).tolist() == expected


def test_the_price_grows_with_every_use_of_a_label() -> None:
    cost = torch.tensor([[0.0, 9, 9], [0, 9, 9], [0, 1.5, 9]])
    assert align_labels(cost, reuse=0.7).tolist() == [0, 0, 0]  # 0 + 0.7 + 1.4
    assert align_labels(cost, reuse=1.0).tolist() == [0, 0, 1]  # 0 + 1.0 + 1.5


def test_a_rare_class_keeps_its_one_label() -> None:
    """Labels 0 to 2 stand for a large class, 3 for a rare one, of which this set holds two samples."""
    cost = torch.tensor([[0.1, 2, 2, 6], [2, 0.1, 2, 6], [5, 5, 5, 0.1], [5, 5, 4, 0.2]])
    assert align_labels(cost, reuse=1.0).tolist() == [0, 1, 3, 3]
    assert align_labels(cost).tolist() == [0, 1, 3, 2]  # as if classes were equal: a label of the large class


def test_sinkhorn_cannot_reuse_labels() -> None:
    with pytest.raises(ValueError, match="asd_reuse"):
        align_labels(torch.zeros(3, 3), "sinkhorn", reuse=1.0)
