"""What costs no training: simple methods on the samples of a data module."""

from supercm_lightning.baselines.label_spreading import spread_labels

__all__ = ["spread_labels"]
