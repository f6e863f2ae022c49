"""ASD: labels made without labels, so that any semi-supervised method can cluster."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor, nn
from torchmetrics.clustering import AdjustedRandScore, NormalizedMutualInfoScore

from supercm_lightning.callbacks.kmeans_baseline import KMeansBaseline
from supercm_lightning.clustering import (
    ClassTransitionTracker,
    align_labels,
    group_classes,
    match_clusters,
    prototype_sample,
    random_sample,
)
from supercm_lightning.data.clustering import read_clusters
from supercm_lightning.data.randomness import generator
from supercm_lightning.distributed import from_rank_zero, mean_over_ranks
from supercm_lightning.losses import balanced_consistency_loss
from supercm_lightning.methods.base import Method, Step
from supercm_lightning.metrics import ClusteringAccuracy
from supercm_lightning.nn import evaluating, resize_buffers


class ASD(Method):
    """Makes the labelled part of the step itself; the method it is combined with learns from the rest.

    Duan et al., "An Adaptor for Triggering Semi-Supervised Learning to Out-of-Box Serve Deep Image Clustering", IEEE
    TIP 2025 (arXiv 2509.20976). A second head tells n_l instance classes apart:

    1. n_l rows are drawn, none twice before all were;
    2. each gets an instance label of its own, by optimal transport to what the labels meant before; the instance head
       learns them;
    3. changes of the instance head's predictions between visits to the same unlabelled row are counted;
    4. classes that are often confused are one cluster: k-medoids on the counts maps the n_l classes to k clusters;
    5. the mapped labels are the labels y of the step, -1 where they are in doubt.

    Put it before the method in the bases: `class Mine(ASD, FreeMatch)`. No label of the data is ever read. The defaults
    depart from the paper where its literal reading does not work on small data; `docs/methods/asd.md` has the
    measurements.

    Args:
        asd_samples: Number of rows n_l that are labelled at a time; None: 4k.
        asd_sampler: `prototype`: rows nearest to k centres and their neighbours, after a start at random; `random`.
        asd_prototype_start: Fraction of the training, in [0, 1], after which the features are worth sampling by.
        asd_pool: Rows among which prototypes are sought, as a multiple of n_l.
        asd_hold: Steps for which a drawn set keeps its rows and labels.
        asd_strong_labels: Let the drawn rows learn their labels on their strong view too.
        asd_cost: What labels are aligned by: `logit`, the instance head's negative log-probability, or `feature`, the
            cosine distance to the running mean feature of each label.
        asd_solver: `exact` or `sinkhorn`, see `align_labels`.
        asd_consistency: Weight of the consistency of the instance head on unlabelled rows, >= 0.
        asd_window: Steps over which changes are counted: a fraction in (0, 1) of all steps, or a number of steps.
        asd_warmup: Fraction of the training, in [0, 1), after which there are clusters; until then the instance head
            learns alone.
        asd_map_every: Steps between two maps of instance classes to clusters.
        asd_map: How classes are grouped: `kmedoids` or `spectral`, see `group_classes`.
        asd_agreement: Use a cluster label only where the instance head's own prediction falls into the same cluster.
        asd_init_labels: File with a clustering to improve on, one label per unlabelled row, -1 for none: `.npy`, or the
            table that `predict` writes. It gives the cluster labels until the first map, from the first step on.
        asd_backbone_checkpoint: File with weights to start from: a checkpoint of this library, or a state dict of the
            backbone.
        **kwargs: Options of the method it is combined with, and of `Method`.

    Attributes:
        rows: The drawn rows, (n_l,) int64.
        labels: Their instance labels, (n_l,) int64.
        cluster_of: Cluster of each instance class, (n_l,) int64, -1 before the first map.

    Raises:
        ValueError: If an option is outside its range.
    """

    views = ("weak", "strong")
    needs_labeled = False
    rows: Tensor
    labels: Tensor
    cluster_of: Tensor
    references: Tensor
    instance_share: Tensor
    unused: Tensor
    drawn_label: Tensor
    init_labels: Tensor
    relabel_agreement: Tensor
    map_change: Tensor

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
        asd_consistency: float = 1.0,
        asd_window: int | float = 0.3,
        asd_warmup: float = 0.3,
        asd_map_every: int = 50,
        asd_map: Literal["kmedoids", "spectral"] = "kmedoids",
        asd_agreement: bool = True,
        asd_init_labels: str | None = None,
        asd_backbone_checkpoint: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._asd_samples = asd_samples
        super().__init__(**kwargs)
        self.asd_sampler = asd_sampler
        self.asd_prototype_start = asd_prototype_start
        self.asd_pool = asd_pool
        self.asd_hold = asd_hold
        self.asd_strong_labels = asd_strong_labels
        self.asd_cost = asd_cost
        self.asd_solver = asd_solver
        self.asd_consistency = asd_consistency
        self.asd_window = asd_window
        self.asd_warmup = asd_warmup
        self.asd_map_every = asd_map_every
        self.asd_map = asd_map
        self.asd_agreement = asd_agreement
        self.asd_init_labels = asd_init_labels
        self.asd_backbone_checkpoint = asd_backbone_checkpoint
        self._check_options()
        n_l, width = self.instance_head.weight.shape
        self.average = copy.deepcopy(nn.Sequential(self.backbone, self.bottleneck)).requires_grad_(False)
        self.register_buffer("rows", torch.arange(n_l))
        self.register_buffer("labels", torch.arange(n_l))
        self.register_buffer("cluster_of", torch.full((n_l,), -1))
        self.register_buffer("references", torch.zeros(n_l, width))
        self.register_buffer("instance_share", torch.full((n_l,), 1 / n_l))
        self.register_buffer("relabel_agreement", torch.zeros(()))
        self.register_buffer("map_change", torch.zeros(()))
        for name in ("unused", "drawn_label"):
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("init_labels", torch.empty(0, dtype=torch.int64), persistent=False)
        self._make_room(num_rows=1, window=1, batch_size=0)
        self._has_clusters = False

        self.val_acc, self.test_acc = ClusteringAccuracy(self.num_classes), ClusteringAccuracy(self.num_classes)
        self.val_nmi, self.test_nmi = NormalizedMutualInfoScore("arithmetic"), NormalizedMutualInfoScore("arithmetic")
        self.val_ari, self.test_ari = AdjustedRandScore(), AdjustedRandScore()

    def build_head(self, in_features: int) -> Any:  # of the type of the next class's head
        """The cluster head of the method it is combined with, and beside it the instance head."""
        self.instance_head = nn.Linear(in_features, self._asd_samples or 4 * self.num_classes)
        return super().build_head(in_features)

    # ------------------------------------------------------------------------------------------------ the step
    def labeled_rows(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The drawn rows, in their views, and the clusters of their labels so far."""
        if self.training and self._begins_set:
            self._draw()
        views = ("weak", "strong") if self.asd_strong_labels else ("weak",)
        x = self.trainer.datamodule.views_of("unlabeled", self.rows, views, "pseudo-labelled")  # type: ignore[attr-defined]
        return torch.cat(x), self.cluster_of[self.labels].repeat(len(views))

    def joint_forward(self, batch: dict[str, Any]) -> Step:
        """Forwards the drawn rows as the labelled ones, and labels them by what comes out."""
        step = super().joint_forward(batch)
        if not self.training:  # statistics are made for averaged weights, nothing is learnt
            return step
        with torch.no_grad():
            labels = self._label(step)
        return replace(step, y=labels.repeat(len(step.y) // len(labels)))

    @property
    def _step_number(self) -> int:
        return self.trainer.fit_loop.total_batch_idx

    @property
    def _begins_set(self) -> bool:
        return self._step_number % self.asd_hold == 0

    def _draw(self) -> None:
        """Step 1: chooses the next rows."""
        assert self._seed is not None
        stream = generator(self._seed, "pseudo-labelled rows", self._step_number)
        unused, n_l = self.unused.cpu(), len(self.rows)
        if self.asd_sampler == "random" or self.progress < self.asd_prototype_start:
            rows = random_sample(unused, n_l, stream)
        else:
            pool = torch.randperm(len(unused), generator=stream)[: self.asd_pool * n_l]
            if int(unused[pool].sum()) < n_l:
                unused.fill_(True)
            rows = pool[prototype_sample(self._features_of(pool), self.num_classes, n_l, unused[pool], stream)]
            unused[rows] = False
        from_rank_zero(self.rows.copy_(rows))
        from_rank_zero(self.unused.copy_(unused))

    @torch.no_grad()
    def _features_of(self, rows: Tensor) -> Tensor:
        """Features of unlabelled rows by the averaged weights, without augmentation."""
        (x,) = self.trainer.datamodule.views_of("unlabeled", rows, ("clean",), "pool")  # type: ignore[attr-defined]
        with evaluating(self.average):
            return torch.cat([self.average(part) for part in x.split(500)])

    def _label(self, step: Step) -> Tensor:
        """Steps 2 to 5: cluster labels of the drawn rows, (n_l,) int64, -1 where in doubt."""
        drawn = step.labeled_features[: len(self.rows)]
        logits = self.instance_head(drawn).float()
        if self._begins_set:
            self._align(drawn.float(), logits)
        weak = self.instance_head(step.unlabeled_features[0]).float()
        self.instance_share.lerp_(mean_over_ranks(weak.softmax(dim=1).mean(dim=0)), 0.01)
        # After the alignment: changes must not mix with a permutation of the labels.
        assert step.index is not None
        self.tracker.update(step.index, weak.argmax(dim=1))
        if self.progress >= self.asd_warmup and (self._step_number % self.asd_map_every == 0 or not self._has_clusters):
            self._map_to_clusters()
        if not self._has_clusters and len(self.init_labels):
            return self.init_labels[self.rows]
        cluster = self.cluster_of[self.labels]
        if self.asd_agreement:
            cluster = torch.where(self.cluster_of[logits.argmax(dim=1)] == cluster, cluster, -1)
        return cluster

    def _align(self, features: Tensor, logits: Tensor) -> None:
        """Step 2: gives every drawn row the instance label that it fits best."""
        features = F.normalize(features, dim=1)
        cost = -logits.log_softmax(dim=1) if self.asd_cost == "logit" else 1 - features @ self.references.T
        # A network that became NaN is named with its term of the loss, a moment later.
        self.labels.copy_(align_labels(mean_over_ranks(cost).nan_to_num(), self.asd_solver))
        mean = self.references[self.labels].lerp(mean_over_ranks(features), 0.1)
        self.references[self.labels] = F.normalize(mean, dim=1)
        before = self.drawn_label[self.rows]
        known = before >= 0
        same = (before == self.labels).sum() / known.sum().clamp_min(1)
        self.relabel_agreement.lerp_(torch.where(known.any(), same, self.relabel_agreement), 0.1)
        self.drawn_label[self.rows] = self.labels

    def _map_to_clusters(self) -> None:
        """Step 4: groups the instance classes; clusters keep their numbers as far as they can."""
        transitions = self.tracker.matrix
        if not bool(transitions.any()):  # no row was visited twice yet
            return
        new = group_classes(transitions, self.num_classes, self.asd_map).to(self.device)
        old = self.cluster_of if self._has_clusters else self._given_clusters()
        new = match_clusters(new, old, self.instance_share, self.num_classes)
        self.map_change.copy_((new != self.cluster_of).float().mean())
        from_rank_zero(self.cluster_of.copy_(new))
        self._has_clusters = True

    def _given_clusters(self) -> Tensor:
        """Cluster to which most of the rows of each instance class were given, (n_l,) int64, -1 for none."""
        n_l, k = len(self.cluster_of), self.num_classes
        if not len(self.init_labels):
            return self.cluster_of
        known = (self.tracker.bank >= 0) & (self.init_labels >= 0)
        cells = self.tracker.bank[known].long() * k + self.init_labels[known]
        count, cluster = torch.bincount(cells, minlength=n_l * k).view(n_l, k).max(dim=1)
        return torch.where(count > 0, cluster, -1)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The terms of the instance head; those of the method it is combined with once there are clusters."""
        logits = self.instance_head(step.all_features)
        n = len(step.y)
        weak, strong = logits[n:].chunk(len(step.views))[:2]
        terms = {"instance": F.cross_entropy(logits[:n], self.labels.repeat(n // len(self.labels)))}
        if self.asd_consistency:
            consistency = balanced_consistency_loss(strong, weak, self.instance_share)
            terms["instance_consistency"] = self.asd_consistency * consistency
        if not (self._has_clusters or len(self.init_labels)):
            return {"ce": self.supervised_loss(step)} | terms
        return super().losses(step) | terms

    def supervised_loss(self, step: Step) -> Tensor:
        """Cross-entropy, mean over the drawn rows, of which those in doubt count zero."""
        return F.cross_entropy(step.labeled_logits, step.y, ignore_index=-1, reduction="none").mean()

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds what tells a run that works from one that does not, without labels."""
        n_l, bank = len(self.rows), self.tracker.bank
        used = torch.bincount(bank[bank >= 0], minlength=n_l) > 0
        size = torch.bincount(step.unlabeled_logits[0].argmax(dim=1), minlength=self.num_classes)
        drawn = torch.bincount(step.labeled_logits[:n_l].argmax(dim=1), minlength=self.num_classes)
        return super().diagnostics(step) | {
            "relabel_agreement": self.relabel_agreement.clone(),
            "map_change": self.map_change.clone(),
            "agreement_ratio": (step.y >= 0).float().mean(),
            "labels_used": used.float().mean(),
            "smallest_cluster": size.min() / size.sum(),
            "largest_cluster": size.max() / size.sum(),
            "coverage": (drawn > 0).float().mean(),
        }

    # --------------------------------------------------------------------------------------------------- state
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Moves the averaged weights, from which prototypes are sought, to those of the last optimiser step."""
        super().on_train_batch_start(batch, batch_idx)
        number = self._step_number
        weight = 1 - min(0.99, (number + 1) / (number + 10))
        live = nn.Sequential(self.backbone, self.bottleneck).state_dict().values()
        with torch.no_grad():
            for mine, theirs in zip(self.average.state_dict().values(), live, strict=True):
                if mine.is_floating_point():
                    mine.lerp_(theirs, weight)

    def on_fit_start(self) -> None:
        """Remembers whether a resumed run has clusters."""
        super().on_fit_start()
        self._has_clusters = bool((self.cluster_of >= 0).all())

    def setup(self, stage: str) -> None:
        """Makes room for every unlabelled row and reads what the run starts from.

        Raises:
            ValueError: If the data cannot give rows by number, has fewer than are labelled at a time, or a file that
                the run starts from does not fit.
        """
        super().setup(stage)
        if stage != "fit":
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "views_of"):
            raise ValueError("ASD chooses rows by itself: it needs a datamodule of this package, ClusteringDataModule.")
        if data.num_unlabeled < len(self.rows):
            raise ValueError(
                f"asd_samples: {len(self.rows)} rows are labelled at a time, and there are {data.num_unlabeled}. Lower "
                "asd_samples."
            )
        batch = data.unlabeled_batch_size * self.trainer.world_size
        self._make_room(data.num_unlabeled, self._window(data.num_steps), batch)
        self.cluster_of.fill_(-1)
        if self.asd_init_labels is not None:
            file = Path(self.asd_init_labels).expanduser()
            self.init_labels = read_clusters(file, data.num_unlabeled, self.num_classes).to(self.device)
        if self.asd_backbone_checkpoint is not None:
            self._load_backbone(Path(self.asd_backbone_checkpoint).expanduser())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_buffers(self, ("unused", "drawn_label"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _make_room(self, num_rows: int, window: int, batch_size: int) -> None:
        self.tracker = ClassTransitionTracker(num_rows, len(self.rows), window, batch_size).to(self.device)
        self.unused = torch.ones(num_rows, dtype=torch.bool, device=self.device)
        self.drawn_label = torch.full((num_rows,), -1, device=self.device)

    def _window(self, steps_per_epoch: int) -> int:
        if isinstance(self.asd_window, int):
            return self.asd_window
        steps, epochs = self.trainer.max_steps, self.trainer.max_epochs or -1
        if max(steps, epochs) < 1:
            raise ValueError(
                f"asd_window={self.asd_window} is a fraction of the training: set trainer.max_epochs or max_steps, or "
                "give a number of steps."
            )
        total = min(length for length in (steps, epochs * steps_per_epoch) if length > 0)
        return max(1, int(self.asd_window * total))

    def _load_backbone(self, path: Path) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = saved.get("state_dict", saved)
        prefix = "backbone."
        of_backbone = {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
        try:
            self.backbone.load_state_dict(of_backbone or saved)
        except RuntimeError as error:
            raise ValueError(f"asd_backbone_checkpoint={path}: does not fit the backbone ({error}).") from error
        self.average[0].load_state_dict(self.backbone.state_dict())

    def _check_options(self) -> None:
        n_l = len(self.instance_head.weight)
        if n_l < self.num_classes:
            raise ValueError(f"asd_samples={n_l}: there must be at least one for each of {self.num_classes} clusters.")
        for name, values in (
            ("asd_sampler", ("prototype", "random")),
            ("asd_cost", ("logit", "feature")),
            ("asd_solver", ("exact", "sinkhorn")),
            ("asd_map", ("kmedoids", "spectral")),
        ):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(values)}.")
        for name in ("asd_pool", "asd_hold", "asd_map_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1.")
        for name in ("asd_prototype_start", "asd_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: give the fraction of the training, between 0 and 1.")
        if self.asd_consistency < 0:
            raise ValueError(f"asd_consistency={self.asd_consistency}: must not be negative.")
        if self.asd_window <= 0 or (isinstance(self.asd_window, float) and self.asd_window > 1):
            raise ValueError(
                f"asd_window={self.asd_window}: give a fraction of the training, or a number of steps as an integer."
            )

    # ---------------------------------------------------------------------------------------------- evaluation
    def configure_callbacks(self) -> list[Callback]:
        """Adds `KMeansBaseline` unless the trainer has one."""
        given = any(isinstance(callback, KMeansBaseline) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [*super().configure_callbacks(), *([] if given else [KMeansBaseline()])]  # type: ignore[misc]

    def _evaluate(self, batch: Any, stage: str, accuracy: Any, dataloader_idx: int) -> dict[str, Tensor]:
        x, y = batch[0], batch[1]
        features = self.features(x)
        logits = self.head(features).float()
        if dataloader_idx == 0:
            for name in ("acc", "nmi", "ari"):
                metric = getattr(self, f"{stage}_{name}")
                metric.update(logits.argmax(dim=1), y)
                self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=name == "acc")
        return {"features": features, "logits": logits}
