"""k-means beside a test: on features and on inputs, from all batches."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from supercm_lightning import KMeansBaseline


class Reader(LightningModule):
    """Its features tell the classes apart, the inputs only half of them."""

    num_classes = 4

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return {"features": torch.eye(4)[batch[1]] + 0.01 * batch[0]}


def test_features_and_inputs_are_scored_apart() -> None:
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 4
    # Two tight groups of inputs, each of two classes side by side.
    inputs = 100.0 * (labels // 2)[:, None].expand(80, 4) + torch.rand(80, 4, generator=stream)
    loaders = [DataLoader(TensorDataset(inputs, labels), batch_size=32), DataLoader(TensorDataset(inputs, labels % 2))]
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[KMeansBaseline()],
    )  # fmt: skip
    model = Reader()
    (first, *_) = trainer.test(model, loaders, verbose=False)
    assert first["test/kmeans_acc"] == 1.0
    assert 0.4 < first["test/kmeans_input_acc"] < 0.8
    (second, *_) = trainer.test(model, loaders, verbose=False)
    assert second == pytest.approx(first)


def test_fewer_rows_than_clusters_go_without() -> None:
    loader = DataLoader(TensorDataset(torch.rand(3, 4), torch.tensor([0, 1, 3])), batch_size=3)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[KMeansBaseline()],
    )  # fmt: skip
    with pytest.warns(UserWarning, match="3 rows are fewer than the 4 clusters; k-means is left out"):
        assert trainer.test(Reader(), loader, verbose=False) == [{}]
