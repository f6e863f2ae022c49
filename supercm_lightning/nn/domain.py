"""Parts of adversarial domain adaptation: gradient reversal and the domain discriminator."""

from typing import Any

import torch
from torch import Tensor, nn


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def reverse_gradient(x: Tensor, scale: float) -> Tensor:
    """The identity of a tensor, whose gradient is multiplied by −`scale`, λ >= 0.

    Source: Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015.
    """
    return _Reverse.apply(x, scale)


class DomainDiscriminator(nn.Sequential):
    """Two hidden layers with batch norm and ReLU, and one logit: large for source samples."""

    def __init__(self, in_features: int, hidden_features: int = 1024) -> None:
        layers: list[nn.Module] = []
        for before in (in_features, hidden_features):
            layers += [nn.Linear(before, hidden_features), nn.BatchNorm1d(hidden_features), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(hidden_features, 1))


class MultilinearMap(nn.Module):
    """The product of features (n, d) and class probabilities (n, K) that CDAN's discriminator sees.

    The outer product f ⊗ p, flattened, or its random sketch (R_f f) ⊙ (R_p p) / √m of m `random_features` where that is
    too wide. The random matrices are buffers: a checkpoint keeps them. `out_features` is d · K or m.

    Source: Long et al., "Conditional Adversarial Domain Adaptation", NeurIPS 2018.
    """

    feature_projection: Tensor
    class_projection: Tensor

    def __init__(self, in_features: int, num_classes: int, random_features: int | None = None) -> None:
        super().__init__()
        self.random_features = random_features
        self.out_features = random_features or in_features * num_classes
        if random_features is not None:
            self.register_buffer("feature_projection", torch.randn(in_features, random_features))
            self.register_buffer("class_projection", torch.randn(num_classes, random_features))

    def forward(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """Maps features (n, d) and class probabilities (n, K) to (n, out_features)."""
        if self.random_features is None:
            return (features[:, :, None] * probabilities[:, None, :]).flatten(1)
        mapped = (features @ self.feature_projection) * (probabilities @ self.class_projection)
        return mapped / self.random_features**0.5
