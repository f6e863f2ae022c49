"""`--ckpt_path last` goes on with a run in its own folder, as if nothing had happened, from any of its checkpoints."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.kill_and_resume import differences, table
from supercm_lightning.cli import run
from supercm_lightning.utils.checkpoints import read_checkpoint

STEPS = 6
RUN = [
    *("fit", "--data", "SemiSupervisedDataModule", "--data.num_labeled", "20", "--data.steps_per_epoch", str(STEPS)),
    *("--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1", "--ckpt_path", "last"),
]
SAVING = [
    *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_top_k", "-1"),
    *("--trainer.callbacks.save_last", "true"),
]
EVERY_STEP = [*SAVING, "--trainer.callbacks.every_n_train_steps", "1"]
NO_EPOCHS = ["--trainer.max_epochs", "-1", "--trainer.check_val_every_n_epoch", "null"]
CASES = {
    "within_epochs": EVERY_STEP,
    "validation_within_epochs": [*EVERY_STEP, "--trainer.val_check_interval", "2"],
    "after_validation": [*SAVING, "--trainer.callbacks.monitor", "val/acc", "--trainer.val_check_interval", "2"],
    "after_epochs": [*SAVING, "--trainer.callbacks.save_on_train_epoch_end", "true"],
    "accumulating": [*EVERY_STEP, "--trainer.accumulate_grad_batches", "4"],
    "steps_only": [*EVERY_STEP, *NO_EPOCHS, "--trainer.max_steps", "9", "--trainer.val_check_interval", "3"],
    "no_validation": [*EVERY_STEP, "--data.num_val", "0"],
    "steps_without_validation": [*EVERY_STEP, *NO_EPOCHS, "--trainer.max_steps", "3", "--data.num_val", "0"],
    "averaged": [*EVERY_STEP, "--trainer.callbacks+=EMA", "--trainer.callbacks.decay", "0.8"],
}


def start(root: str, *options: str, model: str = "SuperCM") -> None:
    """Starts a run under `root`, or goes on with it."""
    run([*RUN, "--model", model, "--trainer.default_root_dir", root, *options])


def folders(root: str) -> list[str]:
    return sorted(path.name for path in Path(root, "lightning_logs").iterdir())


def killed_after(whole: Path, broken: Path, step: int) -> None:
    """A copy of a complete run that has no checkpoint later than `step`, as if it had been killed then or later."""
    shutil.copytree(whole, broken)
    for file in broken.rglob("*.ckpt"):
        found = re.search(r"step=(\d+)", file.stem)
        if found is None or int(found.group(1)) > step:
            file.unlink()
    # Event files are read in the order of their names, which hold the second in which they began.
    for number, file in enumerate(sorted(broken.rglob("events.out.tfevents.*"))):
        file.rename(file.with_name(f"events.out.tfevents.{number}"))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(
    ("case", "steps"),
    [
        ("within_epochs", (0, 6)),
        ("validation_within_epochs", (2,)),
        pytest.param("after_validation", (4, 6, 12), marks=pytest.mark.slow),
        pytest.param("after_epochs", (6, 12), marks=pytest.mark.slow),
        pytest.param("accumulating", (1, 2, 4), marks=pytest.mark.slow),
        ("steps_only", (9,)),
        pytest.param("no_validation", (6, 12), marks=pytest.mark.slow),
        pytest.param("steps_without_validation", (2, 3), marks=pytest.mark.slow),
        pytest.param("averaged", (7, 12), marks=pytest.mark.slow),
    ],
)
def test_a_run_that_goes_on_leaves_what_an_uninterrupted_one_leaves(case: str, steps: tuple[int, ...]) -> None:
    start("whole", *CASES[case])
    whole = Path("whole")
    assert folders("whole") == ["version_0"]
    assert any(name == "test/acc" for _, name, _ in table(whole / "lightning_logs/version_0"))
    for step in steps:
        broken = Path(f"broken_{step}")
        killed_after(whole, broken, step)
        last = max(broken.rglob("*.ckpt"), key=os.path.getmtime, default=None)
        start(str(broken), *CASES[case])
        assert folders(str(broken)) == ["version_0"]
        if not (saved := broken / "lightning_logs/version_0/checkpoints/last.ckpt").exists():
            shutil.copy(last, saved)  # there was nothing left to train
        assert not differences(whole, broken), f"resumed after step {step}"


class Warn(Callback):
    """Sends the scheduler's signal in the middle of a step."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == int(os.environ.get("WARN_AT", "-1")):
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_job_that_slurm_requeues_goes_on_in_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    task = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    for name, value in (job | task).items():
        monkeypatch.setenv(name, value)
    scontrol = Path("scontrol").resolve()
    scontrol.write_text(f"#!/bin/sh\necho $@ >> {scontrol.parent}/said\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    callbacks = [*SAVING, "--trainer.callbacks+=tests.test_continued_run.Warn", "--ckpt_path", "null"]
    start("whole", *callbacks, model="SuperCMMeanTeacher")
    interrupt = signal.getsignal(signal.SIGINT)
    monkeypatch.setenv("WARN_AT", "8")
    with pytest.raises(SystemExit):
        start("broken", *callbacks, model="SuperCMMeanTeacher")
    signal.signal(signal.SIGINT, interrupt)  # Lightning ignores it from here on
    assert Path("said").read_text() == "requeue 1234\n"
    assert read_checkpoint(Path("broken/lightning_logs/1234/checkpoints/last-requeue.ckpt"))["global_step"] == 9
    summary = json.loads(Path("broken/lightning_logs/1234/summary.json").read_text())
    assert summary["status"] == "interrupted"
    monkeypatch.delenv("WARN_AT")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    start("broken", *callbacks, model="SuperCMMeanTeacher")
    assert folders("broken") == ["1234"]
    assert not differences(Path("whole"), Path("broken"))


# Of which only the folders are looked at.
SHORT = [
    *("--data.steps_per_epoch", "1", "--trainer.max_epochs", "1"),
    *("--trainer.limit_val_batches", "0", "--trainer.limit_test_batches", "0"),
]


def test_another_seed_model_or_callback_is_another_run() -> None:
    start("runs", *SAVING, *SHORT)
    for options, model in (
        (["--seed_everything", "1"], "SuperCM"),
        ([], "Supervised"),
        (["--model.beta", "2"], "SuperCM"),
        (["--data.split_seed", "1"], "SuperCM"),
        (["--trainer.callbacks+=EMA"], "SuperCM"),
    ):
        before = len(folders("runs"))
        start("runs", *SAVING, *SHORT, *options, model=model)
        assert len(folders("runs")) == before + 1


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_longer_run_goes_on_where_the_shorter_one_ended() -> None:
    start("short", *SAVING)
    start("short", *SAVING, "--trainer.max_epochs", "3")
    start("long", *SAVING, "--trainer.max_epochs", "3")
    assert folders("short") == ["version_0"]
    assert not [name for name in differences(Path("long"), Path("short")) if name.startswith("/state_dict")]
    summary = json.loads(Path("short/lightning_logs/version_0/summary.json").read_text())
    assert (summary["steps"], summary["epochs"]) == (3 * STEPS, 3)


def test_without_last_every_start_is_a_new_run() -> None:
    for _ in range(2):
        start("runs", "--ckpt_path", "null", *SHORT)
    assert folders("runs") == ["version_0", "version_1"]


SLURM = {"SLURM_JOB_ID": "777", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1",
         "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}  # fmt: skip


def test_runs_of_one_slurm_job_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    short = ["--ckpt_path", "null", "--trainer.max_epochs", "1"]
    start("runs", *short)
    start("runs", *short, model="Supervised")
    assert folders("runs") == ["777", "777_1"]
    logged = [{name for _, name, _ in table(Path("runs/lightning_logs", folder))} for folder in folders("runs")]
    assert ["train/cm" in names for names in logged] == [True, False]
    for folder, model in zip(folders("runs"), ("SuperCM", "Supervised"), strict=True):
        assert json.loads(Path("runs/lightning_logs", folder, "summary.json").read_text())["model"] == model
        steps = [step for step, name, _ in table(Path("runs/lightning_logs", folder)) if name == "train/loss"]
        assert steps == list(range(STEPS))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_prediction_in_the_same_slurm_job_leaves_the_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    start("runs", "--trainer.max_epochs", "1")
    config = Path("runs/lightning_logs/777/config.yaml").read_bytes()
    (checkpoint,) = Path("runs").rglob("*.ckpt")
    run(
        [
            "predict",
            *RUN[1:-2],
            "--model",
            "SuperCM",
            "--trainer.default_root_dir",
            "runs",
            "--ckpt_path",
            str(checkpoint),
        ]
    )
    assert Path("runs/lightning_logs/777/config.yaml").read_bytes() == config
    start("runs", "--trainer.max_epochs", "1")  # goes on with what is complete
    assert folders("runs") == ["777", "777_1"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_requeued_job_goes_on_with_runs_of_its_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    short = ["--ckpt_path", "null", *SHORT]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    start("runs", *short)  # another job with the same options
    monkeypatch.setenv("SLURM_JOB_ID", "777")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for seed in ("0", "1", "1"):  # a script over seeds; the first one was interrupted before it had a folder
        start("runs", *short, "--seed_everything", seed)
    assert folders("runs") == ["7", "777", "777_1"]


def test_last_belongs_to_fit() -> None:
    with pytest.raises(ValueError, match=r"ckpt_path=last: goes with fit\. Give test the path"):
        run(["test", "--model", "SuperCM", "--data", "SemiSupervisedDataModule", "--ckpt_path", "last"])


@pytest.mark.slow
def test_saved_config_starts_the_same_run_again() -> None:
    start("runs", *SAVING)
    config = Path("runs/lightning_logs/version_0/config.yaml")
    assert yaml.safe_load(config.read_text())["ckpt_path"] == "last"
