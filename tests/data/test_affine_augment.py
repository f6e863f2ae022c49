"""The affine strong view: each change by itself, drawn per image, from the stream alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from supercm_lightning.data import Normalization
from supercm_lightning.data.transforms.strong import AffineAugmentation

NOTHING: dict[str, Any] = dict.fromkeys(("rotation", "scale", "shear", "shift", "cutout", "contrast", "noise"), 0.0)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def view(images: Tensor, seed: int = 0, **options: float) -> Tensor:
    return AffineAugmentation(Normalization(), **NOTHING | options)(images, stream(seed))


def moments(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mass, mean place (x, y) in halves of the side, and covariance of the brightness."""
    weight = (images + 1).flatten(1)
    side = images.shape[-1]
    at = (2 * torch.arange(side) + 1) / side - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    place = torch.stack([x.flatten(), y.flatten()])
    mass = weight.sum(1)
    mean = (weight @ place.T) / mass[:, None]
    apart = place[None] - mean[:, :, None]
    return mass, mean[:, 0], mean[:, 1], torch.einsum("np,nap,nbp->nab", weight / mass[:, None], apart, apart)


@pytest.fixture
def bars() -> Tensor:
    """Two hundred copies of an upright bar in the middle of a black image."""
    images = torch.zeros(200, 1, 40, 40, dtype=torch.uint8)
    images[:, :, 12:28, 18:22] = 200
    return images


def test_nothing_to_do_is_normalisation(bars: Tensor) -> None:
    torch.testing.assert_close(view(bars), Normalization()(bars))


def test_rotation_turns_each_bar_by_its_own_angle(bars: Tensor) -> None:
    mass, x, y, covariance = moments(view(bars, rotation=0.4))
    assert torch.stack([x, y]).abs().max() < 0.02
    assert (mass / mass[0] - 1).abs().max() < 0.1
    angle = 0.5 * torch.atan2(2 * covariance[:, 0, 1], covariance[:, 1, 1] - covariance[:, 0, 0])
    assert 0.35 < angle.abs().max() < 0.45
    assert angle.std().item() == pytest.approx(0.4 / math.sqrt(3), rel=0.15)


def test_shift_moves_each_bar_by_up_to_its_share_of_the_side(bars: Tensor) -> None:
    _, x, y, covariance = moments(view(bars, shift=0.2))
    for moved in (x, y):
        assert 0.36 < moved.abs().max() < 0.41  # 0.2 of the side, in halves of it
        assert moved.std().item() == pytest.approx(0.4 / math.sqrt(3), rel=0.15)
    assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 0.2
    # Interpolation blurs the thin side a little.
    assert (covariance / covariance[0] - 1)[:, [0, 1], [0, 1]].abs().max() < 0.2


def test_scale_and_shear_keep_the_middle(bars: Tensor) -> None:
    mass, x, y, _ = moments(view(bars, scale=0.2))
    assert torch.stack([x, y]).abs().max() < 0.02
    assert 1.3 < mass.max() / mass.median() < 1.6  # (1.2)²
    _, _, _, covariance = moments(view(bars, shear=0.3))
    slope = covariance[:, 0, 1] / covariance[:, 1, 1]
    assert 0.25 < slope.abs().max() < 0.32


def test_what_moves_in_is_black(bars: Tensor) -> None:
    white = torch.full_like(bars, 255)
    moved = view(white, shift=0.3)
    assert moved.min() == -1
    assert torch.equal(moved.amax((1, 2, 3)), torch.ones(200))


def test_the_square_is_black_and_not_larger_than_asked(bars: Tensor) -> None:
    covered = (view(torch.full_like(bars, 255), cutout=0.5) == -1).float()
    assert covered.sum((1, 2, 3)).max() <= 20 * 20 + 1
    assert covered.sum((1, 2, 3)).unique().numel() > 50
    assert covered.mean(0).min() > 0


def test_contrast_and_noise(bars: Tensor) -> None:
    levels = view(bars, contrast=0.4).add(1).mul(127.5).amax((1, 2, 3))
    assert levels.min() == pytest.approx(120, abs=3)
    assert levels.max() == 255
    noise = view(bars, noise=0.1) - Normalization()(bars)
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)


def test_the_stream_alone_decides(bars: Tensor) -> None:
    augment = AffineAugmentation(Normalization())
    torch.manual_seed(1)
    first = augment(bars, stream(5))
    torch.manual_seed(2)
    assert torch.equal(augment(bars, stream(5)), first)
    assert not torch.equal(augment(bars, stream(6)), first)


def test_floats_are_moved_and_not_normalised(bars: Tensor) -> None:
    rows = bars.float() / 255
    before = rows.clone()
    moved = AffineAugmentation(Normalization(), **NOTHING | {"shift": 0.2})(rows, stream())
    assert moved.min() == 0
    assert torch.equal(rows, before)
    torch.testing.assert_close(2 * moved - 1, view(bars, shift=0.2), atol=1 / 127, rtol=0)
