"""Options of ASD."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from supercm_lightning.utils.options import SuperCMError, check_choice, check_range


@dataclass(frozen=True)
class ASDOptions:
    """Options of `SelfLabeler`; methods and the command line have them as `asd_<name>`.

    Attributes:
        samples: Number n_l of pseudo-labeled samples, and of instance classes, at least one per cluster; None: 4 per
            cluster.
        sampler: `prototype`: the samples nearest to k centers, with their neighbors, after a random start; `random`.
        prototype_start: Fraction of the training, in [0, 1], before `prototype` begins; samples are random until then.
        pool: Number of candidates for prototypes, as a multiple of n_l, >= 1.
        hold: Steps for which a set keeps its samples and instance labels, >= 1.
        strong_labels: Whether the strong view of the pseudo-labeled samples is trained on too.
        cost: Alignment cost: `logit`, the negative log-probability of the instance head, or `feature`, the cosine
            distance to the running mean feature of each instance label.
        solver: `exact` or `sinkhorn`, see `align_labels`.
        reuse: Price of each further use of an instance label within a set, >= 0, see `align_labels`; None: each label
            is used once, which suits classes of equal size.
        consistency: Weight of the consistency loss of the instance head on unlabeled samples, >= 0.
        window: Steps over which transitions are counted: a fraction of the training in (0, 1], or a whole number of
            steps, >= 1.
        warmup: Fraction of the training, in [0, 1), before the first cluster map; the instance head learns alone until
            then.
        map_every: Steps between two cluster maps, >= 1.
        map: How instance classes are grouped into clusters: `kmedoids` or `spectral` by transitions, see
            `group_classes`; `features`, see `group_features`, for clusters of unequal size; `merge`: an instance class
            belongs to the cluster of most of its samples in `merge_clusters` of their features.
        agreement: Use a cluster label only where the prediction of the instance head falls into the same cluster.

    Raises:
        SuperCMError: If an option is outside its range.

    Examples:
        >>> ASDOptions(sampler="random", hold=1).map_every
        50
    """

    samples: int | None = None
    sampler: Literal["prototype", "random"] = "prototype"
    prototype_start: float = 0.2
    pool: int = 10
    hold: int = 10
    strong_labels: bool = True
    cost: Literal["logit", "feature"] = "logit"
    solver: Literal["exact", "sinkhorn"] = "exact"
    reuse: float | None = None
    consistency: float = 1.0
    window: int | float = 0.3
    warmup: float = 0.3
    map_every: int = 50
    map: Literal["kmedoids", "spectral", "features", "merge"] = "kmedoids"
    agreement: bool = True

    def __post_init__(self) -> None:
        """Checks the options."""
        check_choice(
            asd_sampler=(self.sampler, ("prototype", "random")),
            asd_cost=(self.cost, ("logit", "feature")),
            asd_solver=(self.solver, ("exact", "sinkhorn")),
            asd_map=(self.map, ("kmedoids", "spectral", "features", "merge")),
        )
        check_range(1, asd_samples=self.samples, asd_pool=self.pool, asd_hold=self.hold, asd_map_every=self.map_every)
        check_range(0, 1, asd_prototype_start=self.prototype_start)
        check_range(0, asd_consistency=self.consistency, asd_reuse=self.reuse)
        if not 0 <= self.warmup < 1:
            raise SuperCMError(f"asd_warmup={self.warmup}: must be a fraction of the training, at least 0 and below 1.")
        if self.window < 1 if isinstance(self.window, int) else not 0 < self.window <= 1:
            raise SuperCMError(
                f"asd_window={self.window}: must be a fraction of the training, above 0 and at most 1, or a whole "
                "number of steps."
            )

    @classmethod
    def from_flat(cls, options: Mapping[str, Any]) -> "ASDOptions":
        """The options of a mapping from `asd_<name>` to values; other entries are ignored.

        Examples:
            >>> ASDOptions.from_flat({"asd_hold": 1, "lr": 0.1}).hold
            1
        """
        names = (field.name for field in fields(cls))
        return cls(**{name: options[f"asd_{name}"] for name in names if f"asd_{name}" in options})

    def num_samples(self, num_clusters: int) -> int:
        """Number n_l of pseudo-labeled samples for a number of clusters.

        Raises:
            SuperCMError: If it is smaller than the number of clusters.

        Examples:
            >>> ASDOptions().num_samples(10)
            40
        """
        count = 4 * num_clusters if self.samples is None else self.samples
        if count < num_clusters:
            raise SuperCMError(f"asd_samples={count}: must be at least one for each of the {num_clusters} clusters.")
        return count

    def window_steps(self, total_steps: int) -> int:
        """Length of the window in steps, >= 1.

        Args:
            total_steps: Number of steps (batches) of the whole training.

        Examples:
            >>> ASDOptions(window=0.3).window_steps(1000), ASDOptions(window=50).window_steps(1000)
            (300, 50)
        """
        return self.window if isinstance(self.window, int) else max(1, int(self.window * total_steps))
