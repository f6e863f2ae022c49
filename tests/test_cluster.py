"""Several processes, several nodes and SLURM, by the real command line, as far as one machine can show."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.kill_and_resume import ROOT, command, differences, last_step

SUPERCM = [sys.executable, "-m", "supercm_lightning"]
FIT = [
    *("fit", "--model", "SuperCM", "--model.backbone", "identity", "--model.optimizer", "sgd", "--model.lr", "0.1"),
    *("--data", "FeatureDataModule", "--data.labeled", "features.npz", "--data.num_labeled", "12"),
    *("--data.steps_per_epoch", "10", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"),
]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without pytest's own, and some more."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def batches(rows: int) -> list[str]:
    return ["--data.labeled_batch_size", str(rows), "--data.unlabeled_batch_size", str(rows)]


def state(folder: str) -> dict[str, torch.Tensor]:
    """Weights and centroids at the end of the only run in a folder."""
    (file,) = Path(folder).rglob("*.ckpt")
    return torch.load(file, weights_only=True)["state_dict"]


@pytest.fixture
def one_process() -> dict[str, torch.Tensor]:
    """What one process with batches of eight rows ends with."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    np.savez("features.npz", features=rng.normal(size=(120, 5)).astype("f4") + labels[:, None], labels=labels)
    alone = [*SUPERCM, *FIT, *batches(8), "--trainer.devices", "1", "--trainer.default_root_dir", "one"]
    subprocess.run(alone, check=True, capture_output=True, env=environment())
    return state("one")


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
def test_two_processes_of_one_command_equal_one(one_process: dict[str, torch.Tensor]) -> None:
    both = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.default_root_dir", "two"]
    done = subprocess.run([*SUPERCM, *FIT, *batches(4), *both], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert len(list(Path("two/lightning_logs").iterdir())) == 1
    assert_close(state("two"), one_process)


@pytest.mark.slow
def test_no_thread_of_the_process_group_is_left_at_exit(one_process: dict[str, torch.Tensor]) -> None:
    # Where one is, it now and then aborts a process whose interpreter shuts down.
    program = "from pathlib import Path\nfrom supercm_lightning.cli import main\nmain()\n"
    program += "names = [file.read_text() for file in Path('/proc/self/task').glob('*/comm')]\n"
    program += "print([name for name in names if 'gloo' in name])"
    alone = ["--trainer.devices", "1", "--trainer.strategy", "ddp", "--trainer.default_root_dir", "threads"]
    run = [sys.executable, "-c", program, *FIT, *batches(8), *alone]
    done = subprocess.run(run, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "distributed_backend=gloo" in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert_close(state("threads"), one_process)


@pytest.mark.slow
def test_two_nodes_under_torchrun_equal_one(one_process: dict[str, torch.Tensor]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = []
    for rank in range(2):
        meeting = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank), *meeting]
        options = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp"]
        arguments = ["--nproc_per_node", "1", "-m", "supercm_lightning", *FIT, *batches(4), *options]
        nodes.append(
            subprocess.Popen(
                [*launch, *arguments, "--trainer.default_root_dir", "nodes"],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(),
            )
        )  # fmt: skip
    for node in nodes:
        output, _ = node.communicate(timeout=300)
        assert node.returncode == 0, output
    assert_close(state("nodes"), one_process)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_restarted_by_torchrun_and_nothing_differs() -> None:
    whole, broken = Path("whole").resolve(), Path("broken").resolve()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=2"]
    both = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    # Otherwise the workers that are started again meet in the store in which the addresses of the dead ones stand.
    variables = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")

    def start(folder: Path) -> subprocess.Popen[str]:
        arguments = [*launch, *command("ssl/digits/supercm_mean_teacher_cpu", folder)[1:], *both]
        return subprocess.Popen(
            arguments, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def end(job: subprocess.Popen[str]) -> str:
        try:
            _, errors = job.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            job.terminate()  # torchrun ends its workers
            raise
        assert job.returncode == 0, errors
        return errors

    with start(whole) as job:
        end(job)
    with start(broken) as job:
        while last_step(broken) < 30:
            assert job.poll() is None, job.stderr and job.stderr.read()
        workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        errors = end(job)
    assert "Going on with the run" in errors
    assert not differences(whole, broken)


def programs(**scripts: str) -> str:
    """A PATH on which these shell scripts stand first."""
    folder = Path("bin").resolve()
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def slurm(**variables: str) -> dict[str, str]:
    """The variables of a SLURM job of one task."""
    job = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    task = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}
    return environment(**job, **task, **variables)


@pytest.mark.slow
@pytest.mark.parametrize("array", [False, True])
def test_a_requeued_job_goes_on_in_its_folder(array: bool) -> None:
    whole, broken = Path("whole").resolve(), Path("broken").resolve()
    variables = {"PATH": programs(srun="", scontrol='echo "$@" >> "$ANSWERS"'), "ANSWERS": str(Path("said").resolve())}
    if array:
        variables |= {"SLURM_ARRAY_JOB_ID": "1200", "SLURM_ARRAY_TASK_ID": "3"}
    # The first job is given no ckpt_path: SLURM's count of its restarts tells it to go on.
    fit = [
        argument
        for argument in command("ssl/digits/supercm_mean_teacher_cpu", broken)
        if argument not in ("--ckpt_path", "last")
    ]
    done = subprocess.run(
        command("ssl/digits/supercm_mean_teacher_cpu", whole),
        cwd=ROOT,
        env=slurm(**variables),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with subprocess.Popen(
        fit, cwd=ROOT, env=slurm(**variables), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as job:
        while last_step(broken) < 25:
            assert job.poll() is None, job.stderr and job.stderr.read()
        job.send_signal(signal.SIGUSR1)
        job.communicate(timeout=120)
    assert Path("said").read_text() == f"requeue {'1200_3' if array else '1234'}\n"
    assert (broken / "lightning_logs/1234/checkpoints/last-requeue.ckpt").exists()
    again = slurm(**variables, SLURM_RESTART_COUNT="1")
    done = subprocess.run(fit, cwd=ROOT, env=again, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "last-requeue.ckpt" in done.stderr + done.stdout
    assert [path.name for path in (broken / "lightning_logs").iterdir()] == ["1234"]
    assert not differences(whole, broken)


@pytest.mark.slow
def test_a_requeue_that_slurm_refuses_is_an_error_after_the_checkpoint() -> None:
    broken = Path("broken").resolve()
    variables = {"PATH": programs(srun="", scontrol='echo "no such job" >&2; exit 1')}
    with subprocess.Popen(
        command("ssl/digits/supercm_cpu", broken), cwd=ROOT, env=slurm(**variables), stderr=subprocess.PIPE, text=True
    ) as job:
        while last_step(broken) < 25:
            assert job.poll() is None, job.stderr and job.stderr.read()
        job.send_signal(signal.SIGUSR1)
        _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "scontrol requeue 1234 failed: no such job" in errors
    assert list(broken.rglob("last-requeue.ckpt"))


@pytest.mark.slow
def test_the_batch_file_runs() -> None:
    (Path("configs")).symlink_to(ROOT / "configs")
    path = programs(srun='exec "$@"', scontrol="", supercm=f'exec {sys.executable} -m supercm_lightning "$@"')
    here = ["--trainer.accelerator", "cpu", "--trainer.sync_batchnorm", "false", "--trainer.precision", "32-true"]
    short = ["--trainer.max_epochs", "1", "--data.steps_per_epoch", "2", "--trainer.callbacks", "null"]
    job = slurm(PATH=path, SLURM_ARRAY_JOB_ID="1200", SLURM_ARRAY_TASK_ID="3")
    done = subprocess.run(
        ["bash", "configs/_trainer/train.sbatch", "configs/quickstart.yaml", *here, *short],
        env=job, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(Path("runs/quickstart/seed_3/lightning_logs/1234/checkpoints").glob("*.ckpt"))
