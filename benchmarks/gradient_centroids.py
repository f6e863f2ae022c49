"""The ablation behind SuperCM's central claim: the same loss, but with centroids trained by gradient."""

from typing import Any

import torch
from torch import Tensor, nn

from supercm_lightning import Method, Step


class GradientCentroids(Method):
    """Cross-entropy plus `beta` times the soft k-means distortion to centroids that the optimiser moves.

    Args:
        beta: Weight of the distortion.
        **kwargs: Options of `Method`.
    """

    def __init__(self, beta: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.beta = beta
        self.centroids = nn.Parameter(torch.empty(self.num_classes, self.head.in_features))  # type: ignore[arg-type]
        nn.init.xavier_normal_(self.centroids)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the distortion, with gradient to features, assignments and centroids."""
        distance = torch.cdist(step.features, self.centroids).square()
        return super().losses(step) | {"cm": self.beta * (step.assignments * distance).sum() / step.features.numel()}
