"""Options, networks and set-up of ASD; its steps are in `asd.py`."""

import logging
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from supercm_lightning.contracts import ViewData
from supercm_lightning.methods.clusterer import Clusterer
from supercm_lightning.methods.per_sample import PerSampleState
from supercm_lightning.nn import Ema, evaluating
from supercm_lightning.self_labeling import ASDOptions, SelfLabeler, judge, read_clusters
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.trainer import datamodule_of, is_dry_run

_LOG = logging.getLogger("lightning.pytorch.utilities.rank_zero")  # that of `rank_zero_info`
JUDGED = 5000
"""Most samples by which a clustering is judged."""
AVERAGE_DECAY = 0.99
"""Decay of the averaged weights whose features prototypes are found by."""


class SelfLabeled(PerSampleState, Clusterer):
    """A clusterer with a `SelfLabeler`, and averaged weights whose features it chooses samples by.

    Args:
        asd_samples: Number n_l of pseudo-labeled samples, at least one per cluster; None: 4 per cluster.
        asd_sampler: `prototype`, the samples nearest to k centers and their neighbors after a random start, or
            `random`.
        asd_prototype_start: Fraction of the training, in [0, 1], before `prototype` begins.
        asd_pool: Number of candidates for prototypes, as a multiple of n_l, >= 1.
        asd_hold: Steps for which a set keeps its samples and instance labels, >= 1.
        asd_strong_labels: Train on the strong view of the pseudo-labeled samples too.
        asd_cost: Alignment cost: `logit`, the negative log-probability of the instance head, or `feature`, the cosine
            distance to the mean feature of each instance label.
        asd_solver: `exact` or `sinkhorn`, see `align_labels`.
        asd_reuse: Price of each further use of an instance label within a set, >= 0; None: each label is used once,
            which suits classes of equal size.
        asd_consistency: Weight of the consistency loss of the instance head on unlabeled samples, >= 0.
        asd_window: Steps over which transitions are counted: a fraction of the training in (0, 1], or their number.
        asd_warmup: Fraction of the training, in [0, 1), before the first cluster map.
        asd_map_every: Steps between two cluster maps, >= 1.
        asd_map: How instance classes are grouped: `kmedoids` or `spectral` by transitions; `features`, average linkage
            of their mean features, and `merge`, by `merge_clusters` of samples, for clusters of unequal size.
        asd_agreement: Use a cluster label only where the instance head predicts the same cluster.
        asd_init_labels: File with a clustering to start from, one label per unlabeled sample, -1 for none: `.npy`, or
            the table that `predict` writes, matched by file. It gives the cluster labels until the first map.
        **kwargs: Options of the method that it is combined with, and of `Method`.

    Attributes:
        labeler: The adaptor, with all state of the labeling.
        average: Averaged backbone and bottleneck.

    Raises:
        SuperCMError: If an option is outside its range.

    Examples:
        >>> from supercm_lightning import ASDFreeMatch
        >>> model = ASDFreeMatch(num_classes=3, input_shape=(1, 8, 8), asd_hold=5)
        >>> model.labeler.instance_head.out_features
        12
    """

    labeler: SelfLabeler
    sample_buffers: ClassVar[dict[str, int | float | bool]] = {
        "labeler.samples.unused": True,
        "labeler.samples.last_label": -1,
        "labeler.tracker.bank": -1,
    }

    def __init__(
        self,
        asd_samples: int | None = None,
        asd_sampler: Literal["prototype", "random"] = "prototype",
        asd_prototype_start: float = 0.2,
        asd_pool: int = 10,
        asd_hold: int = 10,
        asd_strong_labels: bool = True,
        asd_cost: Literal["logit", "feature"] = "logit",
        asd_solver: Literal["exact", "sinkhorn"] = "exact",
        asd_reuse: float | None = None,
        asd_consistency: float = 1.0,
        asd_window: int | float = 0.3,
        asd_warmup: float = 0.3,
        asd_map_every: int = 50,
        asd_map: Literal["kmedoids", "spectral", "features", "merge"] = "kmedoids",
        asd_agreement: bool = True,
        asd_init_labels: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.average = Ema(self.feature_network, AVERAGE_DECAY, warmup="ratio", average_buffers=True)

    @property
    def feature_network(self) -> nn.Sequential:
        """Backbone and bottleneck."""
        return nn.Sequential(self.backbone, self.bottleneck)

    def build_labeler(self, in_features: int) -> SelfLabeler:
        """The adaptor; override for another one."""
        return SelfLabeler(in_features, self.num_classes, ASDOptions.from_flat(self.hparams))

    def build_head(self, in_features: int) -> Any:  # the type of the head of the next base
        """The adaptor with its instance head, and the cluster head of the method that it is combined with."""
        self.labeler = self.build_labeler(in_features)
        return super().build_head(in_features)

    def reset_samples(self, num_samples: int) -> None:
        """Forgets all labels, and makes room for a number of samples."""
        self.labeler.reset(num_samples)
        super().reset_samples(num_samples)

    def setup(self, stage: str) -> None:
        """Starts the labeling and the averaged weights anew for the data.

        Raises:
            SuperCMError: If the data module cannot give samples by position, has fewer than are labeled at a time, or
                `asd_init_labels` does not fit.
        """
        super().setup(stage)
        if stage != "fit":
            return
        data, n_l = datamodule_of(self.trainer), len(self.labeler.samples)
        if not isinstance(data, ViewData):
            raise SuperCMError("ASD chooses samples itself and needs a ClusteringDataModule.")
        if data.num_unlabeled < n_l:
            raise SuperCMError(
                f"asd_samples: {n_l} samples are labeled at a time, and the data has {data.num_unlabeled}. Lower it."
            )
        if n_l < self.trainer.world_size:
            raise SuperCMError(
                f"asd_samples={n_l}: must be at least 1 for each of the {self.trainer.world_size} processes."
            )
        if self.hparams.asd_init_labels is not None:
            part = data.samples["unlabeled"]
            known = part.store.ids if part.store.ids is not None else part.store.names
            names = None if known is None else [known[number] for number in part.index.tolist()]
            clusters = read_clusters(self.hparams.asd_init_labels, data.num_unlabeled, self.num_classes, names)
            self.labeler.initial_clusters = clusters.to(self.device)
        self.average.reset(self.feature_network)

    def on_train_start(self) -> None:
        """Sizes the window of transitions by the length of the training; a resumed window keeps its contents."""
        super().on_train_start()
        batches = self.total_steps * self.trainer.accumulate_grad_batches
        self.labeler.tracker.resize(self.labeler.options.window_steps(batches))

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Says whether the clusters are to be trusted, by the final weights on at most `JUDGED` samples."""
        super().on_train_end()
        if self.trainer.interrupted or is_dry_run(self.trainer) or not self.labeler.clusters.is_known:
            return
        order = torch.randperm(datamodule_of(self.trainer).num_unlabeled, generator=torch.Generator().manual_seed(0))
        with evaluating(self):
            features = self.of_samples("unlabeled", order[:JUDGED], self.feature_network)
            clusters = self.head(features).argmax(dim=1)
        if self.trainer.is_global_zero and _LOG.isEnabledFor(logging.INFO):
            agreement = float(self.labeler.label_agreement)
            rank_zero_info(str(judge(features, clusters, self.num_classes, agreement)))

    def move_samples(self, former: Tensor) -> None:
        """Brings the state of the samples into the order of the data; labeled ones that are gone are replaced."""
        super().move_samples(former)
        samples, position = self.labeler.samples, torch.arange(len(former), device=former.device)
        index = position.new_full((max(int(former.max()), int(samples.index.max())) + 1,), -1)
        index[former[former >= 0]] = position[former >= 0]
        index = index[samples.index]
        others = position[~torch.isin(position, index)]
        index[index < 0] = others[: int((index < 0).sum())]
        samples.index.copy_(index)

    def observe_weights(self) -> None:
        """Moves the averaged weights."""
        super().observe_weights()
        self.average.update(self.feature_network, self.trainer.global_step + 1)
