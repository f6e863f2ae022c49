"""Measures the tables of domain adaptation in docs/results.md: every method, task and seed by the command line.

    python benchmarks/adaptation.py office_caltech10_features --root DATA --seeds 3 --jobs 2
    python benchmarks/adaptation.py digits --root DATA --seeds 3 --only supervised supercm

Other options go to the command line of every run. Finished runs are kept and not run again. Accuracies are those of the
last step on the target's test rows; target labels decide nothing.
"""

import argparse
import contextlib
import itertools
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import track

METHODS = ("supervised", "dann", "cdan", "mcc", "bnm")
GRADIENT = ("--model", "benchmarks.gradient_centroids.GradientCentroids")
# Variant -> config, options of the command line, the variant to compare with.
VARIANTS: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    "supervised": ("supervised", (), None),
    "supercm": ("supercm", (), "supervised"),
    **{name: (name, (), "supervised") for name in METHODS[1:]},
    **{f"supercm_{name}": (f"supercm_{name}", (), name) for name in METHODS[1:]},
    "centroids trained by gradient": ("supercm", GRADIENT, "supercm"),
}
TASKS = {
    "office_caltech10_features": list(itertools.permutations(("amazon", "dslr", "webcam"), 2)),
    "digits": [("mnist", "usps"), ("usps", "mnist")],
}
FOLDERS = {"office_caltech10_features": "office_caltech10_features", "digits": "."}


class Cell(NamedTuple):
    """One run."""

    variant: str
    source: str
    target: str
    seed: int


def run_cell(cell: Cell, data: str, root: str, out: Path, options: list[str]) -> dict[str, float]:
    """Metrics of one run, from its summary if it ran before."""
    from supercm_lightning.cli import run

    torch.set_num_threads(1)
    config, more, _ = VARIANTS[cell.variant]
    name = f"{cell.variant.replace(' ', '_')}/{cell.source}-{cell.target}/seed{cell.seed}"
    folder = out / data / name
    found = sorted(folder.rglob("summary.json"))
    if not found or "test/acc" not in json.loads(found[-1].read_text())["metrics"]:
        folder.mkdir(parents=True, exist_ok=True)
        arguments = [
            *("fit", "--config", f"configs/uda/{data}/{config}.yaml", *more),
            *("--data.root", f"{root}/{FOLDERS[data]}", "--data.source", cell.source, "--data.target", cell.target),
            *("--seed_everything", str(cell.seed), "--trainer.default_root_dir", str(folder)),
            *("--trainer.enable_progress_bar", "false", *options),
        ]
        with (folder / "log.txt").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            run(arguments)
        found = sorted(folder.rglob("summary.json"))
    return json.loads(found[-1].read_text())["metrics"]


def main() -> None:
    """Runs the cells and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=TASKS)
    parser.add_argument("--root", required=True, help="folder of the data")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, …")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation"), help="folder of the runs")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), help="some of the variants")
    args, options = parser.parse_known_args()
    tasks = TASKS[args.data]
    cells = [Cell(name, *task, seed) for name in args.only for task in tasks for seed in range(args.seeds)]
    with ProcessPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(run_cell, cell, args.data, args.root, args.out, options) for cell in cells]
        metrics = {
            cell: job.result()
            for cell, job in track(zip(cells, jobs, strict=True), f"{args.data}: {len(cells)} runs", len(cells))
        }

    def accuracies(name: str, seed: int) -> list[float]:
        return [100 * metrics[Cell(name, *task, seed)]["test/acc"] for task in tasks]

    seeds = range(args.seeds)
    heads = " | ".join(f"{source} → {target}" for source, target in tasks)
    print(f"| variant | {heads} | mean | gain | over | PAD |\n|{'---|' * (len(tasks) + 5)}")
    for name in args.only:
        by_task = [[100 * metrics[Cell(name, *task, seed)]["test/acc"] for seed in seeds] for task in tasks]
        mean = [statistics.mean(accuracies(name, seed)) for seed in seeds]
        other, gain = VARIANTS[name][2], ""
        if other in args.only:
            gain = _mean_std([mean[seed] - statistics.mean(accuracies(other, seed)) for seed in seeds], sign="+")
        pad = [metrics[Cell(name, *task, seed)].get("test/pad", float("nan")) for task in tasks for seed in seeds]
        columns = " | ".join(_mean_std(values) for values in by_task)
        row = f"{columns} | {_mean_std(mean)} | {gain} | {other if gain else ''} | {statistics.mean(pad):.2f}"
        print(f"| {name} | {row} |")


def _mean_std(values: list[float], sign: str = "") -> str:
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):{sign}.1f} ± {spread:.1f}"


if __name__ == "__main__":
    main()
