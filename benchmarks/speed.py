"""Measures the tables of docs/speed.md: what a step costs beside a plain one, and the data path beside the usual one.

    python benchmarks/speed.py                  # all tables that need no GPU, about a quarter of an hour on two cores
    python benchmarks/speed.py step weak strong # some of them
    python benchmarks/speed.py gpu              # on a machine with a GPU

Things that are compared run in turn, in one process, and are set against each other round by round, so that a slow
moment of the machine meets both; the tables hold the medians of seconds and of ratios. Nothing else should run
meanwhile.
"""

import argparse
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from timm.data import create_dataset, create_loader, create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.datasets import ImageFolder

from supercm_lightning import FeatureDataModule, FixMatch, Method, SemiSupervisedDataModule, SuperCM, Supervised
from supercm_lightning.data import Normalization, StrongAugmentation, WeakAugmentation
from supercm_lightning.data.extraction import FeatureFile, Views, feature_trainer
from supercm_lightning.data.sources.worker_stores import FileStore, default_num_workers
from supercm_lightning.data.transforms.strong import POOL
from supercm_lightning.losses import clustering_loss
from supercm_lightning.nn import ClusteringHead, WideResNet, build_backbone, evaluating
from supercm_lightning.nn.extractor import FrozenExtractor
from supercm_lightning.self_labeling import ClassTransitionTracker

Work = Callable[[], object]


