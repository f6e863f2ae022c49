"""Data modules for few labels and for two domains: images of registered sets or files, torch data sets, features."""

from supercm_lightning.data.modules.base import ViewDataModule
from supercm_lightning.data.modules.clustering import ClusteringDataModule
from supercm_lightning.data.modules.domain_adaptation import DomainAdaptationDataModule
from supercm_lightning.data.modules.features import FeatureDataModule
from supercm_lightning.data.modules.images import ImageDataModule
from supercm_lightning.data.modules.pipeline import move_batch
from supercm_lightning.data.modules.semi_supervised import SemiSupervisedDataModule
from supercm_lightning.data.samplers import CyclingSampler
from supercm_lightning.data.sources.domains import DOMAIN_SETS
from supercm_lightning.data.sources.registered import DATASETS, DatasetSpec
from supercm_lightning.data.transforms.strong import StrongAugmentation
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation

__all__ = [
    "DATASETS",
    "DOMAIN_SETS",
    "ClusteringDataModule",
    "CyclingSampler",
    "DatasetSpec",
    "DomainAdaptationDataModule",
    "FeatureDataModule",
    "ImageDataModule",
    "Normalization",
    "SemiSupervisedDataModule",
    "StrongAugmentation",
    "ViewDataModule",
    "WeakAugmentation",
    "move_batch",
]
