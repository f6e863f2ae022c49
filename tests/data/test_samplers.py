"""The walk of the training loaders through their rows."""

from itertools import islice

import pytest
import torch
from lightning.pytorch.trainer.connectors.data_connector import _DataConnector
from torch.utils.data import DataLoader

from supercm_lightning.data import CyclingSampler


def sampler(num_rows=10, batch_size=4, steps=3, seed=0, name="labeled", rank=0, world=1, **kwargs) -> CyclingSampler:
    return CyclingSampler(num_rows, batch_size, steps, seed, name, rank, world, **kwargs)


def walk(given: CyclingSampler, epochs: int) -> list[int]:
    rows: list[int] = []
    for epoch in range(epochs):
        given.set_epoch(epoch)
        rows += given
    return rows


def test_every_row_comes_once_before_any_comes_again_across_epochs():
    rows = walk(sampler(num_rows=10, batch_size=4, steps=3), epochs=10)  # 12 rows an epoch, passes of 10
    passes = [rows[start : start + 10] for start in range(0, 120, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)


def test_every_pass_has_its_own_order():
    rows = walk(sampler(num_rows=10, batch_size=10, steps=1), epochs=20)
    assert len({tuple(rows[start : start + 10]) for start in range(0, 200, 10)}) == 20


def test_epoch_has_the_length_it_promises():
    given = sampler(num_rows=3, batch_size=5, steps=7)
    assert len(list(given)) == len(given) == 35


def test_set_smaller_than_a_batch_fills_it_evenly():
    rows = list(sampler(num_rows=3, batch_size=12, steps=1))
    assert torch.bincount(torch.tensor(rows)).tolist() == [4, 4, 4]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_walk_of_one_process(world):
    alone = walk(sampler(num_rows=100, batch_size=6 * world, steps=4), epochs=3)
    ranks = [walk(sampler(num_rows=100, batch_size=6, steps=4, rank=r, world=world), epochs=3) for r in range(world)]
    for step in range(12):
        together = [row for rows in ranks for row in rows[6 * step : 6 * step + 6]]
        assert sorted(together) == sorted(alone[6 * world * step : 6 * world * (step + 1)])


def test_ranks_are_disjoint_within_a_pass():
    first, second = (set(sampler(num_rows=48, batch_size=4, steps=6, rank=rank, world=2)) for rank in (0, 1))
    assert len(first) == len(second) == 24
    assert not first & second


def test_order_depends_on_seed_and_name():
    orders = {tuple(sampler(100, 100, 1, seed, name)) for seed in (0, 1) for name in ("labeled", "unlabeled")}
    assert len(orders) == 4


def test_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(1)
    first = list(sampler())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert list(sampler()) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_iteration_starts_at_the_step_it_is_told():
    whole = walk(sampler(num_rows=10, batch_size=4, steps=6), epochs=2)
    from_step_four = sampler(num_rows=10, batch_size=4, steps=6, step=lambda: 4)
    assert list(from_step_four) == whole[16:40]


def test_long_epoch_costs_nothing_before_its_first_row():
    rows = islice(sampler(num_rows=20, batch_size=50, steps=10**8), 100)
    assert len(list(rows)) == 100


def test_lightning_does_not_replace_it_in_a_distributed_run(trainer):
    loader = DataLoader(range(10), sampler=sampler(), batch_size=4)  # type: ignore[arg-type]
    connector = _DataConnector(trainer(strategy="ddp", devices=2))
    assert connector._requires_distributed_sampler(DataLoader(range(10)))  # type: ignore[arg-type]
    assert not connector._requires_distributed_sampler(loader)