def in_turn(works: dict[str, Work], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each work in each round, one call of each in every round, in an order drawn anew.

    The order matters: a work finds the caches and the memory as its predecessor has left them.
    """
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(warm_up + rounds):
        for name, work in order.sample(list(works.items()), len(works)):
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: list[float], of: list[float]) -> float:
    """Median over the rounds of one work's seconds by another's."""
    return statistics.median(a / b for a, b in zip(seconds, of, strict=True))


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
            model.head.update(*model.centroid_samples(step))
        torch.stack(list(model.losses(step).values())).sum().backward()
        optimizer.step()

    return work


def published_supercm(backbone: nn.Module, head: nn.Module, classes: int = 10) -> Callable[..., Tensor]:
    """SuperCM's step as the published loop does it, restated from its description.

    An extra forward in eval mode, a Python loop over the classes of the batch, the terms E1 to E3 one by one, and an
    exponential average of the parameters in a dictionary.

    Returns:
        The step: from labelled rows, labels and unlabelled rows to the loss.
    """
    parameters = dict([*backbone.named_parameters("backbone"), *head.named_parameters("head")])
    optimizer = torch.optim.Adam(parameters.values(), 3e-4)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    centroids, count = torch.zeros(0), 0

    def work(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        nonlocal centroids, count
        count += 1
        backbone.eval()
        with torch.no_grad():
            clean = backbone(x)
            if count == 1:
                centroids = clean.new_zeros(clean.shape[1], classes)
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
        return loss.detach()

    return work


def published_fixmatch(backbone: nn.Module, head: nn.Module) -> Callable[..., Tensor]:
    """FixMatch's step as its PyTorch ports do it, restated: losses are read every step, the average is a dictionary.

    Returns:
        The step: from labelled rows, labels and two views of the unlabelled rows to the loss.
    """
    parameters = dict([*backbone.named_parameters("backbone"), *head.named_parameters("head")])
    optimizer = torch.optim.SGD(parameters.values(), 0.03, 0.9, weight_decay=5e-4, nesterov=True)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    read = []

    def work(x: Tensor, y: Tensor, weak: Tensor, strong: Tensor) -> Tensor:
        optimizer.zero_grad()
        logits = head(backbone(torch.cat([x, weak, strong])))
        of_weak, of_strong = logits[len(y) :].chunk(2)
        confidence, target = of_weak.detach().softmax(1).max(1)
        mask = (confidence >= 0.95).float()
        supervised = F.cross_entropy(logits[: len(y)], y)
        unsupervised = (F.cross_entropy(of_strong, target, reduction="none") * mask).mean()
        loss = supervised + unsupervised
        loss.backward()
        optimizer.step()
        read.append((loss.item(), supervised.item(), unsupervised.item(), mask.mean().item()))
        for name, p in parameters.items():
            average[name] = 0.999 * average[name] + 0.001 * p.detach()
        return loss.detach()

    return work


def step() -> None:
    """SuperCM's step against the supervised one and the published loop: WRN-28-2, 50 + 50 rows of 32×32."""
    options: dict[str, Any] = {"num_classes": 10, "input_shape": (3, 32, 32), "backbone": "wrn_28_2"}
    batch = batch_of(50, 50)
    (x, y), ((u,), _) = batch["labeled"], batch["unlabeled"]
    published = published_supercm(WideResNet(28, 2), nn.Linear(128, 10))
    reuse, extra, fast = SuperCM(**options), SuperCM(**options), SuperCM(**options, channels_last=True)

    def clean_forward() -> None:
        with torch.no_grad(), evaluating(extra):
            features = extra.features(x)
        extra.head.update(features, y)

    works: dict[str, Work] = {
        "supervised, unlabelled rows forwarded": step_of(Supervised(**options, use_unlabeled=True), batch),
        "SuperCM, reuse": step_of(reuse, batch),
        "SuperCM, eval_forward": step_of(extra, batch, clean_forward),
        "supervised, channels_last": step_of(Supervised(**options, use_unlabeled=True, channels_last=True), batch),
        "SuperCM, reuse, channels_last": step_of(fast, batch),
        "the published loop": lambda: published(x, y, u),
    }
    seconds = in_turn(works, rounds=15)
    base, ours = seconds["supervised, unlabelled rows forwarded"], seconds["SuperCM, reuse, channels_last"]
    rows = [
        (name, f"{1000 * statistics.median(taken):.0f}", f"{ratio(taken, base):.3f}", f"{ratio(taken, ours):.3f}")
        for name, taken in seconds.items()
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
        micro = {name: 1e6 * statistics.median(taken) for name, taken in seconds.items()}
        rows.append((str(classes), *(f"{micro[name]:.0f}" for name in ("loss", "update", "product"))))
    show("Clustering module alone, n = 512, d = 128", ("K", "loss and backward, µs", "update, µs", "product, µs"), rows)


def transitions() -> None:
    """Class transition tracking: 400 classes, 448 samples a step, a window of 1,000 steps."""
    rows_of_set, classes, batch, window = 50_000, 400, 448, 1000
    tracker = ClassTransitionTracker(rows_of_set, classes, window, batch)

    def update() -> None:
        tracker.update(torch.randint(rows_of_set, (batch,)), torch.randint(classes, (batch,)))

    seconds = statistics.median(in_turn({"update": update}, rounds=1000, warm_up=window)["update"])
    held = sum(buffer.nbytes for buffer in tracker.buffers())
    dense = window * classes**2
    columns = ("update, ms", "memory, MiB", "one byte for each count of the window, MiB")
    rows = [(f"{1000 * seconds:.3f}", f"{held / 2**20:.1f}", f"{dense / 2**20:.1f}")]
    show(f"Class transitions, {classes} classes, {batch} samples a step, window {window:,}", columns, rows)


# -------------------------------------------------------------------------------------------------- augmentation
class _Pictures(Dataset[tuple[Any, ...]]):
    """Images that go through torchvision's single-image transforms, the usual way: (label, view, …)."""

    def __init__(self, images: Tensor, labels: Tensor, *transforms: Callable[[Image.Image], Tensor]) -> None:
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.labels = labels.tolist()
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        return self.labels[row], *(transform(self.images[row]) for transform in self.transforms)


def _single(*transforms: Any) -> Callable[[Image.Image], Tensor]:
    t = torchvision.transforms
    return t.Compose([*transforms, t.ToTensor(), t.Normalize((0.5,) * 3, (0.5,) * 3)])


def single_weak(shift: int, flip: bool) -> Callable[[Image.Image], Tensor]:
    """The weak view by torchvision, for one image."""
    t = torchvision.transforms
    return _single(t.RandomCrop(32, padding=shift, padding_mode="reflect"), t.RandomHorizontalFlip(0.5 * flip))


def single_strong(shift: int, flip: bool) -> Callable[[Image.Image], Tensor]:
    """The strong view by torchvision, for one image."""
    t = torchvision.transforms
    geometry = [t.RandomCrop(32, padding=shift, padding_mode="reflect"), t.RandomHorizontalFlip(0.5 * flip)]
    return _single(*geometry, t.RandAugment(2), _pil_cutout)


def _augmentation(
    title: str, ours: Callable[[Tensor, torch.Generator], Tensor], theirs: Callable[[Image.Image], Tensor]
) -> None:
    images = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8)
    pictures = _Pictures(images, torch.zeros(len(images)), theirs)
    loader = DataLoader(pictures, batch_size=500, num_workers=2, persistent_workers=True)

    def usual() -> None:
        for _ in loader:
            pass

    def batched() -> None:
        for start in range(0, len(images), 500):
            ours(images[start : start + 500], torch.Generator().manual_seed(start))

    seconds = in_turn({"ours": batched, "torchvision, PIL, 2 workers": usual}, rounds=7)
    slow = seconds["torchvision, PIL, 2 workers"]
    rows = [
        (name, f"{len(images) / statistics.median(taken):,.0f}", f"{ratio(slow, taken):.1f}")
        for name, taken in seconds.items()
    ]
    show(title, ("data path", "images/s", "÷ torchvision"), rows)


def weak() -> None:
    """Flip and shift of 32×32 images, normalised."""
    ours = WeakAugmentation(Normalization(), flip=True, shift=2)
    _augmentation("Weak augmentation", ours, single_weak(shift=2, flip=True))


def strong() -> None:
    """Flip, shift, RandAugment and Cutout of 32×32 images, normalised."""
    ours = StrongAugmentation(Normalization(), flip=True, shift=2)
    title = f"Strong augmentation, 2 of {len(POOL)} operations and Cutout"
    _augmentation(title, ours, single_strong(shift=2, flip=True))


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


def beside_fit(model: Method, data: Any, steps: int, work: Work) -> tuple[list[float], list[float]]:
    """Seconds of each step of `Trainer.fit`, and of the work done after each of them."""
    watch = _Watch(work)
    fit(model, data, steps, watch)
    return watch.steps[2:], watch.others[3:]


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


class _TimedFixMatch(FixMatch):
    """FixMatch that times the optimiser's call, which holds forward, losses and backward."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        super().optimizer_step(*args, **kwargs)
        self.inside.append(time.perf_counter() - start)


def fixmatch() -> None:
    """Share of a FixMatch step spent outside forward, backward and optimiser: WRN-28-2, 64 + 448 + 448 rows."""
    data = SemiSupervisedDataModule(
        _Random(5000), num_labeled=250, labeled_batch_size=64, unlabeled_batch_size=448, steps_per_epoch=100,
        in_memory=True, shift=4, flip=True,
    )  # fmt: skip
    model = _TimedFixMatch(num_classes=10, input_shape=(3, 32, 32), backbone="wrn_28_2", channels_last=True)
    model.inside, watch = [], _Watch()
    fit(model, data, 9, watch)
    steps = list(zip(watch.steps, model.inside[1:], strict=True))[2:]
    whole, outside = (statistics.median(values) for values in zip(*((w, w - i) for w, i in steps), strict=True))
    rows = [(f"{1000 * whole:.0f}", f"{1000 * outside:.1f}", f"{100 * outside / whole:.2f} %")]
    show("FixMatch, 64 + 448 + 448 rows", ("step, ms", "outside, ms", "share outside"), rows)


def lightning() -> None:
    """The trainer's loop, with its data, against a bare loop of the same step."""
    rows = []
    for name, steps in (("wrn_28_2", 22), ("small_cnn", 400)):
        options: dict[str, Any] = {"num_classes": 10, "input_shape": (3, 32, 32), "backbone": name}
        data = SemiSupervisedDataModule(_Random(2000), num_labeled=100, steps_per_epoch=steps, in_memory=True)
        whole, bare = beside_fit(SuperCM(**options), data, steps, step_of(SuperCM(**options), batch_of(50, 50)))
        medians = (f"{1000 * statistics.median(taken):.1f}" for taken in (whole, bare))
        rows.append((name, *medians, f"{ratio(whole, bare):.3f}"))
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


def features() -> None:
    """Frozen features of image files: our command, the loop that it had before, and timm's loader with its model."""
    size, count, name = 96, 192, "tf_efficientnet_lite0"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for side in (32, 320):
            root, rng = Path(folder, str(side)), np.random.default_rng(0)
            for number in range(count):
                (root / str(number % 2)).mkdir(parents=True, exist_ok=True)
                pixels = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side))
                pixels.save(root / str(number % 2) / f"{number}.jpg")
            model = timm.create_model(name, num_classes=0).eval()
            torch.save(model.state_dict(), Path(folder, "weights.pth"))
            settings = resolve_model_data_config(model) | {"input_size": (3, size, size)}
            images = ImageFolder(root, create_transform(**settings))
            loaders = {
                "before": DataLoader(images, 64, num_workers=default_num_workers()),
                "timm": create_loader(
                    create_dataset("", root), batch_size=256, use_prefetcher=False, num_workers=2, **settings
                ),
            }

            def loop(loader: Any, model: nn.Module = model) -> Work:
                def work() -> None:
                    with torch.inference_mode():
                        torch.cat([model(batch).float() for batch, _ in loader])

                return work

            extractor = FrozenExtractor(name, checkpoint=Path(folder, "weights.pth"), image_size=size)
            files = [(file, -1) for file in sorted(root.rglob("*.jpg"))]
            store = FileStore(files, channels=3, image_size=None)
            trainer = feature_trainer(accelerator="cpu", devices=1, enable_progress_bar=False, callbacks=[])

            def ours(side: int = side, store: Any = store, extractor: Any = extractor, trainer: Any = trainer) -> None:
                file = Path(folder, f"{side}.npz")
                FeatureFile(file, store, Path(folder), None, extractor, name, Views()).write(trainer)
                file.unlink()

            seconds = in_turn(
                {"supercm-features": ours} | {k: loop(v) for k, v in loaders.items()}, rounds=5, warm_up=1
            )
            rows += [
                (f"{side} x {side}", kind, f"{count / statistics.median(found):.0f}",
                 f"{ratio(seconds['before'], found):.2f}")
                for kind, found in seconds.items()
            ]  # fmt: skip
    show(f"Features of {count} files, {name} at {size} pixels", ("files", "way", "images/s", "x before"), rows)


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
        seconds = in_turn(works, rounds=4, warm_up=1)
        rows = [(name, f"{statistics.median(taken):.2f}") for name, taken in seconds.items()]
    show("Start", ("command", "s"), rows)


