"""The strong view of the FixMatch family: RandAugment and Cutout on whole batches, random per image.

The operation of each image is chosen on the host, from the seed of the stream: no device has to be waited for, and a
GPU applies the operations that a CPU applies. Each operation works on all its images at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional

from supercm_lightning.data.transforms import operations
from supercm_lightning.data.transforms.crops import CenterCrop, Crop, RandomResizedCrop
from supercm_lightning.data.transforms.operations import FILL, affine, per_image, to_device_like
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation, check_weak_options, flip_and_shift
from supercm_lightning.utils.options import SuperCMError, check_choice, check_range
from supercm_lightning.utils.random import generator

POOL: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    "AutoContrast": (lambda images, _: functional.autocontrast(images), 0, 0),
    "Brightness": (operations.brightness, 0.05, 0.95),
    "Color": (operations.color, 0.05, 0.95),
    "Contrast": (operations.contrast, 0.05, 0.95),
    "Equalize": (lambda images, _: functional.equalize(images), 0, 0),
    "Identity": (lambda images, _: images, 0, 0),
    "Posterize": (operations.posterize, 4, 8),
    "Rotate": (operations.rotate, -30, 30),
    "Sharpness": (operations.sharpness, 0.05, 0.95),
    "ShearX": (lambda images, slope: affine(images, xy=slope, x0=slope * images.shape[2] / 2), -0.3, 0.3),
    "ShearY": (lambda images, slope: affine(images, yx=slope, y0=slope * images.shape[3] / 2), -0.3, 0.3),
    "Solarize": (operations.solarize, 0, 256),
    "TranslateX": (lambda images, part: affine(images, x0=-part * images.shape[3]), -0.3, 0.3),
    "TranslateY": (lambda images, part: affine(images, y0=-part * images.shape[2]), -0.3, 0.3),
}
"""The operations by name, each with the lowest and the highest magnitude."""

_RANGES = torch.tensor([(low, high) for _, low, high in POOL.values()], dtype=torch.float64)


def apply_operations(images: Tensor, choice: Tensor, magnitude: Tensor) -> Tensor:
    """Applies to each image (n, C, H, W) uint8 its operation of `POOL`, at its magnitude, both (n,) on the host."""
    order = choice.argsort()
    sizes = choice.bincount(minlength=len(POOL)).tolist()
    sorted_images = images.index_select(0, to_device_like(images, order))
    parts = zip(POOL.values(), sorted_images.split(sizes), magnitude[order].split(sizes), strict=True)
    done = torch.cat([operation(part, level) if len(part) else part for (operation, _, _), part, level in parts])
    return done.index_select(0, to_device_like(images, order.argsort()))


def cutout(images: Tensor, side: Tensor, center: Tensor) -> Tensor:
    """Covers a square of each image (n, C, H, W) uint8 with gray; sides (n,) and centers (x, y), (2, n), in pixels."""
    h, w = images.shape[2:]
    half, x, y = (per_image(images, values) for values in (side / 2, *center))
    column = torch.arange(w, device=images.device) + 0.5
    row = torch.arange(h, device=images.device).view(-1, 1) + 0.5
    covered = (((column - x).abs() < half) & ((row - y).abs() < half)).to(torch.uint8)
    return images * (1 - covered) + FILL * covered


@dataclass(frozen=True)
class StrongAugmentation:
    """Weak geometry, RandAugment in the variant of the FixMatch paper, and Cutout, random per image.

    RandAugment here: 2 operations of `POOL` per image, with replacement, each applied, at a magnitude uniform in its
    range. Cutout: a square of side U(0, `cutout`) times the image's width at a uniform center. Both fill with mid-gray.
    USB and TorchSSL differ in three operations (`num_ops=3`), black gaps around moved images, and a Cutout color of
    their own.

    Attributes:
        normalization: Applied last.
        flip: Mirror left-right with probability 1/2, before the operations.
        shift: Largest shift in pixels before the operations, edges reflected.
        num_ops: Operations per image.
        cutout: Largest side of the square as a fraction of the width; 0: no Cutout.
        crop: Applied first, or None.

    Examples:
        >>> augment = StrongAugmentation(Normalization(), flip=True, shift=2)
        >>> images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
        >>> augment(images, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 3, 8, 8])

    Source:
        Cubuk et al., RandAugment, 2020; DeVries & Taylor, Cutout, 2017; Sohn et al., FixMatch, 2020.
    """

    normalization: Normalization
    flip: bool
    shift: int
    num_ops: int = 2
    cutout: float = 0.5
    crop: Crop | None = None

    def __post_init__(self) -> None:
        check_range(0, num_ops=self.num_ops, cutout=self.cutout)

    def __call__(self, samples: Tensor, stream: torch.Generator) -> Tensor:
        """Augments images to the strong view, (n, C, H, W) float32, of the same shape but for the crop.

        Args:
            samples: (n, C, H, W), uint8 or float in [0, 1], else an error; floats are rounded to 256 levels, not
                normalized. On a GPU, checking the range of floats waits for the device; bytes need no check.
            stream: Source of randomness, on the images' device, fresh: the operations depend on its initial seed alone.
        """
        if samples.ndim != 4:
            raise SuperCMError(f"Strong views are made of images (n, C, H, W), not of {tuple(samples.shape)}.")
        if samples.dtype != torch.uint8:
            low, high = samples.aminmax()
            if not (low >= 0) & (high <= 1):
                raise SuperCMError(
                    f"Strong views are made of images in [0, 1], and these reach from {low:.4g} to {high:.4g}: set "
                    "whitening=false, or give the data set without its own normalization."
                )
        images = samples if samples.dtype == torch.uint8 else samples.mul(255).round_().to(torch.uint8)
        images = images if self.crop is None else self.crop(images, stream)
        n, _, h, w = images.shape
        images = flip_and_shift(images, self.flip, self.shift, stream)
        # Its own key: a CPU stream of the same seed would repeat the numbers that flip and shift have used.
        numbers = generator(stream.initial_seed(), "strong")
        for _ in range(self.num_ops):
            choice = torch.randint(len(POOL), (n,), generator=numbers)
            low, high = _RANGES[choice].unbind(1)
            level = torch.rand(n, generator=numbers, dtype=torch.float64)
            images = apply_operations(images, choice, low + (high - low) * level)
        if self.cutout:
            side, x, y = torch.rand(3, n, generator=numbers, dtype=torch.float64)
            images = cutout(images, side * self.cutout * w, torch.stack([x * w, y * h]))
        return self.normalization(images if samples.dtype == torch.uint8 else images.float().div_(255))


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


class AugmentOptions(TypedDict, total=False):
    """Options of the augmentation that may differ between source and target."""

    crop: Literal["resized", "center"]
    crop_scale: tuple[float, float]
    flip: bool
    shift: int
    noise: float


def augmentations_of(
    options: AugmentOptions, normalization: Normalization, input_shape: tuple[int, ...], sample_shape: tuple[int, ...]
) -> tuple[WeakAugmentation, StrongAugmentation]:
    """The weak and the strong view of stored images (C, H, W); an unknown option or one out of range is an error."""
    known = AugmentOptions.__annotations__
    if unexpected := set(options) - set(known):
        raise SuperCMError(f"target_augment: {min(unexpected)!r} is none of its options {', '.join(known)}.")
    crop, scale = options["crop"], options["crop_scale"]
    flip, shift, noise = options["flip"], options["shift"], options["noise"]
    check_weak_options(input_shape, shift, noise, normalization.mean, normalization.std)
    size = (input_shape[1], input_shape[2])
    crops: dict[str, Crop] = {"resized": RandomResizedCrop(size, scale), "center": CenterCrop(size)}
    check_choice(crop=(crop, crops))
    if not 0 < scale[0] <= scale[1] <= 1:
        raise SuperCMError(f"crop_scale={scale}: give two ascending numbers above 0 and up to 1.")
    if any(side > stored for side, stored in zip(input_shape, sample_shape, strict=True)):
        raise SuperCMError(f"image_size={input_shape[1]}: larger than the images, {sample_shape[1:]}.")
    cut = crops[crop] if sample_shape != input_shape or crop == "resized" else None
    weak = WeakAugmentation(normalization, flip, shift, noise, cut)
    return weak, StrongAugmentation(normalization, flip, shift, crop=cut)
