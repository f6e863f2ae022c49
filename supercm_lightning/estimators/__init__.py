"""Estimators with scikit-learn's interface: few labels, two domains, clusters."""

from supercm_lightning.estimators.adapter import SuperCMAdapter
from supercm_lightning.estimators.classifier import SuperCMClassifier
from supercm_lightning.estimators.clusterer import ASDClusterer

__all__ = ["ASDClusterer", "SuperCMAdapter", "SuperCMClassifier"]
