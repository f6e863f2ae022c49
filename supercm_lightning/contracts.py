"""What methods, data modules and callbacks ask of each other: the batch, the step, and Protocols."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from supercm_lightning.nn import ClusteringHead


@dataclass(frozen=True)
class Step:
    """What one joint training forward produced; the input of `Method.losses`.

    Samples are ordered: the `B` labeled ones, the `U` unlabeled ones of the first view, of the second view, and so on.

    Examples:
        >>> step = Step(torch.rand(4, 8), torch.arange(4), (), (), None, torch.rand(4, 5), torch.rand(4, 4))
        >>> step.assignments.shape
        torch.Size([4, 4])

    Attributes:
        x: Labeled inputs, (B, *input_shape).
        y: Labels, (B,), int64 in [0, K), or -1 for none (methods that label samples themselves).
        views: Inputs of each unlabeled view of the forward, a tuple of (U, *input_shape).
        target_views: Inputs of each view that only targets are computed from, likewise.
        index: Position of each unlabeled sample in the unlabeled set, (U,), or None without unlabeled samples.
        all_features: Features of all samples of all views, (B + V·U, d).
        all_logits: Class logits of the same samples, (B + V·U, K).
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

    def _first(self, samples: Tensor) -> Tensor:
        return samples[: len(self.y) + (len(self.views[0]) if self.views else 0)]

    def _per_view(self, samples: Tensor) -> tuple[Tensor, ...]:
        return samples[len(self.y) :].chunk(len(self.views)) if self.views else ()

    @property
    def features(self) -> Tensor:
        """Features of the labeled samples and of the first unlabeled view, (B + U, d)."""
        return self._first(self.all_features)

    @property
    def logits(self) -> Tensor:
        """Logits of the same samples as `features`, (B + U, K)."""
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
        """Features of the labeled samples, (B, d)."""
        return self.all_features[: len(self.y)]

    @property
    def labeled_logits(self) -> Tensor:
        """Logits of the labeled samples, (B, K)."""
        return self.all_logits[: len(self.y)]

    @property
    def unlabeled_features(self) -> tuple[Tensor, ...]:
        """Features of each unlabeled view, a tuple of (U, d)."""
        return self._per_view(self.all_features)

    @property
    def unlabeled_logits(self) -> tuple[Tensor, ...]:
        """Logits of each unlabeled view, a tuple of (U, K)."""
        return self._per_view(self.all_logits)


class Terms(dict[str, Tensor]):
    """The weighted terms of a loss, scalars by name; a union with a name that is there already is an error.

    Examples:
        >>> Terms(ce=torch.tensor(1.0)) | {"cm": torch.tensor(2.0)}
        {'ce': tensor(1.), 'cm': tensor(2.)}
    """

    def __or__(self, other: Mapping[str, Tensor]) -> "Terms":  # type: ignore[override]
        """The terms of both.

        Raises:
            TypeError: If both have a term of the same name, of which one would be lost.
        """
        if same := self.keys() & other.keys():
            raise TypeError(f"losses: two terms are called {' and '.join(sorted(same))}. Rename one of them.")
        return Terms({**self, **other})


class Batch(TypedDict, total=False):
    """A training batch on the device.

    Attributes:
        labeled: Inputs (B, *input_shape) and labels (B,); absent for methods that label samples themselves.
        clean: The same samples without augmentation, for callbacks with `needs_clean_labeled`.
        unlabeled: Every view, a tuple of (U, *input_shape), and the position (U,) of each sample in the unlabeled set.
    """

    labeled: tuple[Tensor, Tensor]
    clean: tuple[Tensor, Tensor]
    unlabeled: tuple[tuple[Tensor, ...], Tensor]


# ----------------------------------------------------------------------------------------- what data asks of others
@runtime_checkable
class ViewConsumer(Protocol):
    """A method, as a data module sees it.

    Attributes:
        needs_labeled: Whether a batch must hold labeled samples.
        all_views: Names of the unlabeled views that a batch must hold, in their order.
    """

    needs_labeled: bool

    @property
    def all_views(self) -> tuple[str, ...]: ...  # noqa: D102


@runtime_checkable
class CleanSampleConsumer(Protocol):
    """A callback that may need `batch["clean"]`, the labeled samples without augmentation."""

    needs_clean_labeled: bool


