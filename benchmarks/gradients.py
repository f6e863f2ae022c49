"""Angle between the gradients of cross-entropy and clustering term, and their lengths, as labels grow.

    python benchmarks/gradients.py results/digits_gradients.json

SuperCM on digits, the settings of `configs/ssl/digits/supercm_recommended.yaml`. Every tenth step the two terms are
differentiated apart, with respect to the weights of the backbone. Minutes on one core.
"""

import json
import logging
import statistics
import warnings
from collections import defaultdict
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from benchmarks.results import Cell, Row, Table
from supercm_lightning import SemiSupervisedDataModule, Step, SuperCM

PHASES = {"steps 1 to 100": 100, "steps 101 to 500": 500, "steps 501 to 1,000": 1000}
METRICS = {"cosine": "cosine of the gradients, %", "ratio": "length of clustering term's, % of cross-entropy's"}


class Compared(SuperCM):
    """SuperCM that keeps cosine and ratio of lengths of the gradients of its two terms, every tenth step."""

    def on_fit_start(self) -> None:
        """Starts with nothing."""
        super().on_fit_start()
        self.seen: dict[int, tuple[float, float]] = {}

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The terms as they are."""
        terms = super().losses(step)
        if self.trainer.global_step % 10 == 0:
            weights = [weight for weight in self.backbone.parameters() if weight.requires_grad]
            ce, cm = (
                torch.cat([g.flatten() for g in torch.autograd.grad(terms[name], weights, retain_graph=True)])
                for name in ("ce", "cm")
            )
            cosine, ratio = F.cosine_similarity(ce, cm, 0), cm.norm() / ce.norm()
            self.seen[self.trainer.global_step] = 100 * float(cosine), 100 * float(ratio)
        return terms


def measure(labels: int, seed: int) -> dict[str, dict[str, float]]:
    """Medians over each phase of one run: name of the metric to phase to value."""
    seed_everything(seed, verbose=False)
    data = SemiSupervisedDataModule(
        dataset="digits", num_labeled=labels, labeled_batch_size=50, unlabeled_batch_size=50, steps_per_epoch=100,
        split_seed=seed,
    )  # fmt: skip
    model = Compared(num_classes=10, input_shape=(1, 8, 8), backbone="small_cnn", optimizer="adam", lr=1e-3)
    Trainer(
        max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    ).fit(model, datamodule=data)  # fmt: skip
    found, start = defaultdict[str, dict[str, float]](dict), 0
    for phase, end in PHASES.items():
        pairs = [pair for step, pair in model.seen.items() if start <= step < end]
        for metric, values in zip(METRICS, zip(*pairs, strict=True), strict=True):
            found[metric][phase] = round(statistics.median(values), 2)
        start = end
    return found


def main(output: Path, labels: tuple[int, ...] = (10, 20, 40, 80, 160, 320, 640), seeds: int = 3) -> None:
    """Measures and writes the table.

    Args:
        output: The JSON file.
        labels: Numbers of labels.
        seeds: Number of seeds, of the run and the split.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runs = {(count, seed): measure(count, seed) for seed in range(seeds) for count in labels}

    def cell(metric: str, phase: str, count: int) -> Cell:
        return Cell({str(seed): runs[count, seed][metric][phase] for seed in range(seeds)})

    rows = [
        Row(phase, "variant", {str(n): {metric: cell(metric, phase, n) for metric in METRICS} for n in labels}, [])
        for phase in PHASES
    ]
    table = Table(
        name=output.stem, title="Digits: gradients of SuperCM's two terms as labels grow", task="few labels",
        data="digits", command=[f"python benchmarks/gradients.py {output}"],
        settings="Weights of the backbone; medians over the steps of a phase; β = 1, batches of 50 + 50.", choice="",
        machine="two shared cores of an Intel Xeon processor",
        versions={name: version(name) for name in ("torch", "lightning")}, columns=[str(count) for count in labels],
        rows=rows, metrics=METRICS, summary=False,
    )  # fmt: skip
    output.write_text(json.dumps(asdict(table), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
