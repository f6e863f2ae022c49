"""Frozen features that are read where they are, and what standardizes them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from supercm_lightning.data.sources.files import MEMORY
from supercm_lightning.data.sources.stores import ArrayStore, Store
from supercm_lightning.utils.options import SuperCMError

Statistics = tuple[Tensor, Tensor]
"""Mean and standard deviation of each feature, (d,) each; the deviation of a constant feature is 1."""


@dataclass
class FeatureStore(ArrayStore):
    """Features (N, d), checked and standardized when they are fetched: a mapped file is never read as a whole.

    Attributes:
        option: Option that gave them, for messages.
        standardization: Mean and deviation that are taken out, or None.
        weak: Features of weak views, (N, v, d), or None.
        strong: Features of strong views, (N, s, d), or None.
        origin: What is known of the network: `backbone`, `weights` and `image_size`.
    """

    option: str = "features"
    standardization: Statistics | None = None
    weak: Tensor | None = None
    strong: Tensor | None = None
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_views(self) -> tuple[int, int]:
        """Numbers of weak and of strong views."""
        weak, strong = (0 if views is None else views.shape[1] for views in (self.weak, self.strong))
        return weak, strong

    def fetch(self, index: Tensor, device: torch.device) -> Tensor:
        """Features (n, d) float32, standardized; one that is NaN or infinite is an error that names the sample.

        With views (n, 1 + v + s, d): the clean vector, the weak and the strong views.
        """
        features = self.raw(index, device)
        if sum(self.num_views):
            if self.data.device.type != "cpu":
                self.weak, self.strong = (v if v is None else v.to(self.data.device) for v in (self.weak, self.strong))
            there = index.to(self.data.device, non_blocking=True)
            views = [view[there].to(device).float() for view in (self.weak, self.strong) if view is not None]
            if self.data.device.type == "cpu":
                for view in views:
                    self._check(view, index)
            features = torch.cat([features.unsqueeze(1), *views], 1)
        if self.standardization is None:
            return features
        mean, std = (values.to(features.device, non_blocking=True) for values in self.standardization)
        return (features - mean) / std

    def raw(self, index: Tensor, device: torch.device) -> Tensor:
        """Features (n, d) float32, as they are in the file; raises as `fetch`."""
        features = super().fetch(index, device).float()
        # A device would have to be waited for at every step; what lies there was checked when it moved.
        if self.data.device.type == "cpu":
            self._check(features, index)
        return features

    def _fits(self, free: int) -> bool:
        # A large file that is mapped stays where it is.
        size = self.data.nbytes * (1 + sum(self.num_views))
        if size > MEMORY or size > free // 2:
            return False
        for number in torch.arange(len(self)).split(100_000):
            self._check(self.data[number], number)
        return True

    def _check(self, features: Tensor, index: Tensor) -> None:
        if features.sum().isfinite():  # many times faster than to ask of each
            return
        finite = features.isfinite().flatten(1).all(1)
        if not finite.all():
            number = int(index[~finite.cpu()][0])
            name = f" ({self.names[number]})" if self.names is not None else ""
            raise SuperCMError(f"{self.option}: sample {number}{name} has a feature that is NaN or infinite.")


def statistics(parts: Iterable[tuple[Store, Tensor]], correction: int = 0) -> Statistics:
    """Mean and standard deviation of each feature of some samples, in double precision, a few thousand at a time."""
    count, mean, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for store, index in parts:
        for numbers in index.split(8192):
            features = cast(FeatureStore, store).raw(numbers, torch.device("cpu")).double()
            center, n = features.mean(0), len(features)
            # Chan et al., 1983: how two sums of squares about their own means are joined.
            squares = squares + (features - center).square_().sum(0) + (center - mean) ** 2 * (count * n / (count + n))
            mean = mean + (center - mean) * (n / (count + n))
            count += n
    std = (squares / max(count - correction, 1)).sqrt()
    # What lies below the resolution of float32 is a constant feature.
    return mean.float(), torch.where(std > torch.finfo(torch.float32).eps * mean.abs(), std, 1.0).float()


def standardize_stores(parts: Iterable[tuple[Store, Tensor]], found: Statistics) -> None:
    """Sets what is taken out of the features of stores when they are fetched, in place of what was before."""
    for store, _ in parts:
        cast(FeatureStore, store).standardization = found
