"""Collectives in two processes, and in one."""

import torch
from torch import distributed

from supercm_lightning.utils.collectives import (
    all_gather_samples,
    all_gather_samples_with_grad,
    all_gather_shards,
    from_rank_zero,
    gather_objects,
    mean_over_ranks,
    rank_slice,
    sum_over_ranks,
)


def everything() -> dict[str, object]:
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    value = torch.tensor([1.0 + rank, 2.0], requires_grad=True)
    gathered = all_gather_samples_with_grad(value)
    gathered.square().sum().backward()
    return {
        "sum": sum_over_ranks(value).tolist(),
        "mean": mean_over_ranks(value).tolist(),
        "first": from_rank_zero(value.detach().clone()).tolist(),
        "samples": all_gather_samples(value).tolist(),
        "shards": all_gather_shards(torch.arange(5)[rank_slice()], 5).tolist(),
        "gradient": value.grad.tolist(),
        "objects": gather_objects({"rank": rank}),
        "own": value.tolist(),
    }


def test_one_process_has_its_own():
    found = everything()
    for name in ("sum", "mean", "first", "samples", "own"):
        assert found[name] == [1.0, 2.0]
    assert (found["shards"], found["gradient"], found["objects"]) == ([0, 1, 2, 3, 4], [2.0, 4.0], [{"rank": 0}])


def test_two_processes_share(two_processes):
    first, second = two_processes(everything)
    for found in (first, second):
        assert found["sum"] == [3.0, 4.0]
        assert found["mean"] == [1.5, 2.0]
        assert found["first"] == [1.0, 2.0]
        assert found["samples"] == [1.0, 2.0, 2.0, 2.0]
        assert found["shards"] == [0, 1, 2, 3, 4]
    # The sum over both processes of the gradient of the same loss, which DDP halves.
    assert (first["gradient"], second["gradient"]) == ([4.0, 8.0], [8.0, 8.0])
    # The objects of all processes reach the first one.
    assert first["objects"] == [{"rank": 0}, {"rank": 1}]
    assert second["objects"] == []
    assert (first["own"], second["own"]) == ([1.0, 2.0], [2.0, 2.0])
