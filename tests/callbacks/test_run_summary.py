"""What the summary of a run says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from supercm_lightning import (
    ASD,
    DANN,
    ClusteringDataModule,
    DomainAdaptationDataModule,
    FeatureDataModule,
    SemiSupervisedDataModule,
    SuperCM,
    Supervised,
)
from supercm_lightning.callbacks import PredictionWriter, RunSummary
from supercm_lightning.callbacks.runs import run_summary
from supercm_lightning.callbacks.runs.run_summary import _forwarded_samples, _plain


def read(folder):
    return json.loads((folder / "summary.json").read_text())


class Clock(Callback):
    """A clock that only steps and validations move, by known lengths."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def on_train_batch_end(self, *args):
        self.now += 0.02

    def on_validation_batch_end(self, *args):
        self.now += 0.3


class Break(Callback):
    def __init__(self, exception):
        self.exception = exception

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 5:
            raise self.exception


def test_summary_of_a_fit_and_then_of_its_test(short, tmp_path):
    saver = ModelCheckpoint(tmp_path / "kept", monitor="val/acc", mode="max", save_last=True)
    trainer, model, recorder = short.run([RunSummary(), saver], enable_checkpointing=True)
    summary = read(tmp_path)
    assert summary["status"] == "completed"
    assert "error" not in summary
    assert (summary["steps"], summary["epochs"], summary["world_size"], summary["device"]) == (12, 3, 1, "cpu")
    assert (summary["model"], summary["data"], summary["seed"]) == ("SuperCM", "SemiSupervisedDataModule", 3)
    assert summary["metrics"]["val/acc"] == pytest.approx(recorder.metrics[12])
    assert summary["best_score"] == pytest.approx(max(recorder.metrics.values()))
    assert summary["best_checkpoint"] == saver.best_model_path
    assert summary["last_checkpoint"] == saver.last_model_path
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    assert 0 < summary["fit_seconds"] < 60
    result = trainer.test(model, datamodule=trainer.datamodule, verbose=False)
    merged = read(tmp_path)
    assert merged["metrics"]["test/acc"] == pytest.approx(result[0]["test/acc"])
    assert merged["metrics"]["val/acc"] == summary["metrics"]["val/acc"]
    rest = ("status", "steps", "fit_seconds", "images_per_second", "best_checkpoint")
    assert {name: merged[name] for name in rest} == {name: summary[name] for name in rest}
    assert [path.name for path in tmp_path.glob("*summary*")] == ["summary.json"]


