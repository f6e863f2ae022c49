"""Class transition tracking: which classes a network confuses between its visits to the same sample."""

from typing import Any

import torch
from torch import Tensor, nn

from supercm_lightning.nn import resize_buffers
from supercm_lightning.utils.collectives import all_gather_samples
from supercm_lightning.utils.options import check_range


class ClassTransitionTracker(nn.Module):
    """Counts how often the predicted class of a sample changed from a to b between two visits.

    The counts cover the last `window` updates. Each change is stored as one number a · C + b in a ring of updates, and
    is added to a running sum when it enters and subtracted when it leaves: no dense matrix per update, no wait for the
    device. All state is in buffers. In a distributed run `update` is a collective call; all processes hold the counts
    of the whole batch.

    Args:
        num_samples: Number of samples n that are followed.
        num_classes: Number of classes C.
        window: Number of updates that count, at least 1.

    Attributes:
        bank: Latest prediction of each sample, (n,) int32, -1 before its first visit.
        counts: Flat sum of the changes within the window, (C² + 1,) int64; the last entry, which stands for no change,
            is 0.
        events: Changes of each update in the window, (window, largest batch so far) int32.
        position: Index in the ring of the next update, a scalar int64.

    Raises:
        SuperCMError: If an argument is outside its range.

    Source: Duan et al., "Towards Semi-supervised Learning with Non-random Missing Labels", ICCV 2023; used for
        clustering by Duan et al., IEEE TIP 2025.

    Examples:
        >>> tracker = ClassTransitionTracker(num_samples=4, num_classes=2, window=10)
        >>> tracker.update(torch.arange(4), torch.tensor([0, 0, 1, 1]))
        >>> tracker.update(torch.arange(4), torch.tensor([0, 1, 1, 1]))
        >>> tracker.matrix
        tensor([[0, 1],
                [0, 0]])
    """

    bank: Tensor
    counts: Tensor
    events: Tensor
    position: Tensor

    def __init__(self, num_samples: int, num_classes: int, window: int) -> None:
        super().__init__()
        check_range(1, num_samples=num_samples, num_classes=num_classes, window=window)
        self.num_classes = num_classes
        self.register_buffer("bank", torch.full((num_samples,), -1, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(num_classes**2 + 1, dtype=torch.int64))
        self.register_buffer("events", torch.empty((window, 0), dtype=torch.int32))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @property
    def matrix(self) -> Tensor:
        """Changes a → b within the window, (C, C) int64; the diagonal is zero."""
        return self.counts[:-1].view(self.num_classes, self.num_classes)

    @property
    def classes_used(self) -> Tensor:
        """Fraction of the classes that are the latest prediction of some sample, a scalar in [0, 1]."""
        count = torch.bincount(self.bank + 1, minlength=self.num_classes + 1)  # entry 0: no prediction yet
        return (count[1:] > 0).float().mean()

    def resize(self, window: int) -> None:
        """Changes the length of the window and keeps the latest updates that fit.

        Args:
            window: Number of updates that count, at least 1.

        Examples:
            >>> tracker = ClassTransitionTracker(num_samples=1, num_classes=3, window=5)
            >>> for prediction in (0, 1, 2):
            ...     tracker.update(torch.zeros(1, dtype=torch.int64), torch.tensor([prediction]))
            >>> tracker.resize(1)
            >>> tracker.matrix.nonzero()  # the last change, 1 → 2
            tensor([[1, 2]])
        """
        check_range(1, window=window)
        if window == len(self.events):
            return
        latest = self.events.roll(-int(self.position), dims=0)[-window:]  # oldest first
        missing = latest.new_full((window - len(latest), latest.shape[1]), self.num_classes**2)
        self.events = torch.cat([missing, latest])
        self.counts.copy_(torch.bincount(latest.flatten(), minlength=self.num_classes**2 + 1))
        self.counts[-1] = 0
        self.position.zero_()

    @torch.no_grad()
    def update(self, index: Tensor, predictions: Tensor) -> None:
        """Counts the changes of one batch; a sample that occurs twice in it is visited twice, in order.

        Args:
            index: Positions of the samples, (m,) integer in [0, n).
            predictions: Their predicted classes, (m,) integer in [0, C).
        """
        index, predictions = all_gather_samples(torch.stack([index, predictions], dim=1)).unbind(dim=1)
        no_change = self.num_classes**2
        if (missing := len(index) - self.events.shape[1]) > 0:
            self.events = torch.cat([self.events, self.events.new_full((len(self.events), missing), no_change)], dim=1)
        # A stable sort by sample places the visits of one sample side by side, in their order.
        order = index.argsort(stable=True)
        index, predictions = index[order], predictions[order]
        previous = self.bank[index].long()
        if len(index) > 1:
            previous[1:] = torch.where(index[1:] == index[:-1], predictions[:-1], previous[1:])
        last = torch.searchsorted(index, index, right=True) - 1
        self.bank[index] = predictions[last].int()

        changed = (previous >= 0) & (previous != predictions)
        event = torch.where(changed, previous * self.num_classes + predictions, no_change)
        position = self.position.view(1)
        expired = self.events.index_select(0, position)[0].long()
        self.counts.index_add_(0, expired, self.counts.new_full((len(expired),), -1))
        self.counts.index_add_(0, event, self.counts.new_ones(len(event)))
        self.counts[-1] = 0
        row = self.events.new_full((1, self.events.shape[1]), no_change)
        row[0, : len(event)] = event.int()
        self.events.index_copy_(0, position, row)
        self.position.add_(1).remainder_(len(self.events))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_buffers(self, ("bank", "events"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
