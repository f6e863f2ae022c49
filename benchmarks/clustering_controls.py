"""Controls for the tables of clustering; no options of the library, because they serve no user."""

from typing import Any

import torch
from torch import Tensor

from supercm_lightning import ASD, ASDFreeMatch, FreeMatch
from supercm_lightning.data.randomness import generator


class RandomMap(ASDFreeMatch):
    """Maps instance classes to clusters at random: what is left without the transitions."""

    def _map_to_clusters(self) -> None:
        if not self.clusters.known:
            order = torch.randperm(len(self.drawn), generator=generator(self._seed or 0, "random map"))
            self.clusters.set(order % self.num_classes)


class TrueLabels(ASD, FreeMatch):
    """The same learner, views and schedule with four true labels per class: the ceiling that ASD aims at."""

    def setup(self, stage: str) -> None:
        """Draws the rows."""
        super().setup(stage)
        if stage == "fit":
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            labels = data.rows["unlabeled"].store.labels[data.rows["unlabeled"].index]
            order = torch.randperm(len(labels), generator=generator(torch.initial_seed(), "true labels"))
            share = len(self.drawn) // self.num_classes
            drawn = [order[labels[order] == k][:share] for k in range(self.num_classes)]
            self.drawn.rows.copy_(torch.cat(drawn))
            self.clusters.set(torch.arange(self.num_classes).repeat_interleave(share))

    def _draw(self) -> None:
        pass

    def _label(self, step: Any) -> Tensor:
        return self.clusters.cluster_of
