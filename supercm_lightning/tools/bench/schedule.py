"""Runs the cells of a benchmark: each in a process of its own, several at once; or writes them as a SLURM array."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

import torch
from filelock import FileLock, Timeout
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from supercm_lightning.tools.bench.grid import Cell

_PATIENCE = 30.0  # seconds for a run to end in order after it was asked to


def devices() -> list[str]:
    """The GPUs of this process, as `CUDA_VISIBLE_DEVICES` names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def run_cells(cells: Sequence[Cell], metric: str, jobs: int | None = None) -> dict[str, str]:
    """Runs the cells that are not finished, and returns the end of the log of those that failed.

    A run has one GPU, if there are any, else an equal fraction of the cores. SIGTERM and Ctrl-C end the runs in order,
    and a later call continues them. Cells that another process runs are skipped.

    Args:
        cells: The cells.
        metric: Metric that a finished run has.
        jobs: Runs at a time; None: as many as there are GPUs, at least one.
    """
    summaries = [cell.summary(metric) for cell in cells]
    waiting = [cell for cell, summary in zip(cells, summaries, strict=True) if summary is None][::-1]
    gpus = devices()
    slots = list(range(jobs or max(1, len(gpus))))
    environments = [environment(gpus, slot, len(slots)) for slot in slots]
    # Finished cells of earlier calls give an estimate of the time from the start.
    seconds = [summary["fit_seconds"] for summary in summaries if summary and summary["fit_seconds"]]
    running: dict[subprocess.Popen[bytes], tuple[Cell, int, float, FileLock]] = {}
    failed: dict[str, str] = {}
    elsewhere = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[left]}")) as progress, _ending(running):
        task = progress.add_task("cells", total=len(waiting), left="")
        while waiting or running:
            while waiting and slots:
                cell = waiting.pop()
                cell.folder.mkdir(parents=True, exist_ok=True)
                lock = FileLock(cell.folder / "run.lock", timeout=0)
                try:
                    lock.acquire()
                except Timeout:
                    elsewhere += 1
                else:
                    if cell.summary(metric) is None:  # another process may have finished it in the meantime
                        slot = slots.pop()
                        with (cell.folder / "log.txt").open("a") as log:
                            process = _start(cell, log, environments[slot])
                        running[process] = cell, slot, time.monotonic(), lock
                        continue
                    lock.release()
                progress.advance(task)
            time.sleep(0.1)
            for process in [process for process in running if process.poll() is not None]:
                cell, slot, started, lock = running.pop(process)
                lock.release()
                slots.append(slot)
                seconds.append(time.monotonic() - started)
                summary = cell.summary(metric)
                if process.returncode or summary is None:
                    failed[cell.name] = _end_of_log(cell, process.returncode, metric)
                    result = f"[red]failed[/red], {cell.folder / 'log.txt'}\n{failed[cell.name]}"
                else:
                    result = f"{metric} {summary['metrics'][metric]:.4f}, {seconds[-1]:.0f} s"
                progress.console.print(f"{cell.name}: {result}", highlight=False)
                rest = fmean(seconds) * (len(waiting) + len(running)) / len(environments)
                progress.update(task, advance=1, left=f"about {_duration(rest)} left")
    if elsewhere:
        print(f"{elsewhere} cells are run by another process; call again to collect them.")
    return failed


def environment(gpus: list[str], slot: int, jobs: int) -> dict[str, str]:
    """The environment of the runs in one of `jobs` slots: its GPU, or its fraction of the processor's cores."""
    if gpus:
        return {**os.environ, "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ}


def _start(cell: Cell, log: TextIO, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    # A group of its own: Ctrl-C reaches this process alone, which then ends the runs and their loaders.
    return subprocess.Popen(
        [sys.executable, "-m", "supercm_lightning", *cell.command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,
    )


@contextmanager
def _ending(running: "dict[subprocess.Popen[bytes], Any]") -> Iterator[None]:
    """Answers SIGTERM like Ctrl-C, and leaves no run behind however the block ends."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + _PATIENCE
            for process in running:
                if process.poll() is None:
                    os.killpg(process.pid, kind)
            while any(process.poll() is None for process in running) and time.monotonic() < deadline:
                time.sleep(0.05)
        signal.signal(signal.SIGTERM, before)


def _end_of_log(cell: Cell, code: int, metric: str) -> str:
    lines = (cell.folder / "log.txt").read_text(errors="replace").splitlines()
    reason = f"exit status {code}" if code else f"ended without {metric}"
    return "\n".join([*(f"    {line}" for line in lines[-10:]), f"    {reason}"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


_SBATCH = """#!/bin/bash
# {count} runs of {name}; options of sbatch go before this file: sbatch --partition=… {script}
# 90 seconds before its time is over, or when it is preempted, a run finishes its step, saves, and queues itself again.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}%{limit}
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=SIGUSR1@90
#SBATCH --requeue
#SBATCH --open-mode=append         # one log over all requeues
#SBATCH --output={output}/slurm-%A_%a.log

cd {here}
srun bash -c "exec $(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {tasks})"
"""


def write_array(cells: Sequence[Cell], metric: str, output: Path, limit: int) -> Path | None:
    """Writes the cells that are not finished as a SLURM array, and returns its script; None if all are finished.

    Args:
        cells: The cells.
        metric: Metric that a finished run has.
        output: Folder of the benchmark, which holds the script and a file with one command a line.
        limit: Runs at a time.
    """
    waiting = [cell for cell in cells if cell.summary(metric) is None]
    if not waiting:
        return None
    output.mkdir(parents=True, exist_ok=True)
    tasks, script = output / "array.txt", output / "array.sbatch"
    tasks.write_text("".join(f"{shlex.join(['supercm', *cell.command])}\n" for cell in waiting))
    values = {
        "count": len(waiting),
        "last": len(waiting) - 1,
        "limit": limit,
        "name": output.name,
        "script": script,
        "output": output,
        "here": shlex.quote(str(Path.cwd())),
        "tasks": shlex.quote(str(tasks)),
    }
    script.write_text(_SBATCH.format(**values))
    return script
