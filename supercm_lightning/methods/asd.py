"""ASD: labels made without labels, so that any semi-supervised method can cluster."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor, nn
from torchmetrics import Metric

from supercm_lightning.callbacks.evaluation.kmeans_baseline import KMeansBaseline
from supercm_lightning.contracts import Batch, Step
from supercm_lightning.data.modules.clustering import read_clusters
from supercm_lightning.losses import balanced_consistency_loss
from supercm_lightning.methods.base import Method
from supercm_lightning.metrics import clustering_scores
from supercm_lightning.nn import evaluating, load_backbone_weights
from supercm_lightning.self_labeling import ClassTransitionTracker, ClusterMap, PseudoLabeledSamples, majority_clusters
from supercm_lightning.utils.collectives import mean_over_ranks, world_size
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.random import generator, run_seed


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
        drawn: The drawn rows and their instance labels.
        tracker: The transitions between instance classes.
        clusters: The map from instance classes to clusters.

    Raises:
        ValueError: If an option is outside its range.
    """

    views = ("weak", "strong")
    needs_labeled = False
    terms: tuple[str, ...] = ("instance", "instance_consistency")
    init_labels: Tensor

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
        self.asd_samples = asd_samples  # build_head, which the base calls, needs it
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
        self.average = copy.deepcopy(nn.Sequential(self.backbone, self.bottleneck)).requires_grad_(False)
        self.register_buffer("init_labels", torch.empty(0, dtype=torch.int64), persistent=False)
        self._start(num_rows=1, window=1, batch_size=0)

    @property
    def _step_number(self) -> int:
        return self.trainer.fit_loop.total_batch_idx

    @property
    def _begins_set(self) -> bool:
        return self._step_number % self.asd_hold == 0

    def build_head(self, in_features: int) -> Any:  # of the type of the next class's head
        """The cluster head of the method it is combined with, and beside it the instance head."""
        if self.asd_samples is None:
            self.asd_samples = 4 * self.num_classes
        self.instance_head = nn.Linear(in_features, self.asd_samples)
        return super().build_head(in_features)

    def labeled_samples(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The drawn rows, in their views, and the clusters of their labels so far."""
        if self.training and self._begins_set:
            self._draw()
        views = ("weak", "strong") if self.asd_strong_labels else ("weak",)
        rows, labels = self.drawn.share
        x = self.trainer.datamodule.views_of("unlabeled", rows, views, "pseudo-labelled")  # type: ignore[attr-defined]
        return torch.cat(x), self.clusters(labels).repeat(len(views))

    def _draw(self) -> None:
        """Step 1: chooses the next rows."""
        stream = generator(run_seed(self.trainer), "pseudo-labelled rows", self._step_number)
        if self.asd_sampler == "random" or self.progress < self.asd_prototype_start:
            self.drawn.draw_at_random(stream)
        else:
            pool = self.asd_pool * len(self.drawn)
            self.drawn.draw_prototypes(self.num_classes, pool, self._average_features, stream)

    def joint_forward(self, batch: Batch) -> Step:
        """Forwards the drawn rows as the labelled ones, and labels them by what comes out."""
        step = super().joint_forward(batch)
        if not self.training:  # statistics are made for averaged weights, nothing is learnt
            return step
        with torch.no_grad():
            labels = self._label(step)
        return replace(step, y=labels.repeat(len(step.y) // len(labels)))

    def _label(self, step: Step) -> Tensor:
        """Steps 2 to 5: cluster labels of this process's drawn rows, (m,) int64, -1 where in doubt."""
        features = step.labeled_features[: len(self.drawn.share[0])]
        logits = self.instance_head(features)
        if self._begins_set:
            self.drawn.align(features, logits, self.asd_cost, self.asd_solver)
        # After the alignment: changes must not mix with a permutation of the labels.
        of_unlabeled = self.instance_head(step.unlabeled_features[0])
        assert step.index is not None
        self.tracker.update(step.index, of_unlabeled.argmax(dim=1))
        self.clusters.count(of_unlabeled)
        due = self._step_number % self.asd_map_every == 0 or not self.clusters.known
        if due and self.progress >= self.asd_warmup:
            self._map_to_clusters()
        rows, labels = self.drawn.share
        if len(self.init_labels) and not self.clusters.known:
            return self.init_labels[rows]
        cluster = self.clusters(labels)
        if self.asd_agreement:
            cluster = torch.where(self.clusters(logits.argmax(dim=1)) == cluster, cluster, -1)
        return cluster

    def _map_to_clusters(self) -> None:
        """Step 4: groups the instance classes."""
        first = None
        if len(self.init_labels):
            first = majority_clusters(self.tracker.bank, self.init_labels, len(self.drawn), self.num_classes)
        self.clusters.renew(self.tracker.matrix, self.asd_map, first)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The terms of the instance head; those of the method it is combined with once there are clusters."""
        logits = self.instance_head(step.all_features)
        n = len(step.y)
        weak, strong = logits[n:].chunk(len(step.views))[:2]
        labels = self.drawn.share[1]
        instance = F.cross_entropy(logits[:n], labels.repeat(n // len(labels)))
        terms = {"instance": self._weight_of_share * instance}
        if self.asd_consistency:
            consistency = balanced_consistency_loss(strong, weak, self.clusters.share)
            terms["instance_consistency"] = self.asd_consistency * consistency
        if self.clusters.known or len(self.init_labels):
            return super().losses(step) | terms
        return {"ce": self.supervised_loss(step)} | terms

    def supervised_loss(self, step: Step) -> Tensor:
        """Cross-entropy, mean over the drawn rows, of which those in doubt count zero."""
        each = F.cross_entropy(step.labeled_logits, step.y, ignore_index=-1, reduction="none")
        return self._weight_of_share * each.mean()

    @property
    def _weight_of_share(self) -> float:
        # Shares may differ by a row: with this weight DDP's mean over processes is the mean over all drawn rows.
        return len(self.drawn.share[0]) * world_size() / len(self.drawn)

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds what tells a run that works from one that does not, without labels."""
        size = torch.bincount(step.unlabeled_logits[0].argmax(dim=1), minlength=self.num_classes)
        weak = step.labeled_logits[: len(self.drawn.share[0])]
        drawn = F.one_hot(weak.argmax(dim=1), self.num_classes).float().mean(dim=0)
        return super().diagnostics(step) | {
            "relabel_agreement": self.drawn.agreement.clone(),
            "map_change": self.clusters.change.clone(),
            "agreement_ratio": mean_over_ranks((step.y >= 0).float().mean()),
            "labels_used": self.tracker.classes_used,
            "smallest_cluster": size.min() / size.sum(),
            "largest_cluster": size.max() / size.sum(),
            "coverage": (mean_over_ranks(drawn) > 0).float().mean(),
        }

    @torch.no_grad()
    def _average_features(self, rows: Tensor) -> Tensor:
        """Features of unlabelled rows by the averaged weights, without augmentation."""
        (x,) = self.trainer.datamodule.views_of("unlabeled", rows, ("clean",), "pool")  # type: ignore[attr-defined]
        with evaluating(self.average):
            return torch.cat([self.average(part) for part in x.split(500)])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Moves the averaged weights, from which prototypes are sought, to those of the last optimiser step."""
        super().on_train_batch_start(batch, batch_idx)
        weight = 1 - min(0.99, (self._step_number + 1) / (self._step_number + 10))
        live = nn.Sequential(self.backbone, self.bottleneck).state_dict().values()
        with torch.no_grad():
            for mine, theirs in zip(self.average.state_dict().values(), live, strict=True):
                if mine.is_floating_point():
                    mine.lerp_(theirs, weight)

    # -------------------------------------------------------------------------------------------------- set-up
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
            raise SuperCMError("ASD chooses samples by itself: it needs a ClusteringDataModule.")
        if data.num_unlabeled < len(self.drawn):
            raise SuperCMError(
                f"asd_samples: {len(self.drawn)} rows are labelled at a time, and there are {data.num_unlabeled}. "
                "Lower asd_samples."
            )
        if len(self.drawn) < self.trainer.world_size:
            raise SuperCMError(f"asd_samples={len(self.drawn)}: give at least one for each of the processes.")
        batch = data.unlabeled_batch_size * self.trainer.world_size
        self._start(data.num_unlabeled, self._window(data.num_steps), batch)
        if self.asd_init_labels is not None:
            file = Path(self.asd_init_labels).expanduser()
            self.init_labels = read_clusters(file, data.num_unlabeled, self.num_classes).to(self.device)
        if self.asd_backbone_checkpoint is not None:
            load_backbone_weights(self.backbone, Path(self.asd_backbone_checkpoint))
            self.average[0].load_state_dict(self.backbone.state_dict())

    def _start(self, num_rows: int, window: int, batch_size: int) -> None:
        n_l = len(self.instance_head.weight)
        self.drawn = PseudoLabeledSamples(num_rows, n_l, self.num_features).to(self.device)
        self.tracker = ClassTransitionTracker(num_rows, n_l, window, batch_size).to(self.device)
        self.clusters = ClusterMap(n_l, self.num_classes).to(self.device)

    def _window(self, steps_per_epoch: int) -> int:
        if isinstance(self.asd_window, int):
            return self.asd_window
        trainer, limit = self.trainer, self.trainer.limit_train_batches
        limited = limit if isinstance(limit, int) else int(limit * steps_per_epoch)
        epochs = (trainer.max_epochs or -1) * min(limited, steps_per_epoch)
        ends = [end for end in (trainer.max_steps * trainer.accumulate_grad_batches, epochs) if end > 0]
        if not ends:
            raise SuperCMError(
                f"asd_window={self.asd_window} is a fraction of the training: set trainer.max_epochs or max_steps, or "
                "give a number of steps."
            )
        return max(1, int(self.asd_window * min(ends)))

    def _check_options(self) -> None:
        def check(names: str, valid: Callable[[Any], bool], remedy: str) -> None:
            for name in names.split():
                if not valid(value := getattr(self, name)):
                    raise SuperCMError(f"{name}={value!r}: give {remedy}.")

        types = get_type_hints(ASD.__init__)
        for name in ("asd_sampler", "asd_cost", "asd_solver", "asd_map"):
            check(name, get_args(types[name]).__contains__, f"one of {', '.join(get_args(types[name]))}")
        check("asd_samples", lambda n: n >= self.num_classes, f"at least one for each of {self.num_classes} clusters")
        check("asd_pool asd_hold asd_map_every", lambda n: n >= 1, "at least 1")
        check("asd_prototype_start", lambda f: 0 <= f <= 1, "a fraction of the training, from 0 to 1")
        check("asd_warmup", lambda f: 0 <= f < 1, "a fraction of the training, from 0 to below 1")
        check("asd_consistency", lambda weight: weight >= 0, "a weight that is not negative")
        fits = {int: lambda steps: steps >= 1, float: lambda share: 0 < share <= 1}[type(self.asd_window)]
        check("asd_window", fits, "a fraction of the training, or a number of steps as an integer")

    def build_scores(self) -> dict[str, Metric]:
        """Accuracy under the best naming, NMI and ARI."""
        return clustering_scores(self.num_classes)

    def configure_callbacks(self) -> list[Callback]:
        """Adds `KMeansBaseline` unless the trainer has one."""
        given = any(isinstance(callback, KMeansBaseline) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [*super().configure_callbacks(), *([] if given else [KMeansBaseline()])]
