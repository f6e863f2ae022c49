"""Runs cells as jobs of submitit, on this machine or as an array of SLURM; no cell by two processes at once."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from submitit import AutoExecutor, Job, SlurmJob
from submitit.helpers import Checkpointable, environment_variables

from supercm_lightning.baselines import FLOOR_FILE
from supercm_lightning.cli import main
from supercm_lightning.tools.arguments import sigterm_interrupts
from supercm_lightning.tools.baselines import read_options, tabulate
from supercm_lightning.tools.bench.grid import Cell
from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.options import SuperCMError

_BEAT, _SILENCE = 10.0, 300.0  # seconds: a process says this often that it lives, and after so long a silence does not
_GRACE = 30.0  # seconds for a run to end in order
_SLURM = {"timeout_min": 240, "gpus_per_node": 1, "cpus_per_task": 8, "slurm_signal_delay_s": 90}


class CellJob(Checkpointable):
    """A cell as a job: submitit starts it again after a time limit or a preemption, and the cell resumes.

    The GPU is named as in `CUDA_VISIBLE_DEVICES`; None: as the environment says.
    """

    def __init__(self, cell: Cell, device: str | None = None) -> None:
        self.cell, self.device = cell, device

    def __call__(self) -> None:
        """Runs the cell, unless it is finished or another process runs it."""
        if self.device is not None:  # submitit hides every GPU from a local job that it did not give it to
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device
        if self.cell.summary() is not None:
            return
        with sigterm_interrupts(), attempt(self.cell.folder) as own:
            if own and self.cell.summary() is None:
                run_cell(self.cell)


def run_cell(cell: Cell) -> None:
    """Runs a cell in this process: `supercm fit`, or a free method on the data that the cell's configuration names."""
    if cell.baseline is None:
        main(cell.command[1:])
        return
    parser, options = read_options([*cell.command[1:], f"--output={cell.folder / FLOOR_FILE}"])
    (row,), _ = tabulate(parser, options, Console(quiet=True))
    summary = {
        "status": "completed",
        "model": cell.baseline,
        "metrics": {name: value for name, value in row.items() if "/" in name},
        "fit_seconds": row["seconds"],
        "device": "cpu",
        "versions": {"torch": torch.__version__, "scikit-learn": version("scikit-learn")},
    }
    write_atomically(cell.folder / "summary.json", json.dumps(summary, indent=2) + "\n")


@contextmanager
def attempt(folder: Path) -> Iterator[bool]:
    """The right to work in a folder: `attempt_0`, `attempt_1`, …, the next one only after the end of the one before.

    Exactly one process can make a folder, so that two that see a dead attempt do not both follow it. An attempt has
    ended if it says so, if its process is gone from this machine, or if a process elsewhere has been silent. Gives
    whether this process has the right.
    """
    attempts = [int(path.name.rpartition("_")[2]) for path in folder.glob("attempt_*")]
    place = folder / f"attempt_{max(attempts, default=-1) + 1}"
    if attempts and _is_running(folder / f"attempt_{max(attempts)}"):
        yield False
        return
    try:
        place.mkdir(parents=True)
    except FileExistsError:
        yield False
        return
    owner = place / f"{socket.gethostname()}_{os.getpid()}"
    owner.touch()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_BEAT):
            owner.touch()

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield True
    finally:
        done.set()
        (place / "ended").touch()


def is_running(folder: Path) -> bool:
    """Whether a process works in a folder by the right of `attempt`."""
    return any(map(_is_running, folder.glob("attempt_*")))


