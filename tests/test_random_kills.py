"""Commands killed with SIGKILL at random moments leave no half of a file, and end as if they had not been killed.

The environment variable SUPERCM_KILLS is the number of kills of each command, SUPERCM_KILL_SEED draws other moments.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from benchmarks.kill_and_resume import ROOT, command, differences

KILLS = int(os.environ.get("SUPERCM_KILLS", "2"))
SEED = os.environ.get("SUPERCM_KILL_SEED", "0")
CONFIG = {
    "model": {"class_path": "SuperCM", "init_args": {"backbone": "mlp"}},
    "data": {
        "class_path": "FeatureDataModule",
        "init_args": {"labeled": "a.npz", "num_labeled": 6, "num_val": 12, "num_test": 12, "steps_per_epoch": 5},
    },
    "trainer": {"max_epochs": 10, "accelerator": "cpu", "log_every_n_steps": 1, "enable_progress_bar": False},
}


@pytest.fixture(autouse=True)
def _files() -> None:
    labels = np.arange(60) % 3
    features = np.random.default_rng(0).normal(size=(60, 4)) + 2 * np.eye(3, 4)[labels]
    np.savez("a.npz", features=features.astype("f4"), labels=labels)
    Path("run.yaml").write_text(yaml.safe_dump(CONFIG))
    grid = {"config": "{method}.yaml", "rows": {"SuperCM": {"method": "run"}}, "columns": {"a": {}}, "seeds": 2}
    Path("grid.yaml").write_text(yaml.safe_dump(grid))


def whole_yaml(file: Path) -> None:
    """A file that was cut off at the end of a line would pass; writers flush blocks, which end anywhere."""
    text = file.read_text()
    assert yaml.compose(text) is not None
    assert text.endswith("\n")


def assert_whole(folder: Path) -> None:
    """Reads every file that stands under its final name."""
    readers = {
        ".json": lambda file: json.loads(file.read_text()),
        ".yaml": whole_yaml,
        ".ckpt": lambda file: torch.load(file, weights_only=True)["state_dict"],
        ".png": lambda file: Image.open(file).load(),
        ".csv": lambda file: list(csv.reader(file.read_text().splitlines(keepends=True), strict=True)),
    }  # fmt: skip
    for file in folder.rglob("*"):
        if file.suffix in readers and not file.name.startswith("."):
            try:
                readers[file.suffix](file)
            except Exception as error:
                raise AssertionError(f"{file} is damaged: {file.read_bytes()[-200:]!r}") from error


def run(arguments: Sequence[str], cwd: Path) -> float:
    """Runs a command to its end and gives its seconds."""
    start = time.monotonic()
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return time.monotonic() - start


def run_through_kills(arguments: Sequence[str], cwd: Path, output: Path, seconds: float) -> None:
    """Kills a command and its processes at random moments of so many seconds, then runs it to its end."""
    chance = random.Random(f"{output.name} {SEED}")
    for _ in range(KILLS):
        with subprocess.Popen(
            arguments, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            try:
                process.wait(chance.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        assert_whole(output)
    run(arguments, cwd)
    assert_whole(output)


def tool(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", f"from supercm_lightning.tools.{name} import main; main()", *arguments]


@pytest.mark.slow
def test_fit() -> None:
    whole, broken = Path("whole").resolve(), Path("broken").resolve()
    seconds = run(command("ssl/digits/supercm_mean_teacher_cpu", whole), ROOT)
    run_through_kills(command("ssl/digits/supercm_mean_teacher_cpu", broken), ROOT, broken, seconds)
    assert not differences(whole, broken, resumes=KILLS)


@pytest.mark.slow
def test_bench() -> None:
    seconds = run(tool("bench", "grid.yaml", "--output=whole", "--jobs=2"), Path.cwd())
    run_through_kills(
        tool("bench", "grid.yaml", "--output=killed_bench", "--jobs=2"), Path.cwd(), Path("killed_bench"), seconds
    )
    first, second = (json.loads(Path(name, "results.json").read_text()) for name in ("whole", "killed_bench"))
    assert first["table"] == second["table"]
    assert len(second["runs"]) == 2


@pytest.mark.slow
def test_tune() -> None:
    options = ["--config=run.yaml", "--search=model.beta=choice(0,1,2)", "--sampler=grid", "--prune=false"]
    seconds = run(tool("tune", *options, "--storage=whole.journal", "--output=whole"), Path.cwd())
    again = tool("tune", *options, "--storage=sqlite:///killed.db", "--output=killed_tune")
    run_through_kills(again, Path.cwd(), Path("killed_tune"), seconds)
    first, second = (
        pd.read_csv(f"{name}/trials.csv").query("state == 'COMPLETE'") for name in ("whole", "killed_tune")
    )
    values = [dict(zip(table["model.beta"], table["value"], strict=True)) for table in (first, second)]
    assert values[0] == values[1]
