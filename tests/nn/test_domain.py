"""Gradient reversal, the multilinear map and the discriminator."""

import torch

from supercm_lightning.nn import MultilinearMap, reverse_gradient


def test_reversed_gradient_by_finite_differences() -> None:
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)

    def f(values: torch.Tensor) -> torch.Tensor:
        return (reverse_gradient(values, 0.3).sin() * values.new_tensor([1, 2, 3, 4, 5])).sum()

    f(x).backward()
    step = 1e-6
    for i in range(5):
        delta = torch.zeros_like(x)
        delta[i] = step
        slope = (f(x.detach() + delta) - f(x.detach() - delta)) / (2 * step)
        torch.testing.assert_close(x.grad[i], -0.3 * slope, rtol=1e-6, atol=1e-8)
    assert torch.equal(reverse_gradient(x, 0.3), x)


def test_multilinear_map_is_the_outer_product() -> None:
    features, probabilities = torch.randn(4, 3), torch.rand(4, 2)
    mapped = MultilinearMap(3, 2)(features, probabilities)
    for i in range(4):
        expected = [features[i, a] * probabilities[i, b] for a in range(3) for b in range(2)]
        torch.testing.assert_close(mapped[i], torch.stack(expected))


def test_random_map_keeps_inner_products_on_average_and_survives_a_checkpoint() -> None:
    features, probabilities = torch.randn(2, 6), torch.rand(2, 4)
    sketch = MultilinearMap(6, 4, random_features=200_000)
    a, b = sketch(features, probabilities)
    exact = (features[0] @ features[1]) * (probabilities[0] @ probabilities[1])
    torch.testing.assert_close(a @ b, exact, rtol=0.1, atol=0.1)
    again = MultilinearMap(6, 4, random_features=200_000)
    again.load_state_dict(sketch.state_dict())
    assert torch.equal(again(features, probabilities), sketch(features, probabilities))
