"""Controls and hard cases for the tables of clustering; no options of the library, because they serve no user."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from supercm_lightning import ASD, ASDFreeMatch, ClusteringDataModule, FreeMatch
from supercm_lightning.data.sources.stores import ArrayStore, Samples
from supercm_lightning.self_labeling import ASDOptions, SelfLabeler
from supercm_lightning.utils.random import generator


class RandomMapLabeler(SelfLabeler):
    """Maps instance classes to clusters at random, once."""

    seed = torch.initial_seed()

    def update_map(self) -> None:
        """Keeps the first map."""
        if not self.clusters.is_known:
            order = torch.randperm(len(self.samples), generator=generator(self.seed, "random map"))
            self.clusters.set_map(order % self.num_clusters)


class RandomMap(ASDFreeMatch):
    """What is left of ASD without the transitions."""

    def build_labeler(self, in_features: int) -> SelfLabeler:
        """An adaptor with a random map, drawn from the seed of the process."""
        labeler = RandomMapLabeler(in_features, self.num_classes, ASDOptions.from_flat(self.hparams))
        labeler.seed = torch.initial_seed()
        return labeler


class TrueLabeler(SelfLabeler):
    """Keeps the samples, labels and clusters that it was given."""

    def sample(self, *args: Any) -> None:
        """Keeps the samples."""

    def observe(self, *args: Any) -> None:
        """Labels them by the map."""
        self.targets.copy_(self.clusters(self.samples.shard[1]).repeat(self.num_views))


class TrueLabels(ASD, FreeMatch):
    """The same learner, views and schedule with four true labels per class: the ceiling that ASD aims at."""

    def build_labeler(self, in_features: int) -> SelfLabeler:
        """An adaptor that chooses nothing."""
        return TrueLabeler(in_features, self.num_classes, ASDOptions.from_flat(self.hparams))

    def setup(self, stage: str) -> None:
        """Draws the labeled samples."""
        super().setup(stage)
        if stage == "fit":
            samples = self.trainer.datamodule.samples["unlabeled"]  # type: ignore[attr-defined]
            labels: Tensor = samples.store.labels[samples.index]
            order = torch.randperm(len(labels), generator=generator(torch.initial_seed(), "true labels"))
            count = len(self.labeler.samples) // self.num_classes
            chosen = [order[labels[order] == k][:count] for k in range(self.num_classes)]
            self.labeler.samples.index.copy_(torch.cat(chosen))
            self.labeler.clusters.set_map(torch.arange(self.num_classes).repeat_interleave(count))


class LongTail(ClusteringDataModule):
    """170 samples of the first class, 17 of the last one, geometrically in between; the same for every seed."""

    def read(self) -> dict[str, Samples]:
        """Keeps these samples of the clustered ones, which are tested too."""
        samples = super().read()
        labels, stream, keep = samples["unlabeled"].store.labels, torch.Generator().manual_seed(0), []
        for k in range(self.num_classes):
            numbers = (labels == k).nonzero()[:, 0]
            count = round(170 * 10 ** (-k / (self.num_classes - 1)))
            keep.append(numbers[torch.randperm(len(numbers), generator=stream)][:count])
        index = torch.cat(keep).sort().values
        return {split: replace(part, index=index) for split, part in samples.items()}


class Turned(ClusteringDataModule):
    """Every image as it is and turned by a quarter, of twice as many classes; the strong view turns by less."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes *= 2

    def read(self) -> dict[str, Samples]:
        """Adds the turned images."""
        store = super().read()["test"].store
        assert isinstance(store, ArrayStore)
        labels = torch.cat([store.labels, store.labels + self.num_classes // 2])
        both = ArrayStore(torch.cat([store.data, store.data.rot90(1, (2, 3))]), labels)
        return {"unlabeled": Samples.all_of(both, hide_labels=True), "test": Samples.all_of(both)}
