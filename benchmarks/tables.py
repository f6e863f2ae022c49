"""Measures the tables of docs/results.md: every variant and seed by the command line, in a process of its own.

    python benchmarks/tables.py supercm digits --seeds 5
    python benchmarks/tables.py methods mnist --seeds 3 --root DATA --trainer.max_epochs 4

Other options go to the command line of every run. Finished runs are kept and not run again. Accuracies are those of the
last step on the test set; no label of the test or validation images decides anything.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rich.progress import track

EMA = ("--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.99")
SWA = ("--trainer.callbacks+=SWA", "--trainer.callbacks.start=0.75")
EVAL_FORWARD = ("--trainer.callbacks+=CentroidUpdate", "--trainer.callbacks.mode=eval_forward")
FIVE_ROWS = ("--data.labeled_batch_size", "5")
GRADIENT = ("--model", "benchmarks.gradient_centroids.GradientCentroids")
METHODS = {
    "Pseudo-Label": "pseudo_label",
    "Π-Model": "pi_model",
    "Mean Teacher": "mean_teacher",
    "VAT": "vat",
    "FixMatch": "fixmatch",
    "FlexMatch": "flexmatch",
    "FreeMatch": "freematch",
}

# Table -> variant -> config, options of the command line, and the variant to compare with.
Variant = tuple[str, tuple[str, ...], str | None]
TABLES: dict[str, dict[str, Variant]] = {
    "supercm": {
        "supervised": ("supervised", (), None),
        "supervised, EMA": ("supervised", EMA, "supervised"),
        "supervised, SWA": ("supervised", SWA, "supervised"),
        "SuperCM": ("supercm", (), "supervised"),
        "SuperCM, EMA": ("supercm", EMA, "SuperCM"),
        "SuperCM, SWA": ("supercm", SWA, "SuperCM"),
        "SuperCM, eval_forward": ("supercm", EVAL_FORWARD, "SuperCM"),
        "SuperCM, global counter": ("supercm", ("--model.counter", "global"), "SuperCM"),
        "SuperCM, eval_forward and global counter": (
            "supercm",
            (*EVAL_FORWARD, "--model.counter", "global"),
            "SuperCM",
        ),
        "SuperCM, pseudo-labelled centroids": ("supercm", ("--model.pseudo_centroids", "0.95"), "SuperCM"),
        "SuperCM, published β": ("supercm", ("--model.beta", "0.372"), "SuperCM"),
        "SuperCM, β = 5": ("supercm", ("--model.beta", "5"), "SuperCM"),
        "SuperCM, 5 labelled rows a step": ("supercm", FIVE_ROWS, "SuperCM"),
        "SuperCM, 5 labelled rows a step, global counter": (
            "supercm",
            (*FIVE_ROWS, "--model.counter", "global"),
            "SuperCM, 5 labelled rows a step",
        ),
        "centroids trained by gradient": ("supercm", GRADIENT, "SuperCM"),
    },
    "methods": {
        "supervised": ("supervised", (), None),
        "SuperCM": ("supercm", (), "supervised"),
        **{name: (file, (), "supervised") for name, file in METHODS.items()},
        **{f"SuperCM + {name}": (f"supercm_{file}", (), name) for name, file in METHODS.items()},
    },
}


def run(data: str, name: str, variant: Variant, seed: int, root: str | None, out: Path, more: list[str]) -> float:
    """Test accuracy of one cell in percent, from its summary if it ran before."""
    config, options, _ = variant
    folder = out / data / name.replace(" ", "_").replace(",", "") / f"seed{seed}"
    found = sorted(folder.rglob("summary.json"))
    if not found or "test/acc" not in json.loads(found[-1].read_text())["metrics"]:
        command = [
            *(sys.executable, "-m", "supercm_lightning", "fit", "--config", f"configs/ssl/{data}/{config}_cpu.yaml"),
            *(*options, "--seed_everything", str(seed), "--data.split_seed", str(seed)),
            *("--trainer.default_root_dir", str(folder), "--trainer.enable_progress_bar", "false"),
            *(("--data.root", root) if root else ()),
            *more,
        ]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
        found = sorted(folder.rglob("summary.json"))
    return 100 * json.loads(found[-1].read_text())["metrics"]["test/acc"]


def main() -> None:
    """Runs the cells and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("data", choices=["digits", "mnist"])
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … of run and split")
    parser.add_argument("--root", help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="folder of the runs")
    parser.add_argument("--only", nargs="*", help="some of the variants")
    args, options = parser.parse_known_args()
    variants = {name: v for name, v in TABLES[args.table].items() if not args.only or name in args.only}
    cells = [(name, seed) for seed in range(args.seeds) for name in variants]
    accuracy = {
        (name, seed): run(args.data, name, variants[name], seed, args.root, args.out, options)
        for name, seed in track(cells, f"{args.data}: {len(cells)} runs")
    }
    print("| variant | test accuracy | by seed | gain | over |\n|---|---|---|---|---|")
    for name, (_, _, other) in variants.items():
        values = [accuracy[name, seed] for seed in range(args.seeds)]
        gain = ""
        if other in variants:
            gain = _mean_std([accuracy[name, seed] - accuracy[other, seed] for seed in range(args.seeds)], sign="+")
        by_seed = ", ".join(f"{value:.1f}" for value in values)
        print(f"| {name} | {_mean_std(values)} | {by_seed} | {gain} | {other if gain else ''} |")


def _mean_std(values: list[float], sign: str = "") -> str:
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):{sign}.1f} ± {spread:.1f}"


if __name__ == "__main__":
    main()
