"""Losses on unlabelled rows against slow restatements."""

import math

import pytest
import torch
from torch import nn

from supercm_lightning.losses import (
    consistency_loss,
    entropy,
    fairness_loss,
    pseudo_label_loss,
    virtual_adversarial_loss,
)


def test_pseudo_label_loss_restated() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.0]], requires_grad=True)
    targets = torch.tensor([[4.0, 0.0], [3.0, 0.0], [0.1, 0.0]], requires_grad=True)
    loss = pseudo_label_loss(logits, targets, 0.9)
    first, second = math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))
    assert loss.item() == pytest.approx((first + second) / 3)
    loss.backward()
    assert targets.grad is None
    assert logits.grad is not None
    assert logits.grad[2].abs().sum() == 0


def test_pseudo_label_loss_takes_a_threshold_per_row() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    both = pseudo_label_loss(logits, logits, torch.tensor([0.5, 0.5]))
    one = pseudo_label_loss(logits, logits, torch.tensor([0.5, 0.99]))
    assert one.item() == pytest.approx(both.item() / 2)


def test_consistency_loss_restated() -> None:
    logits, target = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    target.requires_grad_()
    logits.requires_grad_()
    loss = consistency_loss(logits, target)
    p, q = logits.softmax(1), target.softmax(1)
    slow = sum((p[i, k] - q[i, k]).item() ** 2 for i in range(4) for k in range(3)) / 12
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    loss.backward()
    assert target.grad is None


def test_entropy_restated() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]])
    assert entropy(logits).item() == pytest.approx(math.log(3) / 2)


def test_fairness_loss_restated() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2.0, 0.0, 1.0], [0.0, 0.0, 4.0]], requires_grad=True)
    mask = torch.tensor([True, True, True, False])
    running_p, running_share = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.6, 0.4, 0.0])
    loss = fairness_loss(logits, mask, running_p, running_share)
    p = logits.detach().softmax(1)[:3].mean(0).tolist()
    # Two confident rows say 0, one says 1, none says 2: class 2 drops out of both distributions or counts as 1e-12.
    a = [0.5 / 0.6, 0.3 / 0.4]
    b = [p[0] / (2 / 3), p[1] / (1 / 3)]
    slow = sum(x / sum(a) * math.log(y / sum(b)) for x, y in zip(a, b, strict=True))
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[3].abs().sum() == 0
    assert logits.grad[:3].abs().sum() > 0


def test_fairness_loss_without_a_confident_row_is_zero() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = fairness_loss(logits, torch.zeros(4, dtype=torch.bool), torch.full((3,), 1 / 3), torch.full((3,), 1 / 3))
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))


def test_virtual_adversarial_direction_is_the_dominant_eigenvector_of_the_hessian() -> None:
    model = network().double()
    x = torch.randn(1, 6, dtype=torch.float64)
    target = model(x).detach().softmax(1)

    def divergence(r: torch.Tensor) -> torch.Tensor:
        return nn.functional.kl_div(model(x + r).log_softmax(1), target, reduction="batchmean")

    hessian = torch.autograd.functional.hessian(divergence, torch.zeros(1, 6, dtype=torch.float64)).view(6, 6)
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    best = 0.05 * vectors[:, -1][None]
    strongest = max(divergence(best).item(), divergence(-best).item())
    model.float()
    losses = []
    for seed in range(5):
        torch.manual_seed(seed)
        losses.append(virtual_adversarial_loss(model, x.float(), model(x.float()), eps=0.05, iterations=8).item())
    assert max(losses) == pytest.approx(strongest, rel=0.02)
    torch.manual_seed(9)
    random = torch.nn.functional.normalize(torch.randn(200, 6, dtype=torch.float64), dim=1) * 0.05
    model.double()
    typical = sum(divergence(r[None]).item() for r in random) / 200
    assert min(losses) > 1.5 * typical
    assert eigenvalues[-1] > 0


def test_virtual_adversarial_loss_survives_low_precision_autocast() -> None:
    model = network()
    x = torch.randn(8, 6)
    torch.manual_seed(1)
    reference = virtual_adversarial_loss(model, x, model(x), eps=4.0)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = virtual_adversarial_loss(model, x, model(x), eps=4.0)
    assert low.item() == pytest.approx(reference.item(), rel=0.1)
    assert reference.item() > 0


def test_virtual_adversarial_loss_sends_no_gradient_to_its_target() -> None:
    model = network()
    x = torch.randn(8, 6)
    logits = model(x).detach().requires_grad_()
    virtual_adversarial_loss(model, x, logits, eps=1.0).backward()
    assert logits.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
