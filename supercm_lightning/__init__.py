"""Learning from few labels, across domains, or with none, in PyTorch Lightning."""

from supercm_lightning.callbacks import EMA, SWA, CentroidUpdate, FeatureProjection, PredictionWriter, RunSummary
from supercm_lightning.data import FeatureDataModule, SemiSupervisedDataModule
from supercm_lightning.methods import Method, Step, SuperCM, Supervised

__version__ = "0.1.0"

__all__ = [
    "EMA",
    "SWA",
    "CentroidUpdate",
    "FeatureDataModule",
    "FeatureProjection",
    "Method",
    "PredictionWriter",
    "RunSummary",
    "SemiSupervisedDataModule",
    "Step",
    "SuperCM",
    "Supervised",
]
