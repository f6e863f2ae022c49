"""Collectives that do nothing in a run of one process."""

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


def rows_of_all_ranks(rows: Tensor) -> Tensor:
    """Rows of every process, (n, …) each, in the order of the ranks, (world · n, …), without gradient."""
    rows = rows.detach()
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    distributed.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def from_rank_zero(value: Tensor) -> Tensor:
    """The tensor of the first process, for decisions that all must share."""
    if world_size() > 1:
        distributed.broadcast(value, src=0)
    return value
