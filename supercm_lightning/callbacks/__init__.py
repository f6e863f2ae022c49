"""Callbacks: centroids, averages of the weights, scores without labels, and what a run leaves behind."""

from supercm_lightning.callbacks.evaluation.adaptation_scores import AdaptationScores
from supercm_lightning.callbacks.evaluation.cluster_gallery import ClusterGallery
from supercm_lightning.callbacks.evaluation.feature_projection import FeatureProjection
from supercm_lightning.callbacks.evaluation.kmeans_baseline import KMeansBaseline
from supercm_lightning.callbacks.evaluation.prediction_collapse import PredictionCollapse
from supercm_lightning.callbacks.evaluation.prediction_writer import PredictionWriter
from supercm_lightning.callbacks.runs.run_summary import RunSummary
from supercm_lightning.callbacks.training.centroid_update import CentroidUpdate
from supercm_lightning.callbacks.training.step_averaging import averaged_weights
from supercm_lightning.callbacks.training.weight_averaging import EMA, SWA

__all__ = [
    "EMA",
    "SWA",
    "AdaptationScores",
    "CentroidUpdate",
    "ClusterGallery",
    "FeatureProjection",
    "KMeansBaseline",
    "PredictionCollapse",
    "PredictionWriter",
    "RunSummary",
    "averaged_weights",
]
