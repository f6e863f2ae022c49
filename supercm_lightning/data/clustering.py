"""Images without labels, to be clustered."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from supercm_lightning.data.augment import Normalization, WeakAugmentation
from supercm_lightning.data.base import ViewDataModule
from supercm_lightning.data.datasets import DATASETS
from supercm_lightning.data.stores import ArrayStore, Rows
from supercm_lightning.data.strong_augment import StrongAugmentation


class ClusteringDataModule(ViewDataModule):
    def __init__(
        self,
        dataset: str = "digits",
        root: str | Path = "data",
        protocol: Literal["whole", "split"] = "whole",
        num_rows: int | None = None,
        unlabeled_batch_size: int = 64,
        eval_batch_size: int = 500,
        steps_per_epoch: int | None = None,
        flip: bool | None = None,
        shift: int | None = None,
        noise: float | None = None,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
        num_workers: int = 4,
        predict_on: str = "unlabeled",
    ) -> None:
        super().__init__(1, unlabeled_batch_size, eval_batch_size, steps_per_epoch, predict_on, num_workers)
        spec = DATASETS[dataset]
        self.dataset=dataset; self.spec = spec; self.root = Path(root)
        self.protocol = protocol
        self.num_rows = num_rows
        self.num_classes, self.input_shape = spec.num_classes, spec.input_shape
        self.flip = spec.flip if flip is None else flip
        self.shift = spec.shift if shift is None else shift
        self.noise = spec.noise if noise is None else noise
        self.normalization = Normalization(tuple(mean), tuple(std))

    def read(self) -> dict[str, Rows]:
        train = self.spec.store(self.dataset, self.root, "train", False)
        if self.num_rows:
            train = ArrayStore(train.data[:self.num_rows], train.labels[:self.num_rows])
        return {"unlabeled": Rows.all_of(ArrayStore(train.data, torch.full_like(train.labels, -1))), "test": Rows.all_of(train)}

    def normalize(self, rows: Tensor) -> Tensor:
        return self.normalization(rows)

    def configure_augmentations(self) -> dict[str, Any]:
        return {
            "weak": WeakAugmentation(self.normalization, self.flip, self.shift, self.noise),
            "strong": StrongAugmentation(self.normalization, self.flip, self.shift),
        }
