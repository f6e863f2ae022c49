"""Images of samples, and a picture of many of them in groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from supercm_lightning.data import ViewDataModule
from supercm_lightning.data.sources.images import IMAGE_SUFFIXES, UnreadableImage, in_threads, read_image
from supercm_lightning.utils.text import printable

_GAP, _LINE, _RED = 3, 13, (200, 30, 30)


@dataclass(frozen=True)
class Picture:
    """An image of any size, whose center square is shown, lines of text below it, and whether its frame is red."""

    image: Image.Image
    lines: tuple[str, ...]
    is_wrong: bool = False


def contact_sheet(
    headings: Sequence[str], bands: Sequence[tuple[str, Sequence[Sequence[Picture]]]], columns: int, size: int
) -> Image.Image:
    """Draws a band with a title for each class, with named groups of images, at most `columns` of a side, in each."""
    import matplotlib

    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 10)
    lines = [max((len(one.lines) for group in groups for one in group), default=0) for _, groups in bands]
    heights = [_LINE + 2 * _GAP + (size + count * _LINE if count else 0) for count in lines]
    group_width = columns * (size + _GAP) + 2 * _GAP
    sheet = Image.new("RGB", (len(headings) * group_width + _GAP, sum(heights) + _LINE + 2 * _GAP), "white")
    draw = ImageDraw.Draw(sheet)

    def write(left: int, top: int, text: str, width: int, color: str | tuple[int, int, int] = "black") -> None:
        text = printable(text).replace("\n", " ")
        while text and font.getlength(text) > width:
            text = text[:-2] + "…" if len(text) > 2 else ""
        draw.text((left, top), text, fill=color, font=font)

    for number, heading in enumerate(headings):
        write(_GAP + number * group_width, _GAP, heading, group_width, "dimgray")
    top = _LINE + 2 * _GAP
    for (title, groups), height in zip(bands, heights, strict=True):
        draw.line((0, top, sheet.width, top), fill="lightgray")
        write(_GAP, top + 1, title, sheet.width)
        for number, group in enumerate(groups):
            for place, one in enumerate(group):
                left, upper = _GAP + number * group_width + place * (size + _GAP), top + _LINE + _GAP
                small = ImageOps.fit(one.image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
                sheet.paste(ImageOps.expand(ImageOps.crop(small, 2), 2, _RED) if one.is_wrong else small, (left, upper))
                for line, text in enumerate(one.lines):
                    write(left, upper + size + line * _LINE, text, size, _RED if one.is_wrong else "black")
        top += height
    return sheet


def sample_images(
    data: ViewDataModule, split: str, places: Tensor, size: int, root: str | Path | None = None
) -> list[Image.Image]:
    """Images of samples of a split: from their files, else from what the data module holds; empty if they have none.

    `places` are positions in the split, (n,) int64; names of files count from `root`, or from the folder of images of
    frozen features. Large files are read with about `size` pixels on their shorter side.
    """
    samples = data.samples[split]
    if samples.store.names is not None:
        folder = Path(root or data.hparams.get("images") or "").expanduser()
        files = [folder / samples.store.names[number] for number in samples.index[places].tolist()]
        enough = all if len(data.input_shape) == 3 else any  # vectors have no pixels to fall back on
        if enough(file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() for file in files):
            return list(in_threads(lambda file: _open(file, size), files, "Reading", None))
    if not len(places) or len(data.input_shape) != 3:
        return []
    pixels = samples.fetch(places, torch.device("cpu"))
    pixels = pixels[:, :3] if pixels.shape[1] > 2 else pixels[:, :1]
    if pixels.dtype != torch.uint8:
        low, high = pixels.amin(), pixels.amax()
        pixels = ((pixels - low) / (high - low).clamp_min(1e-12) * 255).byte()
    return [to_pil_image(one) for one in pixels]


def _open(file: Path, size: int) -> Image.Image:
    try:
        return to_pil_image(read_image(file, 3, None, at_most=size))
    except UnreadableImage:  # of features, which are whole
        return Image.new("RGB", (size, size), "gray")
