"""Coverage against counting and simulation; samplers that repeat nothing and find planted groups."""

from itertools import combinations

import pytest
import torch

from supercm_lightning.self_labeling import class_coverage, prototype_sample, random_sample


@pytest.mark.parametrize(
    ("n", "k", "n_l"), [(6, 3, 3), (8, 2, 3), (9, 3, 5), (8, 4, 3), (7, 5, 5), (4, 3, 1), (8, 5, 6), (3, 4, 3)]
)
def test_coverage_is_the_fraction_of_all_draws(n: int, k: int, n_l: int) -> None:
    classes = [sample % k for sample in range(n)]
    draws = list(combinations(classes, n_l))
    assert class_coverage(n, k, n_l) == pytest.approx(sum(len(set(draw)) == k for draw in draws) / len(draws))


@pytest.mark.parametrize(
    ("k", "n_l", "expected"), [(10, 40, 0.858), (20, 80, 0.710), (100, 400, 0.157), (10, 60, 0.982)]
)
def test_coverage_of_fifty_thousand_samples(k: int, n_l: int, expected: float) -> None:
    assert class_coverage(50_000, k, n_l) == pytest.approx(expected, abs=6e-4)


def test_coverage_agrees_with_simulation() -> None:
    stream = torch.Generator().manual_seed(0)
    hits = sum(len((torch.randperm(200, generator=stream)[:20] % 10).unique()) == 10 for _ in range(4000))
    assert hits / 4000 == pytest.approx(class_coverage(200, 10, 20), abs=0.03)


def test_coverage_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="n_l=11"):
        class_coverage(10, 2, 11)


def test_every_sample_is_drawn_before_any_is_drawn_again() -> None:
    unused = torch.ones(23, dtype=torch.bool)
    stream = torch.Generator().manual_seed(0)
    drawn = torch.cat([random_sample(unused, 5, stream) for _ in range(23)])
    for start in range(0, 115, 23):
        assert drawn[start : start + 23].sort().values.tolist() == list(range(23))
    assert drawn[:23].tolist() != drawn[23:46].tolist()


def test_prototypes_and_neighbors_are_the_planted_groups() -> None:
    stream = torch.Generator().manual_seed(0)
    centers = torch.eye(5)
    group = torch.arange(100) % 5
    features = centers[group] + 0.1 * torch.randn(100, 5, generator=stream)
    unused = torch.ones(100, dtype=torch.bool)
    unused[:30] = False
    drawn = prototype_sample(features, 5, 22, unused, stream)
    assert len(drawn.unique()) == 22
    assert bool(unused[drawn].all())
    of = group[drawn].split([5, 5, 4, 4, 4])
    assert all(len(part.unique()) == 1 for part in of)
    assert len(group[drawn].unique()) == 5


def test_neighbors_are_those_nearest_to_the_prototype() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.3], [1.0, 0.1], [0.0, 1.0], [0.3, 1.0], [0.1, 1.0]])
    drawn = prototype_sample(features, 2, 4, torch.ones(6, dtype=torch.bool), torch.Generator().manual_seed(0))
    # The middle of each three is nearest to their mean; the sample on the axis is nearer to it than the third.
    assert {tuple(drawn[:2].tolist()), tuple(drawn[2:].tolist())} == {(2, 0), (5, 3)}


def test_too_few_candidates_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 candidates for n_l=4"):
        prototype_sample(torch.rand(8, 2), 2, 4, torch.arange(8) < 3, torch.Generator())
