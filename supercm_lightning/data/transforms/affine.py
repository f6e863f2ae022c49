"""A strong view by geometry alone, for figures on a dark ground such as digits."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from supercm_lightning.data.transforms.weak import Normalization


@dataclass(frozen=True)
class AffineAugmentation:
    """Rotation, scale, shear and shift at once, a dark square, contrast and noise, each random per image.

    RandAugment's operations on tone and color change little in a gray figure, or turn it into another one's negative;
    what a strong view of it has to vary is its geometry. What moves in from outside is black.

    Attributes:
        normalization: Applied before the noise.
        rotation: Largest angle in radians, either way.
        scale: Largest relative change of the size.
        shear: Largest shear.
        shift: Largest shift per axis, as a fraction of the side.
        cutout: Largest side of the square as a fraction of the image's.
        contrast: Largest relative change of the values.
        noise: Standard deviation of the noise, in units of the normalized values.
    """

    normalization: Normalization
    rotation: float = 0.4
    scale: float = 0.2
    shear: float = 0.3
    shift: float = 0.075
    cutout: float = 0.375
    contrast: float = 0.4
    noise: float = 0.1

    def __call__(self, images: Tensor, stream: torch.Generator) -> Tensor:
        """Augments images (n, C, H, W), uint8 or float with black at zero, to floats of the same shape."""
        n, _, h, w = images.shape
        device = images.device
        angle, zoom, shear, right, down, contrast = 2 * torch.rand(6, n, generator=stream, device=device) - 1
        cos, sin = (self.rotation * angle).cos(), (self.rotation * angle).sin()
        zoom, shear = 1 + self.scale * zoom, self.shear * shear
        # Each pixel of the view is taken from this place of the image, in halves of its side.
        matrix = torch.stack(
            [
                torch.stack([cos / zoom, (shear * cos - sin) / zoom, 2 * self.shift * right], dim=1),
                torch.stack([sin / zoom, (shear * sin + cos) / zoom, 2 * self.shift * down], dim=1),
            ],
            dim=1,
        )
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        moved = F.grid_sample(images.float(), grid, align_corners=False)
        side, x, y = torch.rand(3, n, 1, 1, 1, generator=stream, device=device)
        column = (torch.arange(w, device=device) + 0.5) / w
        row = ((torch.arange(h, device=device) + 0.5) / h).view(h, 1)
        half = self.cutout * side / 2
        moved *= ((column - x).abs() >= half) | ((row - y).abs() >= half)
        moved *= 1 + self.contrast * contrast.view(n, 1, 1, 1)
        if images.dtype == torch.uint8:
            moved = self.normalization(moved.clamp_(0, 255).round_().to(torch.uint8))
        return moved.add_(torch.randn(moved.shape, generator=stream, device=device), alpha=self.noise)