# ------------------------------------------------------------------------------------------------------------ GPU
@dataclass(frozen=True)
class Rung:
    """Settings of one run of the GPU table.

    Attributes:
        options: Options of the method.
        precision: The trainer's.
        graphs: Compile for CUDA graphs.
        fused: Let one kernel do the optimiser's work.
    """

    options: dict[str, Any]
    precision: Any = "32-true"
    graphs: bool = False
    fused: bool = False


FAST = {"channels_last": True}
RUNGS = {
    "in-memory device data": Rung({}),
    "+ channels_last, bf16": Rung(FAST, "bf16-mixed"),
    "+ compile=True": Rung(FAST | {"compile": True}, "bf16-mixed"),
    "+ CUDA graphs": Rung(FAST | {"compile": True}, "bf16-mixed", graphs=True),
    "+ fused optimiser": Rung(FAST | {"compile": True}, "bf16-mixed", fused=True),
    "+ fused optimiser, CUDA graphs": Rung(FAST | {"compile": True}, "bf16-mixed", graphs=True, fused=True),
}
"""Each adds to the line above; the fused optimiser stands with and without CUDA graphs, which do not always hold."""

GPU_METHODS: dict[type[Method], dict[str, Any]] = {
    SuperCM: {"lr": 3e-4, "beta": 0.372},
    FixMatch: {"optimizer": "sgd", "lr": 0.03, "weight_decay": 5e-4},
}


