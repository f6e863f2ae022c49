"""Collectives that do nothing in a run of one process."""

from typing import Any

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Number of processes of the run."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over the processes, without gradient."""
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        distributed.all_reduce(value)
        value /= world_size()
    return value


def all_gather_samples(rows: Tensor) -> Tensor:
    """Rows of every process, (n, …) each, in the order of the ranks, (world · n, …), without gradient."""
    rows = rows.detach()
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    distributed.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def rank_slice() -> slice:
    """The rows of this process where rows are dealt out one by one: from its rank on, in steps of the world size."""
    if world_size() == 1:
        return slice(None)
    return slice(distributed.get_rank(), None, world_size())


def all_gather_shards(rows: Tensor, total: int) -> Tensor:
    """The rows that were dealt out, (total, …), in their order, without gradient; `rows` are those of this process."""
    rows = rows.detach()
    if world_size() == 1:
        return rows
    whole = rows.new_zeros(total, *rows.shape[1:])
    whole[rank_slice()] = rows
    distributed.all_reduce(whole)
    return whole


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        return all_gather_samples(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process has the whole loss, and DDP will take the mean over processes: the sum undoes it.
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total[distributed.get_rank() * ctx.count :][: ctx.count]


def all_gather_samples_with_grad(rows: Tensor) -> Tensor:
    """As `all_gather_samples`, with gradient: for losses that are no sum over rows, such as those of a whole batch.

    If every process computes the loss of all rows, DDP's mean of the gradients is the gradient of that loss, as one
    process with the whole batch has it.
    """
    return _Gather.apply(rows) if world_size() > 1 else rows


def from_rank_zero(value: Tensor) -> Tensor:
    """The tensor of the first process, for decisions that all must share."""
    if world_size() > 1:
        distributed.broadcast(value, src=0)
    return value
