"""Features of estimators: standardized one by one only where their units differ."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

from supercm_lightning.data import ClusteringDataModule, FeatureDataModule
from supercm_lightning.data.sources.feature_store import FeatureStore
from supercm_lightning.data.sources.stores import Samples, Store

COMMON_UNITS = 0.15
"""Fraction of the features from which on the variance counts as spread over them."""


class ScaledFeatures(FeatureDataModule):
    """Features with mean 0; their deviations become 1 where units differ, and otherwise keep their proportions.

    Pixels, and outputs of a network, have one unit: features that hardly vary say little, and giving them the deviation
    of the others adds noise. Columns of a table have units of their own, and the largest numbers hold all the variance.
    """

    def _standardize(self, samples: dict[str, Samples]) -> None:
        super()._standardize(samples)
        _rescale((part.store for part in samples.values()), self.preprocessing)


class ScaledClusteringData(ClusteringDataModule):
    """Samples to be clustered, features scaled in the same way."""

    def _standardize(self, train: Store, test: Store | None) -> None:
        super()._standardize(train, test)
        _rescale([train], self.preprocessing)


def _rescale(stores: Iterable[Store], preprocessing: dict[str, Any]) -> None:
    if "mean" not in preprocessing:
        return
    parts = (part for store in stores for part, _ in store.parts(torch.arange(len(store))))
    for store in {id(part): cast(FeatureStore, part) for part in parts}.values():
        assert store.standardization is not None
        mean, std = store.standardization
        store.standardization = mean, common_scale(std)
    preprocessing["std"] = common_scale(torch.tensor(preprocessing["std"])).tolist()


def common_scale(std: Tensor) -> Tensor:
    """Deviations (d,) to divide by: their root mean square for all, if many features share the variance.

    Examples:
        >>> common_scale(torch.tensor([3.0, 4.0, 0.1, 5.0]))
        tensor([3.5359, 3.5359, 3.5359, 3.5359])
        >>> common_scale(torch.cat([torch.tensor([3000.0]), torch.ones(9)]))[:2].tolist()
        [3000.0, 1.0]
    """
    # A constant feature has the deviation 1.
    variance = std.double()[std != 1].square()
    if len(variance) < 4 or variance.sum().square() < COMMON_UNITS * len(variance) * variance.square().sum():
        return std
    return torch.full_like(std, variance.mean().sqrt().item())
