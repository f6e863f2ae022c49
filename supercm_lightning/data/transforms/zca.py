"""Global contrast normalization and ZCA whitening, the preprocessing of the published CIFAR experiments."""

from dataclasses import dataclass

import torch
from torch import Tensor


def global_contrast_normalize(images: Tensor, scale: float = 55.0) -> Tensor:
    """Subtracts from each image its mean and brings its L2 norm to `scale`, in floats.

    Images (n, C, H, W) are uint8 or floats on the scale [0, 255]; those of one value become zero.
    """
    vectors = images.flatten(1).float()
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    # An image of one value has a norm of rounding errors, which must not be blown up to `scale`.
    return vectors.mul_(torch.where(norm < 1e-2, 0.0, scale / norm)).view(images.shape)


@dataclass(frozen=True)
class ZCA:
    """Whitening that stays closest to the images: x ↦ (x - mean) U diag(1/√λ) Uᵀ.

    Attributes:
        mean: (D,).
        matrix: (D, D), symmetric.
    """

    mean: Tensor
    matrix: Tensor

    @classmethod
    def fit(cls, images: Tensor, regularization: float = 0.1) -> "ZCA":
        """Estimates the whitening from images (n, C, H, W), adding `regularization` to every eigenvalue."""
        vectors = images.flatten(1)
        mean = vectors.mean(dim=0, dtype=torch.float64)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for chunk in vectors.split(5000):  # all vectors at once in double precision would take gigabytes
            centered = chunk - mean
            covariance.addmm_(centered.T, centered, alpha=1 / len(vectors))
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        matrix = (vectors / (eigenvalues.clamp_min(0) + regularization).sqrt()) @ vectors.T
        return cls(mean.float(), matrix.float())

    def __call__(self, images: Tensor) -> Tensor:
        """Whitens images (n, C, H, W)."""
        return ((images.flatten(1) - self.mean) @ self.matrix).view(images.shape)
