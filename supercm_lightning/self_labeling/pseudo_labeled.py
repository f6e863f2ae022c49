"""The samples that currently carry pseudo-labels."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supercm_lightning.nn import resize_buffers
from supercm_lightning.self_labeling.alignment import align_labels
from supercm_lightning.self_labeling.sampling import prototype_sample, random_sample
from supercm_lightning.utils.collectives import all_gather_shards, from_rank_zero, rank_slice

FEATURE_RATE = 0.1
"""Weight of the newest feature in the running mean feature of an instance label."""
AGREEMENT_RATE = 0.1
"""Weight of the newest set in the running agreement."""


class PseudoLabeledSamples(nn.Module):
    """The n_l samples that currently carry pseudo-labels, and the instance label of each; all state is in buffers.

    In a distributed run sampling and alignment are collective calls, and all processes hold the same samples and
    labels. Each process forwards its round-robin shard of the samples.

    Args:
        num_samples: Number of samples n to choose from.
        num_labels: Number of samples n_l in a set, and of instance labels.
        num_features: Width d of the features.

    Attributes:
        index: Positions of the current samples, (n_l,) int64.
        labels: Their instance labels, (n_l,) int64 in [0, n_l), a permutation unless labels are reused.
        unused: Samples that were not chosen yet in the current pass, (n,) bool.
        last_label: Instance label of each sample when it was last chosen, (n,) int64, -1 before that.
        mean_features: Running mean of the normalized features of each instance label, (n_l, d), normalized.
        agreement: Running fraction of the samples that get the label of their last time, a scalar in [0, 1].

    Source: Duan et al., IEEE TIP 2025, steps "sampling" and "alignment".

    Examples:
        >>> samples = PseudoLabeledSamples(num_samples=20, num_labels=5, num_features=3)
        >>> samples.sample_randomly(torch.Generator().manual_seed(0))
        >>> samples.align(torch.randn(5, 3), logits=torch.randn(5, 5))
        >>> sorted(samples.labels.tolist())
        [0, 1, 2, 3, 4]
    """

    index: Tensor
    labels: Tensor
    unused: Tensor
    last_label: Tensor
    mean_features: Tensor
    agreement: Tensor

    def __init__(self, num_samples: int, num_labels: int, num_features: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(num_labels))
        self.register_buffer("labels", torch.arange(num_labels))
        self.register_buffer("unused", torch.ones(num_samples, dtype=torch.bool))
        self.register_buffer("last_label", torch.full((num_samples,), -1))
        self.register_buffer("mean_features", torch.zeros(num_labels, num_features))
        self.register_buffer("agreement", torch.zeros(()))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shard(self) -> tuple[Tensor, Tensor]:
        """Positions and labels of this process's shard, (m,) int64 each; all n_l in a run of one process."""
        own = rank_slice()
        return self.index[own], self.labels[own]

    def sample_randomly(self, generator: torch.Generator) -> None:
        """Chooses the next samples of a random order without repetition, see `random_sample`.

        Args:
            generator: Source of randomness, on the host, the same in all processes.
        """
        unused = self.unused.cpu()
        self._set(random_sample(unused, len(self), generator), unused)

    def sample_prototypes(
        self, k: int, num_candidates: int, features_of: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> None:
        """Chooses k prototypes with their neighbors among random candidates, see `prototype_sample`.

        A new pass begins, in which every sample may be chosen again, when too few of the candidates are unused.

        Args:
            k: Number of prototypes.
            num_candidates: Number of candidates, at least n_l; all samples if there are fewer.
            features_of: Gives features (m, d) of samples by position (m,) int64.
            generator: Source of randomness, on the host, the same in all processes.
        """
        unused = self.unused.cpu()
        candidates = torch.randperm(len(unused), generator=generator)[:num_candidates]
        if int(unused[candidates].sum()) < len(self):
            unused.fill_(True)
        chosen = prototype_sample(features_of(candidates), k, len(self), unused[candidates], generator)
        unused[candidates[chosen]] = False
        self._set(candidates[chosen], unused)

    def _set(self, index: Tensor, unused: Tensor) -> None:
        from_rank_zero(self.index.copy_(index))
        from_rank_zero(self.unused.copy_(unused))

    @torch.no_grad()
    def align(
        self,
        features: Tensor,
        logits: Tensor,
        cost: Literal["logit", "feature"] = "logit",
        solver: Literal["exact", "sinkhorn"] = "exact",
        reuse: float | None = None,
    ) -> None:
        """Gives each sample an instance label at the least total cost, see `align_labels`.

        Args:
            features: Features of this process's shard, (m, d).
            logits: Their logits over the instance labels, (m, n_l).
            cost: `logit`: the negative log-probability; `feature`: the cosine distance to `mean_features`.
            solver: See `align_labels`.
            reuse: See `align_labels`.
        """
        features = F.normalize(all_gather_shards(features.float(), len(self)), dim=1)
        logits = all_gather_shards(logits.float(), len(self))
        costs = -logits.log_softmax(dim=1) if cost == "logit" else 1 - features @ self.mean_features.T
        # A network that became NaN is reported with the loss term of the same step, not by the solver.
        self.labels.copy_(align_labels(costs.nan_to_num(), solver, reuse=reuse))
        chosen = F.one_hot(self.labels, len(self)).to(features.dtype).T
        with torch.autocast(features.device.type, enabled=False):
            used, mean = chosen.any(dim=1), F.normalize(chosen @ features, dim=1)
        self.mean_features[used] = F.normalize(self.mean_features[used].lerp(mean[used], FEATURE_RATE), dim=1)
        before = self.last_label[self.index]
        known = before >= 0
        same = (before == self.labels).sum() / known.sum().clamp_min(1)
        self.agreement.lerp_(torch.where(known.any(), same, self.agreement), AGREEMENT_RATE)
        self.last_label[self.index] = self.labels

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_buffers(self, ("unused", "last_label"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
