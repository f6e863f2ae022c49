"""The sampler behind every training loader."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from supercm_lightning.utils.random import generator


class CyclingSampler(DistributedSampler[int]):
    """Walks through fresh permutations of a set without end, cut into epochs of a fixed number of steps.

    Every row is visited once before any is visited again, across epochs too; each pass has its own order. The ranks of
    a distributed run take turns in the same walk, so that together they see what one process with the whole batch sees.
    A `DistributedSampler`, so that Lightning leaves it in place and tells it the epoch.

    Args:
        num_rows: Size of the set, at least 1.
        batch_size: Rows per step and rank.
        steps_per_epoch: Steps per epoch.
        seed: Seed of the permutations.
        name: Distinguishes the walks of several samplers with one seed.
        rank: This process's number.
        world_size: Number of processes.
        step: Gives the number of the training step at which an iteration starts; None: the first step of the epoch. A
            run resumed within an epoch walks on from its step, where the epoch's number alone would repeat rows.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        steps_per_epoch: int,
        seed: int,
        name: str,
        rank: int,
        world_size: int,
        step: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(range(num_rows), num_replicas=world_size, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.name = name
        self.step = step
        self.num_samples = batch_size * steps_per_epoch
        self.total_size = self.num_samples * world_size
        self._drawn: tuple[int, Tensor] | None = None

    def __iter__(self) -> Iterator[int]:
        """The rows of this rank for one epoch."""
        step = self.step() if self.step is not None else self.epoch * self.steps_per_epoch
        start = step * self.batch_size * self.num_replicas
        place, end = start + self.rank, start + self.total_size
        while place < end:
            number, row = divmod(place, self.num_rows)
            stop = min(end - number * self.num_rows, self.num_rows)
            rows = self._order(number)[row : stop : self.num_replicas].tolist()
            yield from rows
            place += len(rows) * self.num_replicas

    def _order(self, number: int) -> Tensor:
        """The order of one pass, drawn once: an epoch may be a small part of a large set."""
        if self._drawn is None or self._drawn[0] != number:
            self._drawn = (number, torch.randperm(self.num_rows, generator=generator(self.seed, self.name, number)))
        return self._drawn[1]
