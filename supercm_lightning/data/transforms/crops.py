"""Crops of whole batches on their device, every box random per image."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def resized_crop(images: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """Cuts a box of its own out of each image and resizes it, bilinear with antialiasing, as torchvision does.

    Both axes are one product with a matrix of interpolation weights per image. Bytes are rounded, where torchvision's
    integer arithmetic may be one level apart.

    Args:
        images: (n, C, H, W), uint8 or float.
        box: Top, left, height and width of each box in pixels, (4, n) int64, on the images' device.
        size: Height and width of the crops, which have the images' type.
    """
    top, left, height, width = box
    rows = _interpolation(top, height, images.shape[2], size[0])
    columns = _interpolation(left, width, images.shape[3], size[1])
    crops = rows.unsqueeze(1) @ images.float() @ columns.transpose(1, 2).unsqueeze(1)
    return crops.round_().clamp_(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else crops


def _interpolation(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """Weights (n, size, pixels) of the pixels of one axis in each pixel of the result."""
    start, length = start.view(-1, 1, 1).float(), length.view(-1, 1, 1).float()
    place = torch.arange(pixels, device=start.device) + 0.5
    center = start + (torch.arange(size, device=start.device).view(-1, 1) + 0.5) * (length / size)
    # A triangle as wide as a pixel of the coarser grid, cut off at the box.
    weight = (1 - (place - center).abs() / (length / size).clamp_min(1)).clamp_min_(0)
    weight *= (place > start) & (place < start + length)
    return weight / weight.sum(2, keepdim=True)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and aspect ratio, resized.

    Attributes:
        size: Height and width of the result.
        scale: Range of the area of the box as a fraction of the image's, in (0, 1].
        ratio: Range of its width / height, > 0; drawn uniformly in the logarithm.

    Source:
        Szegedy et al., Going Deeper with Convolutions, 2015; as in torchvision, a box that does not fit is drawn again,
        up to ten times, and then is the largest central one of the nearest ratio.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, images: Tensor, stream: torch.Generator) -> Tensor:
        """Crops images (n, C, H, W) to (n, C, *size)."""
        return resized_crop(images, self.draw(len(images), images.shape[2:], stream), self.size)

    def draw(self, n: int, shape: tuple[int, ...], stream: torch.Generator) -> Tensor:
        """Draws boxes (4, n) in images of `shape` (H, W), as `resized_crop` takes them."""
        h, w = shape
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        area, ratio = torch.rand(2, n, 10, generator=stream, device=stream.device)
        area = (self.scale[0] + (self.scale[1] - self.scale[0]) * area) * (h * w)
        ratio = (low + (high - low) * ratio).exp()
        width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (width > 0) & (width <= w) & (height > 0) & (height <= h)
        first = fits.float().argmax(1, keepdim=True)  # of equal values, the first
        found = fits.any(1)
        width = torch.where(found, width.gather(1, first)[:, 0], min(w, round(h * self.ratio[1])))
        height = torch.where(found, height.gather(1, first)[:, 0], min(h, round(w / self.ratio[0])))
        place = torch.rand(2, n, generator=stream, device=stream.device)
        place = torch.where(found, place, 0.5)
        room = torch.stack([h - height, w - width])
        corner = torch.minimum((place * (room + 1)).floor(), room)
        return torch.cat([corner, torch.stack([height, width])]).long()


@dataclass(frozen=True)
class CenterCrop:
    """The central box of fixed size (height, width)."""

    size: tuple[int, int]

    def __call__(self, images: Tensor, stream: torch.Generator | None = None) -> Tensor:
        """Crops images (n, C, H, W) to (n, C, *size); nothing is drawn."""
        (h, w), (rows, columns) = self.size, images.shape[2:]
        top, left = (rows - h) // 2, (columns - w) // 2
        return images[:, :, top : top + h, left : left + w]


Crop = Callable[[Tensor, torch.Generator], Tensor]
"""Maps images (n, C, H, W) and a source of randomness to crops."""
