"""The map from instance classes to clusters."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from supercm_lightning.self_labeling.grouping import group_classes, match_clusters
from supercm_lightning.utils.collectives import from_rank_zero, mean_over_ranks

FREQUENCY_RATE = 0.01
"""Weight of the newest batch in the running class frequencies."""


class ClusterMap(nn.Module):
    """Maps each of C classes to a cluster; the map is made again and again, and clusters keep their ids.

    In a distributed run `update_frequencies` and `update_map` are collective calls, and all processes hold the same
    map.

    Args:
        num_classes: Number of classes C.
        num_clusters: Number of clusters k, at most C.

    Attributes:
        cluster_of: Cluster of each class, (C,) int64 in [0, k), -1 before there is a map.
        is_known: Whether there is a map.
        frequencies: Running frequency of each class among the predictions, (C,).
        change: Fraction of the classes whose cluster the last `update_map` changed, a scalar in [0, 1].

    Examples:
        >>> clusters = ClusterMap(num_classes=4, num_clusters=2)
        >>> clusters.update_map(torch.tensor([[0, 9, 0, 0], [9, 0, 0, 0], [0, 0, 0, 7], [0, 0, 7, 0]]))
        >>> cluster_of = clusters(torch.arange(4))
        >>> bool(cluster_of[0] == cluster_of[1] and cluster_of[2] == cluster_of[3] and cluster_of[0] != cluster_of[2])
        True
    """

    cluster_of: Tensor
    frequencies: Tensor
    change: Tensor

    def __init__(self, num_classes: int, num_clusters: int) -> None:
        super().__init__()
        self.num_clusters = num_clusters
        self.is_known = False  # kept on the host: asking the buffer would wait for the device
        self.register_buffer("cluster_of", torch.full((num_classes,), -1))
        self.register_buffer("frequencies", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("change", torch.zeros(()))

    def forward(self, classes: Tensor) -> Tensor:
        """Clusters of classes, both (n,) int64."""
        return self.cluster_of[classes]

    @torch.no_grad()
    def update_frequencies(self, logits: Tensor) -> None:
        """Moves the running frequencies towards those of a batch of predictions, logits (n, C)."""
        frequencies = mean_over_ranks(logits.float().softmax(dim=1).mean(dim=0))
        self.frequencies.lerp_(frequencies, FREQUENCY_RATE)

    @torch.no_grad()
    def update_map(
        self, transitions: Tensor, by: Literal["kmedoids", "spectral"] = "kmedoids", names: Tensor | None = None
    ) -> None:
        """Groups the classes again, unless there are no transitions.

        Clusters take the ids of the clusters of the last map with which they overlap most, classes weighted by their
        frequencies; see `match_clusters`.

        Args:
            transitions: Counts of changes a → b, (C, C).
            by: See `group_classes`.
            names: Clusters that give the first map its ids, (C,) int64 in [0, k), -1 for none.
        """
        if not bool(transitions.any()):
            return
        self.follow(group_classes(transitions, self.num_clusters, by), names)

    @torch.no_grad()
    def follow(self, groups: Tensor, names: Tensor | None = None) -> None:
        """Sets the map to groups of the classes, (C,) int64 in [0, k); clusters keep their ids as in `update_map`."""
        new = groups.to(self.cluster_of.device)
        old = self.cluster_of if self.is_known or names is None else names
        new = match_clusters(new, old, self.frequencies, self.num_clusters)
        self.change.copy_((new != self.cluster_of).float().mean())
        self.set_map(new)

    def set_map(self, cluster_of: Tensor) -> None:
        """Sets the map, (C,) int64 in [0, k), on every process to that of the first one."""
        from_rank_zero(self.cluster_of.copy_(cluster_of))
        self.is_known = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_known = bool((self.cluster_of >= 0).all())
