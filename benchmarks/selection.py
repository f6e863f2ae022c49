"""Measures how well scores without target labels rank models: the tables of docs/selection.md.

    python benchmarks/selection.py --root DATA --seeds 3 --jobs 2

Every task between three domains of the Office-Caltech-10 features, every method and learning rate below, 300 steps with
a validation every 50. Target labels judge the scores and decide nothing. Finished runs are kept and not run again.
"""

import argparse
import itertools
import json
import logging
import statistics
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track

DOMAINS = ("amazon", "dslr", "webcam")
METHODS = ("Supervised", "SuperCM", "GradientCentroids", "MCC", "BNM")
RATES = (0.001, 0.01)
SCORES = ("val/acc", "val/score", "val/im", "val/neg_entropy", "val/bnm", "val/snd", "val/class_ami", "val/dev")
Curve = list[dict[str, float]]


class Cell(NamedTuple):
    """One run."""

    source: str
    target: str
    seed: int
    method: str
    lr: float


def run_cell(cell: Cell, root: str, out: Path) -> Curve:
    """What the validations of a run gave, from its file if it ran before."""
    file = out / ("-".join(map(str, cell)) + ".json")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_fit(cell, root)))
    return json.loads(file.read_text())


def _fit(cell: Cell, root: str) -> Curve:
    from lightning.pytorch import Trainer, seed_everything

    import supercm_lightning
    from benchmarks.gradient_centroids import GradientCentroids

    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    seed_everything(cell.seed, verbose=False)
    data = supercm_lightning.FeatureDataModule(
        root=root, source=cell.source, target=cell.target, standardize="domain", num_val=0.2, oracle_labels=True,
        labeled_batch_size=32, unlabeled_batch_size=32, steps_per_epoch=50, split_seed=cell.seed,
    )  # fmt: skip
    options: dict[str, Any] = {
        "num_classes": data.num_classes, "input_shape": data.input_shape, "backbone": "identity", "bottleneck": 256,
        "optimizer": "sgd", "lr": cell.lr, "weight_decay": 1e-3, "lr_schedule": "inverse",
    }  # fmt: skip
    if cell.method == "Supervised":
        options["use_unlabeled"] = True
    kind = GradientCentroids if cell.method == "GradientCentroids" else getattr(supercm_lightning, cell.method)
    scores = supercm_lightning.AdaptationScores()
    trainer = Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[scores],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(kind(**options), datamodule=data)
    return scores.curve


def main() -> None:
    """Runs the cells and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the feature files")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, …, of the run and of the split")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/selection"), help="folder of the runs")
    args = parser.parse_args()
    groups = list(itertools.product(range(args.seeds), itertools.permutations(DOMAINS, 2)))
    cells = [Cell(*task, seed, *setting) for seed, task in groups for setting in itertools.product(METHODS, RATES)]
    with ProcessPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(run_cell, cell, args.root, args.out) for cell in cells]
        curves = {
            cell: job.result() for cell, job in track(zip(cells, jobs, strict=True), f"{len(cells)} runs", len(cells))
        }

    rows: dict[str, list[list[float]]] = {name: [] for name in SCORES}
    best, last = [], []
    for seed, task in groups:
        runs = [curve for cell, curve in curves.items() if cell[:3] == (*task, seed)]
        every = [validation for curve in runs for validation in curve]
        best.append(100 * max(validation["target_acc"] for validation in every))
        last.append(100 * statistics.mean(curve[-1]["target_acc"] for curve in runs))
        for name, values in rows.items():
            pick = 100 * max(every, key=lambda validation: validation[name])["target_acc"]
            along = statistics.mean(_correlation(curve, name) for curve in runs)
            values.append([along, _correlation([curve[-1] for curve in runs], name), pick, best[-1] - pick])
    print("| score | ρ along a run | ρ between runs | accuracy of the pick | below the best |\n|---|---|---|---|---|")
    for name, values in rows.items():
        print(f"| `{name}` | {' | '.join(_mean_std(column) for column in zip(*values, strict=True))} |")
    print(f"| none: the last step, mean over runs |  |  | {_mean_std(last)} |  |")
    print(f"| target labels |  |  | {_mean_std(best)} |  |")


def _correlation(validations: Curve, name: str) -> float:
    """Spearman's rank correlation of a score with the target accuracy; zero where one of the two is constant."""
    from scipy.stats import spearmanr

    score, accuracy = [v[name] for v in validations], [v["target_acc"] for v in validations]
    return float(spearmanr(score, accuracy).statistic) if len(set(score)) > 1 < len(set(accuracy)) else 0.0


def _mean_std(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


if __name__ == "__main__":
    main()
