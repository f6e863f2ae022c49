"""Data modules for few labels: images of registered sets, of a folder, of torch data sets, and frozen features."""

from supercm_lightning.data.augment import Normalization, WeakAugmentation
from supercm_lightning.data.base import ViewDataModule, move_batch
from supercm_lightning.data.clustering import ClusteringDataModule
from supercm_lightning.data.datasets import DATASETS, DatasetSpec
from supercm_lightning.data.features import FeatureDataModule
from supercm_lightning.data.samplers import CyclingSampler
from supercm_lightning.data.semi_supervised import SemiSupervisedDataModule
from supercm_lightning.data.splits import Split
from supercm_lightning.data.strong_augment import StrongAugmentation

__all__ = [
    "DATASETS",
    "ClusteringDataModule",
    "CyclingSampler",
    "DatasetSpec",
    "FeatureDataModule",
    "Normalization",
    "SemiSupervisedDataModule",
    "Split",
    "StrongAugmentation",
    "ViewDataModule",
    "WeakAugmentation",
    "move_batch",
]