def test_speed_counts_every_sample_and_leaves_validation_out(short, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(run_summary, "time", clock)
    short.run([clock, RunSummary()])
    # 12 steps of (20 + 30) samples and 0.02 s each.
    assert read(tmp_path)["images_per_second"] == pytest.approx(600 / 0.24, rel=1e-3)


def test_samples_of_all_views_are_counted():
    labeled = torch.zeros(3, 1), torch.zeros(3)
    views = (torch.zeros(5, 1), torch.zeros(5, 1))
    assert _forwarded_samples({"labeled": labeled, "unlabeled": (views, torch.arange(5)), "clean": labeled}) == 13
    assert _forwarded_samples({"labeled": labeled}) == 3
    assert _forwarded_samples(labeled) == 3


def test_a_failed_run_says_so_with_its_exception(short, tmp_path):
    with pytest.raises(RuntimeError):
        short.run([RunSummary(), Break(RuntimeError("the disk is full"))])
    summary = read(tmp_path)
    assert summary["status"] == "failed"
    assert summary["error"] == "RuntimeError: the disk is full"
    assert summary["steps"] == 5
    # Every step has reseeded the process; the run's seed is the one it began with.
    assert summary["seed"] == 3


def test_an_interrupted_run_says_so(short, tmp_path):
    with pytest.raises(SystemExit):
        short.run([RunSummary(), Break(KeyboardInterrupt())])
    assert read(tmp_path)["status"] == "interrupted"


def test_summary_lies_in_the_folder_of_the_logger(short, tmp_path):
    short.run([RunSummary()], logger=CSVLogger(tmp_path, "runs"), log_every_n_steps=1)
    assert read(tmp_path / "runs" / "version_0")["steps"] == 12
    assert not (tmp_path / "summary.json").exists()


def test_loaders_of_other_samples_have_no_interval_and_no_names_of_the_data_module(short, tmp_path):
    trainer, model, _ = short.run([RunSummary(), PredictionWriter()])
    data = trainer.datamodule
    trainer.test(model, datamodule=data, verbose=False)
    assert read(tmp_path)["test_accuracy_interval"] is not None
    x, y = data.arrays("test")
    other = DataLoader(TensorDataset(torch.from_numpy(x[:8]), torch.from_numpy(y[:8])), batch_size=4)
    trainer.test(model, dataloaders=other, verbose=False)
    assert read(tmp_path)["test_accuracy_interval"] is None


def test_a_new_fit_does_not_inherit_the_metrics_of_the_old_one(short, tmp_path):
    (tmp_path / "summary.json").write_text('{"metrics": {"test/acc": 1.0}}')
    short.run([RunSummary()])
    assert "test/acc" not in read(tmp_path)["metrics"]


def test_a_test_of_another_model_does_not_inherit_the_fit_of_the_old_one(short, tmp_path):
    short.run([RunSummary()])
    trainer = short.make_trainer([RunSummary()])
    trainer.test(short.make_model(Supervised), datamodule=short.make_data(), verbose=False)
    summary = read(tmp_path)
    assert summary["model"] == "Supervised"
    assert set(summary["metrics"]) == {"test/acc", "test/loss"}
    assert summary["fit_seconds"] is None


def features(name, classes=3, shift=0.0):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % classes
    np.savez(name, features=(rng.normal(size=(60, 4)) + labels[:, None] + shift).astype("f4"), labels=labels)
    return name


def semi_supervised():
    return (
        SuperCM,
        SemiSupervisedDataModule(num_labeled=20, steps_per_epoch=2, mean=[0.1]),
        {"num_labeled": 20, "mean": [0.1]},
    )


def domain_adaptation():
    for domain, shade in (("photo", 200), ("sketch", 30)):
        for number in range(16):
            file = Path(f"images/{domain}/{'ab'[number % 2]}/{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade, number, 0)).save(file)
    options = {"dataset": "folder", "root": "images", "source": "photo", "target": "sketch", "image_size": 8}
    sizes = {"source_batch_size": 4, "target_batch_size": 4, "steps_per_epoch": 2}
    return DANN, DomainAdaptationDataModule(**options, **sizes), options | sizes


def clustering():
    options = {"dataset": "digits", "steps_per_epoch": 2}
    return ASD, ClusteringDataModule(**options), options


def feature_files():
    options = {"labeled": features("a.npz"), "unlabeled": features("b.npz"), "num_val": 6, "steps_per_epoch": 2}
    return SuperCM, FeatureDataModule(**options), options


@pytest.mark.parametrize("task", [semi_supervised, domain_adaptation, clustering, feature_files])
def test_summary_and_card_say_what_the_run_was_run_on(task):
    torch.manual_seed(3)
    kind, data, options = task()
    saving = ModelCheckpoint("kept")
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, num_sanity_val_steps=0, callbacks=[RunSummary(), saving])  # fmt: skip
    network = {"backbone": "identity"} if len(data.input_shape) == 1 else {}
    trainer.fit(kind(num_classes=data.num_classes, input_shape=data.input_shape, **network), datamodule=data)
    summary = read(Path())
    assert summary["data"] == type(data).__name__
    assert options.items() <= summary["data_options"].items()
    assert summary["samples"]["unlabeled"] == data.num_unlabeled > 0
    card = Path("kept/card.md").read_text()
    assert all(f"| {name} | {value} |" in card for name, value in options.items())


def test_arrays_given_from_python_leave_their_class_in_the_summary():
    assert _plain({"x": torch.zeros(2), "of": [Path("a"), 1.5], "_kind": "hidden"}) == {"x": "Tensor", "of": ["a", 1.5]}
