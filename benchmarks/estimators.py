"""The classifier beside scikit-learn's own on arrays: accuracy on new samples and seconds of `fit`.

    python benchmarks/estimators.py --data DATA --output results/estimators.json
    python benchmarks/estimators.py --million_file million.npy

A third of every set is the test; of the others, the same number in each class keeps its label, both by seed. Seconds
are those of the processor. `--million_file` writes a file of 1,000,000 samples of 512 features, fits one pass over it,
mapped from the disk, and prints time and memory that is not the file's.
"""

import bz2
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from sklearn.datasets import load_breast_cancer, load_digits, load_svmlight_file, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

from results import Cell, Row, Table
from supercm_lightning import __version__
from supercm_lightning.estimators import SuperCMClassifier

Arrays = tuple[np.ndarray, np.ndarray]


def usps(root: Path) -> Arrays:
    """7,291 pixels' vectors (n, 256) in [-1, 1] and digits."""
    with bz2.open(root / "USPS" / "usps.bz2") as file:
        x, y = load_svmlight_file(file)
    return x.toarray(), y.astype(int) - 1


def amazon(root: Path) -> Arrays:
    """GoogLeNet features of Office-Caltech-10's domain amazon."""
    file = np.load(root / "office_caltech10_features" / "amazon.npz")
    return file["features"], file["labels"]


SETS: dict[str, tuple[int, Callable[[Path], Arrays]]] = {
    "digits, 2 labels a class": (2, lambda root: load_digits(return_X_y=True)),
    "USPS, 10 labels a class": (10, usps),
    "Office-Caltech-10 amazon, GoogLeNet features, 3 labels a class": (3, amazon),
    "wine, 3 labels a class": (3, lambda root: load_wine(return_X_y=True)),
    "breast cancer, 5 labels a class": (5, lambda root: load_breast_cancer(return_X_y=True)),
}
ESTIMATORS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "LogisticRegression": ("free", lambda seed: LogisticRegression(max_iter=1000)),
    "SelfTrainingClassifier of LogisticRegression": (
        "free",
        lambda seed: SelfTrainingClassifier(LogisticRegression(max_iter=1000)),
    ),
    "LabelSpreading (knn, 10 neighbors, α = 0.99)": (
        "free",
        lambda seed: LabelSpreading(kernel="knn", n_neighbors=10, alpha=0.99, max_iter=200, tol=1e-2),
    ),
    'SuperCMClassifier("Supervised")': ("supervised", lambda seed: SuperCMClassifier("Supervised", random_state=seed)),
    "SuperCMClassifier()": ("supercm", lambda seed: SuperCMClassifier(random_state=seed)),
    'SuperCMClassifier("SuperCMFlexMatch", noise=0.2)': (
        "combination",
        lambda seed: SuperCMClassifier("SuperCMFlexMatch", noise=0.2, random_state=seed),
    ),
}


def measure(name: str, data: Arrays, per_class: int, seed: int) -> tuple[float, float]:
    """Accuracy in percent and seconds of one estimator on one split; those of scikit-learn get standardized tables."""
    x, new_x, truth, new_y = train_test_split(*data, test_size=1 / 3, stratify=data[1], random_state=seed)
    stream = np.random.default_rng(seed)
    classes = np.unique(truth)
    labeled = np.concatenate([stream.choice(np.flatnonzero(truth == k), per_class, replace=False) for k in classes])
    y = np.full(len(truth), -1)
    y[labeled] = truth[labeled]
    role, make = ESTIMATORS[name]
    table = x.shape[1] < 40
    model = make_pipeline(StandardScaler(), make(seed)) if role == "free" and table else make(seed)
    start = time.process_time()
    model = model.fit(x[labeled], y[labeled]) if name == "LogisticRegression" else model.fit(x, y)
    seconds = time.process_time() - start
    return 100 * float(model.score(new_x, new_y)), seconds


def million(path: Path) -> None:
    """Fits one pass over a million samples of 512 features, of which 1,000 are labeled."""
    n, d = 1_000_000, 512
    stream = np.random.default_rng(0)
    centers = stream.standard_normal((10, d), dtype=np.float32)
    truth = stream.integers(0, 10, n)
    if not path.exists():
        array = np.lib.format.open_memmap(path, "w+", np.float32, (n, d))
        for start in range(0, n, 10_000):
            part = truth[start : start + 10_000]
            array[start : start + 10_000] = centers[part] + 2 * stream.standard_normal((len(part), d), dtype=np.float32)
        del array
    x, y = np.load(path, mmap_mode="r"), np.where(np.arange(n) < 1000, truth, -1)
    before, start = anonymous_memory(), time.perf_counter()
    model = SuperCMClassifier(epochs=1, batch_size=512, random_state=0, verbose=True).fit(x, y)
    seconds = time.perf_counter() - start
    print(f"{model.n_steps_:,} steps, {seconds:.0f} s, memory +{anonymous_memory() - before:.0f} MiB")
    print(f"accuracy on 10,000 unlabeled samples: {model.score(x[-10_000:], truth[-10_000:]):.4f}")


def anonymous_memory() -> float:
    """Memory of the process in MiB that is not a file's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def main(
    data: Path = Path("data"),
    output: Path = Path("results/estimators.json"),
    seeds: int = 5,
    machine: str = platform.processor() or platform.machine(),
    million_file: Path | None = None,
) -> None:
    """Measures the table, or the million samples.

    Args:
        data: Folder of the data sets.
        output: The table.
        seeds: Number of splits.
        machine: Processor.
        million_file: File of a million samples, written if it is missing; measures these alone.
    """
    if million_file is not None:
        million(million_file)
        return
    rows = {name: Row(name, role, {}) for name, (role, _) in ESTIMATORS.items()}  # type: ignore[arg-type]
    for column, (per_class, load) in SETS.items():
        arrays = load(data)
        for name, row in rows.items():
            found = [measure(name, arrays, per_class, seed) for seed in range(seeds)]
            accuracy, seconds = ({str(s): round(one[k], 2) for s, one in enumerate(found)} for k in (0, 1))
            row.cells[column] = {"accuracy": Cell(accuracy), "seconds": Cell(seconds)}
            print(
                f"{column:30.30} {name:50.50} {row.cells[column]['accuracy']} %, {np.mean([*seconds.values()]):.1f} s",
                flush=True,
            )
    table = Table(
        name=output.stem,
        title="scikit-learn's estimators and ours on arrays",
        task="few labels",
        data="five sets of arrays",
        command=["python benchmarks/estimators.py --data DATA"],
        settings="Default options where none is named. A third of each set is the test. Free rows standardize tables, "
        "and read pixels and features of networks as they are. Seconds of the processor, of fit alone, one thread.",
        choice="Steps, noise and scaling of the classifier were chosen on digits, with other splits of it.",
        machine=machine,
        versions={"torch": torch.__version__, "supercm_lightning": __version__, "python": platform.python_version()},
        columns=[*SETS],
        metrics={"accuracy": "accuracy", "seconds": "seconds"},
        rows=[*rows.values()],
        summary=False,
    )
    output.write_text(json.dumps(asdict(table), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main)
