"""Image files: what they hold, and their pixels; those that cannot be read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from supercm_lightning.utils.options import SuperCMError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

BadImage = Literal["error", "skip"]
"""What to do about a file that cannot be read as an image."""


def check_bad_image_policy(on_bad_image: str) -> None:
    """Checks the name of a policy for files that cannot be read.

    Raises:
        ValueError: If it is unknown.
    """
    if on_bad_image not in get_args(BadImage):
        raise SuperCMError(f"on_bad_image={on_bad_image!r}: choose {' or '.join(get_args(BadImage))}.")


class UnreadableImage(SuperCMError):
    """A file that cannot be read as an image."""


REMEDY = " Repair or remove the file, or leave such files out with on_bad_image: skip."


def image_shape(file: Path | str, image_size: int | None) -> tuple[int, int, int]:
    """Shape (C, H, W) that a file will have: grey files have one channel, all others three.

    Raises:
        UnreadableImage: If the file cannot be read; the message names it.
    """
    try:
        with Image.open(file) as image:
            channels, (width, height) = channels_of(image), image.size
    except Exception as error:  # a broken file can raise anything
        raise _unreadable(file, error) from error
    return (channels, image_size, image_size) if image_size else (channels, height, width)


def sampled_shapes(
    files: Sequence[Path], image_size: int | None, on_bad_image: BadImage = "error"
) -> list[tuple[int, int, int]]:
    """Shapes of about a hundred of the files, as in `image_shape`.

    Raises:
        UnreadableImage: If one cannot be read and `on_bad_image` is `error`.
        ValueError: If none can be read.
    """
    shapes, tried = [], files[:: max(1, len(files) // 100)]
    for file in tried:
        try:
            shapes.append(image_shape(file, image_size))
        except UnreadableImage:
            if on_bad_image == "error":
                raise
    if not shapes:
        raise SuperCMError(f"none of the {len(tried)} images that were tried can be read, {files[0]} among them.")
    return shapes


def _unreadable(file: Path | str, error: Exception) -> UnreadableImage:
    return UnreadableImage(f"{file}: cannot be read as an image ({error}).{REMEDY}")


def channels_of(image: Image.Image) -> int:
    """1 for grey images, 3 for all others."""
    return 1 if image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I") else 3


def read_image(file: Path | str, channels: int, image_size: int | None, keep_aspect: bool = True) -> Tensor:
    """Pixels of a file, uint8 (C, H, W); the arguments are those of `pixels_of`.

    Raises:
        UnreadableImage: If the file cannot be read; the message names it.
    """
    try:
        with Image.open(file) as image:
            return pixels_of(image, channels, image_size, keep_aspect)
    except Exception as error:  # a broken file can raise anything
        raise _unreadable(file, error) from error


def pixels_of(image: Image.Image, channels: int, image_size: int | None, keep_aspect: bool = True) -> Tensor:
    """Pixels of an image, uint8 (C, H, W).

    Args:
        image: The image.
        channels: 1 (grey) or 3 (RGB).
        image_size: The image is brought to this square; None keeps its size.
        keep_aspect: Resize the shorter side and cut out the centre square, instead of resizing both sides.
    """
    if image_size is not None:
        # JPEG can be decoded at a fraction of its size, which large photographs gain from.
        image.draft("L" if channels == 1 else "RGB", (image_size, image_size))
    if image.mode.startswith("I"):
        # Pillow cuts 16-bit values off at 255 when it converts them.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "LA", "PA") and channels == 3:
        # The detour is Pillow's own advice for palettes with transparency.
        image = image.convert("RGBA")
    image = image.convert("L" if channels == 1 else "RGB")
    if image_size is not None and image.size != (image_size, image_size):
        scale = image_size / min(image.size)
        width, height = (max(image_size, round(side * scale)) if keep_aspect else image_size for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        image = image.crop((left, top, left + image_size, top + image_size))
    pixels = np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)
