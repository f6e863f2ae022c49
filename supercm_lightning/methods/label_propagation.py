"""Label propagation: labels spread over a graph of nearest neighbors become targets of the network."""

from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from supercm_lightning.baselines.label_spreading import neighbor_graph, spread_over_graph
from supercm_lightning.contracts import Step, ViewData
from supercm_lightning.methods.per_sample import PerSampleState
from supercm_lightning.nn import evaluating
from supercm_lightning.utils.collectives import all_gather_shards, rank_slice
from supercm_lightning.utils.options import SuperCMError, check_decay, check_range
from supercm_lightning.utils.random import generator, run_seed
from supercm_lightning.utils.trainer import datamodule_of

CHUNK = 500


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
        inputs = (
            given.propagation_inputs
            if self.progress >= given.propagation_start
            else float(given.propagation_inputs > 0)
        )
        has_features = self.progress >= given.propagation_start and inputs < 1
        if not (inputs or has_features):
            return
        stream = generator(run_seed(self.trainer), "propagation", self.trainer.fit_loop.total_batch_idx)
        chosen = {
            split: torch.randperm(len(data.samples[split]), generator=stream)[: given.propagation_samples]
            for split in ("labeled", "unlabeled")
        }
        labels = data.samples["labeled"].labels[chosen["labeled"]]
        labels = torch.cat([labels, torch.full((len(chosen["unlabeled"]),), -1)]).numpy()
        graph: Any = 0
        for weight, of_features in ((inputs, False), (1 - inputs if has_features else 0, True)):
            if weight:
                samples = torch.cat([self._samples(split, index, of_features) for split, index in chosen.items()])
                points = F.normalize(samples.flatten(1), dim=1).cpu().numpy()
                graph = graph + weight * neighbor_graph(points, given.propagation_neighbors)
        # The classes of a target domain need not have the proportions of the source.
        uniform = np.full(self.num_classes, 1 / self.num_classes) if data.is_domain_adaptation else None
        soft = spread_over_graph(
            graph, labels, num_classes=self.num_classes, alpha=given.propagation_alpha, proportions=uniform
        )
        found = torch.from_numpy(soft[len(chosen["labeled"]) :])
        entropy = -torch.special.xlogy(found, found).sum(dim=1)
        index = chosen["unlabeled"].to(self.device)
        self.propagated_label[index] = found.argmax(dim=1).to(self.device)
        self.propagated_certainty[index] = (1 - entropy / np.log(self.num_classes)).float().to(self.device)

    def _samples(self, split: str, index: Tensor, of_features: bool) -> Tensor:
        """Inputs (n, …) or features (n, d) of samples without augmentation; each process reads its shard."""
        data, found = cast(ViewData, datamodule_of(self.trainer)), []
        with evaluating(self):
            for chunk in index[rank_slice()].split(CHUNK):
                x = data.views_of(split, chunk, ("clean",), "propagation")[0]
                found.append((self.features(x) if of_features else x).float())
        return all_gather_shards(torch.cat(found), len(index))

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
