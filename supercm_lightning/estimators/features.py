"""Features of estimators: standardized one by one only where their units differ."""

import torch
from torch import Tensor

from supercm_lightning.data import ClusteringDataModule, FeatureDataModule

COMMON_UNITS = 0.15
"""Fraction of the features from which on the variance counts as spread over them."""


def common_scale(std: Tensor) -> Tensor:
    """Deviations (d,) to divide by: their root mean square for all, if many features share the variance."""
    # A constant feature has the deviation 1.
    variance = std.double()[std != 1].square()
    if len(variance) < 4 or variance.sum().square() < COMMON_UNITS * len(variance) * variance.square().sum():
        return std
    return torch.full_like(std, variance.mean().sqrt().item())


class ScaledFeatures(FeatureDataModule):
    """Features with mean 0; their deviations become 1 where units differ, and otherwise keep their proportions.

    Pixels, and outputs of a network, have one unit: features that hardly vary say little, and giving them the deviation
    of the others adds noise. Columns of a table have units of their own, and the largest numbers hold all the variance.
    """

    scale = staticmethod(common_scale)


class ScaledClusteringData(ClusteringDataModule):
    """Samples to be clustered, features scaled in the same way."""

    scale = staticmethod(common_scale)
