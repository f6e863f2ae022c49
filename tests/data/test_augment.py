"""Augmentation of whole batches, compared with image-by-image restatements."""

import numpy as np
import pytest
import torch

from supercm_lightning.data import Normalization, WeakAugmentation
from supercm_lightning.data.transforms.weak import flip_and_shift
from supercm_lightning.utils.random import generator


def images(n=64, c=3, h=9, w=12) -> torch.Tensor:
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def stream(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def every_outcome(image: torch.Tensor, flip: bool, shift: int) -> dict[bytes, tuple[bool, int, int]]:
    """All results that one image may have: padded by reflection, cut out, mirrored."""
    outcomes = {}
    _, h, w = image.shape
    padded = np.pad(image.numpy(), ((0, 0), (shift, shift), (shift, shift)), mode="reflect")
    for top in range(2 * shift + 1):
        for left in range(2 * shift + 1):
            cut = padded[:, top : top + h, left : left + w]
            for mirrored in (False, True) if flip else (False,):
                outcomes[np.ascontiguousarray(cut[:, :, ::-1] if mirrored else cut).tobytes()] = (mirrored, top, left)
    return outcomes


@pytest.mark.parametrize(("flip", "shift"), [(True, 2), (False, 3), (True, 0), (True, 8)])
def test_each_image_is_a_mirrored_cut_of_its_reflected_self(flip, shift):
    given = images()
    drawn = []
    for image, result in zip(given, flip_and_shift(given, flip, shift, stream()), strict=True):
        outcomes = every_outcome(image, flip, shift)
        drawn.append(outcomes[result.numpy().tobytes()])
    assert len(set(drawn)) > 1, "one draw for the whole batch"


def test_equals_an_image_by_image_restatement_for_the_same_numbers():
    given, shift = images(), 2
    numbers = stream(3)
    rows, columns = torch.randint(-shift, shift + 1, (2, len(given), 1), generator=numbers).squeeze(2)
    mirrored = torch.rand(len(given), 1, generator=numbers).squeeze(1) < 0.5
    for number, result in enumerate(flip_and_shift(given, True, shift, stream(3))):
        padded = np.pad(given[number].numpy(), ((0, 0), (shift, shift), (shift, shift)), mode="reflect")
        top, left = shift + int(rows[number]), shift + int(columns[number])
        cut = padded[:, top : top + 9, left : left + 12]
        assert np.array_equal(result.numpy(), cut[:, :, ::-1] if mirrored[number] else cut)


def test_every_flip_and_shift_is_equally_likely():
    given = images(1).expand(20_000, -1, -1, -1)
    outcomes = every_outcome(given[0], True, 1)
    found = [outcomes[result.tobytes()] for result in flip_and_shift(given, True, 1, stream()).numpy()]
    _, times = np.unique(np.array(found), axis=0, return_counts=True)
    assert len(times) == 18
    # Standard deviation of a count: sqrt(20000/18) = 33.
    assert np.abs(times - 20_000 / 18).max() < 150


def test_bytes_and_floats_are_moved_alike():
    given = images()
    assert torch.equal(
        flip_and_shift(given, True, 2, stream()).float(), flip_and_shift(given.float(), True, 2, stream())
    )


def test_nothing_to_do_changes_nothing():
    assert torch.equal(flip_and_shift(images(), False, 0, stream()), images())


def test_normalisation_is_the_formula_per_channel():
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    got = Normalization(mean, std)(images())
    expected = (images().double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert Normalization()(black_and_white).flatten().tolist() == [-1.0, 1.0]


def test_floats_are_not_normalised():
    rows = torch.randn(5, 3, 4, 4)
    assert torch.equal(Normalization((0.1,), (7.0,))(rows), rows)


def test_noise_has_its_standard_deviation_in_normalised_units_and_differs_per_sample():
    given = images(1).expand(500, -1, -1, -1)
    normalization = Normalization((0.5,), (0.25,))
    noise = WeakAugmentation(normalization, noise=0.15)(given, stream()) - normalization(given)
    assert noise.std().item() == pytest.approx(0.15, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.002)
    assert np.abs(np.corrcoef(noise.flatten(1)[:20].numpy())[np.triu_indices(20, 1)]).max() < 0.25


def test_features_only_get_noise():
    rows = torch.randn(6, 40)
    assert torch.equal(WeakAugmentation(Normalization(), flip=True, shift=2)(rows, stream()), rows)
    noisy = WeakAugmentation(Normalization(), flip=True, shift=2, noise=0.1)(rows, stream())
    assert 0.08 < (noisy - rows).std() < 0.12


def test_input_is_not_changed():
    for given in (images(), images().float(), torch.randn(6, 40)):
        before = given.clone()
        WeakAugmentation(Normalization(), True, 2, 0.15)(given, stream())
        assert torch.equal(given, before)


def test_generator_alone_decides():
    weak = WeakAugmentation(Normalization(), True, 2, 0.15)
    torch.manual_seed(1)
    first = weak(images(), stream(5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(weak(images(), stream(5)), first)
    assert not torch.equal(weak(images(), stream(6)), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_streams_differ_for_neighbouring_keys():
    keys = [
        (seed, step, rank, name) for seed in (0, 1) for step in (0, 1, 10) for rank in (0, 1) for name in ("a", "b")
    ]
    drawn = torch.stack([torch.randn(1000, generator=generator(*key)) for key in keys])
    assert torch.equal(torch.randn(1000, generator=generator(*keys[0])), drawn[0])
    assert (torch.corrcoef(drawn) - torch.eye(len(keys))).abs().max() < 0.2
