"""Photographs as cameras and tools write them: gray beside color, turned, transparent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from supercm_lightning import ClusteringDataModule, SemiSupervisedDataModule
from supercm_lightning.data.sources.images import common_shape, image_shape, read_image


@pytest.mark.parametrize("kind", ["few labels", "clustering"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_one_image_in_color_among_hundreds_of_gray_ones_keeps_its_color(
    kind: str, in_memory: bool, image_folder: Callable[..., Path]
) -> None:
    root = image_folder({"train/a": 150, "train/b": 150}, mode="L")
    Image.new("RGB", (8, 8), (200, 10, 30)).save(root / "train/b/77.png")
    options: dict[str, Any] = {"root": root, "in_memory": in_memory, "num_workers": 0}
    data: Any = (
        SemiSupervisedDataModule("folder", num_val=0, **options)
        if kind == "few labels"
        else ClusteringDataModule("folder", **options)
    )
    assert data.input_shape == (3, 8, 8)
    data.setup("fit")
    split = "labeled" if kind == "few labels" else "unlabeled"
    names = [data.describe_sample(split, number) for number in range(300)]
    place = next(number for number, name in enumerate(names) if name.endswith("b/77.png"))
    x, _ = data.arrays(split)
    np.testing.assert_allclose((x[place, :, 0, 0] + 1) * 127.5, [200, 10, 30], atol=0.01)


@pytest.mark.parametrize("split", ["unlabeled", "val/a", "test/b"])
def test_color_in_any_split_counts(split: str, image_folder: Callable[..., Path]) -> None:
    root = image_folder({"labeled/a": 60, "labeled/b": 60, "val/a": 1, "test/b": 1, "unlabeled": 1}, mode="L")
    Image.new("RGB", (8, 8)).save(root / split / "color.png")
    assert SemiSupervisedDataModule("folder", root).input_shape == (3, 8, 8)


def test_broken_files_are_skipped_when_channels_are_decided(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"a": 250}, mode="L")
    files = sorted((root / "a").iterdir())
    files[1].write_text("no image")
    with pytest.raises(ValueError, match=files[1].name):
        common_shape(files, None)
    assert common_shape(files, None, "skip") == (1, 8, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_images_are_turned_as_the_camera_says(orientation: int, suffix: str) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16, 0], upright[8:, 16:, 1] = 255, 255
    # How each orientation stores an upright image: the inverse of what a viewer does to it.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1), 7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(f"a{suffix}", exif=exif, quality=100, subsampling=0)
    pixels = read_image(f"a{suffix}", 3, None)
    assert pixels.shape == image_shape(f"a{suffix}", None) == (3, 16, 32)
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy().astype(int), upright, atol=30)
    small = read_image(f"a{suffix}", 3, 8)
    assert small[0, 2, 1] > 200 > 50 > small[1, 2, 1]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_is_white(mode: str, channels: int) -> None:
    if mode in ("RGBA", "LA"):
        image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
        image.putpixel((0, 0), (0, 0, 0, 255))
        image.convert(mode).save("a.png")
    else:
        image = Image.new(mode, (4, 2), (9, 9, 9) if mode == "RGB" else 9)
        image.putpixel((0, 0), (0, 0, 0) if mode == "RGB" else 0)
        if mode == "P":
            image.putpalette([0, 0, 0] + [70] * 33)
        image.save("a.png", transparency=(9, 9, 9) if mode == "RGB" else 9)
    pixels = read_image("a.png", channels, None)
    assert pixels.shape == (channels, 2, 4)
    assert pixels[:, 0, 0].unique().tolist() == [0]
    assert pixels.flatten(1)[:, 1:].unique().tolist() == [255]


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    Image.new("RGBA", (2, 2), (0, 100, 200, 128)).save("a.png")
    expected = torch.tensor([127, 177, 227], dtype=torch.float)
    torch.testing.assert_close(read_image("a.png", 3, None)[:, 0, 0].float(), expected, atol=1.0, rtol=0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_does_not_make_an_image_unreadable() -> None:
    Image.new("RGB", (4, 4), (9, 9, 9)).save("a.jpg", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff broken")
    assert read_image("a.jpg", 3, None).shape == image_shape("a.jpg", None) == (3, 4, 4)
