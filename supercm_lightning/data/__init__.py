"""Data modules for few labels and for two domains: images of registered sets or files, torch data sets, features."""

from supercm_lightning.data.augment import Normalization, WeakAugmentation
from supercm_lightning.data.base import ViewDataModule, move_batch
from supercm_lightning.data.clustering import ClusteringDataModule
from supercm_lightning.data.datasets import DATASETS, DatasetSpec
from supercm_lightning.data.domain_adaptation import DomainAdaptationDataModule
from supercm_lightning.data.domains import DOMAIN_SETS
from supercm_lightning.data.features import FeatureDataModule
from supercm_lightning.data.samplers import CyclingSampler
from supercm_lightning.data.semi_supervised import SemiSupervisedDataModule
from supercm_lightning.data.splits import Split
from supercm_lightning.data.strong_augment import StrongAugmentation

__all__ = [
    "DATASETS",
    "DOMAIN_SETS",
    "ClusteringDataModule",
    "CyclingSampler",
    "DatasetSpec",
    "DomainAdaptationDataModule",
    "FeatureDataModule",
    "Normalization",
    "SemiSupervisedDataModule",
    "Split",
    "StrongAugmentation",
    "ViewDataModule",
    "WeakAugmentation",
    "move_batch",
]
