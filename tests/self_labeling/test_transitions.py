"""The tracker against a dictionary, at every step, alone and in two processes; its memory."""

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch

from supercm_lightning.self_labeling import ClassTransitionTracker


class Restated:
    """The tracker with a dictionary and a queue of lists."""

    def __init__(self, num_classes: int, window: int) -> None:
        self.last: dict[int, int] = {}
        self.events: deque[list[tuple[int, int]]] = deque(maxlen=window)
        self.num_classes = num_classes

    def update(self, index: list[int], predictions: list[int]) -> None:
        changes = []
        for row, label in zip(index, predictions, strict=True):
            if row in self.last and self.last[row] != label:
                changes.append((self.last[row], label))
            self.last[row] = label
        self.events.append(changes)

    @property
    def matrix(self) -> list[list[int]]:
        counts = [[0] * self.num_classes for _ in range(self.num_classes)]
        for changes in self.events:
            for before, after in changes:
                counts[before][after] += 1
        return counts


def batches(count: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random visits; a sample may occur several times in a batch."""
    stream = torch.Generator().manual_seed(0)
    return [
        (torch.randint(0, 30, (size,), generator=stream), torch.randint(0, 4, (size,), generator=stream))
        for _ in range(count)
    ]


@pytest.mark.parametrize("window", [1, 7, 100])
def test_counts_are_those_of_a_dictionary_at_every_step(window: int) -> None:
    tracker, restated = ClassTransitionTracker(30, 4, window), Restated(4, window)
    for number, (index, predictions) in enumerate(batches(40, 12)):
        size = 12 - number % 5
        tracker.update(index[:size], predictions[:size])
        restated.update(index[:size].tolist(), predictions[:size].tolist())
        assert tracker.matrix.tolist() == restated.matrix
    assert tracker.matrix.sum() > 0
    assert tracker.matrix.diagonal().sum() == 0
    assert {row: label for row, label in enumerate(tracker.bank.tolist()) if label >= 0} == restated.last


@pytest.mark.parametrize(("before", "at", "after"), [(7, 5, 3), (7, 20, 3), (7, 20, 12), (3, 20, 7), (5, 20, 5)])
def test_a_resized_window_keeps_the_latest_updates(before: int, at: int, after: int) -> None:
    tracker, restated = ClassTransitionTracker(30, 4, before), Restated(4, before)
    for number, (index, predictions) in enumerate(batches(40, 12)):
        if number == at:
            tracker.resize(after)
            restated.events = deque(restated.events, maxlen=after)
            assert tracker.matrix.tolist() == restated.matrix
        tracker.update(index, predictions)
        restated.update(index.tolist(), predictions.tolist())
        assert tracker.matrix.tolist() == restated.matrix
    assert tracker.events.shape == (after, 12)


def test_classes_in_use_are_those_of_the_latest_predictions() -> None:
    tracker = ClassTransitionTracker(6, 4, 3)
    assert tracker.classes_used == 0
    tracker.update(torch.tensor([0, 1]), torch.tensor([2, 2]))
    assert tracker.classes_used == 0.25
    tracker.update(torch.tensor([1, 5]), torch.tensor([0, 3]))
    assert tracker.classes_used == 0.75
    tracker.update(torch.tensor([0]), torch.tensor([3]))
    assert tracker.classes_used == 0.5


def counts_of_this_process() -> list[Any]:
    """Matrices after every batch of which this process gives every second sample."""
    rank, tracker, found = torch.distributed.get_rank(), ClassTransitionTracker(30, 4, 5), []
    for index, predictions in batches(15, 12):
        # Without repeated samples: their order is another one when processes share a batch.
        first = torch.tensor([row not in index[:place].tolist() for place, row in enumerate(index.tolist())])
        index, predictions = (
            index[first][: 2 * (int(first.sum()) // 2)],
            predictions[first][: 2 * (int(first.sum()) // 2)],
        )
        tracker.update(index[rank::2], predictions[rank::2])
        found.append((index.tolist(), predictions.tolist(), tracker.matrix.tolist()))
    return found


def test_two_processes_count_what_one_does(two_processes: Callable[..., list[Any]]) -> None:
    first, second = two_processes(counts_of_this_process)
    assert first == second
    restated = Restated(4, 5)
    for index, predictions, matrix in first:
        restated.update(index, predictions)
        assert matrix == restated.matrix


def test_a_loaded_tracker_goes_on_as_the_saved_one() -> None:
    whole, parts = ClassTransitionTracker(30, 4, 7), batches(20, 12)
    for index, predictions in parts[:9]:
        whole.update(index, predictions)
    # Built for other data: the checkpoint brings its own sizes.
    loaded = ClassTransitionTracker(1, 4, 7)
    loaded.load_state_dict(whole.state_dict())
    for index, predictions in parts[9:]:
        whole.update(index, predictions)
        loaded.update(index, predictions)
        assert torch.equal(whole.matrix, loaded.matrix)


def test_memory_at_four_hundred_classes() -> None:
    tracker = ClassTransitionTracker(50_000, 400, 1000)
    stream = torch.Generator().manual_seed(0)
    for _ in range(3):
        tracker.update(torch.randint(50_000, (448,), generator=stream), torch.randint(400, (448,), generator=stream))
    held = sum(tensor.nbytes for tensor in [*tracker.buffers(), *tracker.parameters()])
    assert held <= 20 * 2**20
    assert len(tracker._buffers) == len(tracker.state_dict())


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="window=0"):
        ClassTransitionTracker(5, 2, 0)
