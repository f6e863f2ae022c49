"""The sampler behind every training loader."""

from collections.abc import Iterator

import torch
from torch.utils.data import DistributedSampler

from supercm_lightning.data.randomness import generator


class CyclingSampler(DistributedSampler[int]):
    """Walks through fresh permutations of a set without end, cut into epochs of a fixed number of steps.

    Every row is visited once before any is visited again, across epochs too; each pass has its own order; the ranks of a
    distributed run take turns in the same walk, so that together they see what one process with the whole batch sees.
    A `DistributedSampler`, so that Lightning leaves it in place and tells it the epoch.

    Args:
        num_rows: Size of the set, at least 1.
        batch_size: Rows per step and rank.
        steps_per_epoch: Steps per epoch.
        seed: Seed of the permutations.
        name: Distinguishes the walks of several samplers with one seed.
        rank: This process's number.
        world_size: Number of processes.
    """

    def __init__(
        self, num_rows: int, batch_size: int, steps_per_epoch: int, seed: int, name: str, rank: int, world_size: int
    ) -> None:
        super().__init__(range(num_rows), num_replicas=world_size, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.num_rows = num_rows
        self.name = name
        self.num_samples = batch_size * steps_per_epoch
        self.total_size = self.num_samples * world_size

    def __iter__(self) -> Iterator[int]:
        """The rows of this rank for the current epoch."""
        start = self.epoch * self.total_size
        first, last = start // self.num_rows, (start + self.total_size - 1) // self.num_rows
        passes = [
            torch.randperm(self.num_rows, generator=generator(self.seed, self.name, number))
            for number in range(first, last + 1)
        ]
        offset = start - first * self.num_rows
        walk = torch.cat(passes)[offset : offset + self.total_size]
        return iter(walk[self.rank :: self.num_replicas].tolist())
