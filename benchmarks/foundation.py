"""Measures the tables of docs/results.md: every variant and seed by the command line, in a process of its own.

    python benchmarks/foundation.py digits --seeds 5
    python benchmarks/foundation.py mnist --seeds 3 --root DATA

Finished runs are kept and not run again. Accuracies are those of the last step on the test set; no label of the test or
validation images decides anything.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rich.progress import track

CONFIG = "configs/ssl/{data}/{method}_cpu.yaml"
EMA = ("--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.99")
SWA = ("--trainer.callbacks+=SWA", "--trainer.callbacks.start=0.75")
EVAL_FORWARD = ("--trainer.callbacks+=CentroidUpdate", "--trainer.callbacks.mode=eval_forward")
GRADIENT = ("--model", "benchmarks.gradient_centroids.GradientCentroids")

VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "supervised": ("supervised", ()),
    "supervised, EMA": ("supervised", EMA),
    "supervised, SWA": ("supervised", SWA),
    "SuperCM": ("supercm", ()),
    "SuperCM, EMA": ("supercm", EMA),
    "SuperCM, SWA": ("supercm", SWA),
    "SuperCM, eval_forward": ("supercm", EVAL_FORWARD),
    "SuperCM, global counter": ("supercm", ("--model.counter", "global")),
    "SuperCM, eval_forward and global counter": ("supercm", (*EVAL_FORWARD, "--model.counter", "global")),
    "SuperCM, published β": ("supercm", ("--model.beta", "0.372")),
    "SuperCM, β = 5": ("supercm", ("--model.beta", "5")),
    "centroids trained by gradient": ("supercm", GRADIENT),
}


def run(data: str, variant: str, seed: int, root: str | None, out: Path) -> float:
    """Test accuracy of one cell in percent, from its summary if it ran before."""
    method, options = VARIANTS[variant]
    folder = out / data / variant.replace(" ", "_").replace(",", "") / f"seed{seed}"
    found = sorted(folder.rglob("summary.json"))
    if not found or json.loads(found[-1].read_text())["status"] != "completed":
        command = [
            *(sys.executable, "-m", "supercm_lightning", "fit", "--config", CONFIG.format(data=data, method=method)),
            *(*options, "--seed_everything", str(seed), "--data.split_seed", str(seed)),
            *("--trainer.default_root_dir", str(folder), "--trainer.enable_progress_bar", "false"),
            *(("--data.root", root) if root else ()),
        ]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
        found = sorted(folder.rglob("summary.json"))
    return 100 * json.loads(found[-1].read_text())["metrics"]["test/acc"]


def main() -> None:
    """Runs the cells and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "mnist"])
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … of run and split")
    parser.add_argument("--root", help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("runs/foundation"), help="folder of the runs")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="some of the variants")
    args = parser.parse_args()
    names = args.only or list(VARIANTS)
    cells = [(name, seed) for seed in range(args.seeds) for name in names]
    accuracy = {
        cell: run(args.data, *cell, args.root, args.out) for cell in track(cells, f"{args.data}: {len(cells)} runs")
    }
    print("| variant | test accuracy | seeds | gain over supervised |\n|---|---|---|---|")
    for name in names:
        values = [accuracy[name, seed] for seed in range(args.seeds)]
        gain = ""
        if "supervised" in names and name != "supervised":
            gains = [accuracy[name, seed] - accuracy["supervised", seed] for seed in range(args.seeds)]
            gain = _mean_std(gains, sign="+")
        print(f"| {name} | {_mean_std(values)} | {', '.join(f'{value:.1f}' for value in values)} | {gain} |")


def _mean_std(values: list[float], sign: str = "") -> str:
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):{sign}.1f} ± {spread:.1f}"


if __name__ == "__main__":
    main()
