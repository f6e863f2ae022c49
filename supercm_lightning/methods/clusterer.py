"""Base of the methods that learn without labels."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor
from torchmetrics import Metric

from supercm_lightning.callbacks.evaluation.kmeans_baseline import KMeansBaseline
from supercm_lightning.contracts import Batch, Step
from supercm_lightning.methods.base import Method
from supercm_lightning.metrics import clustering_scores
from supercm_lightning.utils.trainer import callbacks_of


class Clusterer(Method):
    """A method without labels: the K outputs are clusters, scored by accuracy under the best matching, NMI and ARI.

    A batch has unlabeled samples only. Subclasses add their terms to `losses`; the cross-entropy `ce` is 0 unless they
    label samples themselves in `labeled_samples`, with -1 where there is no label. The test also reports k-means on
    features and on inputs (`KMeansBaseline`).

    Examples:
        >>> class Confident(Clusterer):
        ...     terms = ("entropy",)
        ...
        ...     def losses(self, step):
        ...         p = step.assignments
        ...         entropy = -(p * p.log()).sum(dim=1).mean() + (p.mean(dim=0) * p.mean(dim=0).log()).sum()
        ...         return super().losses(step) | {"entropy": entropy}
        >>> sorted(Confident(num_classes=3, input_shape=(8,), backbone="identity").test_scores)
        ['acc', 'ari', 'nmi']
    """

    needs_labeled = False

    def labeled_samples(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """No samples; override to label some."""
        first_view = batch["unlabeled"][0][0]
        return first_view[:0], torch.empty(0, dtype=torch.int64, device=first_view.device)

    def supervised_loss(self, step: Step) -> Tensor:
        """Cross-entropy, mean over the labeled samples, of which those with label -1 count zero."""
        losses = F.cross_entropy(step.labeled_logits, step.y, ignore_index=-1, reduction="none")
        return losses.sum() / max(len(losses), 1)

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds the smallest and the largest fraction of the batch in one cluster."""
        size = torch.bincount(step.unlabeled_logits[0].argmax(dim=1), minlength=self.num_classes)
        fractions = {"smallest_cluster": size.min() / size.sum(), "largest_cluster": size.max() / size.sum()}
        return super().diagnostics(step) | fractions

    def build_scores(self) -> dict[str, Metric]:
        """Accuracy under the best matching of clusters and classes, NMI and ARI."""
        return clustering_scores(self.num_classes)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the state; clusters have no names, also where the classes of the data have."""
        super().on_load_checkpoint(checkpoint)
        if self.preparation is not None:
            self.preparation.class_names = None

    def configure_callbacks(self) -> list[Callback]:
        """Adds `KMeansBaseline` unless the trainer has one."""
        present = any(isinstance(callback, KMeansBaseline) for callback in callbacks_of(self.trainer))
        added: list[Any] = [] if present else [KMeansBaseline()]
        return [*super().configure_callbacks(), *added]
