"""Label propagation: labels spread over a graph of nearest neighbors become targets of the network."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supercm_lightning.baselines.label_spreading import neighbor_graph, spread_labels
from supercm_lightning.contracts import Step, ViewData
from supercm_lightning.methods.per_sample import PerSampleState
from supercm_lightning.nn import evaluating
from supercm_lightning.utils.options import SuperCMError, check_decay, check_range
from supercm_lightning.utils.random import generator, run_seed
from supercm_lightning.utils.trainer import datamodule_of


class LabelPropagation(PerSampleState):
    """Cross-entropy plus that of the unlabeled samples to labels spread over a graph, weighted by their certainty.

    Iscen et al., "Label Propagation for Deep Semi-supervised Learning", CVPR 2019. Every `propagation_every` steps the
    labels are spread over the nearest neighbors (cosine) of labeled and unlabeled samples; the weight of a sample is 1
    minus the normalized entropy of its soft label. Classes have the proportions of the labeled set, with two domains
    equal ones. Beside the features of the network, as in the paper, the graph may join neighbors among the inputs: from
    the first step on for small images and features of a pretrained network, of no use for photographs.

    Args:
        propagation_weight: Weight of the term, >= 0.
        propagation_inputs: Weight of the graph of the inputs, in [0, 1]; the graph of the features has the rest.
        propagation_start: Fraction of the training, in [0, 1], before the features join the graph.
        propagation_every: Steps between two graphs, >= 1.
        propagation_neighbors: Neighbors of each sample, >= 1.
        propagation_alpha: How far labels spread, in [0, 1).
        propagation_samples: Number of unlabeled samples in a graph, drawn anew for every graph, and largest number of
            labeled ones; a sample that is in none keeps its label.
        **kwargs: Options of the next method in a combination, and of `Method`.

    Attributes:
        propagated_label: Label of every unlabeled sample, (number of unlabeled samples,), -1 before its first.
        propagated_certainty: 1 minus the entropy of its soft label, divided by log K; in [0, 1].

    Raises:
        SuperCMError: If an option is outside its range.

    Examples:
        >>> LabelPropagation(num_classes=3, input_shape=(1, 8, 8), propagation_inputs=0.0).hparams.propagation_alpha
        0.99
    """

    terms: tuple[str, ...] = ("propagation",)
    sample_buffers: ClassVar[dict[str, int | float | bool]] = {"propagated_label": -1, "propagated_certainty": 0.0}
    propagated_label: Tensor
    propagated_certainty: Tensor

    def __init__(
        self,
        propagation_weight: float = 1.0,
        propagation_inputs: float = 0.5,
        propagation_start: float = 0.1,
        propagation_every: int = 50,
        propagation_neighbors: int = 10,
        propagation_alpha: float = 0.99,
        propagation_samples: int = 10_000,
        **kwargs: Any,
    ) -> None:
        check_range(0, propagation_weight=propagation_weight)
        check_range(0, 1, propagation_inputs=propagation_inputs, propagation_start=propagation_start)
        check_range(
            1,
            propagation_every=propagation_every,
            propagation_neighbors=propagation_neighbors,
            propagation_samples=propagation_samples,
        )
        check_decay(propagation_alpha=propagation_alpha)
        super().__init__(**kwargs)
        self.register_buffer("propagated_label", torch.empty(0, dtype=torch.int64))
        self.register_buffer("propagated_certainty", torch.empty(0))
        self._input_graph: Any = None

    def reset_samples(self, num_samples: int) -> None:
        """Forgets all labels, and the graph of other inputs."""
        super().reset_samples(num_samples)
        self._input_graph = None

    def observe(self, step: Step) -> None:
        """Spreads the labels anew, when they are due."""
        super().observe(step)
        if self.trainer.fit_loop.total_batch_idx % self.hparams.propagation_every == 0:
            self._propagate()

    @torch.no_grad()
    def _propagate(self) -> None:
        data, given = datamodule_of(self.trainer), self.hparams
        if not isinstance(data, ViewData):
            raise SuperCMError(f"{type(self).__name__} needs all samples at once. Use one of supercm_lightning.data.")
        has_features = self.progress >= given.propagation_start
        inputs = given.propagation_inputs if has_features else float(given.propagation_inputs > 0)
        if not (inputs or has_features):
            return
        stream = generator(run_seed(self.trainer), "propagation", self.trainer.fit_loop.total_batch_idx)
        chosen = {split: self._chosen(len(data.samples[split]), stream) for split in ("labeled", "unlabeled")}
        is_whole = all(len(index) == len(data.samples[split]) for split, index in chosen.items())
        graph: Any = 0
        if inputs:
            graph = self._input_graph if self._input_graph is not None else self._graph(chosen, nn.Flatten())
            self._input_graph = graph if is_whole else None  # the same every time
            graph = inputs * graph
        if inputs < 1:
            with evaluating(self):
                graph = graph + (1 - inputs) * self._graph(chosen, self.features)
        labels = data.samples["labeled"].labels[chosen["labeled"]].cpu()
        labels = torch.cat([labels, torch.full_like(chosen["unlabeled"], -1)]).numpy()
        # The classes of a target domain need not have the proportions of the source.
        uniform = np.full(self.num_classes, 1 / self.num_classes) if data.is_domain_adaptation else None
        soft = spread_labels(
            graph, labels, num_classes=self.num_classes, alpha=given.propagation_alpha, proportions=uniform
        )
        found = torch.from_numpy(soft[len(chosen["labeled"]) :])
        entropy = -torch.special.xlogy(found, found).sum(dim=1)
        index = chosen["unlabeled"].to(self.device)
        self.propagated_label[index] = found.argmax(dim=1).to(self.device)
        self.propagated_certainty[index] = (1 - entropy / np.log(self.num_classes)).float().to(self.device)

    def _chosen(self, count: int, stream: torch.Generator) -> Tensor:
        """Positions of the samples of a split that are in a graph: all of them, or some at random."""
        limit = self.hparams.propagation_samples
        return torch.arange(count) if count <= limit else torch.randperm(count, generator=stream)[:limit]

    def _graph(self, chosen: dict[str, Tensor], points_of: Callable[[Tensor], Tensor]) -> Any:
        """The graph of nearest neighbors (n, n), sparse, of what a function makes of the samples."""
        points = torch.cat([self.of_samples(split, index, points_of).float() for split, index in chosen.items()])
        return neighbor_graph(F.normalize(points, dim=1).cpu().numpy(), self.hparams.propagation_neighbors)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Adds the term `propagation`."""
        assert step.index is not None
        label, certainty = self.propagated_label[step.index], self.propagated_certainty[step.index]
        loss = F.cross_entropy(step.unlabeled_logits[0].float(), label, ignore_index=-1, reduction="none")
        return super().losses(step) | {"propagation": self.hparams.propagation_weight * (certainty * loss).mean()}

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Adds the mean certainty of the labels of the step."""
        assert step.index is not None
        return super().diagnostics(step) | {"propagation_certainty": self.propagated_certainty[step.index].mean()}
