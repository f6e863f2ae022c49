"""Measures how well scores without target labels rank models: the tables of docs/selection.md.

    python benchmarks/selection.py --root DATA --seeds 3 --jobs 2

Every task between three domains of the Office-Caltech-10 features, every method and learning rate below, 500 steps with
a validation every 50. Target labels judge the scores and decide nothing. Finished runs are kept and not run again.
"""

import argparse
import itertools
import json
import logging
import statistics
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track

DOMAINS = ("amazon", "dslr", "webcam")
METHODS = ("Supervised", "SuperCM", "GradientCentroids", "DANN", "MCC", "BNM")
RATES = (0.001, 0.01, 0.1)
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
        max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[scores],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(kind(**options), datamodule=data)
    return scores.curve


def correlation(score: list[float], accuracy: list[float]) -> float:
    """Spearman's rank correlation; zero where one of the two is constant."""
    from scipy.stats import spearmanr

    return float(spearmanr(score, accuracy).statistic) if len(set(score)) > 1 < len(set(accuracy)) else 0.0


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

    print("| score | along a run | between runs | accuracy of the pick | lost to the best |\n|---|---|---|---|---|")
    chosen: dict[str, list[float]] = {name: [] for name in SCORES}
    along: dict[str, list[float]] = {name: [] for name in SCORES}
    between: dict[str, list[float]] = {name: [] for name in SCORES}
    best, last = [], []
    for seed, task in groups:
        runs = [curve for cell, curve in curves.items() if cell[:3] == (*task, seed)]
        every = [validation for curve in runs for validation in curve]
        best.append(max(validation["target_acc"] for validation in every))
        last.append(statistics.mean(curve[-1]["target_acc"] for curve in runs))
        for name in SCORES:
            chosen[name].append(max(every, key=lambda validation: validation[name])["target_acc"])
            along[name].append(statistics.mean(_correlation(curve, name) for curve in runs))
            between[name].append(_correlation([curve[-1] for curve in runs], name))
    for name in SCORES:
        lost = [first - pick for first, pick in zip(best, chosen[name], strict=True)]
        row = f"{_mean_std(along[name])} | {_mean_std(between[name])} | {_mean_std(chosen[name], 100)}"
        print(f"| `{name}` | {row} | {_mean_std(lost, 100)} |")
    print(f"| last step of a random run |  |  | {_mean_std(last, 100)} | {100 * statistics.mean(best) - 100 * statistics.mean(last):.1f} |")
    print(f"| best on target labels |  |  | {_mean_std(best, 100)} |  |")


def _correlation(validations: Curve, name: str) -> float:
    return correlation([v[name] for v in validations], [v["target_acc"] for v in validations])


def _mean_std(values: list[float], scale: float = 1) -> str:
    digits = 1 if scale > 1 else 2
    spread = scale * statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{scale * statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


if __name__ == "__main__":
    main()
