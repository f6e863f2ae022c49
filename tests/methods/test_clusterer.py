"""What a method without labels gets from `Clusterer`: two clusterers in twenty lines each, and their scores."""

from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

from supercm_lightning import ClusteringDataModule, Step
from supercm_lightning.callbacks.evaluation.kmeans_baseline import KMeansBaseline
from supercm_lightning.methods.clusterer import Clusterer
from supercm_lightning.methods.per_sample import PerSampleState


class Invariant(Clusterer):
    """Two views of a sample agree, clusters are used alike (as in SCAN, with the sample as its own neighbor)."""

    views = ("weak", "strong")
    terms = ("invariance", "balance")

    def losses(self, step: Step) -> dict[str, Tensor]:
        weak, strong = (logits.softmax(dim=1) for logits in step.unlabeled_logits)
        agreement = -(weak * strong).sum(dim=1).clamp_min(1e-8).log().mean()
        mean = weak.mean(dim=0)
        return super().losses(step) | {"invariance": agreement, "balance": 2 * (mean * mean.log()).sum()}


class OnlineClusters(PerSampleState, Clusterer):
    """Learns the cluster that each sample was assigned to at its last visit (as in DeepCluster and ODC)."""

    sample_buffers: ClassVar[dict[str, int | float | bool]] = {"assigned": -1}
    terms = ("assignment",)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("assigned", torch.full((1,), -1))
        self.register_buffer("centers", F.normalize(torch.randn(self.num_classes, self.num_features), dim=1))

    def observe(self, step: Step) -> None:
        super().observe(step)
        features = F.normalize(step.unlabeled_features[0], dim=1)
        nearest = (features @ self.centers.T).argmax(dim=1)
        self.assigned[step.index] = nearest
        means = torch.zeros_like(self.centers).index_add_(0, nearest, features)
        self.centers.lerp_(F.normalize(means, dim=1), 0.1)

    def losses(self, step: Step) -> dict[str, Tensor]:
        assignment = F.cross_entropy(step.unlabeled_logits[0], self.assigned[step.index])
        return super().losses(step) | {"assignment": assignment}


def trainer(steps: int, *callbacks: Callback) -> Trainer:
    return Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1, callbacks=list(callbacks),
    )  # fmt: skip


class Logged(Callback):
    """Keeps the values of the last training step."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.values = {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("kind", [Invariant, OnlineClusters])
def test_a_clusterer_trains_and_is_scored_without_labels(kind: type[Clusterer]) -> None:
    seed_everything(0)
    logged, run = Logged(), trainer(20)
    run.callbacks.append(logged)  # type: ignore[attr-defined]
    data = ClusteringDataModule(num_rows=120, unlabeled_batch_size=40, steps_per_epoch=20)
    model = kind(num_classes=10, input_shape=(1, 8, 8))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    run.fit(model, datamodule=data)
    for name, value in model.named_parameters():
        assert not torch.equal(value, before[name]), name
    assert {f"train/{term}" for term in kind.terms} <= set(logged.values)
    assert logged.values["train/ce"] == 0
    assert logged.values["train/smallest_cluster"] <= 0.1 <= logged.values["train/largest_cluster"]
    (scores,) = run.test(model, datamodule=data, verbose=False)
    assert {"test/acc", "test/nmi", "test/ari", "test/kmeans_acc"} <= set(scores)
    assert "test/loss" not in scores
    predictions = run.predict(model, datamodule=data)
    assert sum(len(part["probabilities"]) for part in predictions) == 120  # type: ignore[arg-type,index]


@pytest.mark.slow
def test_two_views_that_agree_find_digits_better_than_chance() -> None:
    seed_everything(0)
    run, data = trainer(150), ClusteringDataModule(num_rows=400, unlabeled_batch_size=100, steps_per_epoch=150)
    model = Invariant(num_classes=10, input_shape=(1, 8, 8), lr=3e-3)
    run.fit(model, datamodule=data)
    (scores,) = run.test(model, datamodule=data, verbose=False)
    assert scores["test/acc"] > 0.3


def test_samples_in_doubt_count_zero_in_the_cross_entropy() -> None:
    model = Clusterer(num_classes=3, input_shape=(4,), backbone="identity")
    logits, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, -1, 2, -1])
    step = Step(torch.rand(4, 4), y, (), (), None, torch.rand(4, 4), logits)
    expected = (F.cross_entropy(logits[:1], y[:1]) + F.cross_entropy(logits[2:3], y[2:3])) / 4
    torch.testing.assert_close(model.supervised_loss(step), expected)


def test_a_baseline_that_the_trainer_has_is_not_added_again() -> None:
    model, run = Clusterer(num_classes=3, input_shape=(4,), backbone="identity"), trainer(1, KMeansBaseline(5))
    model.trainer = run
    assert not any(isinstance(callback, KMeansBaseline) for callback in model.configure_callbacks())
    model.trainer = trainer(1)
    assert any(isinstance(callback, KMeansBaseline) for callback in model.configure_callbacks())
