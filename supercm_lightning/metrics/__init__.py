"""Metrics: no Lightning."""

from supercm_lightning.metrics.clustering_accuracy import ClusteringAccuracy

__all__ = ["ClusteringAccuracy"]
