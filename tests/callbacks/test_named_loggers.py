"""Loggers by one word write into the run's folder."""

from pathlib import Path

import pytest

from supercm_lightning.callbacks.runs import named_loggers
from supercm_lightning.cli import main

FIT = [
    *("fit", "--model", "Supervised", "--model.backbone", "small_cnn", "--data", "SemiSupervisedDataModule"),
    *("--data.num_labeled", "20", "--data.steps_per_epoch", "2", "--trainer.max_epochs", "1", "--trainer.accelerator"),
    *("cpu", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1", "--trainer.logger"),
]
RUN = Path("lightning_logs/version_0")


def test_the_table_alone() -> None:
    main([*FIT, "csv"])
    assert "train/loss" in (RUN / "metrics.csv").read_text()
    assert (RUN / "summary.json").is_file()
    assert [file.name for file in (RUN / "checkpoints").glob("*.ckpt")]
    assert not list(RUN.glob("events*"))


@pytest.mark.filterwarnings("ignore")
def test_wandb_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    main([*FIT, "wandb", "--trainer.logger.offline", "true"])
    assert (wandb.run.project, wandb.run.name) == ("Supervised-on-digits", "version_0")
    wandb.finish()
    assert list((RUN / "wandb").glob("offline-run-*/*.wandb"))
    assert (RUN / "metrics.csv").is_file()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_in_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sqlalchemy")  # not part of mlflow-skinny
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    main([*FIT, "mlflow", "--trainer.logger.project", "mine"])
    client = mlflow.MlflowClient(f"sqlite:///{RUN.absolute()}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.run_name == "version_0"
    assert "test/acc" in run.data.metrics


def test_a_logger_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(named_loggers, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        main([*FIT, "wandb"])
    assert stopped.value.code == 2
    assert "pip install wandb" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("lightning_logs").exists()
