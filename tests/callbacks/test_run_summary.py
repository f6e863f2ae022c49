"""What the summary of a run says."""

import json

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from supercm_lightning import Supervised
from supercm_lightning.callbacks import RunSummary
from supercm_lightning.callbacks.runs import run_summary
from supercm_lightning.callbacks.runs.run_summary import _forwarded_rows


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


def test_speed_counts_every_row_and_leaves_validation_out(short, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(run_summary, "time", clock)
    short.run([clock, RunSummary()])
    # 12 steps of (20 + 30) rows and 0.02 s each.
    assert read(tmp_path)["images_per_second"] == pytest.approx(600 / 0.24, rel=1e-3)


def test_rows_of_all_views_are_counted():
    rows = torch.zeros(3, 1), torch.zeros(3)
    views = (torch.zeros(5, 1), torch.zeros(5, 1))
    assert _forwarded_rows({"labeled": rows, "unlabeled": (views, torch.arange(5)), "clean": rows}) == 13
    assert _forwarded_rows({"labeled": rows}) == 3
    assert _forwarded_rows(rows) == 3


def test_a_failed_run_says_so_with_its_exception(short, tmp_path):
    with pytest.raises(RuntimeError):
        short.run([RunSummary(), Break(RuntimeError("the disk is full"))])
    summary = read(tmp_path)
    assert summary["status"] == "failed"
    assert summary["error"] == "RuntimeError: the disk is full"
    assert summary["steps"] == 5


def test_an_interrupted_run_says_so(short, tmp_path):
    with pytest.raises(SystemExit):
        short.run([RunSummary(), Break(KeyboardInterrupt())])
    assert read(tmp_path)["status"] == "interrupted"


def test_summary_lies_in_the_folder_of_the_logger(short, tmp_path):
    short.run([RunSummary()], logger=CSVLogger(tmp_path, "runs"), log_every_n_steps=1)
    assert read(tmp_path / "runs" / "version_0")["steps"] == 12
    assert not (tmp_path / "summary.json").exists()


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
