"""The rows that are labelled at present."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supercm_lightning.nn import resize_buffers
from supercm_lightning.self_labeling.alignment import align_labels
from supercm_lightning.self_labeling.sampling import prototype_sample, random_sample
from supercm_lightning.utils.collectives import all_gather_shards, from_rank_zero, rank_slice


class PseudoLabeledSamples(nn.Module):
    """The n_l rows that are labelled at present, and the instance label of each; all in buffers.

    In a distributed run drawing and aligning are collective calls, and all processes know the same rows and labels. The
    rows are dealt out: each is forwarded in one process only.

    Args:
        num_rows: Number of rows n to draw from.
        num_drawn: Number of rows n_l that are labelled at a time, and of instance labels.
        num_features: Width d of the features.

    Attributes:
        rows: The drawn rows, (n_l,) int64.
        labels: Their instance labels, (n_l,) int64, a permutation of 0 … n_l − 1.
        unused: Rows that were not drawn yet in this pass, (n,) bool.
        last_label: The instance label that each row had when drawn last, (n,) int64, -1 before that.
        mean_features: Running mean of the normalised features of each instance label, (n_l, d), normalised.
        agreement: Running share of the rows that get the label which they had when drawn last, a scalar in [0, 1].

    Source: Duan et al., IEEE TIP 2025, steps "sampling" and "alignment".
    """

    rows: Tensor
    labels: Tensor
    unused: Tensor
    last_label: Tensor
    mean_features: Tensor
    agreement: Tensor

    def __init__(self, num_rows: int, num_drawn: int, num_features: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.arange(num_drawn))
        self.register_buffer("labels", torch.arange(num_drawn))
        self.register_buffer("unused", torch.ones(num_rows, dtype=torch.bool))
        self.register_buffer("last_label", torch.full((num_rows,), -1))
        self.register_buffer("mean_features", torch.zeros(num_drawn, num_features))
        self.register_buffer("agreement", torch.zeros(()))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def share(self) -> tuple[Tensor, Tensor]:
        """Rows and labels of this process's share, (m,) int64 each; all n_l in a run of one process."""
        mine = rank_slice()
        return self.rows[mine], self.labels[mine]

    def draw_at_random(self, generator: torch.Generator) -> None:
        """Draws the next rows of a walk, see `random_sample`.

        Args:
            generator: Source of randomness, on the host, the same in all processes.
        """
        unused = self.unused.cpu()
        self._keep(random_sample(unused, len(self), generator), unused)

    def draw_prototypes(
        self, k: int, num_candidates: int, features_of: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> None:
        """Draws k prototypes with their neighbours, see `prototype_sample`, among random candidates.

        A pass ends, and every row may be drawn again, when too few of the candidates are unused.

        Args:
            k: Number of prototypes.
            num_candidates: Number of candidates, at least n_l; all rows if there are fewer.
            features_of: Gives features (m, d) of rows (m,) int64.
            generator: Source of randomness, on the host, the same in all processes.
        """
        unused = self.unused.cpu()
        candidates = torch.randperm(len(unused), generator=generator)[:num_candidates]
        if int(unused[candidates].sum()) < len(self):
            unused.fill_(True)
        chosen = prototype_sample(features_of(candidates), k, len(self), unused[candidates], generator)
        unused[candidates[chosen]] = False
        self._keep(candidates[chosen], unused)

    def _keep(self, rows: Tensor, unused: Tensor) -> None:
        from_rank_zero(self.rows.copy_(rows))
        from_rank_zero(self.unused.copy_(unused))

    @torch.no_grad()
    def align(
        self,
        features: Tensor,
        logits: Tensor,
        cost: Literal["logit", "feature"] = "logit",
        solver: Literal["exact", "sinkhorn"] = "exact",
    ) -> None:
        """Gives every drawn row the instance label that fits it best, each label once.

        Args:
            features: Features of this process's share of the drawn rows, (m, d).
            logits: Their logits over the instance labels, (m, n_l).
            cost: `logit`: the negative log-probability; `feature`: the cosine distance to `mean_features`.
            solver: See `align_labels`.
        """
        features = F.normalize(all_gather_shards(features.float(), len(self)), dim=1)
        logits = all_gather_shards(logits.float(), len(self))
        costs = -logits.log_softmax(dim=1) if cost == "logit" else 1 - features @ self.mean_features.T
        # A network that became NaN is named with its term of the loss, a moment later.
        self.labels.copy_(align_labels(costs.nan_to_num(), solver))
        mean = self.mean_features[self.labels].lerp(features, 0.1)
        self.mean_features[self.labels] = F.normalize(mean, dim=1)
        before = self.last_label[self.rows]
        known = before >= 0
        same = (before == self.labels).sum() / known.sum().clamp_min(1)
        self.agreement.lerp_(torch.where(known.any(), same, self.agreement), 0.1)
        self.last_label[self.rows] = self.labels

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_buffers(self, ("unused", "last_label"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
