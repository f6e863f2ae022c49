"""The clustering-module loss against loops written straight from the equations."""

import math

import pytest
import torch
from torch import Tensor

from supercm_lightning.losses import clustering_loss, clustering_loss_terms


def random_inputs(n: int = 9, k: int = 4, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, logits and centroids in float64, the first two with gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw(n, d).requires_grad_(), draw(n, k).requires_grad_(), draw(k, d) * 2 + 1


def looped_terms(x: Tensor, gamma: Tensor, mu: Tensor, alpha: list[float]) -> dict[str, Tensor]:
    """The equations, one scalar at a time."""
    (n, d), k = x.shape, len(mu)
    terms = {name: x.new_zeros(()) for name in ("reconstruction", "sparsity", "merging", "prior")}
    for i in range(n):
        for m in range(d):
            reconstructed = sum(gamma[i, j] * mu[j, m] for j in range(k))
            terms["reconstruction"] = terms["reconstruction"] + (x[i, m] - reconstructed) ** 2 / (n * d)
        for j in range(k):
            norm = sum(mu[j, m] ** 2 for m in range(d))
            terms["sparsity"] = terms["sparsity"] + gamma[i, j] * (1 - gamma[i, j]) * norm / (n * d)
            for other in range(k):
                if other != j:
                    dot = sum(mu[j, m] * mu[other, m] for m in range(d))
                    terms["merging"] = terms["merging"] - gamma[i, j] * gamma[i, other] * dot / (n * d)
    for j in range(k):
        terms["prior"] = terms["prior"] + (1 - alpha[j]) * gamma[:, j].mean().log()
    return terms


@pytest.mark.parametrize("alpha", [1.0, 2.5, [0.5, 1.0, 1.5, 3.0]])
def test_terms_equal_loops_in_value_and_gradient(alpha: float | list[float]) -> None:
    x, logits, mu = random_inputs()
    given = torch.tensor(alpha, dtype=torch.float64) if isinstance(alpha, list) else alpha
    ours = clustering_loss_terms(x, logits.softmax(dim=1), mu, given)
    slow = looped_terms(x, logits.softmax(dim=1), mu, alpha if isinstance(alpha, list) else [alpha] * 4)
    assert ours.keys() == slow.keys()
    for name, expected in slow.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-12, atol=1e-14)
        for leaf in (x, logits):
            gradients = [
                torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
                for value in (ours[name], expected)
            ]
            torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("alpha", [1.0, torch.tensor([0.5, 1.0, 1.5, 3.0])])
def test_closed_form_equals_the_sum_of_the_terms(alpha: float | Tensor) -> None:
    x, logits, mu = random_inputs(n=31, k=4, d=17)
    gamma = logits.softmax(dim=1)
    closed = clustering_loss(x, gamma, mu, alpha)
    terms = torch.stack([*clustering_loss_terms(x, gamma, mu, alpha).values()]).sum()
    torch.testing.assert_close(closed, terms, rtol=1e-13, atol=0)
    for closed_gradient, terms_gradient in zip(
        torch.autograd.grad(closed, (x, logits), retain_graph=True),
        torch.autograd.grad(terms, (x, logits)),
        strict=True,
    ):
        torch.testing.assert_close(closed_gradient, terms_gradient, rtol=1e-10, atol=1e-14)


def test_closed_form_is_the_soft_kmeans_distortion() -> None:
    x, logits, mu = random_inputs()
    gamma = logits.softmax(dim=1)
    distortion = (gamma * torch.cdist(x, mu) ** 2).sum() / x.numel()
    torch.testing.assert_close(clustering_loss(x, gamma, mu), distortion, rtol=1e-12, atol=0)


def test_forms_agree_for_assignments_that_do_not_sum_to_one() -> None:
    x, _, mu = random_inputs()
    gamma = torch.rand(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    closed = clustering_loss(x, gamma, mu, 1.7)
    terms = torch.stack([*looped_terms(x, gamma, mu, [1.7] * 4).values()]).sum()
    torch.testing.assert_close(closed, terms, rtol=1e-12, atol=0)
    for closed_gradient, terms_gradient in zip(
        torch.autograd.grad(closed, (x, gamma), retain_graph=True), torch.autograd.grad(terms, (x, gamma)), strict=True
    ):
        torch.testing.assert_close(closed_gradient, terms_gradient, rtol=1e-11, atol=1e-14)


def test_hand_values() -> None:
    x = torch.tensor([[1.0, 0.0]])
    gamma = torch.tensor([[0.75, 0.25]])
    mu = torch.tensor([[2.0, 0.0], [1.0, 4.0]])
    # x̄ = (1.75, 1): E1 = (0.75² + 1)/2; E2 = 0.1875 (4 + 17)/2; E3 = -2 · 0.1875 · 2/2; the distances are 1 and 16.
    terms = clustering_loss_terms(x, gamma, mu, torch.tensor([1.0, 3.0]))
    expected = {"reconstruction": 0.78125, "sparsity": 1.96875, "merging": -0.375, "prior": -2 * math.log(0.25)}
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-6)
    assert clustering_loss(x, gamma, mu).item() == pytest.approx((0.75 * 1 + 0.25 * 16) / 2, rel=1e-6)


