"""Augmentation of whole batches on their device, with every random number drawn per sample."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from supercm_lightning.data.transforms.crops import Crop
from supercm_lightning.utils.options import SuperCMError, check_range


@dataclass(frozen=True)
class Normalization:
    """Turns uint8 images into floats, (x/255 - mean) / std per channel; floats pass unchanged.

    Attributes:
        mean: One value per channel, or one for all, on the scale [0, 1].
        std: Likewise, > 0.

    Examples:
        >>> Normalization()(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        tensor([[[[-1.,  1.]]]])
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalises images (n, C, H, W)."""
        if images.dtype != torch.uint8:
            return images.float()
        # What a trace computes is no number that could be kept.
        linear_map = _linear_map.__wrapped__ if torch.compiler.is_compiling() else _linear_map
        factor, offset = linear_map(self.mean, self.std, images.device)
        return images.float().mul_(factor).sub_(offset)


@lru_cache(maxsize=16)
def _linear_map(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and offset per channel, (1, C, 1, 1), brought to a device once: a GPU must be waited for meanwhile."""
    scale, center = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (std, mean))
    return 1 / (255 * scale), center / scale


def check_weak_options(
    input_shape: tuple[int, ...], shift: int, noise: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Checks a user's options of the weak augmentation of images (C, H, W); the error names the option."""
    if not 0 <= shift < min(input_shape[1:]):
        raise SuperCMError(f"shift={shift}: must be from 0 to less than the images' {tuple(input_shape[1:])}.")
    check_range(0, noise=noise)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, input_shape[0]):
            raise SuperCMError(f"{name}: give one value or one for each of the {input_shape[0]} channels.")
        if not all(math.isfinite(value) for value in values):
            raise SuperCMError(f"{name}={values}: must be finite numbers.")
    if min(std) <= 0:
        raise SuperCMError(f"std={std}: must be positive.")


def flip_and_shift(images: Tensor, flip: bool, shift: int, stream: torch.Generator) -> Tensor:
    """Mirrors each image left-right with probability 1/2 and shifts it by up to `shift` pixels, edges reflected.

    Both happen in one gather, on uint8 as on floats (n, C, H, W). Rows and columns are shifted apart, uniformly, by
    less than the image's size; `stream` is on the images' device.
    """
    if not flip and not shift:
        return images
    n, c, h, w = images.shape
    device = images.device
    offset = torch.randint(-shift, shift + 1, (2, n, 1), generator=stream, device=device)
    rows = _reflect(torch.arange(h, device=device) + offset[0], h)
    columns = _reflect(torch.arange(w, device=device) + offset[1], w)
    if flip:
        mirrored = torch.rand(n, 1, generator=stream, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    pixel = (rows.unsqueeze(2) * w + columns.unsqueeze(1)).view(n, 1, h * w)
    return images.reshape(n, c, h * w).gather(2, pixel.expand(n, c, h * w)).view(n, c, h, w)


def _reflect(position: Tensor, size: int) -> Tensor:
    position = position.abs()
    return torch.minimum(position, 2 * (size - 1) - position)


@dataclass(frozen=True)
class WeakAugmentation:
    """Flip, shift and Gaussian noise, the augmentation of the published experiments, drawn per sample.

    Attributes:
        normalization: Applied between the geometry and the noise.
        flip: Mirror left-right with probability 1/2.
        shift: Largest shift in pixels, edges reflected.
        noise: Standard deviation of the noise, in units of the normalized values.
        crop: Applied first, or None.

    Examples:
        >>> augment = WeakAugmentation(Normalization(), flip=True, shift=2)
        >>> augment(torch.rand(4, 3, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([4, 3, 8, 8])
    """

    normalization: Normalization
    flip: bool = False
    shift: int = 0
    noise: float = 0.0
    crop: Crop | None = None

    def __call__(self, samples: Tensor, stream: torch.Generator) -> Tensor:
        """Augments samples (n, …) to floats of the same shape but for the crop; features (n, d) only get noise."""
        if samples.ndim == 4:
            samples = samples if self.crop is None else self.crop(samples, stream)
            samples = flip_and_shift(samples, self.flip, self.shift, stream)
        samples = self.normalization(samples)
        if self.noise:
            noise = torch.randn(samples.shape, generator=stream, device=samples.device)
            samples = noise.mul_(self.noise).add_(samples)
        return samples
