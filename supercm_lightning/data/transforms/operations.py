"""RandAugment's operations on batches of images, each image at a magnitude of its own.

Every operation takes images (n, C, H, W) uint8 on any device and one magnitude per image, (n,) float64 on the host, and
gives the new images: exactly what the operation of this name in torchvision.transforms.v2 makes of each one alone, as a
uint8 tensor. Only where a compiler fuses the product and sum of Color, Contrast and Sharpness in one of the two may a
value next to a whole number, whose fraction both cut off, come out one level apart.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FILL = 128
"""Mid-gray, for what Cutout covers and where a moved image leaves a gap."""


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the leading bits of each value; a fraction of a bit is dropped, as in USB."""
    mask = (256 - 2 ** (8 - bits.floor())).to(torch.uint8)
    return images & to_device_like(images, mask).view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts the values from the threshold on."""
    inverted = (images >= per_image(images, threshold)).to(torch.uint8)
    return images ^ (255 * inverted)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with black."""
    return images.mul(per_image(images, factor)).to(torch.uint8)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the gray image; without three channels there is no color to take."""
    return _blend(images, _gray(images), factor) if images.shape[1] == 3 else images


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the mean of the gray image."""
    gray = _gray(images) if images.shape[1] == 3 else images.float()
    return _blend(images, gray.mean((1, 2, 3), keepdim=True), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image smoothed by [1 1 1; 1 5 1; 1 1 1] / 13; the border stays."""
    if min(images.shape[2:]) < 3:
        return images
    pixels = images.float()
    inner = pixels[..., 1:-1, 1:-1]
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner).div_(13).round_()
    inner.addcmul_(smooth.sub_(inner), per_image(images, 1 - factor))
    return pixels.to(torch.uint8)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotates counter-clockwise about the center."""
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return affine(images, xx=cos, xy=-sin, yx=sin, yy=cos)


def to_device_like(images: Tensor, values: Tensor) -> Tensor:
    """Brings values from the host to the device of the images."""
    # CUDA has read memory that is not pinned when the call returns, so nothing needs to wait; others promise nothing.
    return values.to(images.device, non_blocking=images.is_cuda)


def per_image(images: Tensor, values: Tensor) -> Tensor:
    """Brings one number per image to its device, (n, 1, 1, 1) float32."""
    return to_device_like(images, values.float()).view(-1, 1, 1, 1)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return images.mul(per_image(images, factor)).addcmul_(other, per_image(images, 1 - factor)).to(torch.uint8)


def affine(
    images: Tensor,
    xx: Tensor | float = 1.0,
    xy: Tensor | float = 0.0,
    x0: Tensor | float = 0.0,
    yx: Tensor | float = 0.0,
    yy: Tensor | float = 1.0,
    y0: Tensor | float = 0.0,
) -> Tensor:
    """Takes pixel (x, y) from the pixel nearest to (xx·x + xy·y + x0, yx·x + yy·y + y0), counted from the center."""
    n, _, h, w = images.shape
    matrix = torch.empty(n, 2, 3, dtype=torch.float64)
    for row, values, side in ((0, (xx, xy, x0), w), (1, (yx, yy, y0), h)):
        for column, value in enumerate(values):
            matrix[:, row, column] = value * (2 / side)  # grid_sample counts in half sides
    of_x, of_y, offset = to_device_like(images, matrix.float()).view(n, 2, 3, 1, 1).unbind(2)
    x = torch.arange(w, device=images.device) - (w - 1) / 2
    y = torch.arange(h, device=images.device).view(h, 1) - (h - 1) / 2
    grid = (of_x * x + (of_y * y + offset)).permute(0, 2, 3, 1)
    # Zeros are what grid_sample puts outside.
    moved = F.grid_sample(images.float().sub_(FILL), grid, mode="nearest", align_corners=False)
    return moved.add_(FILL).to(torch.uint8)