def _is_running(place: Path) -> bool:
    names = {path.name for path in place.iterdir()}
    if "ended" in names:
        return False
    if not names:  # its process has not signed it yet
        return time.time() - place.stat().st_mtime < _BEAT
    host, _, process = names.pop().rpartition("_")
    silence = time.time() - (place / f"{host}_{process}").stat().st_mtime
    return silence < _SILENCE and (host != socket.gethostname() or _exists(int(process)))


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def run_here(cells: Sequence[Cell], jobs: int | None = None) -> dict[str, str]:
    """Runs cells on this machine, as many at a time as there are GPUs by default, at least one.

    A run has one GPU, if there are any, else an equal fraction of the cores. Ctrl-C and SIGTERM end the runs in order.
    Gives the end of the log of those that failed.
    """
    gpus = devices()
    jobs = jobs or max(1, len(gpus))
    free = [gpus[slot % len(gpus)] if gpus else None for slot in range(jobs)]
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // (1 if gpus else jobs))
    waiting, running, failed = list(cells)[::-1], dict[Job[None], tuple[Cell, str | None]](), dict[str, str]()
    with _stopping(running), environment_variables(OMP_NUM_THREADS=threads):
        while waiting or running:
            while waiting and free:
                cell, device = waiting.pop(), free.pop()
                executor = AutoExecutor(cell.folder / "jobs", cluster="local")
                executor.update_parameters(timeout_min=10**6, stderr_to_stdout=True)
                running[executor.submit(CellJob(cell, device))] = cell, device
            time.sleep(0.1)
            for job in [job for job in running if job.done()]:
                cell, device = running.pop(job)
                free.append(device)
                place = f"[{len(cells) - len(waiting) - len(running)}/{len(cells)}] {cell.name}"
                if summary := cell.summary():
                    print(f"{place}: {cell.metric} {summary['metrics'][cell.metric]:.4f}", flush=True)
                elif is_running(cell.folder):
                    print(f"{place}: run by another process; call again to collect it", flush=True)
                else:
                    lines = job.paths.stdout.read_text(errors="replace").splitlines()[-10:]
                    failed[cell.name] = "\n".join([f"    {line}" for line in lines] + [f"    {job.paths.stdout}"])
                    print(f"{place}: failed, {job.paths.stdout}", flush=True)
    return failed


@contextmanager
def _stopping(running: Mapping[Job[None], Any]) -> Iterator[None]:
    """Answers SIGTERM like Ctrl-C, and leaves no run behind however the block ends."""
    with sigterm_interrupts():
        try:
            yield
        finally:
            for job in running:
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit's number of a local job is that of its process
            deadline = time.monotonic() + _GRACE
            while any(not job.done() for job in running) and time.monotonic() < deadline:
                time.sleep(0.05)
            for job in running:
                job.cancel()


def devices() -> list[str]:
    """The GPUs of this process, as `CUDA_VISIBLE_DEVICES` names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def submit_array(cells: Sequence[Cell], output: Path, jobs: int, options: Mapping[str, Any]) -> int:
    """Submits cells as a SLURM array, except those that are in SLURM's queue already; gives their number.

    `output / "jobs"` takes the logs; `options` are parameters of submitit, such as `timeout_min` or `slurm_partition`.
    """
    folder = output / "jobs"
    try:
        executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=1000)
        executor.update_parameters(**{**_SLURM, "slurm_array_parallelism": jobs, "stderr_to_stdout": True, **options})
    except (RuntimeError, NameError, AssertionError, ValueError) as error:
        raise SuperCMError(f"slurm: {' '.join(str(error).split())}") from error
    known = {cell: cell.folder / "slurm_job" for cell in cells}
    earlier = {cell: SlurmJob[None](folder, file.read_text()) for cell, file in known.items() if file.is_file()}
    queued = {cell for cell, job in earlier.items() if job.state.split()[0] in ("PENDING", "RUNNING", "REQUEUED")}
    chosen = [cell for cell in cells if cell not in queued and not is_running(cell.folder)]
    for cell, job in zip(chosen, executor.submit_array(list(map(CellJob, chosen))) if chosen else (), strict=True):
        cell.folder.mkdir(parents=True, exist_ok=True)
        known[cell].write_text(job.job_id)
    return len(chosen)
