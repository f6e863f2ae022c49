"""Scores without target labels: hand values, slow restatements, and the models that deceive them."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score

from supercm_lightning.metrics import (
    batch_nuclear_norm_score,
    class_ami,
    deep_embedded_validation,
    diversity,
    information_maximization,
    negative_entropy,
    soft_neighborhood_density,
)

CERTAIN = 40.0


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_entropy_diversity_and_their_sum_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])
    h = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert negative_entropy(p.log()) == pytest.approx(-(2 * h + math.log(2)) / 3)
    assert diversity(p.log()) == pytest.approx(math.log(2))  # the mean is (1/2, 1/2)
    assert information_maximization(p.log()) == pytest.approx(2 / 3 * (math.log(2) - h))
    assert diversity(p[:2].log()) == pytest.approx(-(0.7 * math.log(0.7) + 0.3 * math.log(0.3)))
    # Logits far apart: probabilities of zero are no NaN.
    assert information_maximization(torch.eye(3) * 1e4) == pytest.approx(math.log(3))
    assert information_maximization(torch.zeros(5, 3)) == pytest.approx(0)


def test_nuclear_norm_by_hand():
    assert batch_nuclear_norm_score(CERTAIN * torch.eye(3)) == pytest.approx(1)
    # Rank one: σ = ½ √8.
    assert batch_nuclear_norm_score(torch.zeros(4, 2)) == pytest.approx(math.sqrt(2) / 4)
    # n certain rows, evenly over K classes: K singular values √(n/K).
    assert batch_nuclear_norm_score(CERTAIN * torch.eye(4).repeat(9, 1)) == pytest.approx(math.sqrt(4 / 36))


def test_soft_neighborhood_density_is_its_definition():
    logits = normal(40, 5)
    p = logits.softmax(dim=1).double()
    entropies = []
    for i in range(40):
        cosines = [float(p[i] @ p[j] / (p[i].norm() * p[j].norm())) for j in range(40) if j != i]
        q = np.exp(np.array(cosines) / 0.05)
        q /= q.sum()
        entropies.append(-(q * np.log(q)).sum())
    assert soft_neighborhood_density(logits) == pytest.approx(np.mean(entropies), rel=1e-4)


def test_soft_neighborhood_density_by_hand_over_several_blocks():
    # 600 rows of each of four classes, neighbours of nobody else.
    logits = CERTAIN * torch.eye(4).repeat(600, 1)
    assert soft_neighborhood_density(logits, max_samples=2400) == pytest.approx(math.log(599), abs=1e-3)
    assert soft_neighborhood_density(logits, max_samples=100) == pytest.approx(math.log(24), abs=0.15)


def test_class_ami_is_scikit_learns_on_planted_clusters():
    labels = torch.arange(120) % 4
    features = 20 * normal(4, 6)[labels] + normal(120, 6, seed=1)
    assert class_ami(features, CERTAIN * torch.eye(4)[(labels + 1) % 4]) == pytest.approx(1)
    guesses = torch.where(torch.arange(120) < 50, labels, normal(120, 4, seed=2).argmax(dim=1))
    expected = adjusted_mutual_info_score(labels.numpy(), guesses.numpy())
    assert 0.05 < expected < 0.6
    assert class_ami(features, CERTAIN * torch.eye(4)[guesses]) == pytest.approx(expected)


def test_class_ami_of_a_model_that_collapsed_altogether_is_zero():
    # One cluster and one class agree perfectly, and mean nothing.
    assert class_ami(torch.ones(30, 5), torch.eye(3)[:1].repeat(30, 1)) == 0
    assert class_ami(torch.ones(30, 5), normal(30, 3)) == pytest.approx(0)
    assert class_ami(normal(2, 5), normal(2, 9)) in (0, pytest.approx(1))  # 0 in scikit-learn 1.5


def test_deep_embedded_validation_estimates_the_risk_on_the_target():
    def loss(x):
        return torch.sigmoid(2 * x[:, 0])

    source, target = normal(1000, 5), normal(800, 5, seed=1) + torch.tensor([1.0, 0, 0, 0, 0])
    truth, unweighted = float(loss(target).mean()), float(loss(source).mean())
    assert truth - unweighted > 0.2
    assert deep_embedded_validation(loss(source), source, target) == pytest.approx(-truth, abs=0.04)


def test_deep_embedded_validation_is_exact_where_the_control_variate_makes_it_so():
    source, target = normal(100, 3), 0.5 + normal(300, 3, seed=1)
    # risk = c·mean(w) − c·mean(w) + c for losses that are all c, whatever the weights.
    assert deep_embedded_validation(torch.full((100,), 0.3), source, target) == pytest.approx(-0.3)


@pytest.mark.parametrize("width", [64, 512])
def test_deep_embedded_validation_is_not_deceived_by_a_classifier_that_is_too_sure(width):
    # With one fixed weak penalty these estimates lie between -150 and +3,000,000.
    losses = torch.rand(60, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        source, target = normal(60, width, seed=seed), normal(300, width, seed=seed + 9) + 0.05
        score = deep_embedded_validation(losses, source, target, seed)
        assert score == pytest.approx(-float(losses.mean()), abs=0.15)


def test_scores_see_through_some_bad_models_and_not_through_others():
    """What docs/selection.md says of each score."""
    labels = torch.arange(600) % 12
    spread = normal(12, 16)[labels] * 4
    good = spread + 0.5 * normal(600, 16, seed=1), CERTAIN / 4 * torch.eye(12)[labels] + normal(600, 12, seed=2)
    noisy = spread + 4 * normal(600, 16, seed=1), 2 * torch.eye(12)[labels] + normal(600, 12, seed=2)
    collapsed = good[0], CERTAIN / 4 * torch.eye(12)[:1] + normal(600, 12, seed=2)
    permuted = good[0], good[1].roll(1, dims=1)
    scores = {
        "entropy": lambda features, logits: negative_entropy(logits),
        "im": lambda features, logits: information_maximization(logits),
        "bnm": lambda features, logits: batch_nuclear_norm_score(logits),
        "snd": lambda features, logits: soft_neighborhood_density(logits),
        "class_ami": class_ami,
    }
    for name, score in scores.items():
        assert score(*good) > score(*noisy), name
        assert (score(*collapsed) >= score(*good) - 1e-3) == (name in ("entropy", "snd")), name
        assert score(*permuted) == pytest.approx(score(*good), rel=1e-6), name


def test_many_rows_are_subsampled_alike_and_by_the_seed():
    # Every second row has another class and another cluster: pairs that come apart would agree by chance only.
    labels = torch.arange(3000) % 2
    features, logits = 10.0 * labels[:, None] + normal(3000, 2), torch.eye(2)[labels]
    state = torch.get_rng_state()
    assert class_ami(features, logits, max_samples=200) == pytest.approx(1)
    sorted_by_size = 1 + torch.arange(3000) / 1000  # a block of rows would not have the mean loss
    score = deep_embedded_validation(sorted_by_size, normal(3000, 2), normal(3000, 2, seed=1), max_samples=500)
    assert score == pytest.approx(-2.5, abs=0.15)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_logits_are_scored_in_full():
    logits = 3 * normal(200, 10)
    for score in (information_maximization, batch_nuclear_norm_score, soft_neighborhood_density):
        assert score(logits.bfloat16()) == pytest.approx(score(logits), rel=0.01)
        assert score(logits.bfloat16()) == score(logits.bfloat16().float())