class _Span(Callback):
    """Times the steps after the first ones of a run, waiting for the device only at both ends."""

    def __init__(self, warm_up: int, device: torch.device) -> None:
        self.warm_up = warm_up
        self.device = device
        self.steps = 0
        self._start = 0.0
        self._sampler: subprocess.Popen[str] | None = None

    def on_train_batch_end(self, *args: Any) -> None:
        """Counts a step."""
        self.steps += 1
        if self.steps == self.warm_up:
            self._wait()
            if self.device.type == "cuda":
                query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
                self._sampler = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
            self._start = time.perf_counter()

    def end(self) -> tuple[float, str]:
        """Steps per second, and the device's utilisation in percent as nvidia-smi has it."""
        self._wait()
        rate = (self.steps - self.warm_up) / (time.perf_counter() - self._start)
        if self._sampler is None:
            return rate, "-"
        self._sampler.terminate()
        read = [int(line) for line in self._sampler.communicate()[0].split() if line.isdigit()]
        return rate, f"{statistics.mean(read):.0f} %" if read else "-"

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class _Fused(Callback):
    """Turns on the fused form of the optimiser."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for group in trainer.optimizers[0].param_groups:
            group.update(fused=True, foreach=False)


class _Digits(Dataset[tuple[Tensor, int]]):
    """Scikit-learn's handwritten digits, enlarged to colour images of 32×32: real images without a download."""

    def __init__(self) -> None:
        digits = load_digits()
        images = torch.from_numpy(digits.images * 15.9).to(torch.uint8).unsqueeze(1)
        self.images = images.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1).contiguous()
        self.targets = digits.target.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.images[row], self.targets[row]


