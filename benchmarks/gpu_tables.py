"""Runs the papers' tables on a GPU, some minutes at a time: every call goes on where the last one ended.

    python benchmarks/gpu_tables.py --root DATA --output runs/gpu --minutes 10

Tables come in the order of `TABLES`; several cells share a GPU, whose host is the limit at a hundred samples a step.
After `--minutes` the runs save their state and end. `supercm-bench report OUTPUT/NAME` writes what is finished.
"""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs/bench"
# Name, grid, and what of it: 600 labels for 50,000 steps, the strong methods with few labels, clustering as published.
TABLES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "cifar10_600",
        "ssl_cifar10.yaml",
        (
            *(f"--only={row}" for row in ("supervised", "supervised, labeled samples alone", "SuperCM")),
            *(f"--only={plus}{row}" for row in ("VAT", "Mean Teacher", "Pseudo-Label") for plus in ("", "SuperCM + ")),
            *("--columns=600", "--seeds=3", "--", "--trainer.max_epochs=50"),
        ),
    ),
    (
        "cifar10_strong",
        "ssl_cifar10.yaml",
        (
            *(f"--only={plus}{row}" for row in ("FixMatch", "FreeMatch") for plus in ("", "SuperCM + ")),
            *("--columns=250", "--seeds=3", "--", "--trainer.max_epochs=50"),
        ),
    ),
    ("clustering", "clustering_cifar10.yaml", ("--seeds=3",)),
)


def main(arguments: list[str] | None = None) -> int:
    """Runs what is not finished; returns 1 if a table failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the data")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of the runs, a folder a table")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which all runs save their state and end")
    parser.add_argument("--jobs", type=int, default=4, help="cells at a time")
    given = parser.parse_args(arguments)
    end, failed = time.monotonic() + 60 * given.minutes, 0
    for name, grid, options in TABLES:
        places = [f"--root={given.root}", f"--output={given.output / name}", f"--jobs={given.jobs}"]
        run = subprocess.Popen([Path(sys.executable).with_name("supercm-bench"), CONFIGS / grid, *places, *options])
        try:
            failed |= run.wait(timeout=max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGTERM)  # the cells write their last checkpoint, from which they go on
            run.wait()
            print(f"{name}: not finished; the same command goes on.", flush=True)
            break
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
