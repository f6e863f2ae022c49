"""Measures the tables of docs/speed.md: what a step costs beside a plain one, and the data path beside the usual one.

    python benchmarks/speed.py                  # all tables that need no GPU, about a quarter of an hour on two cores
    python benchmarks/speed.py step weak strong # some of them
    python benchmarks/speed.py gpu              # on a machine with a GPU

Things that are compared run in turn, in one process, and the medians of the same number of rounds are set against each
other, so that a slow moment of the machine meets both. Nothing else should run meanwhile.
"""

import argparse
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch import Callback, Trainer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supercm_lightning import FeatureDataModule, FixMatch, Method, SemiSupervisedDataModule, SuperCM, Supervised
from supercm_lightning.clustering import ClassTransitionTracker
from supercm_lightning.data import Normalization, StrongAugmentation, WeakAugmentation
from supercm_lightning.data.strong_augment import POOL
from supercm_lightning.losses import clustering_loss
from supercm_lightning.nn import ClusteringHead, WideResNet, evaluating

Work = Callable[[], object]


def in_turn(works: dict[str, Work], rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Median seconds of each work, one call of each in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(warm_up + rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Prints a table."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


# ------------------------------------------------------------------------------------------------ steps of SuperCM
def batch_of(labeled: int, unlabeled: int, views: int = 1, size: int = 32) -> dict[str, Any]:
    """A batch of random images."""
    x, y = torch.randn(labeled, 3, size, size), torch.arange(labeled) % 10
    return {
        "labeled": (x, y),
        "unlabeled": (tuple(torch.randn(unlabeled, 3, size, size) for _ in range(views)), torch.arange(unlabeled)),
    }


def step_of(model: Method, batch: dict[str, Any], before: Work | None = None) -> Work:
    """A training step without a trainer: forward, centroids, losses, backward, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)

    def work() -> None:
        if before is not None:
            before()
        optimizer.zero_grad()
        step = model.joint_forward(batch)
        if isinstance(model, SuperCM) and before is None:
            model.head.update(*model.centroid_rows(step))
        torch.stack(list(model.losses(step).values())).sum().backward()
        optimizer.step()

    return work


def published_step(batch: dict[str, Any]) -> Work:
    """The same step as the published loop does it, restated from its description.

    An extra forward in eval mode, a Python loop over the classes of the batch, the terms E1 to E3 one by one, and an
    exponential average of the parameters in a dictionary.
    """
    backbone, head = WideResNet(28, 2), torch.nn.Linear(128, 10)
    parameters = dict([*backbone.named_parameters("backbone"), *head.named_parameters("head")])
    optimizer = torch.optim.Adam(parameters.values(), 3e-4)
    centroids = torch.zeros(128, 10)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    (x, y), ((u,), _) = batch["labeled"], batch["unlabeled"]
    count = 0

    def work() -> None:
        nonlocal count
        count += 1
        backbone.eval()
        with torch.no_grad():
            clean = backbone(x)
            for k in y.unique().tolist():
                mean = clean[y == k].mean(0)
                centroids[:, k] = (mean + (count - 1) * centroids[:, k]) / count
        backbone.train()
        optimizer.zero_grad()
        features = backbone(torch.cat([x, u]))
        logits = head(features)
        gamma = logits.softmax(1)
        scale = features.numel()
        products = centroids.T @ centroids
        e1 = (features - gamma @ centroids.T).square().sum() / scale
        e2 = ((gamma * (1 - gamma)).sum(0) * products.diagonal()).sum() / scale
        overlap = gamma.T @ gamma
        e3 = -((overlap - overlap.diagonal().diag()) * products).sum() / scale
        loss = F.cross_entropy(logits[: len(y)], y) + 0.372 * (e1 + e2 + e3)
        loss.backward()
        optimizer.step()
        for name, p in parameters.items():
            average[name] = 0.99 * average[name] + 0.01 * p.detach()

    return work


def step() -> None:
    """SuperCM's step against the supervised one and the published loop: WRN-28-2, 50 + 50 rows of 32×32."""
    options: dict[str, Any] = {"num_classes": 10, "input_shape": (3, 32, 32), "backbone": "wrn_28_2"}
    batch = batch_of(50, 50)
    reuse, extra, fast = SuperCM(**options), SuperCM(**options), SuperCM(**options, channels_last=True)

    def clean_forward() -> None:
        x, y = batch["labeled"]
        with torch.no_grad(), evaluating(extra):
            features = extra.features(x)
        extra.head.update(features, y)

    works: dict[str, Work] = {
        "supervised, unlabelled rows forwarded": step_of(Supervised(**options, use_unlabeled=True), batch),
        "SuperCM, reuse": step_of(reuse, batch),
        "SuperCM, eval_forward": step_of(extra, batch, clean_forward),
        "supervised, channels_last": step_of(Supervised(**options, use_unlabeled=True, channels_last=True), batch),
        "SuperCM, reuse, channels_last": step_of(fast, batch),
        "the published loop": published_step(batch),
    }
    seconds = in_turn(works, rounds=15)
    base, ours = seconds["supervised, unlabelled rows forwarded"], seconds["SuperCM, reuse, channels_last"]
    rows = [
        (name, f"{1000 * value:.0f}", f"{value / base:.3f}", f"{value / ours:.3f}") for name, value in seconds.items()
    ]
    show("One step", ("step", "ms", "÷ supervised", "÷ SuperCM, reuse, channels_last"), rows)


def clustering() -> None:
    """The clustering loss with its backward and the centroid update, against one matrix product of their size."""
    rows = []
    for classes in (10, 1000):
        features = torch.randn(512, 128, requires_grad=True)
        logits = torch.randn(512, classes, requires_grad=True)
        head, labels = ClusteringHead(128, classes), torch.randint(classes, (512,))
        centroids = torch.randn(classes, 128)

        def loss(features: Tensor = features, logits: Tensor = logits, centroids: Tensor = centroids) -> None:
            clustering_loss(features, logits.softmax(1), centroids).backward()

        def update(head: ClusteringHead = head, features: Tensor = features, labels: Tensor = labels) -> None:
            head.update(features.detach(), labels)

        def product(features: Tensor = features, centroids: Tensor = centroids) -> None:
            torch.mm(features.detach(), centroids.T)

        seconds = in_turn({"loss": loss, "update": update, "product": product}, rounds=200, warm_up=20)
        micro = {name: 1e6 * value for name, value in seconds.items()}
        rows.append((str(classes), *(f"{micro[name]:.0f}" for name in ("loss", "update", "product"))))
    show("Clustering module alone, n = 512, d = 128", ("K", "loss and backward, µs", "update, µs", "product, µs"), rows)


def transitions() -> None:
    """Class transition tracking: 400 classes, 448 samples a step, a window of 1,000 steps."""
    rows_of_set, classes, batch, window = 50_000, 400, 448, 1000
    tracker = ClassTransitionTracker(rows_of_set, classes, window, batch)

    def update() -> None:
        tracker.update(torch.randint(rows_of_set, (batch,)), torch.randint(classes, (batch,)))

    seconds = in_turn({"update": update}, rounds=1000, warm_up=window)["update"]
    held = sum(buffer.nbytes for buffer in tracker.buffers())
    dense = window * classes**2
    columns = ("update, ms", "memory, MiB", "one byte for each count of the window, MiB")
    rows = [(f"{1000 * seconds:.3f}", f"{held / 2**20:.1f}", f"{dense / 2**20:.1f}")]
    show(f"Class transitions, {classes} classes, {batch} samples a step, window {window:,}", columns, rows)


# -------------------------------------------------------------------------------------------------- augmentation
class _Pictures(Dataset[Tensor]):
    """Images that go through torchvision's single-image transforms, the usual way."""

    def __init__(self, images: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        return self.transform(self.images[row])


def _augmentation(title: str, ours: Callable[[Tensor, torch.Generator], Tensor], theirs: list[Any]) -> None:
    images = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8)
    transforms = torchvision.transforms.Compose(
        [*theirs, torchvision.transforms.ToTensor(), torchvision.transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    )
    loader = DataLoader(_Pictures(images, transforms), batch_size=500, num_workers=2, persistent_workers=True)

    def usual() -> None:
        for _ in loader:
            pass

    def batched() -> None:
        for start in range(0, len(images), 500):
            ours(images[start : start + 500], torch.Generator().manual_seed(start))

    seconds = in_turn({"ours": batched, "torchvision, PIL, 2 workers": usual}, rounds=7)
    slow = seconds["torchvision, PIL, 2 workers"]
    rows = [(name, f"{len(images) / value:,.0f}", f"{slow / value:.1f}") for name, value in seconds.items()]
    show(title, ("data path", "images/s", "÷ torchvision"), rows)


def weak() -> None:
    """Flip and shift of 32×32 images, normalised."""
    t = torchvision.transforms
    theirs = [t.RandomCrop(32, padding=2, padding_mode="reflect"), t.RandomHorizontalFlip()]
    _augmentation("Weak augmentation", WeakAugmentation(Normalization(), flip=True, shift=2), theirs)


def strong() -> None:
    """Flip, shift, RandAugment and Cutout of 32×32 images, normalised."""
    t = torchvision.transforms
    theirs = [
        t.RandomCrop(32, padding=2, padding_mode="reflect"), t.RandomHorizontalFlip(), t.RandAugment(2), _pil_cutout,
    ]  # fmt: skip
    ours = StrongAugmentation(Normalization(), flip=True, shift=2)
    _augmentation(f"Strong augmentation, 2 of {len(POOL)} operations and Cutout", ours, theirs)


def _pil_cutout(image: Image.Image) -> Image.Image:
    side = int(torch.randint(0, 17, ()))
    x, y = torch.randint(0, 32, (2,)).tolist()
    image.paste((128, 128, 128), (x - side // 2, y - side // 2, x + side // 2, y + side // 2))
    return image


# ---------------------------------------------------------------------------------------------------- whole loops
class _Random(Dataset[tuple[Tensor, int]]):
    """Random byte images with labels."""

    def __init__(self, count: int) -> None:
        self.images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        self.targets = (torch.arange(count) % 10).tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.images[row], self.targets[row]


class _Watch(Callback):
    """Times the steps of a fit and, after each of them, another piece of work.

    Args:
        beside: The other work, or None.
    """

    def __init__(self, beside: Work | None = None) -> None:
        self.beside = beside
        self.steps: list[float] = []
        self.others: list[float] = []
        self._start: float | None = None

    def on_train_batch_end(self, *args: Any) -> None:
        """Ends a step, which began where the other work had ended."""
        now = time.perf_counter()
        if self._start is not None:
            self.steps.append(now - self._start)
        if self.beside is not None:
            self.beside()
            self.others.append(time.perf_counter() - now)
        self._start = time.perf_counter()


def beside_fit(model: Method, data: Any, steps: int, work: Work) -> tuple[float, float]:
    """Median seconds of a step of `Trainer.fit` and of the work done after each of them."""
    watch = _Watch(work)
    fit(model, data, steps, watch)
    return statistics.median(watch.steps[2:]), statistics.median(watch.others[2:])


def fit(model: Method, data: Any, steps: int, *callbacks: Callback, **options: Any) -> Trainer:
    """Trains without logs, files and validation."""
    settings: dict[str, Any] = {
        "max_steps": steps, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }  # fmt: skip
    trainer = Trainer(**settings | options, callbacks=list(callbacks))
    trainer.fit(model, datamodule=data)
    return trainer


def fixmatch() -> None:
    """Share of a FixMatch step spent outside forward, backward and optimiser: WRN-28-2, 64 + 448 + 448 rows."""
    options: dict[str, Any] = {"num_classes": 10, "input_shape": (3, 32, 32), "backbone": "wrn_28_2"}
    data = SemiSupervisedDataModule(
        _Random(5000), num_labeled=250, labeled_batch_size=64, unlabeled_batch_size=448, steps_per_epoch=100,
        in_memory=True, shift=4, flip=True,
    )  # fmt: skip
    bare_step = step_of(FixMatch(**options, channels_last=True), batch_of(64, 448, views=2))
    whole, bare = beside_fit(FixMatch(**options, channels_last=True), data, 8, bare_step)
    rows = [(f"{1000 * whole:.0f}", f"{1000 * bare:.0f}", f"{100 * (whole - bare) / whole:.1f} %")]
    show("FixMatch, 64 + 448 + 448 rows", ("step of fit, ms", "the same, bare, ms", "share outside"), rows)


def lightning() -> None:
    """The trainer's loop, with its data, against a bare loop of the same step."""
    rows = []
    for name, steps in (("wrn_28_2", 22), ("small_cnn", 400)):
        options: dict[str, Any] = {"num_classes": 10, "input_shape": (3, 32, 32), "backbone": name}
        data = SemiSupervisedDataModule(_Random(2000), num_labeled=100, steps_per_epoch=steps, in_memory=True)
        whole, bare = beside_fit(SuperCM(**options), data, steps, step_of(SuperCM(**options), batch_of(50, 50)))
        rows.append((name, f"{1000 * whole:.1f}", f"{1000 * bare:.1f}", f"{whole / bare:.3f}"))
    show("Trainer.fit against a bare loop", ("backbone", "fit, ms a step", "bare, ms a step", "ratio"), rows)


def scale() -> None:
    """Set-up and cost of a step as the unlabelled set grows."""
    counts = (10**3, 10**4, 10**5, 10**6)
    ready: dict[int, list[float]] = {count: [] for count in counts}
    steps: dict[int, list[float]] = {count: [] for count in counts}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        labeled = Path(folder, "labeled.npz")
        np.savez(labeled, features=rng.standard_normal((100, 128), dtype="f4"), labels=np.arange(100) % 10)
        for count in counts:
            np.savez(Path(folder, f"{count}.npz"), features=rng.standard_normal((count, 128), dtype="f4"))
        for count in counts * 15:
            start = time.perf_counter()
            data = FeatureDataModule(labeled, Path(folder, f"{count}.npz"), steps_per_epoch=100)
            data.setup("fit")
            ready[count].append(time.perf_counter() - start)
            watch = _Watch()
            fit(SuperCM(num_classes=10, input_shape=(128,), backbone="mlp"), data, 150, watch)
            steps[count] += watch.steps[2:]
    base = statistics.median(steps[counts[0]])
    rows = [
        (
            f"{count:,}",
            f"{statistics.median(ready[count]):.3f}",
            f"{1000 * statistics.median(steps[count]):.2f}",
            f"{statistics.median(steps[count]) / base:.3f}",
        )
        for count in counts
    ]
    show("Frozen features, 50 + 50 rows of 128", ("unlabelled rows", "set-up, s", "ms a step", "ratio"), rows)


def _silent(command: list[str]) -> Work:
    return lambda: subprocess.run(command, check=True, capture_output=True)


def start() -> None:
    """Seconds until the help and until the first step of the quickstart."""
    command = [sys.executable, "-m", "supercm_lightning"]
    quick = [
        "fit", "--config", "configs/quickstart.yaml", "--trainer.max_steps", "1", "--trainer.limit_test_batches", "0",
        "--trainer.limit_val_batches", "0", "--trainer.callbacks", "[]",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "supercm --help": ["--help"],
            "supercm fit --help": ["fit", "--help"],
            "first step of the quickstart": [*quick, "--trainer.default_root_dir", folder],
        }
        works = {name: _silent([*command, *more]) for name, more in commands.items()}
        rows = [(name, f"{value:.2f}") for name, value in in_turn(works, rounds=5, warm_up=1).items()]
    show("Start", ("command", "s"), rows)


# ------------------------------------------------------------------------------------------------------------ GPU
def gpu() -> None:
    """Steps per second on a GPU, from the published style to all that is on offer."""
    device = torch.device("cuda")
    options: dict[str, Any] = {"num_classes": 10, "input_shape": (3, 32, 32), "backbone": "wrn_28_2"}
    rows = []
    for labeled, unlabeled, kind in ((50, 50, SuperCM), (64, 448, FixMatch)):
        data = _Random(5000)
        for name, model_options, precision in (
            ("float32", {}, "32-true"),
            ("channels_last, bf16", {"channels_last": True}, "bf16-mixed"),
            ("channels_last, bf16, compile", {"channels_last": True, "compile": True}, "bf16-mixed"),
        ):
            module = SemiSupervisedDataModule(
                data, num_labeled=250, labeled_batch_size=labeled, unlabeled_batch_size=unlabeled,
                steps_per_epoch=300, in_memory=True,
            )  # fmt: skip
            seconds = beside_fit(
                kind(**options, **model_options), module, 300, accelerator="gpu", devices=1, precision=precision
            )
            rows.append((kind.__name__, f"{labeled} + {unlabeled}", name, f"{1 / seconds:.1f}"))
    show(torch.cuda.get_device_name(device), ("method", "rows", "settings", "steps/s"), rows)


TABLES = {
    work.__name__: work
    for work in (step, clustering, transitions, weak, strong, fixmatch, lightning, scale, start, gpu)
}


def main() -> None:
    """Measures the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="tables to measure; all but gpu by default")
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    names = parser.parse_args().tables or [name for name in TABLES if name != "gpu"]
    Console().print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, Python {sys.version.split()[0]}")
    for name in names:
        TABLES[name]()


if __name__ == "__main__":
    main()
