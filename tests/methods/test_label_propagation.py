from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer, seed_everything

from supercm_lightning import LabelPropagation, SemiSupervisedDataModule
from supercm_lightning.utils.options import SuperCMError


def fitted(steps: int, **options: Any) -> tuple[LabelPropagation, SemiSupervisedDataModule]:
    seed_everything(0)
    model = LabelPropagation(num_classes=10, input_shape=(1, 8, 8), **options)
    data = SemiSupervisedDataModule(num_labeled=20, num_val=1000, steps_per_epoch=steps)
    Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    ).fit(model, datamodule=data)  # fmt: skip
    return model, data


def spread_slowly(points: torch.Tensor, labels: np.ndarray, neighbors: int, alpha: float) -> np.ndarray:
    """Soft labels of all samples by a dense inverse."""
    similarity = points @ points.T
    similarity.fill_diagonal_(-2)
    joined = torch.zeros_like(similarity).scatter_(1, similarity.topk(neighbors, dim=1).indices, 1.0).double().numpy()
    joined = joined + joined.T
    scale = np.diag(joined.sum(axis=0) ** -0.5)
    given = np.eye(10)[np.maximum(labels, 0)] * (labels >= 0)[:, None]
    found = np.linalg.inv(np.eye(len(labels)) - alpha * scale @ joined @ scale) @ given
    found /= found.sum(axis=0)
    return found / found.sum(axis=1, keepdims=True)


def test_labels_of_the_inputs_are_those_of_a_dense_solution() -> None:
    model, data = fitted(1, propagation_inputs=1.0, propagation_neighbors=5, propagation_alpha=0.9)
    (x, y), (u, _) = data.arrays("labeled"), data.arrays("unlabeled")
    points = F.normalize(torch.from_numpy(np.concatenate([x, u])).flatten(1), dim=1)
    expected = spread_slowly(points, np.concatenate([y, np.full(len(u), -1)]), 5, 0.9)[len(y) :]
    certainty = 1 + (expected * np.log(np.maximum(expected, 1e-300))).sum(axis=1) / np.log(10)
    # Neighbors at equal distance may be chosen differently.
    assert (model.propagated_label.numpy() == expected.argmax(axis=1)).mean() > 0.99
    assert np.median(np.abs(model.propagated_certainty.numpy() - certainty)) < 1e-5


def test_features_join_the_graph_when_it_is_time() -> None:
    early, _ = fitted(4, propagation_inputs=0.0, propagation_start=0.9)
    assert (early.propagated_label == -1).all()  # no graph of inputs, and features are not asked yet
    late, _ = fitted(4, propagation_inputs=0.0, propagation_start=0.5, propagation_every=2)
    assert (late.propagated_label >= 0).all()
    both, _ = fitted(4, propagation_start=0.5, propagation_every=2)
    alone, _ = fitted(4, propagation_inputs=1.0, propagation_every=2)
    assert not torch.equal(both.propagated_certainty, alone.propagated_certainty)


def test_a_part_of_the_samples_is_labeled_at_a_time() -> None:
    model, data = fitted(1, propagation_samples=100)
    assert int((model.propagated_label >= 0).sum()) == 100 < data.num_unlabeled
    model, _ = fitted(3, propagation_samples=100, propagation_every=1)
    assert 100 < int((model.propagated_label >= 0).sum()) <= 300


@pytest.mark.parametrize("option", ["propagation_inputs", "propagation_alpha", "propagation_start"])
def test_options_out_of_range_are_named(option: str) -> None:
    with pytest.raises(SuperCMError, match=option):
        LabelPropagation(num_classes=10, input_shape=(1, 8, 8), **{option: 1.5})
