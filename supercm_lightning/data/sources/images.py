"""Image files: their shapes, their pixels, and files that cannot be read."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from rich.progress import track
from torch import Tensor

from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.trainer import is_rank_zero

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"})
OTHER_IMAGES = frozenset({".gif", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".psd", ".tga", ".dng"})
"""Image files that are not read, and counted where they are found."""

BadImage = Literal["error", "skip"]
"""What to do about a file that cannot be read as an image."""

REMEDY = " Repair or remove the file, or leave such files out with on_bad_image: skip."

_ORIENTATION = 0x0112
_TURNS = dict(
    enumerate(
        ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"), 2
    )
)
"""What brings an image of each EXIF orientation upright."""


class UnreadableImage(SuperCMError):
    """A file that cannot be read as an image."""


def progress(work: Any, what: str, total: int) -> Any:
    """Shows a progress bar over work of 1,000 items or more, on the first process."""
    return track(work, what, total=total, disable=not is_rank_zero() or total < 1000)


def in_threads(work: Callable[[Any], Any], items: Sequence[Any], what: str, threads: int | None) -> Iterator[Any]:
    """Results of `work` on each item, in their order, computed by threads; work that nobody waits for is dropped."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from progress(pool.map(work, items), what, len(items))
        finally:
            pool.shutdown(cancel_futures=True)


def image_shape(file: Path | str, image_size: int | None) -> tuple[int, int, int]:
    """Shape (C, H, W) that a file will have, from its header: gray files have one channel, all others three."""
    try:
        with Image.open(file) as image:
            channels, (width, height) = channels_of(image), image.size
            # Pillow decodes a whole PNG to look for an orientation behind its pixels.
            if image_size is None and (image.format != "PNG" or "exif" in image.info):
                turned = _orientation(image) > 4
                width, height = image.size[::-1] if turned else image.size
    except Exception as error:  # a broken file can raise anything
        raise _unreadable(file, error) from error
    return (channels, image_size, image_size) if image_size else (channels, height, width)


def common_shape(
    files: Sequence[Path], image_size: int | None, on_bad_image: BadImage = "error"
) -> tuple[int, int, int]:
    """Shape (C, H, W) to which files are brought: the size of the first, three channels if any has color.

    About a hundred files are looked at first, which settles most sets; while all are gray, the headers of the others
    follow. Files that cannot be read are an error, with `skip` only if none can.
    """

    def inspect(file: Path) -> tuple[int, int, int] | None:
        try:
            return image_shape(file, image_size)
        except UnreadableImage:
            if on_bad_image == "error":
                raise
            return None

    sampled = files[:: max(1, len(files) // 100)]
    shapes = [shape for shape in map(inspect, sampled) if shape is not None]
    if not shapes:
        raise SuperCMError(f"none of the {len(sampled)} images that were tried can be read, {files[0]} among them.")
    color = any(shape[0] == 3 for shape in shapes)
    if not color and len(files) > len(sampled):
        others = in_threads(inspect, files, f"Inspecting {len(files):,} images", None)
        color = any(shape is not None and shape[0] == 3 for shape in others)
    return (3 if color else 1, *shapes[0][1:])


def _unreadable(file: Path | str, error: Exception) -> UnreadableImage:
    return UnreadableImage(f"{file}: cannot be read as an image ({error}).{REMEDY}")


def _orientation(image: Image.Image) -> int:
    """How an image is stored; 1: upright."""
    if image.format == "TIFF":
        image.load()  # Pillow turns TIFF images itself, when it decodes them
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata of an image that may be whole
        return 1


def channels_of(image: Image.Image) -> int:
    """1 for gray images, 3 for all others."""
    return 1 if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I") else 3


def read_image(
    file: Path | str, channels: int, image_size: int | None, keep_aspect: bool = True, at_most: int | None = None
) -> Tensor:
    """Pixels of a file, uint8 (C, H, W); the arguments are those of `pixels_of`."""
    try:
        with Image.open(file) as image:
            return pixels_of(image, channels, image_size, keep_aspect, at_most)
    except Exception as error:  # a broken file can raise anything
        raise _unreadable(file, error) from error


def pixels_of(
    image: Image.Image, channels: int, image_size: int | None, keep_aspect: bool = True, at_most: int | None = None
) -> Tensor:
    """Pixels of an image, uint8 (C, H, W), turned upright as its EXIF orientation says; transparent ones are white.

    It is brought to a square of `image_size`, where given: `keep_aspect` resizes the shorter side and cuts out the
    center, instead of resizing both sides. Else a shorter side above `at_most` is brought to this length, bicubic.
    """
    tiles = [str(tile[-1]) for tile in image.tile] if isinstance(image, ImageFile) else []  # none once pixels are read
    is_deep = any(kind in tile for tile in tiles for kind in ("B;16", "A;16"))
    turn = _TURNS.get(_orientation(image))
    if (side := image_size or (at_most and 2 * at_most)) is not None:
        # JPEG can be decoded at a fraction of its size, which large photographs gain from.
        image.draft("L" if channels == 1 else "RGB", (side, side))
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("floats outside [0, 1] have no known scale; convert it to 8 bits")
        image = Image.fromarray((values * 255).round().astype(np.uint8))
    if image.mode.startswith("I"):
        # Pillow cuts 16-bit values off at 255 when it converts them.
        values = np.asarray(image)
        is_deep, largest = False, int(values.max(initial=0)) >> 8
        if not (values.min(initial=0) >= 0 and (16 <= largest < 256 or not values.any())):
            raise ValueError(f"values up to {int(values.max())} have no known scale; convert it to 8 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if is_deep and 0 < np.asarray(image).max(initial=0) < 16:
        raise ValueError("16 bits of which 12 are used have no known scale; convert it to 8 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, (255, 255, 255, 255)), opaque)
    image = image.convert("L" if channels == 1 else "RGB")
    image = image if turn is None else image.transpose(Image.Transpose[turn])
    if image_size is not None and image.size != (image_size, image_size):
        scale = image_size / min(image.size)
        width, height = (max(image_size, round(side * scale)) if keep_aspect else image_size for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        image = image.crop((left, top, left + image_size, top + image_size))
    if at_most is not None and (shorter := min(image.size)) > at_most:
        width, height = (int(at_most * side / shorter) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)
