"""Crops of batches, held against torchvision's, image by image."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms import functional as tv

from supercm_lightning.data import Normalization, StrongAugmentation, WeakAugmentation
from supercm_lightning.data.transforms.crops import CenterCrop, RandomResizedCrop, resized_crop
from supercm_lightning.utils.random import generator


def photos(n: int = 6, h: int = 40, w: int = 56) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, h, w), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def boxes(n: int, h: int, w: int, size: tuple[int, int]) -> torch.Tensor:
    """Boxes of every kind: small, large, long, at the borders, and the whole image."""
    stream = np.random.default_rng(0)
    height, width = stream.integers(1, h + 1, n), stream.integers(1, w + 1, n)
    height[:2], width[:2] = (h, min(h, size[0])), (w, min(w, size[1]))
    top, left = stream.integers(0, h - height + 1), stream.integers(0, w - width + 1)
    return torch.from_numpy(np.stack([top, left, height, width]))


class TestResizedCrop:
    """One product per axis gives what torchvision computes for each image alone."""

    @pytest.mark.parametrize("size", [(24, 24), (17, 33), (64, 80)])
    def test_floats_are_those_of_torchvision(self, size):
        images = photos(60).double()
        box = boxes(60, 40, 56, size)
        found = resized_crop(images, box, size)
        for image, one, (top, left, height, width) in zip(images, found, box.T.tolist(), strict=True):
            expected = tv.resized_crop(image, top, left, height, width, list(size), antialias=True)
            torch.testing.assert_close(one.double(), expected, rtol=0, atol=2e-3)

    def test_bytes_are_those_of_torchvision_within_its_rounding(self):
        images, box = photos(60), boxes(60, 40, 56, (24, 24))
        found = resized_crop(images, box, (24, 24))
        assert found.dtype == torch.uint8
        for image, one, (top, left, height, width) in zip(images, found, box.T.tolist(), strict=True):
            expected = tv.resized_crop(image, top, left, height, width, [24, 24], antialias=True)
            assert (one.int() - expected.int()).abs().max() <= 1

    def test_a_box_of_the_final_size_is_cut_out_unchanged(self):
        images = photos(2)
        box = torch.tensor([[3, 0], [7, 0], [20, 20], [30, 30]])
        found = resized_crop(images, box, (20, 30))
        assert torch.equal(found[0], images[0, :, 3:23, 7:37])
        assert torch.equal(found[1], images[1, :, :20, :30])


class TestRandomResizedCrop:
    """Boxes follow torchvision's distribution, one per image."""

    def test_boxes_lie_inside_and_within_the_ranges(self):
        crop = RandomResizedCrop((8, 8), scale=(0.2, 0.6), ratio=(0.5, 2))
        top, left, height, width = crop.draw(5000, (100, 80), generator(0, "a")).double()
        assert min(top.min(), left.min()) >= 0
        assert (top + height).max() <= 100
        assert (left + width).max() <= 80
        area, ratio = height * width / 8000, width / height
        assert area.min() > 0.19
        assert area.max() < 0.62
        assert ratio.min() > 0.48
        assert ratio.max() < 2.05

    @pytest.mark.parametrize("shape", [(64, 64), (90, 40)])
    def test_distribution_is_that_of_torchvision(self, shape):
        n = 4000
        ours = RandomResizedCrop((8, 8)).draw(n, shape, generator(0, "b")).double().T
        image, ranges = torch.empty(1, *shape), ([0.08, 1.0], [3 / 4, 4 / 3])
        theirs = torch.tensor([TorchvisionCrop.get_params(image, *ranges) for _ in range(n)]).double()
        spread = theirs.std(0) / math.sqrt(n) * math.sqrt(2)
        assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * spread).all()
        torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.06, atol=0)

    def test_box_that_never_fits_becomes_the_largest_central_one(self):
        # Ten times as wide as high, where the ratio may not exceed 4/3: no box of this area fits.
        top, left, height, width = RandomResizedCrop((8, 8), scale=(0.9, 1.0)).draw(20, (12, 120), generator(0, "c"))
        assert (height == 12).all()
        assert (width == 16).all()
        assert (top == 0).all()
        assert (left == 52).all()

    def test_every_image_has_its_own_box(self):
        box = RandomResizedCrop((8, 8)).draw(50, (256, 256), generator(0, "d"))
        assert len(box.T.unique(dim=0)) == 50

    def test_the_stream_alone_decides(self):
        crop = RandomResizedCrop((16, 16))
        first, again, other = (crop(photos(), generator(seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class TestOtherCrops:
    """Boxes of the final size."""

    def test_center_crop(self):
        images = photos()
        assert torch.equal(CenterCrop((20, 31))(images), images[:, :, 10:30, 12:43])


class TestWithinAugmentation:
    """The crop comes before flip, operations and normalisation."""

    def test_weak_view_of_a_centre_crop(self):
        normalization = Normalization()
        weak = WeakAugmentation(normalization, crop=CenterCrop((20, 20)))
        assert torch.equal(weak(photos(), generator(0)), normalization(CenterCrop((20, 20))(photos())))

    def test_weak_view_flips_half_of_the_crops(self):
        images = torch.arange(56).to(torch.uint8).expand(300, 1, 40, 56)
        views = WeakAugmentation(Normalization(), flip=True, crop=RandomResizedCrop((24, 24)))(images, generator(0))
        mirrored = views[:, 0, 0, 0] > views[:, 0, 0, -1]
        assert 0.4 < mirrored.float().mean() < 0.6

    def test_strong_view_without_operations_is_the_weak_one(self):
        crop = RandomResizedCrop((24, 24))
        strong = StrongAugmentation(Normalization(), True, 0, num_ops=0, cutout=0, crop=crop)(photos(), generator(0))
        assert torch.equal(strong, WeakAugmentation(Normalization(), True, crop=crop)(photos(), generator(0)))

    def test_strong_view_has_the_crop_s_shape(self):
        crop = RandomResizedCrop((24, 24))
        plain = WeakAugmentation(Normalization(), True, crop=crop)(photos(), generator(0))
        strong = StrongAugmentation(Normalization(), True, 0, crop=crop)(photos(), generator(0))
        assert strong.shape == plain.shape == (6, 3, 24, 24)
        assert (strong != plain).flatten(1).any(1).all()