@runtime_checkable
class SeedOwner(Protocol):
    """A callback that holds the seed of the run, from which every random number of a step is derived.

    Attributes:
        run_seed: The seed. (Other callbacks have an option `seed`, so the name alone must tell them apart.)
    """

    run_seed: int


# ---------------------------------------------------------------------------------- what methods and callbacks ask
@runtime_checkable
class UnlabeledData(Protocol):
    """A data module with a known number of unlabeled samples, for methods that keep state per sample."""

    @property
    def num_unlabeled(self) -> int: ...  # noqa: D102


@runtime_checkable
class KnownUnlabeledData(UnlabeledData, Protocol):
    """A data module that knows its unlabeled samples by name.

    Attributes:
        former_unlabeled: Position of each among the unlabeled samples of the checkpoint, (n,) int64, -1 for a new one;
            None: all are where they were.
    """

    former_unlabeled: Tensor | None


@runtime_checkable
class ViewData(UnlabeledData, Protocol):
    """A data module of this package.

    Attributes:
        num_classes: Number of classes K.
        input_shape: Shape of one input.
        class_names: Names of the classes, or None.
        is_domain_adaptation: Whether the labeled samples are a source domain and the unlabeled ones a target domain.
        preprocessing: What was done to the samples that the model receives, plain values.
        samples: Samples of each split, once the data is read.
        unlabeled_batch_size: Unlabeled samples per step and device.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...] | None
    is_domain_adaptation: bool
    preprocessing: dict[str, Any]
    samples: dict[str, Any]
    unlabeled_batch_size: int

    @property
    def num_steps(self) -> int: ...  # noqa: D102

    @property
    def has_test(self) -> bool: ...  # noqa: D102

    def views_of(self, split: str, position: Tensor, views: tuple[str, ...], name: str) -> tuple[Tensor, ...]:
        """Views of samples that a method chose itself; no label is read."""

    def describe_sample(self, split: str, index: int) -> str:
        """File of a sample, or its index."""


@runtime_checkable
class ArrayData(ViewData, Protocol):
    """A data module whose samples can be had as arrays."""

    def setup(self, stage: str) -> None:
        """Reads the data."""

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Samples (n, *input_shape) and labels (n,), -1 where unknown."""


@runtime_checkable
class StepObserver(Protocol):
    """A callback that moves state with the features of a step, after the forward and before the losses."""

    def observe(self, trainer: Trainer, pl_module: LightningModule, step: Step) -> None:
        """Follows one step, without gradient; called once a batch."""


@runtime_checkable
class JointModel(Protocol):
    """A method, as weight averaging sees it."""

    def joint_forward(self, batch: Batch) -> Step:
        """Forwards labeled and unlabeled samples together."""

    def weight_statistics(self) -> tuple[str, ...]:
        """Names of the buffers that belong to the weights, apart from those of batch norm."""

    def estimate_statistics(self, batches: Iterable[Batch]) -> None:
        """Estimates these buffers from training batches, for the present weights."""


@runtime_checkable
class ClassModel(Protocol):
    """A module that tells classes or clusters apart, as evaluation sees it.

    Attributes:
        num_classes: Number of classes K.
    """

    num_classes: int


@runtime_checkable
class FeatureModel(Protocol):
    """A module with features, as evaluation sees it."""

    def features(self, x: Tensor) -> Tensor:
        """Features (n, d) of inputs (n, *input_shape)."""


@runtime_checkable
class Backbone(Protocol):
    """A network from inputs (n, *input_shape) to features (n, num_features)."""

    num_features: int


@runtime_checkable
class CentroidModel(Protocol):
    """A module that has centroids among its features."""

    def seen_centroids(self) -> Tensor:
        """Centroids (K, d) in float32; not a number for classes that no batch had."""


@runtime_checkable
class ClusteringModel(CentroidModel, Protocol):
    """A method with centroids, as `CentroidUpdate` sees it.

    Attributes:
        head: The head that holds the centroids.
        needs_labeled: Whether the labeled samples are those of the data.
        follows_step: Whether the method itself moves its centroids in `observe`.
    """

    head: ClusteringHead
    needs_labeled: bool
    follows_step: bool

    def features(self, x: Tensor) -> Tensor:
        """Features (n, d) of inputs."""

    def centroid_samples(self, step: Step) -> tuple[Tensor, Tensor]:
        """Features (n, d) and labels (n,) that the centroids follow."""
