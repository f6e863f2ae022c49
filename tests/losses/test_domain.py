"""Losses between domains against hand values, slow restatements and other routines."""

import math

import pytest
import torch
import torch.nn.functional as F

from supercm_lightning.losses import (
    batch_nuclear_norm,
    certainty_weight,
    domain_adversarial_loss,
    fast_batch_nuclear_norm,
    minimum_class_confusion,
)


def test_domain_loss_is_half_the_cross_entropy_of_each_domain() -> None:
    source, target = torch.randn(5, 1), torch.randn(9, 1)
    expected = 0.5 * (
        F.binary_cross_entropy(source.sigmoid(), torch.ones_like(source))
        + F.binary_cross_entropy(target.sigmoid(), torch.zeros_like(target))
    )
    torch.testing.assert_close(domain_adversarial_loss(source, target), expected)
    assert domain_adversarial_loss(torch.zeros(3), torch.zeros(7)).item() == pytest.approx(math.log(2))
    # A source row of 0 and one of ln 3 (σ = 3/4) against a target row of −ln 3.
    value = domain_adversarial_loss(torch.tensor([0.0, math.log(3)]), torch.tensor([-math.log(3)]))
    assert value.item() == pytest.approx(0.5 * ((math.log(2) + math.log(4 / 3)) / 2 + math.log(4 / 3)))


def test_repeating_the_rows_of_one_domain_changes_nothing() -> None:
    source, target = torch.randn(4), torch.randn(6)
    torch.testing.assert_close(
        domain_adversarial_loss(source, target), domain_adversarial_loss(source.repeat(5), target)
    )


def test_weights_of_the_domain_loss_count_within_their_domain() -> None:
    source, target = torch.randn(2), torch.randn(3)
    whole = domain_adversarial_loss(source.repeat_interleave(torch.tensor([3, 1])), target[[0, 2]])
    weighted = domain_adversarial_loss(source, target, torch.tensor([1.5, 0.5]), torch.tensor([7.0, 0.0, 7.0]))
    torch.testing.assert_close(weighted, whole)


def test_extreme_domain_logits_stay_finite_in_low_precision() -> None:
    source = torch.tensor([-200.0, 3e4], dtype=torch.bfloat16, requires_grad=True)
    loss = domain_adversarial_loss(source, torch.tensor([3e4], dtype=torch.bfloat16))
    loss.backward()
    assert loss.isfinite()
    assert source.grad is not None
    assert source.grad.isfinite().all()


def test_certainty_weight_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [200.0, 0.0, 0.0, 0.0], [50.0, 50.0, 0.0, 0.0]], requires_grad=True)
    weight = certainty_weight(logits)
    torch.testing.assert_close(weight, torch.tensor([1.25, 2.0, 1.5]))
    assert not weight.requires_grad


def confusion_by_loops(logits: torch.Tensor, temperature: float) -> float:
    n, k = logits.shape
    p = [[math.exp(z / temperature) for z in row] for row in logits.tolist()]
    p = [[value / sum(row) for value in row] for row in p]
    weight = [1 + math.exp(sum(v * math.log(v) for v in row)) for row in p]
    weight = [n * w / sum(weight) for w in weight]
    off = 0.0
    for a in range(k):
        row = [sum(weight[i] * p[i][a] * p[i][b] for i in range(n)) for b in range(k)]
        off += sum(value for b, value in enumerate(row) if b != a) / sum(row)
    return off / k


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_class_confusion_follows_a_plain_loop(temperature: float) -> None:
    logits = 3 * torch.randn(12, 5, dtype=torch.float64)
    value = minimum_class_confusion(logits, temperature)
    assert value.item() == pytest.approx(confusion_by_loops(logits, temperature), rel=1e-5)


def test_class_confusion_of_certain_and_of_undecided_rows() -> None:
    assert minimum_class_confusion(100 * torch.eye(4)).item() == pytest.approx(0.0, abs=1e-6)
    assert minimum_class_confusion(torch.zeros(8, 4)).item() == pytest.approx(0.75)
    never = torch.tensor([[0.0, 0.0, -400.0]]).expand(4, -1)  # a class of probability zero in float32
    assert minimum_class_confusion(never, 1.0).item() == pytest.approx(2 / 3)


def test_nuclear_norm_by_hand_and_by_another_routine() -> None:
    # Four certain rows, two of each class: singular values √2 and √2, over n = 4.
    certain = 100 * torch.eye(2).repeat(2, 1)
    assert batch_nuclear_norm(certain).item() == pytest.approx(-math.sqrt(2) / 2)
    # One class for all: a single singular value √4.
    assert batch_nuclear_norm(100 * torch.eye(2)[[0, 0, 0, 0]]).item() == pytest.approx(-0.5)
    logits = torch.randn(9, 6)
    expected = -torch.linalg.matrix_norm(logits.softmax(1), "nuc") / 9
    torch.testing.assert_close(batch_nuclear_norm(logits), expected)


def test_nuclear_norm_gradient_is_finite_where_singular_values_vanish() -> None:
    logits = (100 * torch.eye(3)[[0] * 8]).requires_grad_()
    batch_nuclear_norm(logits).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("rows", [4, 12])
def test_fast_norm_follows_a_plain_loop_and_meets_the_exact_one_on_certain_rows(rows: int) -> None:
    logits = torch.randn(rows, 7)
    p = logits.softmax(1)
    norms = sorted((sum(float(v) ** 2 for v in p[:, k]) ** 0.5 for k in range(7)), reverse=True)
    assert fast_batch_nuclear_norm(logits).item() == pytest.approx(-sum(norms[: min(rows, 7)]) / rows, rel=1e-5)
    certain = 100 * torch.eye(7)[torch.arange(rows) % 7]
    torch.testing.assert_close(fast_batch_nuclear_norm(certain), batch_nuclear_norm(certain))


@pytest.mark.parametrize("loss", [minimum_class_confusion, batch_nuclear_norm, fast_batch_nuclear_norm])
def test_losses_take_low_precision_under_autocast(loss: object) -> None:
    assert callable(loss)
    logits = torch.randn(16, 5)
    exact = loss(logits)
    with torch.autocast("cpu", torch.bfloat16):
        low = loss(logits.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=2e-2, atol=0)
