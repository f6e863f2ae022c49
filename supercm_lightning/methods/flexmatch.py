"""FlexMatch: FixMatch with a threshold per class that follows how well the class is learnt."""

from typing import Any

import torch
from torch import Tensor

from supercm_lightning.contracts import Step
from supercm_lightning.methods.fixmatch import FixMatch
from supercm_lightning.utils.collectives import all_gather_samples
from supercm_lightning.utils.options import SuperCMError


class FlexMatch(FixMatch):
    """FixMatch whose threshold for class c is τ · β_c / (2 - β_c), with β_c the learning status of the class.

    Zhang et al., "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling", NeurIPS 2021. The
    status is the number of unlabelled rows whose latest confident label is c, relative to the largest such number or to
    that of the rows that never had one (threshold warm-up). A row's label is renewed whenever its confidence reaches τ
    itself.

    Args:
        **kwargs: Options of `FixMatch`: `fixmatch_threshold` is τ; and of `Method`.

    Attributes:
        selected_label: Latest confident label of every unlabelled row, (number of unlabelled rows,), -1 for none.
    """

    fixmatch_term = "flexmatch"
    selected_label: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("selected_label", torch.empty(0, dtype=torch.int64))

    def setup(self, stage: str) -> None:
        """Makes room for every unlabelled row.

        Raises:
            ValueError: If the data does not tell the number of its unlabelled rows.
        """
        super().setup(stage)
        if stage == "fit":
            count = getattr(self.trainer.datamodule, "num_unlabeled", None)  # type: ignore[attr-defined]
            if count is None:
                raise SuperCMError(
                    "FlexMatch follows every unlabelled row: it needs a datamodule with an attribute num_unlabeled."
                )
            self.selected_label = torch.full((count,), -1, device=self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes room for the checkpoint's rows, so that it loads without the data."""
        super().on_load_checkpoint(checkpoint)
        self.selected_label = torch.empty_like(checkpoint["state_dict"]["selected_label"], device=self.device)

    def on_train_start(self) -> None:
        """Compares the rows that are followed with those of the data."""
        super().on_train_start()
        self.check_rows(len(self.selected_label))

    def thresholds(self, step: Step) -> Tensor:
        """τ · β / (2 - β) of each row's predicted class, (U,)."""
        # Not bincount, for which the host waits on an accelerator.
        seen = self.selected_label + 1
        count = seen.new_zeros(self.num_classes + 1).scatter_add_(0, seen, torch.ones_like(seen))
        status = count[1:] / count.max().clamp_min(1)
        return self.fixmatch_threshold * (status / (2 - status))[step.unlabeled_logits[0].argmax(dim=1)]

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The term with the thresholds so far; then the labels of this batch are renewed."""
        terms = super().losses(step)
        assert step.index is not None
        confidence, label = step.unlabeled_logits[0].detach().float().softmax(dim=1).max(dim=1)
        # Rows below τ keep what they have: -2 marks them through the gathering.
        label = torch.where(confidence >= self.fixmatch_threshold, label, -2)
        index, label = all_gather_samples(torch.stack([step.index, label], dim=1)).unbind(dim=1)
        # A row may be there twice, confident once.
        new = torch.full_like(self.selected_label, -2).scatter_reduce_(0, index, label, "amax")
        self.selected_label.copy_(torch.where(new >= 0, new, self.selected_label))
        return terms
