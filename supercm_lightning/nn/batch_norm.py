"""Context managers for forwards that must leave a network's modes and batch norm statistics as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module in eval mode; on leaving, every submodule returns to the mode it had.

    `module.train()` would not do: it would also wake the parts that a user froze in eval mode.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def frozen_batch_norm_stats(module: nn.Module) -> Iterator[None]:
    """Lets batch norm of a module normalize by batch statistics without recording them.

    Running mean, running variance and `num_batches_tracked` stay untouched. Layers in eval mode keep using their
    running statistics.
    """
    layers = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    tracked = [layer.track_running_stats for layer in layers]
    # Clearing this flag, not the momentum: a momentum of zero would still count the batch.
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, track in zip(layers, tracked, strict=True):
            layer.track_running_stats = track
