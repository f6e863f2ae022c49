"""Views of frozen features: one of those stored with a sample, with noise, dropout and mixing on top."""

from dataclasses import dataclass

import torch
from torch import Tensor

from supercm_lightning.data.transforms.weak import Normalization
from supercm_lightning.utils.options import check_range

VIEW_REMEDY = (
    "Store views with the features, supercm-features --weak_views 2 --strong_views 8, or make them of noise: "
    "strong_noise: 0.5."
)
"""What to do where features have no strong view."""


class CleanFeatures(Normalization):
    """Features of the sample as it is, (n, d), of samples with or without stored views."""

    def __call__(self, samples: Tensor) -> Tensor:
        """Takes samples (n, d), or (n, 1 + v + s, d) with the clean vector first, to floats (n, d)."""
        return (samples[:, 0] if samples.ndim == 3 else samples).float()


@dataclass(frozen=True)
class FeatureView:
    """One of some stored vectors of each sample, changed at random.

    Attributes:
        first: Number of the first of these vectors; 0 is the clean one.
        count: Their number.
        noise: Standard deviation of the noise that is added.
        dropout: Probability in [0, 0.99] that a feature is set to zero; the others grow by 1 / (1 - dropout).
        mixup: Largest weight in [0, 0.5] of another sample of the batch.
    """

    first: int = 0
    count: int = 1
    noise: float = 0.0
    dropout: float = 0.0
    mixup: float = 0.0

    def __call__(self, samples: Tensor, stream: torch.Generator) -> Tensor:
        """Makes the view (n, d) of samples (n, d), or (n, 1 + v + s, d) with stored views."""
        n, device = len(samples), samples.device
        if samples.ndim == 3:
            chosen = torch.randint(self.count, (n,), generator=stream, device=device)
            samples = samples[torch.arange(n, device=device), self.first + chosen]
        samples = samples.float()
        if self.mixup:
            weight = self.mixup * torch.rand(n, 1, generator=stream, device=device)
            samples = samples.lerp(samples[torch.randperm(n, generator=stream, device=device)], weight)
        if self.dropout:
            kept = torch.rand(samples.shape, generator=stream, device=device) >= self.dropout
            samples = samples * kept / (1 - self.dropout)
        if self.noise:
            samples = samples + self.noise * torch.randn(samples.shape, generator=stream, device=device)
        return samples


def feature_views(
    stored: tuple[int, int],
    noise: float = 0.0,
    strong_noise: float = 0.0,
    strong_dropout: float = 0.0,
    strong_mixup: float = 0.0,
) -> dict[str, FeatureView]:
    """The named views of frozen features: `weak` and, where there is something that makes one, `strong`.

    `stored` has the numbers of weak and of strong views that are stored with each sample. The weak view is the clean
    vector or a stored weak one; the strong view a stored strong one, or without such the weak one.
    """
    check_range(0, noise=noise, strong_noise=strong_noise)
    check_range(0, 0.99, strong_dropout=strong_dropout)
    check_range(0, 0.5, strong_mixup=strong_mixup)
    weak, strong = stored
    views = {"weak": FeatureView(0, 1 + weak, noise)}
    if strong or strong_noise or strong_dropout or strong_mixup:
        first, count = (1 + weak, strong) if strong else (0, 1 + weak)
        views["strong"] = FeatureView(first, count, strong_noise, strong_dropout, strong_mixup)
    return views
