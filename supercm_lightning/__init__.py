"""Learning from few labels, across domains, or with none, in PyTorch Lightning."""

from supercm_lightning.callbacks import (
    EMA,
    SWA,
    AdaptationScores,
    CentroidUpdate,
    ClusterGallery,
    FeatureProjection,
    KMeansBaseline,
    PredictionCollapse,
    PredictionWriter,
    RunSummary,
)
from supercm_lightning.data import (
    ClusteringDataModule,
    DomainAdaptationDataModule,
    FeatureDataModule,
    SemiSupervisedDataModule,
)
from supercm_lightning.methods import *  # noqa: F403 - the public methods, listed once
from supercm_lightning.methods import __all__ as _methods

__version__ = "0.1.0"

__all__ = [
    "EMA",
    "SWA",
    "AdaptationScores",
    "CentroidUpdate",
    "ClusterGallery",
    "ClusteringDataModule",
    "DomainAdaptationDataModule",
    "FeatureDataModule",
    "FeatureProjection",
    "KMeansBaseline",
    "PredictionCollapse",
    "PredictionWriter",
    "RunSummary",
    "SemiSupervisedDataModule",
    *_methods,
]
