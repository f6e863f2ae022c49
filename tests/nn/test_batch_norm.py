"""What the context managers leave untouched, and what they do not."""

import pytest
import torch
from torch import nn

from supercm_lightning.nn import build_backbone, evaluating, frozen_batch_norm_stats


class Interrupted(Exception):
    """Raised inside a context to see what is restored."""


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every buffer."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def partly_frozen() -> nn.Sequential:
    """A net in train mode whose first part a user has put in eval mode."""
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.BatchNorm1d(4), nn.Dropout(0.5))
    net[0].eval()
    return net


def test_evaluating_restores_mixed_modes_after_an_exception() -> None:
    net = partly_frozen()
    modes = [part.training for part in net.modules()]
    assert len(set(modes)) == 2
    with pytest.raises(Interrupted), evaluating(net):  # noqa: PT012 - what happens inside is the point
        assert not any(part.training for part in net.modules())
        raise Interrupted
    assert [part.training for part in net.modules()] == modes


def test_evaluating_uses_running_statistics_and_records_none() -> None:
    linear = nn.Linear(4, 4)
    net = nn.Sequential(linear, nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = statistics(net)
    x = torch.randn(8, 4) * 5 + 3
    with evaluating(net):
        output = net(x)
    # Fresh running statistics are zero and one: the layer passes its input on.
    torch.testing.assert_close(output, linear(x), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], buffer) for name, buffer in net.named_buffers())


@pytest.mark.parametrize("momentum", [0.1, None])
def test_frozen_statistics_normalise_by_the_batch_and_record_nothing(momentum: float | None) -> None:
    norm = nn.BatchNorm1d(3, momentum=momentum)
    norm(torch.randn(8, 3))
    before = statistics(norm)
    x = torch.randn(16, 3) * 7 + 2
    with frozen_batch_norm_stats(norm):
        output = norm(x)
    assert all(torch.equal(before[name], buffer) for name, buffer in norm.named_buffers())
    expected = (x - x.mean(dim=0)) / (x.var(dim=0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    norm(x)
    assert norm.num_batches_tracked == 2
    assert not torch.equal(before["running_mean"], norm.get_buffer("running_mean"))


def test_frozen_statistics_leave_layers_in_eval_mode_as_they_are() -> None:
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(8, 3) * 4 + 1)
    norm.eval()
    x = torch.randn(8, 3)
    expected = norm(x)
    with frozen_batch_norm_stats(norm):
        torch.testing.assert_close(norm(x), expected, rtol=0, atol=0)


def test_frozen_statistics_restore_every_layer_after_an_exception() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(Interrupted), frozen_batch_norm_stats(net):
        raise Interrupted
    assert [layer.track_running_stats for layer in net] == [True, False]
    net(torch.randn(8, 4))
    assert net[0].num_batches_tracked == 1


def test_frozen_statistics_nest() -> None:
    norm = nn.BatchNorm1d(4)
    with frozen_batch_norm_stats(norm):
        with frozen_batch_norm_stats(norm):
            norm(torch.randn(8, 4))
        norm(torch.randn(8, 4))
    assert norm.num_batches_tracked == 0
    assert norm.track_running_stats


@pytest.mark.parametrize("name", ["small_cnn", "resnet18_32", "efficientnet_b0"])
def test_frozen_statistics_reach_all_layers_of_a_backbone(name: str) -> None:
    # efficientnet has timm's fused norm-and-activation layers, which override forward.
    net = build_backbone(name, (3, 32, 32))
    before = statistics(net)
    x = torch.randn(4, 3, 32, 32)
    with frozen_batch_norm_stats(net):
        net(x)
    assert all(torch.equal(before[key], buffer) for key, buffer in net.named_buffers())
    net(x)
    assert not any(torch.equal(before[key], buffer) for key, buffer in net.named_buffers())
