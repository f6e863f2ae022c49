"""Callbacks: centroids, averages of the weights, scores without labels, and what a run leaves behind."""

from supercm_lightning.callbacks.adaptation_scores import AdaptationScores
from supercm_lightning.callbacks.centroid_update import CentroidUpdate
from supercm_lightning.callbacks.feature_projection import FeatureProjection
from supercm_lightning.callbacks.kmeans_baseline import KMeansBaseline
from supercm_lightning.callbacks.prediction_writer import PredictionWriter
from supercm_lightning.callbacks.run_summary import RunSummary
from supercm_lightning.callbacks.weight_averaging import EMA, SWA, averaged_weights

__all__ = [
    "EMA",
    "SWA",
    "AdaptationScores",
    "CentroidUpdate",
    "FeatureProjection",
    "KMeansBaseline",
    "PredictionWriter",
    "RunSummary",
    "averaged_weights",
]