def _published_run(
    kind: type[Method], data: SemiSupervisedDataModule, backbone: str, steps: int, span: _Span, workers: int
) -> nn.Module:
    """Trains in the published style: single images augmented by workers, float32, the published loop."""
    views = [single_weak(2, False), single_strong(2, False)][: len(kind.views)]
    batches = []
    for part, size, transforms in (
        ("labeled", data.labeled_batch_size, views[:1]),
        ("unlabeled", data.unlabeled_batch_size, views),
    ):
        rows = data.samples[part]
        pictures = _Pictures(rows.store.data[rows.index], rows.labels, *transforms)
        sampler = RandomSampler(pictures, replacement=True, num_samples=steps * size)
        batches.append(DataLoader(pictures, size, sampler=sampler, num_workers=workers, pin_memory=workers > 0))
    network = build_backbone(backbone, (3, 32, 32))
    head = nn.Linear(network.num_features, 10)
    model = nn.Sequential(network, head).to(span.device)
    work = (published_supercm if kind is SuperCM else published_fixmatch)(network, head)
    for (y, x), (_, *unlabeled) in zip(*batches, strict=True):
        work(*(rows.to(span.device, non_blocking=True) for rows in (x, y, *unlabeled)))
        span.on_train_batch_end()
    return model


def _test_accuracy(model: nn.Module, data: SemiSupervisedDataModule, device: torch.device) -> float:
    rows = data.samples["test"]
    model.to(device).eval()
    with torch.no_grad():
        logits = model(data.normalize(rows.store.data[rows.index].to(device)))
    return 100 * (logits.argmax(1).cpu() == rows.labels).float().mean().item()


