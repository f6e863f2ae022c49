"""Samples collected in batches and gathered on the first process."""

import torch
from torch import distributed

from supercm_lightning.callbacks.evaluation.sample_table import SampleTable


def test_samples_are_sorted_by_their_index_and_stand_there_once():
    table = SampleTable()
    table.add(torch.tensor([3, 0]), value=torch.tensor([[3.0], [0.0]]))
    table.add(torch.tensor([1, 3, 2]), value=torch.tensor([[1.0], [3.0], [2.0]]))
    columns = table.gather()
    assert torch.equal(columns["value"], torch.arange(4.0)[:, None])
    assert table.gather() == {}


def test_without_an_index_the_order_stays():
    table = SampleTable()
    table.add(None, value=torch.tensor([5, 1]))
    table.add(None, value=torch.tensor([5]))
    assert table.gather()["value"].tolist() == [5, 1, 5]


def gather_in_one_of_two(count):
    table = SampleTable()
    index = torch.arange(count)[distributed.get_rank() :: 2]
    if len(index):
        table.add(index, value=10 * index)
    return table.gather()


def test_the_first_process_gets_uneven_and_empty_shards(two_processes):
    for count in (5, 1, 0):
        first, other = two_processes(gather_in_one_of_two, count)
        assert other == {}
        assert first.get("value", torch.empty(0)).tolist() == [10 * number for number in range(count)]
