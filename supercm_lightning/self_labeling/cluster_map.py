"""The map from instance classes to clusters."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from supercm_lightning.self_labeling.grouping import group_classes, match_clusters
from supercm_lightning.utils.collectives import from_rank_zero, mean_over_ranks


class ClusterMap(nn.Module):
    """The cluster of each of C classes, made from their transitions again and again; clusters keep their names.

    In a distributed run `count` and `renew` are collective calls, and all processes hold the same map.

    Args:
        num_classes: Number of classes C.
        num_clusters: Number of clusters k, at most C.

    Attributes:
        cluster_of: Cluster of each class, (C,) int64 in [0, k), -1 before there is a map.
        known: Whether there is a map.
        share: Running share of each class among the predictions, (C,).
        change: Share of the classes whose cluster the last `renew` changed, a scalar in [0, 1].
    """

    cluster_of: Tensor
    share: Tensor
    change: Tensor

    def __init__(self, num_classes: int, num_clusters: int) -> None:
        super().__init__()
        self.num_clusters = num_clusters
        self.known = False
        self.register_buffer("cluster_of", torch.full((num_classes,), -1))
        self.register_buffer("share", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("change", torch.zeros(()))

    def forward(self, classes: Tensor) -> Tensor:
        """Clusters of classes, both (n,) int64."""
        return self.cluster_of[classes]

    @torch.no_grad()
    def count(self, logits: Tensor) -> None:
        """Moves the running shares towards those of a batch of predictions, logits (n, C)."""
        self.share.lerp_(mean_over_ranks(logits.float().softmax(dim=1).mean(dim=0)), 0.01)

    @torch.no_grad()
    def renew(
        self, transitions: Tensor, by: Literal["kmedoids", "spectral"] = "kmedoids", first: Tensor | None = None
    ) -> None:
        """Makes the map again, unless there are no transitions.

        Clusters are named by the last map, classes weighted by their shares, see `match_clusters`.

        Args:
            transitions: Counts of changes a → b, (C, C).
            by: See `group_classes`.
            first: Clusters by which those of the first map are named, (C,) int64 in [0, k), -1 for none.
        """
        if not bool(transitions.any()):
            return
        new = group_classes(transitions, self.num_clusters, by).to(self.cluster_of.device)
        old = self.cluster_of if self.known or first is None else first
        new = match_clusters(new, old, self.share, self.num_clusters)
        self.change.copy_((new != self.cluster_of).float().mean())
        self.set(new)

    def set(self, cluster_of: Tensor) -> None:
        """Takes over a map, (C,) int64 in [0, k), that of the first process."""
        from_rank_zero(self.cluster_of.copy_(cluster_of))
        self.known = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.known = bool((self.cluster_of >= 0).all())


def majority_clusters(classes: Tensor, clusters: Tensor, num_classes: int, num_clusters: int) -> Tensor:
    """Cluster to which most of the rows of each class belong.

    Args:
        classes: Class of each row, (n,) integer in [0, C), -1 for none.
        clusters: Cluster of each row, (n,) int64 in [0, k), -1 for none.
        num_classes: Number of classes C.
        num_clusters: Number of clusters k.

    Returns:
        Cluster of each class, (C,) int64, -1 where no row tells; of equal numbers one.
    """
    known = (classes >= 0) & (clusters >= 0)
    cells = classes[known].long() * num_clusters + clusters[known]
    count, cluster = torch.bincount(cells, minlength=num_classes * num_clusters).view(num_classes, -1).max(dim=1)
    return torch.where(count > 0, cluster, -1)
