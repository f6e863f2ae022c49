"""Controls and hard cases for the tables of clustering; no options of the library, because they serve no user."""

from typing import Any

import torch
from torch import Tensor

from supercm_lightning import ASD, ASDFreeMatch, ClusteringDataModule, FreeMatch
from supercm_lightning.data.sources.stores import ArrayStore, Store
from supercm_lightning.utils.random import generator


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
            labels = data.samples["unlabeled"].store.labels[data.samples["unlabeled"].index]
            order = torch.randperm(len(labels), generator=generator(torch.initial_seed(), "true labels"))
            share = len(self.drawn) // self.num_classes
            drawn = [order[labels[order] == k][:share] for k in range(self.num_classes)]
            self.drawn.rows.copy_(torch.cat(drawn))
            self.clusters.set(torch.arange(self.num_classes).repeat_interleave(share))

    def _draw(self) -> None:
        pass

    def _label(self, step: Any) -> Tensor:
        return self.clusters.cluster_of


class LongTail(ClusteringDataModule):
    """170 rows of the first class, 17 of the last one, geometrically in between; the same rows for every seed."""

    def _read_stores(self) -> dict[str, Store]:
        store = super()._read_stores()["train"]
        assert isinstance(store, ArrayStore)
        stream, keep = torch.Generator().manual_seed(0), []
        for k in range(self.num_classes):
            rows = (store.labels == k).nonzero()[:, 0]
            count = round(170 * 10 ** (-k / (self.num_classes - 1)))
            keep.append(rows[torch.randperm(len(rows), generator=stream)][:count])
        rows = torch.cat(keep).sort().values
        return {"train": ArrayStore(store.data[rows], store.labels[rows])}


class Turned(ClusteringDataModule):
    """Every image as it is and turned by a quarter, of twice as many classes; the strong view turns by less."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes *= 2

    def _read_stores(self) -> dict[str, Store]:
        store = super()._read_stores()["train"]
        assert isinstance(store, ArrayStore)
        labels = torch.cat([store.labels, store.labels + self.num_classes // 2])
        return {"train": ArrayStore(torch.cat([store.data, store.data.rot90(1, (2, 3))]), labels)}
