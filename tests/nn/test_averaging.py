"""The averaged copy of a module against loops written by hand."""

import copy

import pytest
import torch
from torch import nn

from supercm_lightning.nn import Ema, evaluating
from supercm_lightning.nn.averaging import ema_decay
from supercm_lightning.utils.options import SuperCMError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def train_one_step(module: nn.Module) -> None:
    module(torch.randn(16, 5))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_mean_teacher_rule_to_the_last_bit():
    student, decay = network(), 0.95
    ema, teacher = Ema(student, decay, warmup="mean"), copy.deepcopy(student)
    for step in range(1, 41):
        train_one_step(student)
        ema.update(student, step)
        with torch.no_grad():
            for average, live in zip(teacher.parameters(), student.parameters(), strict=True):
                average.lerp_(live, 1 - min(1 - 1 / step, decay))
            for average, live in zip(teacher.buffers(), student.buffers(), strict=True):
                average.copy_(live)
        assert_same(ema.module, teacher)


def test_rule_with_averaged_buffers_to_the_last_bit():
    live = network()
    ema, average = Ema(live, 0.99, warmup="ratio", average_buffers=True), copy.deepcopy(live)
    for step in range(0, 40):
        train_one_step(live)
        ema.update(live, step)
        for name, value in average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(live.state_dict()[name], 1 - min(0.99, (step + 1) / (step + 10)))
            else:
                value.copy_(live.state_dict()[name])
        assert_same(ema.module, average)


def test_mean_is_the_plain_mean_until_the_decay_is_reached():
    live = nn.Linear(4, 2)
    ema, seen = Ema(live, decay=0.99, warmup="mean"), []
    for step in range(1, 11):
        move(live)
        seen.append(live.weight.detach().clone())
        ema.update(live, step)
    torch.testing.assert_close(ema.module.weight, torch.stack(seen).mean(dim=0))


def move(module: nn.Linear) -> None:
    with torch.no_grad():
        module.weight += torch.randn_like(module.weight)


@pytest.mark.parametrize(
    ("decay", "warmup", "expected"),
    [
        (0.9, None, {1: 0.9, 1000: 0.9}),
        (0.9, "mean", {1: 0.0, 2: 0.5, 5: 0.8, 10: 0.9, 50: 0.9}),
        (0.9, "ratio", {0: 0.1, 1: 2 / 11, 8: 0.5, 79: 80 / 89, 90: 0.9}),
    ],
)
def test_decay_of_the_first_steps(decay, warmup, expected):
    assert {step: ema_decay(step, decay, warmup) for step in expected} == pytest.approx(expected)


def test_state_survives_a_state_dict_and_the_copy_takes_no_gradient():
    live = network()
    ema = Ema(live, 0.9)
    train_one_step(live)
    ema.update(live, 1)
    other = Ema(network(), 0.9)
    other.load_state_dict(ema.state_dict())
    x = torch.randn(6, 5, requires_grad=True)
    with evaluating(ema), evaluating(other):
        assert torch.equal(ema(x), other(x))
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert all(parameter.requires_grad for parameter in live.parameters())


def test_reset_copies_weights_and_buffers():
    live = network()
    ema = Ema(live, 0.9, average_buffers=True)
    train_one_step(live)
    ema.reset(live)
    assert_same(ema.module, live)


def test_a_module_without_parameters_has_an_average():
    ema = Ema(nn.Identity(), 0.9, average_buffers=True)
    ema.update(nn.Identity(), 1)
    assert torch.equal(ema(torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"decay": float("nan")}])
def test_decay_outside_its_range_is_refused(options):
    with pytest.raises(SuperCMError, match="decay"):
        Ema(nn.Linear(2, 2), **options)
