"""Trains each method that keeps state for 20,000 steps and watches memory, open files and speed.

    python benchmarks/endurance.py
    python benchmarks/endurance.py --steps 4000 --samples 10000 10000000

One line per run: memory that is on no disk, open files and the time of a step in the first and in the last tenth of the
training, after a tenth for warming up. Logs, validation and checkpoints are on, as in any run. The second command
trains on so many features, half of them a source in ten files and half a target.
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

RUNS = {
    name: (name.partition("+")[0], *(f"--trainer.callbacks+={callback}" for callback in name.split("+")[1:]))
    for name in (
        *("SuperCM", "MeanTeacher", "FlexMatch", "FreeMatch", "SuperCMFreeMatch", "DANN", "CDAN", "ASDFreeMatch"),
        *("SuperCM+EMA", "SuperCM+SWA"),
    )
}
"""Method and further options of each run."""
STEPS = 200
"""Steps per epoch, with a validation and a checkpoint at the end of each."""


class Watch(Callback):
    """Keeps (resident MiB, open files, milliseconds of processor time per step) of every epoch."""

    rows: list[tuple[float, int, float]] = []  # noqa: RUF012 - read after the run, which builds its own instance
    _clock = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock: the process's own time, as other processes share the machine."""
        self._clock = time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the state of the process."""
        duration = 1000 * (time.process_time() - self._clock) / STEPS
        resident, mapped = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        memory = (resident - mapped) * resource.getpagesize() / 2**20
        self.rows.append((memory, len(os.listdir("/proc/self/fd")), duration))


def endure(name: str, steps: int, folder: Path) -> list[tuple[float, int, float]]:
    """Trains one method through the command line."""
    method, *options = RUNS[name]
    sizes = ["--data.unlabeled_batch_size", "10", "--data.steps_per_epoch", str(STEPS)]
    if method.startswith("ASD"):
        data = ["--data", "ClusteringDataModule", *sizes]
    else:
        data = [
            "--data",
            "SemiSupervisedDataModule",
            "--data.num_labeled",
            "20",
            "--data.labeled_batch_size",
            "10",
            *sizes,
        ]
    return train(method, [*data, *options], steps, folder / name)


def endure_features(count: int, steps: int, folder: Path) -> list[tuple[float, int, float]]:
    """Trains two domains of so many features of 16 numbers, which are written first."""
    folder = folder / f"features_{count}"
    files = {f"source_{number}": count // 20 for number in range(10)} | {"target": count // 2}
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, size) in enumerate(files.items()):
        if not (folder / f"{name}.npz").exists():
            stream = np.random.default_rng(number)
            blocks = (stream.normal(size=(min(100_000, size - at), 16)).astype("f2") for at in range(0, size, 100_000))
            np.savez(folder / f"{name}.npz", features=np.concatenate([*blocks]), labels=np.arange(size) % 10)
    sources, target = list(files)[:10], list(files)[10]
    data = ["--data", "FeatureDataModule", "--data.root", str(folder), "--data.source", json.dumps(sources)]
    sizes = ["--data.num_val", "1000", "--data.steps_per_epoch", str(STEPS), "--trainer.limit_test_batches", "0"]
    method = ["--model.backbone", "identity", "--trainer.limit_val_batches", "1"]
    return train("SuperCM", [*data, "--data.target", target, *sizes, *method], steps, folder)


def train(method: str, options: list[str], steps: int, folder: Path) -> list[tuple[float, int, float]]:
    """Trains by the command line; gives what was watched."""
    from supercm_lightning.cli import run

    length = ["--trainer.max_epochs", str(steps // STEPS), "--trainer.accelerator", "cpu"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    watch = ["--trainer.callbacks+=benchmarks.endurance.Watch", "--trainer.default_root_dir", str(folder)]
    run(["fit", "--model", method, *length, *quiet, *options, *watch])
    # The parser's instance of this module: its rows, if this file runs as a script, are not those of `__main__`.
    from benchmarks.endurance import Watch as Watched

    return Watched.rows


def line(name: str, rows: list[tuple[float, int, float]]) -> str:
    """The table's line: medians over the first tenth of the epochs after warming up, and over the last."""
    tenth = max(len(rows) // 10, 1)
    cells: list[Any] = [name]
    for column, digits in ((0, 1), (1, 0), (2, 1)):
        first, last = (median(row[column] for row in part) for part in (rows[tenth : 2 * tenth], rows[-tenth:]))
        cells.append(f"{first:.{digits}f} → {last:.{digits}f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=tuple(RUNS))
    parser.add_argument("--samples", nargs="+", type=int, default=(), help="of features, in place of the runs")
    parser.add_argument("--folder", type=Path, default=Path("endurance"))
    arguments = parser.parse_args()
    print("| run | memory, MiB | open files | processor time per step, ms |\n|---|---|---|---|")
    for name in arguments.samples or arguments.runs:
        # One process each, so that one method's memory is not the next one's.
        child = os.fork()
        if not child:
            watched = (endure_features if arguments.samples else endure)(name, arguments.steps, arguments.folder)
            print(line(f"{name:,} samples" if arguments.samples else name, watched), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"{name} failed.")


if __name__ == "__main__":
    main()
