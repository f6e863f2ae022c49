"""Options of the augmentation of one domain, and what they make."""

from collections.abc import Callable, Mapping
from typing import Literal, TypedDict

from supercm_lightning.data.transforms.crops import CenterCrop, Crop, RandomCrop, RandomResizedCrop
from supercm_lightning.data.transforms.strong import StrongAugmentation
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation, check_weak_options
from supercm_lightning.utils.options import SuperCMError, check_choice


class AugmentOptions(TypedDict, total=False):
    """Options of the augmentation that may differ between source and target."""

    crop: Literal["resized", "random", "center"]
    crop_scale: tuple[float, float]
    flip: bool
    shift: int
    noise: float


def check_augment_options(
    options: AugmentOptions, normalization: Normalization, input_shape: tuple[int, ...], sample_shape: tuple[int, ...]
) -> None:
    """Checks a user's options.

    Args:
        options: All of them.
        normalization: Mean and deviation.
        input_shape: (C, H, W) of what the model receives.
        sample_shape: (C, H, W) of a stored image.

    Raises:
        SuperCMError: If one is unknown or out of its range; the message names it.
    """
    known = AugmentOptions.__annotations__
    if unexpected := set(options) - set(known):
        raise SuperCMError(f"target_augment: {min(unexpected)!r} is none of its options {', '.join(known)}.")
    check_weak_options(input_shape, options["shift"], options["noise"], normalization.mean, normalization.std)
    check_choice(crop=(options["crop"], _CROPS))
    low, high = options["crop_scale"]
    if not 0 < low <= high <= 1:
        raise SuperCMError(f"crop_scale={options['crop_scale']}: give two ascending numbers above 0 and up to 1.")
    if any(size > stored for size, stored in zip(input_shape, sample_shape, strict=True)):
        raise SuperCMError(f"image_size={input_shape[1]}: larger than the images, {sample_shape[1:]}.")


def augmentations_of(
    options: AugmentOptions, normalization: Normalization, input_shape: tuple[int, ...], sample_shape: tuple[int, ...]
) -> tuple[WeakAugmentation, StrongAugmentation]:
    """The weak and the strong view; the arguments are those of `check_augment_options`."""
    crop, flip, shift = options["crop"], options["flip"], options["shift"]
    cropped = sample_shape != input_shape or crop == "resized"
    cut = _CROPS[crop]((input_shape[1], input_shape[2]), options["crop_scale"]) if cropped else None
    weak = WeakAugmentation(normalization, flip, shift, options["noise"], cut)
    return weak, StrongAugmentation(normalization, flip, shift, crop=cut)


_CROPS: Mapping[str, Callable[[tuple[int, int], tuple[float, float]], Crop]] = {
    "resized": RandomResizedCrop,
    "random": lambda size, _: RandomCrop(size),
    "center": lambda size, _: CenterCrop(size),
}
