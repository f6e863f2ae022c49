"""Collective operations over the processes of a run; in a run of one process they return their input."""

from typing import Any

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Number of processes of the run."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a tensor over the processes, without gradient; every process must give the same shape."""
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        distributed.all_reduce(value)
    return value


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a floating-point tensor over the processes, without gradient; every process must give the same shape."""
    return sum_over_ranks(value) / world_size() if world_size() > 1 else value.detach()


def from_rank_zero(value: Tensor) -> Tensor:
    """The tensor of the first process, for decisions that all processes must share; `value` is overwritten."""
    if world_size() > 1:
        distributed.broadcast(value, src=0)
    return value


def all_gather_samples(samples: Tensor) -> Tensor:
    """Samples of all processes in the order of the ranks, (world · n, …), on every one, without gradient.

    Every process gives the same number n.
    """
    samples = samples.detach()
    if world_size() == 1:
        return samples
    gathered = [torch.empty_like(samples) for _ in range(world_size())]
    distributed.all_gather(gathered, samples.contiguous())
    return torch.cat(gathered)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, samples: Tensor) -> Tensor:
        ctx.count = len(samples)
        return all_gather_samples(samples)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process has the whole loss, and DDP will take the mean over processes: the sum undoes it.
        total = sum_over_ranks(gradients[0])
        return total[distributed.get_rank() * ctx.count :][: ctx.count]


def all_gather_samples_with_grad(samples: Tensor) -> Tensor:
    """As `all_gather_samples`, with gradient: for losses of a whole batch, which are no sum over its samples.

    If every process computes the loss of all samples, DDP's mean of the gradients is the gradient of that loss, as one
    process with the whole batch has it.
    """
    return _Gather.apply(samples) if world_size() > 1 else samples


def rank_slice() -> slice:
    """Round-robin shard of this process: `rank::world_size`."""
    return slice(distributed.get_rank(), None, world_size()) if world_size() > 1 else slice(None)


def all_gather_shards(samples: Tensor, total: int) -> Tensor:
    """All samples in their order, (total, …), on every process, of the shards at `rank_slice()`; without gradient."""
    if world_size() == 1:
        return samples.detach()
    whole = samples.new_zeros(total, *samples.shape[1:])
    whole[rank_slice()] = samples.detach()
    distributed.all_reduce(whole)
    return whole


def gather_objects(value: Any) -> list[Any]:
    """Objects of all processes in the order of the ranks, on the first one; they are pickled. Others get none."""
    if world_size() == 1:
        return [value]
    gathered = [None] * world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(value, gathered)
    return gathered or []
