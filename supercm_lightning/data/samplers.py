"""Samplers of the training and evaluation loaders."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.random import generator


class CyclingSampler(DistributedSampler[int]):
    """Infinite sampler: concatenates independent permutations and yields `steps_per_epoch` batches per epoch.

    Every sample is visited once before any is visited again, across epochs too. The ranks of a distributed run take
    turns in one sampling order, so that together they see what one process with the whole batch sees. A
    `DistributedSampler`, so that Lightning leaves it in place.

    Args:
        num_samples: Size of the set, at least 1.
        batch_size: Samples per step and rank.
        steps_per_epoch: Steps per epoch.
        seed: Seed of the permutations.
        name: Distinguishes the orders of several samplers with one seed.
        rank: This process's number.
        world_size: Number of processes.
        step: Gives the training step at which an iteration starts, which may be within an epoch; None: the epoch's
            first.

    Examples:
        >>> order = list(CyclingSampler(5, 2, 5, seed=0, name="labeled", rank=0, world_size=1))
        >>> sorted(order[:5]) == sorted(order[5:]) == [0, 1, 2, 3, 4]
        True
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        steps_per_epoch: int,
        seed: int,
        name: str,
        rank: int,
        world_size: int,
        step: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(range(num_samples), num_replicas=world_size, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.set_size, self.batch_size, self.steps_per_epoch = num_samples, batch_size, steps_per_epoch
        self.name, self.step = name, step
        self.num_samples = batch_size * steps_per_epoch
        self.total_size = self.num_samples * world_size
        self._permutation: tuple[int, Tensor] | None = None

    def __iter__(self) -> Iterator[int]:
        """The samples of this rank for one epoch."""
        step = self.step() if self.step is not None else self.epoch * self.steps_per_epoch
        start = step * self.batch_size * self.num_replicas
        place, end = start + self.rank, start + self.total_size
        while place < end:
            number, first = divmod(place, self.set_size)
            stop = min(end - number * self.set_size, self.set_size)
            numbers = self._order(number)[first : stop : self.num_replicas].tolist()
            yield from numbers
            place += len(numbers) * self.num_replicas

    def _order(self, number: int) -> Tensor:
        """The order of one pass, computed once: an epoch may be a small fraction of a large set."""
        if self._permutation is None or self._permutation[0] != number:
            self._permutation = number, self._new_order(generator(self.seed, self.name, number))
        return self._permutation[1]

    def _new_order(self, stream: torch.Generator) -> Tensor:
        return torch.randperm(self.set_size, generator=stream)


class BalancedSampler(CyclingSampler):
    """Like `CyclingSampler`, with every class equally often: each K samples in a row are one of every class, shuffled.

    A pass has as many rounds as the mean class has samples: rare classes are repeated within it, and of frequent ones
    it has a random part.

    Args:
        labels: Class of each sample, (n,).
        *args: Arguments of `CyclingSampler` after the first.

    Examples:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> order = list(BalancedSampler(labels, 2, 3, seed=0, name="labeled", rank=0, world_size=1))
        >>> sorted(labels[order].tolist()), len(set(order))
        ([0, 0, 0, 1, 1, 1], 5)
    """

    def __init__(self, labels: Tensor, *args: Any, **kwargs: Any) -> None:
        self.classes = [(labels == one).nonzero().flatten() for one in labels.unique()]
        self.rounds = -(-len(labels) // len(self.classes))
        super().__init__(self.rounds * len(self.classes), *args, **kwargs)

    def _new_order(self, stream: torch.Generator) -> Tensor:
        columns = []
        for own in self.classes:
            passes = [own[torch.randperm(len(own), generator=stream)] for _ in range(-(-self.rounds // len(own)))]
            columns.append(torch.cat(passes)[: self.rounds])
        order = torch.rand(self.rounds, len(columns), generator=stream).argsort(dim=1)
        return torch.stack(columns, dim=1).gather(1, order).flatten()


class ShardSampler(DistributedSampler[int]):
    """Evaluation sampler: every sample once, rank `r` of `w` gets `r::w`; none is repeated to even out the ranks.

    `name` is the split, for the message where there are fewer samples than processes.
    """

    def __init__(self, num_samples: int, rank: int, world_size: int, name: str = "evaluation") -> None:
        if num_samples < world_size:
            raise SuperCMError(
                f"{name}: {num_samples} samples for {world_size} processes. Use fewer devices or hold out more samples."
            )
        super().__init__(range(num_samples), num_replicas=world_size, rank=rank)  # type: ignore[arg-type]
        self.set_size = num_samples

    def __iter__(self) -> Iterator[int]:
        """The samples of this rank, in order."""
        return iter(range(self.rank, self.set_size, self.num_replicas))

    def __len__(self) -> int:
        return len(range(self.rank, self.set_size, self.num_replicas))

    def batch_size(self, size: int) -> int:
        """A batch size with which all ranks have the same number of batches: `size`, or one near it.

        Ranks that validate within a training run exchange buffers at every batch, so none may have a batch more. Shards
        differ by one sample at most, which makes a batch of its own only where the size divides the smaller shard.
        """
        small, rest = divmod(self.set_size, self.num_replicas)
        if not rest:
            return size
        return next(near for near in (*range(size, 1, -1), *range(size + 1, small + 2), small + 1) if small % near)
