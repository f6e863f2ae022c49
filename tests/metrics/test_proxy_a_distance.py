"""The proxy A-distance: known distances, sizes that differ, few rows."""

import pytest
import torch

from supercm_lightning.metrics import proxy_a_distance
from supercm_lightning.utils.options import SuperCMError


def normal(*shape, seed, mean=0.0):
    return mean + torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("sizes", "width"), [((795, 795), 64), ((2800, 500), 64), ((300, 6000), 64)])
def test_domains_of_one_distribution_have_no_distance_whatever_their_sizes(sizes, width):
    source, target = normal(sizes[0], width, seed=1), normal(sizes[1], width, seed=2)
    # Standard error sqrt(2 / n); without balance these sizes read 0.9 and more.
    assert proxy_a_distance(source, target) < 3 * (2 / min(sizes)) ** 0.5


def test_distance_of_two_gaussians_is_that_of_the_best_classifier():
    # Means two standard deviations apart: the best classifier errs with Φ(−1) = 0.1587.
    shift = torch.tensor([2.0, 0.0, 0.0])
    source, target = normal(4000, 3, seed=1), normal(2000, 3, seed=2) + shift
    assert proxy_a_distance(source, target) == pytest.approx(2 * (1 - 2 * 0.1587), abs=0.06)
    # Units of a feature do not matter, nor which domain is which.
    units = torch.tensor([1e-4, 1.0, 1e4])
    assert proxy_a_distance(target * units, source * units) == pytest.approx(2 * (1 - 2 * 0.1587), abs=0.06)


def test_separable_domains_have_the_largest_distance():
    assert proxy_a_distance(normal(50, 8, seed=1), normal(80, 8, seed=2, mean=9.0)) == 2.0


def test_fewer_rows_than_features_do_not_saturate():
    # Any 80 rows in 512 dimensions can be told apart by a hyperplane; held-out rows cannot.
    distances = [proxy_a_distance(normal(40, 512, seed=s), normal(40, 512, seed=s + 100), s) for s in range(10)]
    assert sum(distances) / len(distances) < 0.3


def test_the_seed_decides_and_random_states_stay():
    source, target = normal(60, 4, seed=1), normal(200, 4, seed=2, mean=0.4)
    state = torch.get_rng_state()
    assert proxy_a_distance(source, target, seed=3) == proxy_a_distance(source, target, seed=3)
    assert len({proxy_a_distance(source, target, seed) for seed in range(5)}) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_features_are_errors():
    rows = normal(10, 4, seed=1)
    with pytest.raises(SuperCMError, match=r"at least 5 samples.*4 source"):
        proxy_a_distance(rows[:4], rows)
    with pytest.raises(SuperCMError, match=r"\(4,\), target features \(3,\)"):
        proxy_a_distance(rows, rows[:, :3])
    with pytest.raises(SuperCMError, match="NaN"):
        proxy_a_distance(rows, rows / 0)