def test_wrong_variants_in_circulation_are_told_apart() -> None:
    x, logits, mu = random_inputs()
    gamma = logits.softmax(dim=1)
    mu = mu.abs()  # as behind a ReLU: all products of centroids have one sign and cannot cancel
    terms = clustering_loss_terms(x, gamma, mu)
    right = clustering_loss(x, gamma, mu)
    weighted_gram = (gamma.T @ gamma) * (mu @ mu.T) / x.numel()
    positive_merging = terms["reconstruction"] + terms["sparsity"] - terms["merging"]
    diagonal_kept = terms["reconstruction"] + terms["sparsity"] - weighted_gram.sum()
    assert abs(positive_merging - right) > 0.1 * right
    assert abs(diagonal_kept - right) > 0.1 * right
    assert abs(right * x.numel() / len(x) ** 2 - right) > 0.1 * right  # divided by n² instead of n d


def test_no_gradient_reaches_the_centroids() -> None:
    x, logits, mu = random_inputs()
    mu.requires_grad_()
    gamma = logits.softmax(dim=1)
    terms = sum(clustering_loss_terms(x, gamma, mu, 2.0).values())
    (clustering_loss(x, gamma, mu, 2.0) + terms).backward()
    assert mu.grad is None
    assert x.grad is not None


def test_descent_on_the_logits_hardens_them_on_the_nearest_centroid() -> None:
    x, logits, mu = random_inputs(n=40)
    x = x.detach()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        clustering_loss(x, logits.softmax(dim=1), mu).backward()
        optimizer.step()
    gamma = logits.softmax(dim=1).detach()
    assert torch.equal(gamma.argmax(dim=1), torch.cdist(x, mu).argmin(dim=1))
    assert gamma.max(dim=1).values.mean() > 0.95


def test_accumulates_in_float32_under_autocast() -> None:
    x, logits, mu = (tensor.detach().float() for tensor in random_inputs(n=50, k=10, d=128))
    gamma = logits.softmax(dim=1)
    outside = clustering_loss(x, gamma, mu, 2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = clustering_loss(x, gamma, mu, 2.0)
        terms = clustering_loss_terms(x, gamma, mu, 2.0)
        # What a network gives under autocast: only its own rounding may show, not that of the sums.
        rounded = clustering_loss(x.bfloat16(), gamma.bfloat16(), mu, 2.0)
    assert inside.dtype == rounded.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert inside.item() == outside.item()
    exact = clustering_loss(x.bfloat16().double(), gamma.bfloat16().double(), mu.double(), 2.0)
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("alpha", [1.0, torch.ones(3)])
def test_prior_is_off_at_one_even_for_an_empty_cluster(alpha: float | Tensor) -> None:
    gamma = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    prior = clustering_loss_terms(torch.ones(2, 2), gamma, torch.ones(3, 2), alpha)["prior"]
    prior.backward()
    assert prior.item() == 0
    assert gamma.grad is not None
    assert torch.equal(gamma.grad, torch.zeros(2, 3))


def test_prior_above_one_stays_finite_for_an_empty_cluster() -> None:
    logits = torch.tensor([[0.0, 0.0, -1e4], [0.0, 0.0, -1e4]], requires_grad=True)
    loss = clustering_loss(torch.ones(2, 2), logits.softmax(dim=1), torch.ones(3, 2), 2.0)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_prior_above_one_feeds_the_smallest_cluster() -> None:
    logits = torch.tensor([[2.0, 0.0, -3.0]] * 5, dtype=torch.float64, requires_grad=True)
    clustering_loss_terms(torch.ones(5, 2), logits.softmax(dim=1), torch.ones(3, 2), 2.0)["prior"].backward()
    assert logits.grad is not None
    assert (logits.grad[:, 2] < 0).all()
    assert (logits.grad[:, 0] > 0).all()


@pytest.mark.parametrize("shapes", [((1, 4), (5, 3), (3, 4)), ((5, 4), (1, 3), (3, 4)), ((5, 4), (5, 2), (3, 4))])
def test_shapes_that_would_only_broadcast_are_refused(shapes: tuple[tuple[int, int], ...]) -> None:
    inputs = [torch.ones(shape) for shape in shapes]
    for function in (clustering_loss, clustering_loss_terms):
        with pytest.raises(ValueError, match="do not fit"):
            function(*inputs)
