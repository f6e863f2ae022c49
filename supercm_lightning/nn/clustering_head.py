"""The clustering module's head: a linear classifier and the centroids of its classes."""

from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from supercm_lightning.utils.collectives import sum_over_ranks
from supercm_lightning.utils.options import check_choice, check_positive


class ClusteringHead(nn.Module):
    """A linear layer whose softmax is both the class and the cluster assignment, and one centroid per class.

    The centroids are a buffer that `update` moves and no gradient reaches: each is the cumulative mean of the mean
    feature its class had in the batches seen, μ_k ← μ_k + (m_k − μ_k) / c_k.

    Args:
        in_features: Width d of the features.
        num_classes: Number of classes K.
        temperature: Softmax temperature of the assignments, > 0. The logits are not divided by it.
        counter: What c_k counts: `per_class`, the updates in which class k was present, or `global`, those in which any
            class was (the published rule, which leaves centroids of classes that are often absent short of their mean).

    Attributes:
        linear: The classifier, with bias.
        centroids: μ, (K, d), zero until the class is first seen.
        updates: c, (K,), int64.

    Source: Singh et al., "SuperCM: Revisiting Clustering for Semi-Supervised Learning", ICASSP 2025.
    """

    centroids: Tensor
    updates: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        temperature: float = 1.0,
        counter: Literal["per_class", "global"] = "per_class",
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_choice(counter=(counter, ("per_class", "global")))
        self.temperature = temperature
        self.counter = counter
        self.linear = nn.Linear(in_features, num_classes)
        self.register_buffer("centroids", torch.zeros(num_classes, in_features))
        self.register_buffer("updates", torch.zeros(num_classes, dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """Class logits (n, K) of features (n, d)."""
        return self.linear(features)

    def assignments(self, features: Tensor) -> Tensor:
        """Cluster probabilities softmax(logits / temperature), (n, K), of features (n, d)."""
        return (self(features) / self.temperature).softmax(dim=1)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Moves the centroids of the classes present in a batch of features (n, d) and labels (n,); the others stay.

        Labels outside [0, K), such as -1 for unknown, are ignored. In a distributed run this is a collective call:
        every process passes its own samples, all hold the centroids of the whole batch.
        """
        with torch.autocast(features.device.type, enabled=False):
            totals = sum_over_ranks(class_totals(features, labels, len(self.centroids)))
            sums, counts = totals[:, :-1], totals[:, -1:]
            present = counts > 0
            self.updates += present.squeeze(1) if self.counter == "per_class" else present.any()
            centroids = self.centroids.to(totals.dtype)
            change = (sums / counts.clamp_min(1) - centroids) / self.updates.clamp_min(1)[:, None]
            self.centroids.copy_(torch.where(present, centroids + change, centroids))


def class_totals(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sums of the features (n, d) of each class and, in the last column, their numbers, (K, d + 1), float32 or wider.

    Samples whose label (n,) is outside [0, K) are ignored.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    members = (labels == torch.arange(num_classes, device=labels.device)[:, None]).to(features.dtype)
    # A column of ones makes the counts part of the sums: one product, one all-reduce.
    return members @ torch.cat([features, features.new_ones(len(features), 1)], dim=1)


HeadT = TypeVar("HeadT", bound=nn.Module)


def initialize_head(head: HeadT, init: Literal["default", "xavier"]) -> HeadT:
    """Initializes the linear layers of a head, `xavier`: Xavier-normal weights and zero bias, `default`: PyTorch's.

    Examples:
        >>> initialize_head(nn.Linear(4, 3), "xavier").bias.tolist()
        [0.0, 0.0, 0.0]
    """
    if init == "xavier":
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
    return head
