"""The strong view, compared image by image with torchvision's operations."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor
from torchvision.transforms.v2 import functional as single

from supercm_lightning import Method
from supercm_lightning.data import Normalization, SemiSupervisedDataModule, StrongAugmentation
from supercm_lightning.data.transforms.operations import FILL
from supercm_lightning.data.transforms.strong import POOL, apply_operations, cutout
from supercm_lightning.data.transforms.weak import flip_and_shift
from supercm_lightning.utils.random import generator

SIZES = [(8, 8), (28, 28), (32, 32), (33, 47)]
NAMES = tuple(POOL)


def images(n=24, c=3, h=32, w=32, seed=7) -> Tensor:
    """Half noise, half smooth: smooth images have grey levels missing, and neighbours that resemble each other."""
    source = torch.Generator().manual_seed(seed)
    rough = torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=source)
    coarse = torch.randint(20, 200, (n, c, 4, 4), dtype=torch.uint8, generator=source)
    return torch.cat([rough[: n // 2], single.resize(coarse[n // 2 :], [h, w])])


def magnitudes(name: str, n: int, seed=1) -> Tensor:
    _, low, high = POOL[name]
    return low + (high - low) * torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def affine(image: Tensor, translate=(0, 0), shear=(0.0, 0.0), center=None) -> Tensor:
    degrees = [math.degrees(math.atan(slope)) for slope in shear]
    return single.affine(image, 0, list(translate), 1.0, degrees, fill=[float(FILL)], center=center)


def solarize(image: Tensor, threshold: float) -> Tensor:
    return image if threshold > 255 else single.solarize(image, threshold)  # torchvision refuses what changes nothing


# The operations as torchvision's own RandAugment calls them, for one image.
REFERENCE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "AutoContrast": lambda image, _: single.autocontrast(image),
    "Brightness": single.adjust_brightness,
    "Color": single.adjust_saturation,
    "Contrast": single.adjust_contrast,
    "Equalize": lambda image, _: single.equalize(image),
    "Identity": lambda image, _: image,
    "Posterize": lambda image, bits: single.posterize(image, int(bits)),
    "Rotate": lambda image, degrees: single.rotate(image, degrees, fill=[float(FILL)]),
    "Sharpness": single.adjust_sharpness,
    "ShearX": lambda image, slope: affine(image, shear=(slope, 0.0), center=[0, 0]),
    "ShearY": lambda image, slope: affine(image, shear=(0.0, slope), center=[0, 0]),
    "Solarize": solarize,
    "TranslateX": lambda image, share: affine(image, translate=(share * image.shape[2], 0)),
    "TranslateY": lambda image, share: affine(image, translate=(0, share * image.shape[1])),
}
BLENDS = ("Color", "Contrast", "Sharpness")


def one_by_one(name: str, given: Tensor, magnitude: Tensor) -> Tensor:
    return torch.stack([REFERENCE[name](image, level) for image, level in zip(given, magnitude.tolist(), strict=True)])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_operation_equals_torchvisions_image_by_image(name, channels, size):
    given, magnitude = images(60, channels, *size), magnitudes(name, 60)
    before = given.clone()
    result = POOL[name][0](given, magnitude)
    assert result.dtype == torch.uint8
    assert torch.equal(given, before), "changed in place"
    difference = (result.int() - one_by_one(name, given, magnitude).int()).abs()
    if name in BLENDS:
        # Equal on x86; a compiler may fuse product and sum in one of the two, and a cut-off fraction makes it a level.
        assert difference.max() <= 1
        assert difference.float().mean() < 0.01
    else:
        assert difference.max() == 0


def test_pool_is_that_of_fixmatch():
    assert tuple(REFERENCE) == NAMES
    levels = {name: (low, high) for name, (_, low, high) in POOL.items() if high > low}
    assert levels == {
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.05, 0.95)),
        **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY"), (-0.3, 0.3)),
        "Posterize": (4, 8),
        "Rotate": (-30, 30),
        "Solarize": (0, 256),
    }


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize"])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_channels_of_one_value_stay(name, value):
    given = images(8, 3, 33, 47)
    given[:4, 1] = value
    result = POOL[name][0](given, torch.zeros(8))
    assert (result[:4, 1] == value).all()
    assert torch.equal(result, one_by_one(name, given, torch.zeros(8)))


def test_hand_values():
    row = torch.tensor([10, 20, 62, 112], dtype=torch.uint8).view(1, 1, 1, 4)
    one = torch.ones(1, dtype=torch.float64)

    def of(name: str, level: float) -> list[int]:
        return POOL[name][0](row, one * level).flatten().tolist()

    assert of("AutoContrast", 0) == pytest.approx([0, 25, 130, 255], abs=1)
    assert of("Brightness", 0.5) == [5, 10, 31, 56]
    assert of("Color", 0.1) == [10, 20, 62, 112]
    assert of("Contrast", 0.5) == [30, 35, 56, 81]
    assert of("Posterize", 4.9) == [0, 16, 48, 112]
    assert of("Sharpness", 0.1) == [10, 20, 62, 112]
    assert of("Solarize", 62) == [10, 20, 193, 143]
    assert of("Solarize", 112.5) == [10, 20, 62, 112]
    assert of("TranslateX", 0.25) == [FILL, 10, 20, 62]
    assert of("TranslateX", -0.25) == [20, 62, 112, FILL]


def test_each_image_of_a_batch_gets_its_own_operation():
    given = images(300, 3, 20, 24)
    source = torch.Generator().manual_seed(2)
    choice = torch.randint(len(POOL), (300,), generator=source)
    low, high = torch.tensor([POOL[NAMES[number]][1:] for number in choice.tolist()], dtype=torch.float64).unbind(1)
    magnitude = low + (high - low) * torch.rand(300, dtype=torch.float64, generator=source)
    result = apply_operations(given, choice, magnitude)
    for number in range(300):
        row = slice(number, number + 1)
        alone = apply_operations(given[row], choice[row], magnitude[row])
        assert torch.equal(result[row], alone), NAMES[choice[number]]
        expected = REFERENCE[NAMES[choice[number]]](given[number], magnitude[number].item())
        assert (alone[0].int() - expected.int()).abs().max() <= 1, NAMES[choice[number]]


def recorded_draws(monkeypatch, n: int, num_ops: int) -> list[tuple[Tensor, Tensor]]:
    """What the augmentation passes to its operations, one (choice, magnitude) per operation of each image."""
    draws = []

    def record(given, choice, magnitude):
        draws.append((choice, magnitude))
        return given

    monkeypatch.setattr("supercm_lightning.data.transforms.strong.apply_operations", record)
    StrongAugmentation(Normalization(), False, 0, num_ops)(images(2, 1, 8, 8)[:1].expand(n, -1, -1, -1), generator(5))
    return draws


def test_operations_are_equally_likely_and_magnitudes_uniform(monkeypatch):
    n = 14_000
    draws = recorded_draws(monkeypatch, n, num_ops=3)
    assert len(draws) == 3
    for choice, magnitude in draws:
        assert chisquare(choice.bincount(minlength=14)).pvalue > 0.01
        for number, (name, (_, low, high)) in enumerate(POOL.items()):
            levels = magnitude[choice == number]
            if high > low:
                assert kstest(levels, "uniform", (low, high - low)).pvalue > 0.001, name
    # With replacement: the two operations of an image are drawn apart.
    pairs = (draws[0][0] * 14 + draws[1][0]).bincount(minlength=196)
    assert chisquare(pairs).pvalue > 0.01


def test_fixmatch_draws_two_operations(monkeypatch):
    assert StrongAugmentation(Normalization(), False, 0).num_ops == 2
    assert len(recorded_draws(monkeypatch, 4, num_ops=2)) == 2


def test_view_is_flip_and_shift_then_two_operations_then_cutout(monkeypatch):
    """All stages put together by hand from the draws of the augmentation itself."""
    given, normalization = images(50), Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    strong = StrongAugmentation(normalization, True, 3)
    calls = []

    def spy(function):
        def run(*args):
            calls.append((function, args, function(*args)))
            return calls[-1][2]

        return run

    module = "supercm_lightning.data.transforms.strong"
    for function in (apply_operations, cutout):
        monkeypatch.setattr(f"{module}.{function.__name__}", spy(function))
    result = strong(given, generator(3))
    assert [function.__name__ for function, _, _ in calls] == ["apply_operations", "apply_operations", "cutout"]
    now = flip_and_shift(given, True, 3, generator(3))
    for _, args, after in calls:
        assert torch.equal(args[0], now)
        now = after
    assert torch.equal(result, normalization(now))


def test_cutout_covers_the_square_around_the_centre_and_nothing_else():
    given = images(5, 3, 12, 20)
    side = torch.tensor([4.0, 6.0, 0.0, 9.0, 5.0])
    x, y = torch.tensor([10.0, 1.0, 5.0, 19.5, 10.5]), torch.tensor([6.0, 11.0, 5.0, 6.0, 6.5])
    result = cutout(given, side, torch.stack([x, y]))
    expected = torch.zeros(5, 12, 20, dtype=torch.bool)
    expected[0, 4:8, 8:12] = True
    expected[1, 8:, :4] = True
    # The middles of pixels 15 … 19 and 2 … 9 lie within 4.5 of the centre; 1.5 and 10.5 lie on the edge, outside.
    expected[3, 2:10, 15:] = True
    expected[4, 4:9, 8:13] = True
    assert torch.equal(result, given.masked_fill(expected.unsqueeze(1), FILL))


def test_size_and_place_of_cutout_are_uniform(monkeypatch):
    drawn = {}

    def record(given, side, centre):
        drawn["side"], (drawn["x"], drawn["y"]) = side, centre
        return cutout(given, side, centre)

    monkeypatch.setattr("supercm_lightning.data.transforms.strong.cutout", record)
    black = torch.zeros(4000, 1, 24, 40, dtype=torch.uint8)
    result = StrongAugmentation(Normalization((0.0,), (1.0,)), False, 0, num_ops=0)(black, generator(1))
    for name, top in (("side", 20), ("x", 40), ("y", 24)):
        assert kstest(drawn[name], "uniform", (0, top)).pvalue > 0.01, name
    assert result.unique().mul(255).tolist() == [0, FILL]
    # E[covered share] for s ~ U(0, S) and a uniform centre: a square loses s²/4 per border it may cross on an axis, so
    # E[(s - s²/(4W)) (s - s²/(4H))] / (W H), with E[s^k] = S^k / (k + 1).
    w, h, top = 40, 24, 20
    expected = (top**2 / 3 - (1 / (4 * w) + 1 / (4 * h)) * top**3 / 4 + top**4 / (80 * w * h)) / (w * h)
    assert (result > 0).float().mean().item() == pytest.approx(expected, rel=0.05)


def test_no_cutout_no_operation_is_only_geometry():
    given = images()
    plain = StrongAugmentation(Normalization(), False, 0, num_ops=0, cutout=0)(given, generator(0))
    assert torch.equal(plain, Normalization()(given))


@pytest.mark.parametrize("channels", [1, 3])
def test_floats_give_the_bytes_result_divided_by_255(channels):
    given = images(64, channels)
    strong = StrongAugmentation(Normalization((0.0,), (1.0,)), True, 4)
    of_bytes = strong(given, generator(4))
    torch.testing.assert_close(strong(given / 255, generator(4)), of_bytes, rtol=0, atol=1e-6)
    assert torch.equal(strong(given.double() / 255, generator(4)), strong(given / 255, generator(4)))
    # As in the weak view, floats are on the user's own scale.
    assert torch.equal(
        StrongAugmentation(Normalization(), True, 4)(given / 255, generator(4)), strong(given / 255, generator(4))
    )


def test_stream_alone_decides():
    strong = StrongAugmentation(Normalization(), True, 2)
    given = images()
    before = given.clone()
    torch.manual_seed(1)
    first = strong(given, generator("a"))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(strong(given, generator("a")), first)
    assert not torch.equal(strong(given, generator("b")), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(given, before)
    without_geometry = StrongAugmentation(Normalization(), False, 0)
    assert not torch.equal(without_geometry(given, generator("a")), without_geometry(given, generator("b")))


def test_equal_images_get_different_views():
    views = StrongAugmentation(Normalization(), False, 0)(images(2)[:1].expand(50, -1, -1, -1), generator(0))
    assert len(views.flatten(1).unique(dim=0)) > 45


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.randn(5, 3, 8, 8), "reach from .*whitening=false"),
        (torch.linspace(0, 1.5, 960).view(5, 3, 8, 8), r"reach from 0 to 1\.5: .*whitening=false"),
        (torch.full((5, 3, 8, 8), float("nan")), "reach from nan to nan"),
        (torch.rand(5, 40), r"not of \(5, 40\)"),
    ],
)
def test_rows_that_are_no_images_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        StrongAugmentation(Normalization(), False, 0)(rows, generator(0))


@pytest.mark.parametrize("option", ["num_ops", "cutout"])
def test_negative_options_are_refused(option):
    with pytest.raises(ValueError, match=f"{option}=-1"):
        StrongAugmentation(Normalization(), False, 0, **{option: -1})


class TwoViews(Method):
    """The least method with a weak and a strong view."""

    views = ("weak", "strong")


def test_training_batch_has_both_views_of_the_same_rows(fit):
    data = SemiSupervisedDataModule("digits", num_labeled=20, unlabeled_batch_size=64, steps_per_epoch=2)
    batches = fit(data, TwoViews).batches
    (weak, strong), _ = batches[0]["unlabeled"]
    assert weak.shape == strong.shape == (64, *data.input_shape)
    assert strong.dtype == weak.dtype == torch.float32
    assert (weak == strong).flatten(1).all(1).sum() < 10
    again = fit(data, TwoViews).batches
    assert torch.equal(again[1]["unlabeled"][0][1], batches[1]["unlabeled"][0][1])
    assert not torch.equal(batches[0]["unlabeled"][0][1], batches[1]["unlabeled"][0][1])


def test_strong_view_is_configurable_and_shows_the_rows_of_the_weak_view(fit):
    class WithoutOperations(SemiSupervisedDataModule):
        def configure_augmentations(self):
            strong = StrongAugmentation(self.normalization, self.flip, self.shift, num_ops=0, cutout=0)
            return super().configure_augmentations() | {"strong": strong}

    (weak, strong), _ = fit(WithoutOperations("digits", num_labeled=20, shift=0), TwoViews).batches[0]["unlabeled"]
    assert torch.equal(weak, strong)


def test_whitened_images_have_no_strong_view(fit):
    data = SemiSupervisedDataModule("digits", num_labeled=20, steps_per_epoch=1, whitening=True)
    with pytest.raises(ValueError, match=r"TwoViews needs the view 'strong'.* has weak.*whitening=false"):
        fit(data, TwoViews)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_what_the_cpu_gives_without_waiting():
    given = images(280)
    strong = StrongAugmentation(Normalization((0.0,), (1.0,)), False, 0)
    on_device, stream = given.cuda(), generator(6, device="cuda")
    strong(on_device, stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = strong(on_device, stream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    difference = (result.cpu() - strong(given, generator(6))).abs() * 255
    # The last bit of a sum may differ: a level here, and at the border of two pixels the other pixel.
    assert (difference > 1.5).float().mean() < 1e-3
