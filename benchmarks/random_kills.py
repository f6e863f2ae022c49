"""Kills five commands with SIGKILL at random moments; no file may be cut off, and each must end as if not killed.

    python benchmarks/random_kills.py --kills 40

A round starts in an empty folder, kills the command and its processes up to four times, runs it to its end and compares
the result with that of a run that nobody disturbed. Rounds go on until every command has been killed so often. The
numbers so far are in `--output`: the same command goes on with them. Commands start by fork from a process that has
imported the package, so that the moments fall into their work and not into imports.
"""

import argparse
import contextlib
import csv
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image

from benchmarks.kill_and_resume import ROOT, command, differences
from supercm_lightning.utils.files import write_atomically

ROUND = 4
"""Kills before the command is left to itself."""
CONFIG = {
    "model": {"class_path": "SuperCM", "init_args": {"backbone": "mlp"}},
    "data": {
        "class_path": "FeatureDataModule",
        "init_args": {"labeled": "a.npz", "num_labeled": 6, "num_val": 12, "num_test": 12, "steps_per_epoch": 5},
    },
    "trainer": {"max_epochs": 10, "accelerator": "cpu", "log_every_n_steps": 1, "enable_progress_bar": False},
}


def write_files(folder: Path) -> None:
    """What the commands read."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(size=(60, 4)) + 2 * np.eye(3, 4)[labels]
    np.savez(folder / "a.npz", features=features.astype("f4"), labels=labels)
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    grid = {"config": "{method}.yaml", "rows": {"SuperCM": {"method": "run"}}, "columns": {"a": {}}, "seeds": 2}
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(100):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                folder / f"photos/{name}/{number}.png"
            )


def fit(folder: Path, output: Path) -> list[str]:
    """A run of 80 steps with a teacher, resumed from its last checkpoint."""
    return ["cli", *command("ssl/digits/supercm_mean_teacher_cpu", output)[3:]]


def bench(folder: Path, output: Path) -> list[str]:
    """Two cells of one table, at once."""
    return ["tools.bench", "grid.yaml", f"--output={output}", "--jobs=2"]


def tune(folder: Path, output: Path) -> list[str]:
    """A grid of three values in a database."""
    options = ["--config=run.yaml", "--search=model.beta=choice(0,1,2)", "--sampler=grid", "--prune=false"]
    return ["tools.tune", *options, f"--storage=sqlite:///{output}.db", f"--output={output}"]


def features(folder: Path, output: Path) -> list[str]:
    """200 images in 25 chunks."""
    network = ("--backbone=small_cnn", "--pretrained=false", "--image_size=16", "--num_workers=0", "--batch_size=8")
    return ["tools.features", "--root=photos", *network, "--weak_views=1", f"--output={output}"]


def export(folder: Path, output: Path) -> list[str]:
    """A trained model as ONNX."""
    if not (found := sorted((folder / "trained").rglob("last.ckpt"))):
        run(["cli", *command("ssl/digits/supercm_cpu", folder / "trained")[3:]], folder)
        found = sorted((folder / "trained").rglob("last.ckpt"))
    return ["tools.export", f"--ckpt_path={found[0]}", f"--output={output / 'm.onnx'}"]


def same_fit(whole: Path, broken: Path) -> bool:
    """Tables, curves and the last checkpoint."""
    return not differences(whole, broken, resumes=ROUND)


def same_bench(whole: Path, broken: Path) -> bool:
    """The table of the cells."""
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (whole, broken))
    return bool(first["table"] == second["table"] and len(second["runs"]) == 2)


def same_tune(whole: Path, broken: Path) -> bool:
    """The value of every trial that is complete."""
    tables = (pd.read_csv(folder / "trials.csv").query("state == 'COMPLETE'") for folder in (whole, broken))
    one, other = (dict(zip(table["model.beta"], table["value"], strict=True)) for table in tables)
    return bool(one == other)


def same_features(whole: Path, broken: Path) -> bool:
    """Every array."""
    with np.load(whole / "train.npz") as one, np.load(broken / "train.npz") as other:
        return one.files == other.files and all(np.array_equal(one[name], other[name]) for name in one.files)


def same_export(whole: Path, broken: Path) -> bool:
    """The answers."""
    import onnxruntime

    x = np.random.default_rng(0).integers(0, 17, (5, 1, 8, 8))
    answers = []
    for folder in (whole, broken):
        session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
        kind = np.uint8 if "uint8" in session.get_inputs()[0].type else np.float32
        answers.append(session.run(["logits"], {"input": x.astype(kind)})[0])
    return np.array_equal(*answers)


class Case(NamedTuple):
    """A command, by the folder of its data and its output, and the comparison of two outputs."""

    arguments: Callable[[Path, Path], list[str]]
    same: Callable[[Path, Path], bool]


CASES = {
    "fit": Case(fit, same_fit), "features": Case(features, same_features), "export": Case(export, same_export),
    "bench": Case(bench, same_bench), "tune": Case(tune, same_tune),
}  # fmt: skip


def whole_yaml(file: Path) -> None:
    """A file that was cut off at the end of a line would pass; writers flush blocks, which end anywhere."""
    text = file.read_text()
    assert yaml.compose(text) is not None
    assert text.endswith("\n")


def whole_onnx(file: Path) -> None:
    """A graph with all that it refers to."""
    import onnx

    onnx.checker.check_model(onnx.load(file), full_check=True)


def assert_whole(folder: Path) -> None:
    """Reads every file that stands under its final name."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda file: json.loads(file.read_text()),
        ".yaml": whole_yaml,
        ".ckpt": lambda file: torch.load(file, weights_only=True)["state_dict"],
        ".png": lambda file: Image.open(file).load(),
        ".csv": lambda file: list(csv.reader(file.read_text().splitlines(keepends=True), strict=True)),
        ".npz": lambda file: {name: array.shape for name, array in np.load(file).items()},
        ".onnx": whole_onnx,
    }
    for file in folder.rglob("*"):
        unfinished = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix in readers and not unfinished:
            try:
                readers[file.suffix](file)
            except Exception as error:
                raise AssertionError(f"{file} is damaged: {file.read_bytes()[-200:]!r}") from error


