"""k-means beside a test: on features and on inputs, from all batches, in bounded memory."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from supercm_lightning import KMeansBaseline
from supercm_lightning.callbacks.evaluation import kmeans_baseline
from supercm_lightning.metrics import ClusteringAccuracy
from supercm_lightning.utils.options import SuperCMError


class Reader(LightningModule):
    """Its features tell the classes apart, the inputs only half of them."""

    num_classes = 4

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return {"features": torch.eye(4)[batch[1]] + 0.01 * batch[0]}


class Stream(IterableDataset):
    """Samples without a known number."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


def scores(
    data: Any, baseline: KMeansBaseline, module: LightningModule | None = None, **options: Any
) -> dict[str, Any]:
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(callbacks=[baseline], enable_model_summary=False, **settings, **options)
    return dict(trainer.test(module or Digits(), DataLoader(data, 64), verbose=False)[0])


class Digits(LightningModule):
    """The inputs are the features."""

    num_classes = 10

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"features": batch[0]}


def digits() -> TensorDataset:
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.from_numpy(x).float() / 16, torch.from_numpy(y).long())


def test_accuracy_is_that_of_ten_starts_on_all_samples() -> None:
    x, y = digits().tensors
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    accuracy = ClusteringAccuracy(10)
    means = KMeans(10, n_init=10, random_state=0).fit(x[order].numpy())
    accuracy.update(torch.from_numpy(means.predict(x.numpy())).long(), y)
    assert scores(digits(), KMeansBaseline())["test/kmeans_input_acc"] == pytest.approx(float(accuracy.compute()))


class Watch(KMeansBaseline):
    """Notes how many samples were kept."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.kept = sum(len(batch["labels"]) for batch in self._table._batches)
        super().on_test_epoch_end(trainer, pl_module)


def test_large_sets_are_represented_by_a_bounded_random_choice() -> None:
    for data in (digits(), Stream(digits())):
        watch = Watch(max_samples=500)
        found = scores(data, watch)
        assert watch.kept == 500
        assert found["test/kmeans_input_acc"] > 0.6


def test_inputs_that_need_too_much_memory_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans_baseline, "_MAX_INPUT_MB", 0.1)
    with pytest.warns(UserWarning, match="Lower max_samples"):
        found = scores(digits(), KMeansBaseline())
    assert found.keys() == {"test/kmeans_acc"}
    assert scores(digits(), KMeansBaseline(max_samples=100)).keys() == {
        "test/kmeans_acc",
        "test/kmeans_input_acc",
    }


def test_a_module_without_classes_is_refused() -> None:
    class Other(LightningModule):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            pass

    with pytest.raises(SuperCMError, match="num_classes"):
        scores(digits(), KMeansBaseline(), Other())


def score_in_one_of_two(limit: int) -> dict[str, Any]:
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    return scores(digits(), KMeansBaseline(max_samples=limit), **options)


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")
def test_two_processes_score_what_one_does(two_processes: Any) -> None:
    # 1,797 samples are an odd number: the sampler repeats one.
    expected = scores(digits(), KMeansBaseline(max_samples=300))
    for found in two_processes(score_in_one_of_two, 300):
        assert found == pytest.approx(expected)


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


def test_fewer_samples_than_clusters_go_without() -> None:
    loader = DataLoader(TensorDataset(torch.rand(3, 4), torch.tensor([0, 1, 3])), batch_size=3)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[KMeansBaseline()],
    )  # fmt: skip
    with pytest.warns(UserWarning, match="fewer than the 4 clusters"):
        assert trainer.test(Reader(), loader, verbose=False) == [{}]
