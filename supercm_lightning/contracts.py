"""What one joint forward of a training step produced."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What one joint training forward produced; the input of `Method.losses`.

    Rows are ordered: the `B` labelled ones, then the `U` unlabelled ones of the first view, then those of the second …

    Attributes:
        x: Labelled inputs, (B, *input_shape).
        y: Labels, (B,), int64 in [0, K); methods that label rows themselves leave -1 where they are in doubt.
        views: Inputs of each unlabelled view of the forward, a tuple of (U, *input_shape).
        target_views: Inputs of each view that only targets are computed from, likewise.
        index: Position of each unlabelled row in the unlabelled set, (U,), or None without unlabelled rows.
        all_features: Features of all rows of all views, (B + V·U, d).
        all_logits: Class logits of the same rows, (B + V·U, K).
        temperature: Softmax temperature of the assignments.
    """

    x: Tensor
    y: Tensor
    views: tuple[Tensor, ...]
    target_views: tuple[Tensor, ...]
    index: Tensor | None
    all_features: Tensor
    all_logits: Tensor
    temperature: float = 1.0

    def _first(self, rows: Tensor) -> Tensor:
        return rows[: len(self.y) + (len(self.views[0]) if self.views else 0)]

    def _per_view(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows[len(self.y) :].chunk(len(self.views)) if self.views else ()

    @property
    def features(self) -> Tensor:
        """Features of the labelled rows and of the first unlabelled view, (B + U, d)."""
        return self._first(self.all_features)

    @property
    def logits(self) -> Tensor:
        """Logits of the same rows as `features`, (B + U, K)."""
        return self._first(self.all_logits)

    @property
    def assignments(self) -> Tensor:
        """softmax(logits / temperature) in float32 or wider, (B + U, K)."""
        logits = self.logits
        return (
            (logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits)
            .div(self.temperature)
            .softmax(dim=1)
        )

    @property
    def labeled_features(self) -> Tensor:
        """Features of the labelled rows, (B, d)."""
        return self.all_features[: len(self.y)]

    @property
    def labeled_logits(self) -> Tensor:
        """Logits of the labelled rows, (B, K)."""
        return self.all_logits[: len(self.y)]

    @property
    def unlabeled_features(self) -> tuple[Tensor, ...]:
        """Features of each unlabelled view, a tuple of (U, d)."""
        return self._per_view(self.all_features)

    @property
    def unlabeled_logits(self) -> tuple[Tensor, ...]:
        """Logits of each unlabelled view, a tuple of (U, K)."""
        return self._per_view(self.all_logits)