def start(arguments: Sequence[str], folder: Path) -> Any:
    """Starts a command, given by the module of its `main` and its arguments, in a session of its own."""
    context = get_context("forkserver")
    tools = ("bench", "tune", "features", "export")
    context.set_forkserver_preload(["benchmarks.random_kills", *(f"supercm_lightning.tools.{name}" for name in tools)])
    process = context.Process(target=_main, args=(list(arguments), folder, dict(os.environ)))
    process.start()
    return process


def _main(arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment | {"PYTHONPATH": str(ROOT)})  # for the processes of bench
    with (folder / "last.log").open("w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        module, *rest = arguments
        sys.argv = [module, *rest]
        importlib.import_module(f"supercm_lightning.{module}").main(rest)


def run(arguments: Sequence[str], folder: Path) -> float:
    """Runs a command to its end and gives its seconds."""
    begin = time.monotonic()
    process = start(arguments, folder)
    process.join()
    if process.exitcode:
        raise RuntimeError(
            f"{' '.join(arguments)} ended with {process.exitcode}:\n{(folder / 'last.log').read_text()[-3000:]}"
        )
    return time.monotonic() - begin


def kill(arguments: Sequence[str], folder: Path, seconds: float) -> float | None:
    """Kills a command and its processes after so many seconds; gives its own seconds if it had ended by then."""
    begin = time.monotonic()
    process = start(arguments, folder)
    process.join(seconds)
    running = process.exitcode is None
    if running:
        process.kill()
        with contextlib.suppress(ProcessLookupError):  # no session yet
            os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return None if running else time.monotonic() - begin


def round_of(name: str, folder: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    """One round in a folder that holds the data: kills, seconds of an undisturbed run, and what was wrong."""
    case, whole, broken = CASES[name], folder / f"whole_{name}", folder / f"broken_{name}"
    clock = folder / f"{name}.seconds"
    if not clock.exists():
        arguments = case.arguments(folder, whole)  # may train a model first
        clock.write_text(str(run(arguments, folder)))
    seconds = float(clock.read_text())
    shutil.rmtree(broken, ignore_errors=True)
    Path(f"{broken}.db").unlink(missing_ok=True)
    arguments, killed = case.arguments(folder, broken), 0
    wrong: list[str] = []
    for _ in range(kills):
        if (ended := kill(arguments, folder, chance.uniform(0, seconds))) is not None:
            seconds = seconds if killed else ended
            clock.write_text(str(seconds))
            break  # started again, it would only test once more
        killed += 1
        try:
            assert_whole(broken)
        except AssertionError as error:
            wrong.append(str(error))
    try:
        run(arguments, folder)
        assert_whole(broken)
        if not case.same(whole, broken):
            wrong.append("the result differs from that of an undisturbed run")
    except (AssertionError, RuntimeError) as error:
        wrong.append(str(error))
    return {"kills": killed, "rounds": 1, "seconds": round(seconds, 1), "wrong": wrong}


def main() -> None:
    """Goes on until every command was killed so often, and prints what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="of each command")
    parser.add_argument("--commands", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "random_kills"))
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "reliability" / "random_kills.json")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if not (folder / "grid.yaml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_files(folder)
    counts = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    while open_ones := [n for n in arguments.commands if counts.get(n, {"kills": 0})["kills"] < arguments.kills]:
        name = min(open_ones, key=lambda n: counts.get(n, {"kills": 0})["kills"])
        before = counts.get(name, {"kills": 0, "rounds": 0, "wrong": []})
        left = min(ROUND, arguments.kills - before["kills"])
        found = round_of(name, folder, left, random.Random(f"{name} {before['rounds']} {before['kills']}"))
        summed = {part: before[part] + found[part] for part in ("kills", "rounds", "wrong")}
        counts[name] = summed | {"seconds": found["seconds"]}
        write_atomically(arguments.output, json.dumps(counts, indent=2, sort_keys=True) + "\n")
        print(name, counts[name], flush=True)
    sys.exit(any(count["wrong"] for count in counts.values()))


if __name__ == "__main__":
    main()
