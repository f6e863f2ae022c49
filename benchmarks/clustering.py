"""Measures the tables of clustering in docs/results.md: every variant and seed by the command line, in its own process.

    python benchmarks/clustering.py digits --seeds 3
    python benchmarks/clustering.py mnist --seeds 3 --root DATA --only ASD "ASD, SuperCM"

Other options go to the command line of every run. Finished runs are kept and not run again. Scores are those of the
averaged weights after the last step; labels decide nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rich.progress import track

SCORES = ("acc", "nmi", "ari", "kmeans_acc", "kmeans_input_acc")
LITERAL = (
    *("--model.asd_sampler", "random", "--model.asd_hold", "1", "--model.asd_strong_labels", "false"),
    *("--model.asd_cost", "feature", "--model.asd_solver", "sinkhorn", "--model.asd_consistency", "0"),
    *("--model.asd_window", "1000", "--model.asd_agreement", "false"),
)
PLAIN, WITH_CM = "asd_freematch_cpu", "asd_supercm_freematch_cpu"
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ASD": (PLAIN, ()),
    "ASD, SuperCM": (WITH_CM, ()),
    "literal": (PLAIN, LITERAL),
    "random map": (PLAIN, ("--model", "benchmarks.clustering_controls.RandomMap")),
    "four true labels per class": (PLAIN, ("--model", "benchmarks.clustering_controls.TrueLabels")),
    "FixMatch": (PLAIN, ("--model", "ASDFixMatch")),
    "random sampler": (PLAIN, ("--model.asd_sampler", "random")),
    "labels on the weak view alone": (PLAIN, ("--model.asd_strong_labels", "false")),
    "cost of features": (PLAIN, ("--model.asd_cost", "feature")),
    "Sinkhorn": (PLAIN, ("--model.asd_solver", "sinkhorn")),
    "hold 1": (PLAIN, ("--model.asd_hold", "1")),
    "no agreement": (PLAIN, ("--model.asd_agreement", "false")),
    "no consistency": (PLAIN, ("--model.asd_consistency", "0")),
    "window 0.05": (PLAIN, ("--model.asd_window", "0.05")),
    "window 1": (PLAIN, ("--model.asd_window", "1.0")),
    "n_l = 2k": (PLAIN, ("--model.asd_samples", "20")),
    "n_l = 8k": (PLAIN, ("--model.asd_samples", "80")),
    "n_l = 8k, spectral map": (PLAIN, ("--model.asd_samples", "80", "--model.asd_map", "spectral")),
    "spectral map": (PLAIN, ("--model.asd_map", "spectral")),
    "RandAugment": (PLAIN, ("--data.strong", "randaugment")),
    "long tail": (PLAIN, ("--data", "benchmarks.clustering_controls.LongTail")),
    "twenty classes": (PLAIN, ("--data", "benchmarks.clustering_controls.Turned")),
}


def run(data: str, name: str, seed: int, root: str | None, out: Path, more: list[str]) -> dict[str, float]:
    """Scores of one cell in percent, from its summary if it ran before."""
    config, options = VARIANTS[name]
    folder = out / data / "".join(c if c.isalnum() else "_" for c in name) / f"seed{seed}"
    found = sorted(folder.rglob("summary.json"))
    if not found or "test/acc" not in json.loads(found[-1].read_text())["metrics"]:
        command = [
            *(sys.executable, "-m", "supercm_lightning", "fit", "--config", f"configs/clustering/{data}/{config}.yaml"),
            *(*options, "--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)),
            *("--trainer.enable_progress_bar", "false"),
            *(("--data.root", root) if root else ()),
            *more,
        ]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
        found = sorted(folder.rglob("summary.json"))
    metrics = json.loads(found[-1].read_text())["metrics"]
    return {score: 100 * metrics[f"test/{score}"] for score in SCORES}


def main() -> None:
    """Runs the cells and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "mnist", "usps"])
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, …")
    parser.add_argument("--root", help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("runs/clustering"), help="folder of the runs")
    parser.add_argument("--only", nargs="*", help="some of the variants")
    args, options = parser.parse_known_args()
    names = [name for name in VARIANTS if not args.only or name in args.only]
    cells = [(name, seed) for seed in range(args.seeds) for name in names]
    scores = {
        (name, seed): run(args.data, name, seed, args.root, args.out, options)
        for name, seed in track(cells, f"{args.data}: {len(cells)} runs")
    }
    print("| variant | ACC | by seed | NMI | ARI | k-means on features | on inputs |\n|---|---|---|---|---|---|---|")
    for name in names:
        of = {score: [scores[name, seed][score] for seed in range(args.seeds)] for score in SCORES}
        by_seed = ", ".join(f"{value:.1f}" for value in of["acc"])
        columns = [_mean_std(of["acc"]), by_seed, *(_mean_std(of[score]) for score in SCORES[1:])]
        print(f"| {name} | {' | '.join(columns)} |")


def _mean_std(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
