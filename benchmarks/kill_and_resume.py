"""Kills runs of the documented command with SIGKILL at random steps, resumes them, and compares bit by bit.

    python benchmarks/kill_and_resume.py --kills 3

Every method trains once without interruption and once through kills: each resumed run is killed again until its kills
are used up. The steps depend on method and seed alone, so that methods can be tried one at a time. The last
checkpoint's model, averages, optimizer and callbacks must be equal. The CSV table and TensorBoard's curves may lack
the last step before a checkpoint from which the run was resumed, and nothing else.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
METHODS = (
    *("ssl/digits/supervised_cpu", "ssl/digits/supercm_cpu", "ssl/digits/supercm_vat_cpu"),
    *("ssl/digits/supercm_mean_teacher_cpu", "ssl/digits/supercm_freematch_cpu"),
    *("uda/digits/supercm_dann", "clustering/digits/asd_freematch_cpu"),
)
"""Configs under `configs/`; MNIST and USPS are read from the folder in the environment variable SUPERCM_DATA."""

EPOCHS, STEPS = 4, 20
# Checkpoints within epochs and at their ends, validation within epochs too, every step in the logs.
OPTIONS = (
    *("--trainer.max_epochs", str(EPOCHS), "--data.steps_per_epoch", str(STEPS), "--trainer.val_check_interval", "10"),
    *("--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.callbacks", "null"),
    *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_last", "true"),
)
# The last step has a checkpoint, whether the run was interrupted or not.
EVERY = ("--trainer.callbacks.every_n_train_steps", "8")


def command(method: str, folder: Path, options: Sequence[str] = EVERY) -> list[str]:
    """The command that starts a run in `folder`, and resumes it."""
    start = [sys.executable, "-m", "supercm_lightning", "fit", "--config", str(ROOT / "configs" / f"{method}.yaml")]
    data = ["--data.root", os.environ["SUPERCM_DATA"]] if method.startswith("uda/") else []
    where = ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(folder)]
    return [*start, *OPTIONS, *options, *data, *where, "--ckpt_path", "last"]


def run(arguments: list[str]) -> None:
    """Runs a command to its end."""
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")


def run_and_kill(arguments: list[str], folder: Path, step: int, delay: float = 0.0) -> int:
    """Runs a command and kills it `delay` seconds after it has logged `step`; gives the last step logged."""
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            while last_step(folder) < step:
                if process.poll() is not None:
                    raise RuntimeError(f"ended before step {step}: {process.stderr.read()[-3000:]}")  # type: ignore[union-attr]
                time.sleep(0.001)
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
    return last_step(folder)


def last_step(folder: Path) -> int:
    """The last step that a run's table holds, -1 for none."""
    for table in folder.glob("lightning_logs/*/metrics.csv"):
        try:
            lines = table.read_text().splitlines()
        except FileNotFoundError:  # a run that starts over has just deleted it
            continue
        if len(lines) > 1 and (step := lines[-1].split(",")[lines[0].split(",").index("step") :][:1]) and step[0]:
            return int(step[0])
    return -1


def differences(whole: Path, resumed: Path, resumes: int = 3) -> list[str]:
    """What differs between the logs and last checkpoints of two runs, by name.

    Args:
        whole: Folder of an uninterrupted run.
        resumed: Folder of the same run, interrupted and resumed.
        resumes: How often it was resumed; each time the logs may lack one step.
    """
    (first,), (second,) = (list(folder.glob("lightning_logs/*")) for folder in (whole, resumed))
    found = []
    for name, log in (("metrics.csv", table), ("TensorBoard", curves)):
        expected, present = log(first), log(second)
        missing = {step for step, *_ in Counter(expected) - Counter(present)}
        # Event files cannot be shortened: a run that was killed in its test has two results of it there.
        again = {row for row in expected if row[0] == -1} if log is curves else set()
        if set(Counter(present) - Counter(expected)) - again or len(missing) > resumes:
            found.append(name)
    loaded = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (first, second)]
    return found + unequal(*(named(state(checkpoint)) for checkpoint in loaded))


def table(run: Path) -> list[tuple[int, str, str]]:
    """Step, name and value of everything in the CSV log."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        (_step(row["step"], name), name, value) for row in rows for name, value in row.items() if _counts(name, value)
    ]


def curves(run: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of every point of TensorBoard's curves."""
    events = EventAccumulator(str(run), {"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if _counts(name)]
    return [(_step(event.step, name), name, event.value) for name in names for event in events.Scalars(name)]


def _counts(name: str, value: object = True) -> bool:
    return bool(value) and name not in ("step", "epoch")


def _step(step: int | str, name: str) -> int:
    """The step of a logged value; a run that is resumed after its last step logs its test one step earlier."""
    return -1 if name.startswith("test/") else int(step)


def state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of the model, its averages, the optimiser and the callbacks, file names left out."""
    callbacks = {name: value for name, value in checkpoint["callbacks"].items() if "ModelCheckpoint" not in name}
    bookkeeping = ("callbacks", "loops", "epoch", "run")
    return {name: value for name, value in checkpoint.items() if name not in bookkeeping} | {"callbacks": callbacks}


def named(tree: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries and lists by their path."""
    if isinstance(tree, dict | list | tuple):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {path: leaf for key, part in pairs for path, leaf in named(part, f"{name}/{key}").items()}
    return {name: tree}


def unequal(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names under which two dictionaries differ."""

    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    return [name for name in sorted(one.keys() | other.keys()) if not equal(one.get(name), other.get(name))]


def main() -> None:
    """Prints a table: one line per kill, one per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, help="of each method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--folder", type=Path, default=Path("kill_and_resume"))
    arguments = parser.parse_args()
    failed = 0
    print("| method | killed after steps (checkpoint before) | differing |\n|---|---|---|")
    for method in arguments.methods:
        chance = random.Random(f"{method} {arguments.seed}")
        whole, broken = (arguments.folder.resolve() / method / name for name in ("whole", "broken"))
        run(command(method, whole))
        kills = []
        for step in sorted(chance.randrange(EPOCHS * STEPS - 1) for _ in range(arguments.kills)):
            at = run_and_kill(command(method, broken), broken, step, delay=chance.uniform(0, 0.02))
            kills.append(f"{at + 1} ({'yes' if list(broken.rglob('*.ckpt')) else 'no'})")
        run(command(method, broken))
        found = differences(whole, broken)
        failed += bool(found)
        print(f"| {method} | {', '.join(kills)} | {', '.join(found) or 'nothing'} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
