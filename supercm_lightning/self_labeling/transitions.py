"""Class transition tracking: which classes a network confuses over its visits to the same rows."""

from typing import Any

import torch
from torch import Tensor, nn

from supercm_lightning.nn import resize_buffers
from supercm_lightning.utils.collectives import all_gather_samples
from supercm_lightning.utils.options import SuperCMError


class ClassTransitionTracker(nn.Module):
    """Counts how often the predicted class of a row changed from a to b between two visits.

    The counts cover the last `window` updates. Changes are kept as one number a · C + b each, in a ring of updates, and
    enter and leave a running sum: no dense matrix per update, no wait for the device. Everything is in buffers. In a
    distributed run `update` is a collective call; all processes hold the counts of the whole batch.

    Args:
        num_samples: Number of rows n that are followed.
        num_classes: Number of classes C.
        window: Number of updates that count, at least 1.
        batch_size: Rows per update, of all processes, for which room is made at once; an update with more rows makes
            room for itself.

    Attributes:
        bank: Latest prediction of each row, (n,) int32, -1 before its first visit.
        counts: Flat sum of the changes within the window, (C² + 1,) int64; the last entry takes what is no change.
        events: Changes of each update in the window, (window, batch size) int32.
        position: Place in the ring of the next update, a scalar int64.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Duan et al., "Towards Semi-supervised Learning with Non-random Missing Labels", ICCV 2023; used for
        clustering by Duan et al., IEEE TIP 2025.
    """

    bank: Tensor
    counts: Tensor
    events: Tensor
    position: Tensor

    def __init__(self, num_samples: int, num_classes: int, window: int, batch_size: int = 0) -> None:
        super().__init__()
        if min(num_samples, num_classes, window) < 1 or batch_size < 0:
            raise SuperCMError(
                f"num_samples={num_samples}, num_classes={num_classes}, window={window}: must be at least 1."
            )
        self.num_classes = num_classes
        self.register_buffer("bank", torch.full((num_samples,), -1, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(num_classes**2 + 1, dtype=torch.int64))
        self.register_buffer("events", torch.full((window, batch_size), num_classes**2, dtype=torch.int32))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @property
    def matrix(self) -> Tensor:
        """Changes a → b within the window, (C, C) int64; the diagonal is zero."""
        return self.counts[:-1].view(self.num_classes, self.num_classes)

    @property
    def classes_used(self) -> Tensor:
        """Share of the classes that are the latest prediction of some row, a scalar in [0, 1]."""
        count = torch.bincount(self.bank + 1, minlength=self.num_classes + 1)  # of row -1, no prediction, first
        return (count[1:] > 0).float().mean()

    @torch.no_grad()
    def update(self, index: Tensor, predictions: Tensor) -> None:
        """Counts the changes of one batch; a row that occurs twice in it is visited twice, in order.

        Args:
            index: Row numbers, (m,) integer in [0, n).
            predictions: Their predicted classes, (m,) integer in [0, C).
        """
        index, predictions = all_gather_samples(torch.stack([index, predictions], dim=1)).unbind(dim=1)
        if len(index) > self.events.shape[1]:
            more = self.events.new_full((len(self.events), len(index) - self.events.shape[1]), self.num_classes**2)
            self.events = torch.cat([self.events, more], dim=1)
        # Sorted by row, the visits of one row stand side by side in their order.
        order = index.argsort(stable=True)
        index, predictions = index[order], predictions[order]
        previous = self.bank[index].long()
        if len(index) > 1:
            previous[1:] = torch.where(index[1:] == index[:-1], predictions[:-1], previous[1:])
        last = torch.searchsorted(index, index, right=True) - 1
        self.bank[index] = predictions[last].int()

        no_change = self.num_classes**2
        changed = (previous >= 0) & (previous != predictions)
        event = torch.where(changed, previous * self.num_classes + predictions, no_change)
        place = self.position.view(1)
        expired = self.events.index_select(0, place)[0].long()
        self.counts.index_add_(0, expired, self.counts.new_full((len(expired),), -1))
        self.counts.index_add_(0, event, self.counts.new_ones(len(event)))
        self.counts[-1] = 0
        row = self.events.new_full((1, self.events.shape[1]), no_change)
        row[0, : len(event)] = event.int()
        self.events.index_copy_(0, place, row)
        self.position.add_(1).remainder_(len(self.events))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_buffers(self, ("bank", "events"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