def ladder(
    kind: type[Method],
    labeled: int,
    unlabeled: int,
    device: torch.device,
    rungs: dict[str, Rung],
    steps: int,
    warm_up: int,
    backbone: str = "wrn_28_2",
    workers: int = 4,
) -> list[tuple[str, ...]]:
    """Rows of the GPU table for one method, the published style first; prints each when it is found.

    Args:
        kind: SuperCM or FixMatch.
        labeled: Labelled rows a step.
        unlabeled: Unlabelled rows a step.
        device: Where to train.
        rungs: Settings by name.
        steps: Steps of each run, after which its accuracy is taken.
        warm_up: Steps before the clock starts.
        backbone: The network.
        workers: Worker processes of each loader of the published style.
    """
    rows: list[tuple[str, ...]] = []
    published = 0.0
    for name in ("published style, float32", *rungs):
        data = SemiSupervisedDataModule(
            _Digits(), num_labeled=250, num_test=450, labeled_batch_size=labeled, unlabeled_batch_size=unlabeled,
            steps_per_epoch=steps, in_memory=True, shift=2, flip=False,
        )  # fmt: skip
        span, size = _Span(warm_up, device), f"{labeled} + {unlabeled * len(kind.views)}"
        torch.manual_seed(0)
        try:
            if name in rungs:
                rung = rungs[name]
                options: dict[str, Any] = {"num_classes": 10, "input_shape": (3, 32, 32), "backbone": backbone}
                model: nn.Module = kind(**options | GPU_METHODS[kind] | rung.options)
                if rung.graphs:
                    model.backbone.compile(mode="reduce-overhead")
                callbacks = [span, *([_Fused()] if rung.fused else [])]
                accelerator = "gpu" if device.type == "cuda" else "cpu"
                fit(model, data, steps, *callbacks, accelerator=accelerator, devices=1, precision=rung.precision)
            else:
                data.setup("fit")
                model = _published_run(kind, data, backbone, steps, span, workers)
            rate, used = span.end()
            published = published or rate
            hours, accuracy = 500_000 / rate / 3600, _test_accuracy(model, data, device)
            found = (f"{rate:.1f}", f"{rate / published:.2f}", used, f"{hours:.1f}", f"{accuracy:.1f}")
        except RuntimeError as error:
            found = (f"does not hold: {str(error).splitlines()[0]}", "", "", "", "")
        rows.append((kind.__name__, size, name, *found))
        Console().print(*rows[-1], sep=" | ")
    return rows


def gpu() -> None:
    """WRN-28-2 on a GPU, from the published style to all that is on offer."""
    if not torch.cuda.is_available():
        Console().print("The table `gpu` needs a GPU, and there is none here.")
        return
    device = torch.device("cuda")
    columns = (
        "method", "rows", "settings", "steps/s", "÷ published", "utilisation", "hours to 500,000 steps", "accuracy, %",
    )  # fmt: skip
    rows = ladder(SuperCM, 50, 50, device, RUNGS, steps=1000, warm_up=100)
    rows += ladder(FixMatch, 64, 448, device, RUNGS, steps=300, warm_up=50)
    show(torch.cuda.get_device_name(device), columns, rows)


TABLES = {
    work.__name__: work
    for work in (step, clustering, transitions, weak, strong, fixmatch, lightning, scale, features, start, gpu)
}


def main() -> None:
    """Measures the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="tables to measure; all but gpu by default")
    names = parser.parse_args().tables or [name for name in TABLES if name != "gpu"]
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    Console().print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, Python {sys.version.split()[0]}")
    for name in names:
        TABLES[name]()


if __name__ == "__main__":
    main()
