"""What `supercm_lightning` offers: methods, data modules and callbacks."""

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
