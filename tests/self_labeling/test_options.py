"""Options of ASD: their defaults, their checks, what is derived from them."""

from typing import Any

import pytest

from supercm_lightning.self_labeling import ASDOptions
from supercm_lightning.utils.options import SuperCMError


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 0}, {"sampler": "grid"}, {"prototype_start": 1.5}, {"pool": 0}, {"hold": 0}, {"cost": "pixel"},
        {"solver": "fast"}, {"consistency": -1.0}, {"window": 1.5}, {"window": 0.0}, {"window": 0}, {"warmup": 1.0},
        {"map_every": 0}, {"map": "average"},
    ],
)  # fmt: skip
def test_an_option_outside_its_range_is_named(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(SuperCMError, match=f"asd_{name}={value!r}"):
        ASDOptions(**options)


def test_fewer_samples_than_clusters_are_refused() -> None:
    assert ASDOptions(samples=10).num_samples(10) == 10
    with pytest.raises(SuperCMError, match=r"asd_samples=9.* 10 clusters"):
        ASDOptions(samples=9).num_samples(10)


def test_flat_names_become_options() -> None:
    assert ASDOptions.from_flat({"asd_hold": 3, "asd_map": "spectral", "lr": 1}) == ASDOptions(hold=3, map="spectral")
    assert ASDOptions.from_flat({}) == ASDOptions()


@pytest.mark.parametrize(("window", "expected"), [(0.5, 20), (1.0, 40), (0.001, 1), (7, 7), (1, 1)])
def test_window_is_a_fraction_or_a_number_of_steps(window: float, expected: int) -> None:
    assert ASDOptions(window=window).window_steps(40) == expected
