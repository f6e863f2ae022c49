"""Metrics: no Lightning, no data."""

from supercm_lightning.metrics.adaptation_scores import (
    batch_nuclear_norm_score,
    class_ami,
    deep_embedded_validation,
    diversity,
    information_maximization,
    negative_entropy,
    soft_neighborhood_density,
)
from supercm_lightning.metrics.clustering_accuracy import ClusteringAccuracy, clustering_scores
from supercm_lightning.metrics.proxy_a_distance import proxy_a_distance

__all__ = [
    "ClusteringAccuracy",
    "batch_nuclear_norm_score",
    "class_ami",
    "clustering_scores",
    "deep_embedded_validation",
    "diversity",
    "information_maximization",
    "negative_entropy",
    "proxy_a_distance",
    "soft_neighborhood_density",
]
