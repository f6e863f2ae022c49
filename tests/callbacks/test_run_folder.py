"""Every run has a folder of its own, whoever starts at the same time, and half-written runs are passed over."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml

from supercm_lightning.callbacks.runs import run_folder
from supercm_lightning.callbacks.runs.metrics_table import MetricsTable, drop_rows
from supercm_lightning.callbacks.runs.run_folder import local_folder, new_run, resumed_run
from supercm_lightning.cli import main, run
from supercm_lightning.utils.options import SuperCMError

DIGITS = ["--data", "SemiSupervisedDataModule", "--data.num_labeled", "20", "--data.steps_per_epoch", "2"]
QUICK = [
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1"),
]
FIT = ["fit", "--model", "SuperCM", *DIGITS, *QUICK]


def _start(number: int) -> str:
    return new_run(Path()).version or ""


@pytest.mark.parametrize("job", [None, "77"])
def test_fifty_simultaneous_starts_have_fifty_folders(job: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with get_context("fork").Pool(10) as pool:
        names = pool.map(_start, range(50), chunksize=1)
    expected = [f"version_{n}" for n in range(50)] if job is None else [job, *(f"{job}_{n}" for n in range(1, 50))]
    assert sorted(names) == sorted(expected) == sorted(path.name for path in Path("lightning_logs").iterdir())


@pytest.mark.slow
def test_real_simultaneous_starts_leave_whole_runs() -> None:
    command = [sys.executable, "-m", "supercm_lightning", *FIT, "--seed_everything"]
    starts = [subprocess.Popen([*command, str(seed)], stderr=subprocess.PIPE, text=True) for seed in range(4)]
    for start in starts:
        _, errors = start.communicate(timeout=300)
        assert start.returncode == 0, errors
    seeds = set()
    for folder in Path("lightning_logs").iterdir():
        seed = yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"]
        assert json.loads((folder / "summary.json").read_text())["seed"] == seed
        seeds.add(seed)
    assert seeds == set(range(4))


def test_a_run_in_progress_is_not_resumed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_PATIENCE", 0.1)
    folder = new_run(Path())
    Path("lightning_logs/version_0/config.yaml").write_text("model: {class_path: SuperCM}\n")
    with pytest.raises(SuperCMError, match="in progress"):
        resumed_run(Path(), {"model": {"class_path": "SuperCM"}}, [], own_job=False)
    folder.close(failed=False)
    resumed = resumed_run(Path(), {"model": {"class_path": "SuperCM"}}, [], own_job=False)
    assert resumed is not None
    assert resumed.version == "version_0"


@pytest.mark.parametrize("config", ["", "- a list", "trainer: 3", "model: [unclosed", b"\xce\x00\xff", None])
def test_a_damaged_configuration_is_passed_over(config: str | bytes | None) -> None:
    folder = Path("lightning_logs/version_3")
    folder.mkdir(parents=True)
    file = folder / "config.yaml"
    if config is None:
        file.mkdir()
    else:
        file.write_bytes(config if isinstance(config, bytes) else config.encode())
    with pytest.warns(UserWarning, match="version_3/config.yaml: cannot be read"):
        assert resumed_run(Path(), {"model": {"class_path": "SuperCM"}}, [], own_job=False) is None
    assert new_run(Path()).version == "version_4"


def test_home_variables_and_file_urls_mean_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert {local_folder(name) for name in ("~/runs", "$HOME/runs", f"file://{tmp_path}/runs")} == {tmp_path / "runs"}
    run([*FIT, "--trainer.default_root_dir", "~/runs"])
    (folder,) = Path("runs/lightning_logs").iterdir()
    assert {"config.yaml", "summary.json", "metrics.csv", "checkpoints"} <= {path.name for path in folder.iterdir()}
    assert not Path("~").exists()


@pytest.mark.slow
def test_the_test_follows_a_fit_in_spawned_processes() -> None:
    spawned = ["--trainer.strategy", "ddp_spawn", "--trainer.devices", "1"]
    command = [sys.executable, "-m", "supercm_lightning", *FIT, *spawned]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = Path().rglob("summary.json")
    assert "test/acc" in json.loads(file.read_text())["metrics"]


@pytest.mark.parametrize("wrong", [["--data.num_val", "5000"], ["--data.num_labeled", "null"]], ids=["setup", "loader"])
def test_a_command_that_fails_before_its_first_step_leaves_no_folder(wrong: list[str]) -> None:
    new_run(Path())
    with pytest.raises(SuperCMError):
        run([*FIT, *wrong])
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


def test_a_file_system_without_locks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(run_folder.FileLock, "acquire", refuse)
    with pytest.warns(UserWarning, match="version_0 cannot be locked"):
        folder = new_run(Path())
    folder.close(failed=False)
    assert folder.version == "version_0"


def test_a_run_resumed_in_its_test_has_one_test_in_its_table() -> None:
    # After its last step a resumed run logs its test at the step before, which is not repeated.
    table = MetricsTable(Path("lightning_logs/version_0").absolute())
    table.file.parent.mkdir(parents=True)
    for step, values in (
        (79, {"train/ce": 0.5}),
        (79, {"val/acc": 0.8}),
        (79, {"test/acc": 0.7}),
        (80, {"val/acc": 1}),
    ):
        table.log_metrics(values, step)
    drop_rows(table.file, 80)
    kept = list(csv.DictReader(table.file.read_text().splitlines()))
    assert [{name for name, value in row.items() if value} - {"step"} for row in kept] == [{"train/ce"}, {"val/acc"}]


def test_two_that_fail_at_once_do_not_stumble_over_each_other() -> None:
    first, second = new_run(Path()), new_run(Path())
    first.close(failed=True)
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_1"]
    shutil.rmtree("lightning_logs")
    second.close(failed=True)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_other_commands_leave_the_configuration_of_fit_alone() -> None:
    here = ["--trainer.logger", "false"]
    run([*FIT, *here])
    before = Path("config.yaml").read_bytes()
    (checkpoint,) = Path("checkpoints").glob("*.ckpt")
    for command in ("test", "predict"):
        run([command, *FIT[1:], *here, "--ckpt_path", str(checkpoint)])
        assert Path(f"config_{command}.yaml").exists()
    assert Path("config.yaml").read_bytes() == before


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_complete_run_keeps_its_summary_when_started_again() -> None:
    again = [*FIT, "--ckpt_path", "last"]
    run(again)
    (file,) = Path().rglob("summary.json")
    before = json.loads(file.read_text())
    run(again)
    assert json.loads(file.read_text()) == before
    assert "train/loss" in before["metrics"]
    file.write_text(file.read_text()[:50])  # the disk was full
    run(again)
    assert "test/acc" in json.loads(file.read_text())["metrics"]


def test_sigterm_ends_with_the_status_of_a_terminated_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from supercm_lightning import SuperCM

    def terminate(self: SuperCM, *args: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SuperCM, "on_train_batch_end", terminate)
    with pytest.raises(SystemExit) as stop:
        main(FIT)
    assert stop.value.code == 143
    (file,) = Path().rglob("summary.json")
    assert json.loads(file.read_text())["status"] == "interrupted"
