"""The benchmark: grids, processes, statistics and tables."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from supercm_lightning.cli import run
from supercm_lightning.tools.bench import Cell, Grid, jobs, main
from supercm_lightning.tools.bench.tables import Results, paired

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "configs" / "bench").rglob("*.yaml"))

CONFIG = {
    "model": {"class_path": "SuperCM", "init_args": {"backbone": "mlp"}},
    "data": {"class_path": "FeatureDataModule", "init_args": {"labeled": "a.npz", "num_labeled": 6, "num_test": 12}},
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
}
GRID: dict[str, Any] = {
    "config": "{method}.yaml",
    "options": {"data.steps_per_epoch": 2},
    "rows": {
        "quick": {"method": "supercm"},
        "long": {"method": "supercm", "over": "quick", "options": {"trainer.max_epochs": 300}},
        "broken": {"method": "supercm", "options": {"model.lr": 1e30}},
    },
    "columns": {"features": {}},
    "seeds": 1,
    "vary": ["seed_everything", "data.split_seed"],
}


def write_grid(**changes: Any) -> Path:
    Path("grid.yaml").write_text(yaml.safe_dump(GRID | changes, sort_keys=False))
    return Path("grid.yaml")


@pytest.fixture(autouse=True)
def _files() -> None:
    labels = np.arange(60) % 3
    features = np.random.default_rng(0).normal(size=(60, 4)) + 2 * np.eye(3, 4)[labels]
    np.savez("a.npz", features=features.astype("f4"), labels=labels)
    Path("supercm.yaml").write_text(yaml.safe_dump(CONFIG))
    write_grid()


def finish(cell: Cell, **metrics: float) -> None:
    """Writes what a finished run would."""
    folder = cell.folder / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    summary = {"metrics": metrics, "fit_seconds": 1.5, "device": "cpu", "versions": {"torch": "2.6.0"}}
    (folder / "summary.json").write_text(json.dumps(summary))


def finished(values: dict[tuple[str, str], list[float]], **changes: Any) -> Results:
    """Results of a grid with these accuracies by row and column."""
    grid = Grid.read(write_grid(seeds=max(map(len, values.values())), **changes))
    cells = list(grid.cells(Path("out")))
    for cell in cells:
        known = values.get((cell.row, cell.column), [])
        if cell.seed < len(known):
            finish(cell, **{"test/acc": known[cell.seed], "test/pad": 1.0})
    return Results(grid, cells)


# ------------------------------------------------------------------------------------------------------- running
@pytest.mark.slow
def test_killed_table_goes_on_where_it_was_and_a_failed_cell_holds_up_no_other(
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = ["grid.yaml", "--jobs", "3", "--output", "out"]

    def kill_when_under_way() -> None:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            said = {path.parts[1]: path.read_text() for path in Path("out").rglob("summary.json")}
            if "test/acc" in said.get("quick", "") and "broken" in said and [*Path("out", "long").rglob("*.ckpt")]:
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=kill_when_under_way)
    killer.start()
    with pytest.raises(SystemExit, match="130"):
        main(arguments)
    killer.join()
    (stopped,) = Path("out", "long").rglob("summary.json")
    assert json.loads(stopped.read_text())["status"] == "interrupted"
    assert "test/acc" not in json.loads(stopped.read_text())["metrics"]
    (quick,) = Path("out", "quick").rglob("summary.json")
    before = quick.stat().st_mtime_ns

    with pytest.raises(SystemExit, match="1"):
        main(arguments)
    out, err = capfd.readouterr()
    assert "Failed: broken | features | seed 0" in err
    assert "Lower lr" in err
    assert "2 of 3 cells" in out
    assert quick.stat().st_mtime_ns == before
    logs = "".join(file.read_text() for file in Path("out", "long").rglob("*_log.out"))
    assert "Going on with the run" in logs
    (done,) = Path("out", "long").rglob("summary.json")
    assert json.loads(done.read_text())["steps"] == 600
    runs = {run["row"]: run for run in json.loads(Path("out/results.json").read_text())["runs"]}
    assert set(runs) == {"quick", "long"}
    assert runs["long"]["test/acc"] == json.loads(done.read_text())["metrics"]["test/acc"]
    assert runs["quick"]["seconds"] > 0
    assert runs["long"]["seconds"] is None  # of its last part alone, if anything


@pytest.mark.slow
def test_a_preempted_job_is_started_again_by_submitit_and_ends_as_if_it_had_not_been(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums over threads round differently
    write_grid(rows={"long": {"method": "supercm", "options": {"trainer.max_epochs": 150}}})
    cells = list(Grid.read(Path("grid.yaml")).cells(Path("out")))

    def preempt() -> None:
        while not [*Path("out").rglob("*.ckpt")]:
            time.sleep(0.05)
        (owner,) = Path("out").rglob("attempt_0/*_*")
        os.kill(int(owner.name.rpartition("_")[2]), signal.SIGUSR2)

    thread = threading.Thread(target=preempt)
    thread.start()
    assert jobs.run_here(cells) == {}
    thread.join()
    assert [*Path("out").rglob("attempt_1")]
    whole = run([*cells[0].arguments, "--trainer.default_root_dir=whole", "--trainer.enable_progress_bar=false"])
    summary = cells[0].summary()
    assert summary is not None
    assert summary["steps"] == whole.trainer.global_step
    assert summary["metrics"]["test/loss"] == float(whole.trainer.callback_metrics["test/loss"])


@pytest.mark.slow
def test_two_commands_at_once_run_every_cell_once(capfd: pytest.CaptureFixture[str]) -> None:
    write_grid(rows={"quick": GRID["rows"]["quick"]}, seeds=2)
    command = [sys.executable, "-c", "from supercm_lightning.tools.bench import main; main()", "grid.yaml"]
    both = [subprocess.Popen([*command, "--output", "out", "--jobs", "2"]) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert len([*Path("out").rglob("config.yaml")]) == 2
    main(["grid.yaml", "--output", "out"])
    assert "2 of 2 cells" in capfd.readouterr().out.splitlines()[-1]


def test_a_folder_is_worked_in_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("cell")
    with jobs.attempt(folder) as first:
        assert first
        assert jobs.is_running(folder)
        with jobs.attempt(folder) as second:
            assert not second
        (mark,) = Path("cell/attempt_0").iterdir()
        os.utime(mark, (0, 0))  # silent for too long
        with jobs.attempt(folder) as third:
            assert third
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    Path("cell/attempt_2").mkdir()
    dead = Path("cell/attempt_2", f"{mark.name.rpartition('_')[0]}_{gone.pid}")
    dead.touch()
    assert not jobs.is_running(folder)
    dead.rename(dead.with_name(f"elsewhere_{gone.pid}"))
    assert jobs.is_running(folder)  # of a process of another machine, only its silence tells
    dead.with_name(f"elsewhere_{gone.pid}").unlink()
    assert jobs.is_running(folder)  # between the folder and its mark
    os.utime("cell/attempt_2", (0, 0))
    assert not jobs.is_running(folder)


def claim(number: int) -> bool:
    with jobs.attempt(Path("cell")) as own:
        time.sleep(0.2)
    return own


def test_of_many_that_want_one_folder_one_has_it() -> None:
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(claim, range(16))) == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"metrics": null}', '{"metrics": {"test/acc": 0.5}}', "\x00\xff"])
def test_a_cell_with_a_damaged_summary_runs_again(damage: str) -> None:
    cell = next(Grid.read(Path("grid.yaml")).cells(Path("out")))
    finish(cell, **{"test/acc": 0.5})
    assert cell.summary() is not None
    (file,) = cell.folder.rglob("summary.json")
    file.write_bytes(damage.encode("latin-1"))
    assert cell.summary() is None


def test_a_cell_is_the_command_line_that_its_row_says() -> None:
    (cell,) = (
        cell for cell in Grid.read(Path("grid.yaml")).cells(Path("out"), more=["--model.beta=2"]) if cell.row == "long"
    )
    assert cell.arguments == (
        "fit", "--config=supercm.yaml", "--data.steps_per_epoch=2", "--trainer.max_epochs=300", "--seed_everything=0",
        "--data.split_seed=0", "--model.beta=2",
    )  # fmt: skip
    cli = run([argument.replace("=300", "=1") for argument in cell.command[1:]])
    assert cli.model.hparams.beta == 2
    summary = cell.summary()
    assert summary is not None
    assert summary["metrics"]["test/acc"] == float(cli.trainer.callback_metrics["test/acc"])
    assert replace(cell, metric="test/nmi").summary() is None


def test_no_name_leaves_the_folder_or_breaks_the_table() -> None:
    names = ("..", "a | b", "/etc", "x\ny", "Π")
    rows = {name: {"method": "supercm", "options": {"model.beta": number}} for number, name in enumerate(names)}
    grid = Grid.read(write_grid(rows=rows))
    cells = list(grid.cells(Path("out")))
    for cell in cells:
        assert len(cell.folder.parts) == 5
        assert ".." not in cell.folder.parts
        finish(cell, **{"test/acc": 0.5})
    results = Results(grid, cells)
    table = [line for line in results.markdown().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(names)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_a_changed_command_has_another_folder_and_the_place_of_the_data_has_none() -> None:
    def folder(root: str = "data", more: tuple[str, ...] = (), **changes: Any) -> Path:
        return next(Grid.read(write_grid(**changes)).cells(Path("out"), Path(root), more)).folder

    options = {"data.steps_per_epoch": 2, "data.root": "{root}/x"}
    first = folder(options=options)
    assert folder("elsewhere", options=options) == first
    assert folder(options=options, title="another", metrics={"test/nmi": 1.0}) == first
    assert folder(options=options | {"model.beta": 3}) != first
    assert folder(options=options, more=("--model.beta=3",)) != first
    Path("supercm.yaml").write_text("# a remark\n" + Path("supercm.yaml").read_text())
    assert folder(options=options) == first
    Path("supercm.yaml").write_text(Path("supercm.yaml").read_text().replace("max_epochs: 2", "max_epochs: 3"))
    assert folder(options=options) != first
    Path("data.yaml").write_text(yaml.safe_dump(CONFIG["data"]))
    Path("supercm.yaml").write_text(yaml.safe_dump(CONFIG | {"data": "data.yaml"}))
    by_reference = folder(options=options)
    Path("data.yaml").write_text(Path("data.yaml").read_text().replace("num_labeled: 6", "num_labeled: 9"))
    assert folder(options=options) != by_reference


def test_a_file_that_a_config_or_a_table_names_counts_as_its_content() -> None:
    def cells() -> list[Cell]:
        return list(Grid.read(Path("grid.yaml")).cells(Path("out")))

    before = cells()
    Path("parts").mkdir()
    Path("parts/trainer.yaml").write_text(yaml.safe_dump(CONFIG["trainer"]))
    Path("parts/rows.yaml").write_text(yaml.safe_dump(GRID["rows"], sort_keys=False))
    Path("supercm.yaml").write_text(yaml.safe_dump(CONFIG | {"trainer": "parts/trainer.yaml"}))
    write_grid(rows="parts/rows.yaml")
    assert cells() == before
    Path("parts/trainer.yaml").write_text(yaml.safe_dump(CONFIG["trainer"] | {"max_epochs": 3}))
    assert not {cell.folder for cell in cells()} & {cell.folder for cell in before}


def test_a_cell_that_another_process_runs_is_left_to_it() -> None:
    cell = next(Grid.read(Path("grid.yaml")).cells(Path("out")))
    with jobs.attempt(cell.folder):
        jobs.CellJob(cell)()
    assert not list(cell.folder.rglob("config.yaml"))


def test_runs_share_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,MIG-5")
    assert jobs.devices() == ["2", "MIG-5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert jobs.devices() == []
    cell = next(Grid.read(Path("grid.yaml")).cells(Path("out")))
    finish(cell, **{"test/acc": 0.5})
    jobs.CellJob(cell, "MIG-5")()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-5"


@pytest.mark.slow
def test_a_slurm_array_runs_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = list(Grid.read(write_grid(columns={"a b": {}})).cells(Path("out")))
    finish(cells[0], **{"test/acc": 0.5})
    Path("bin").mkdir()
    states = 'printf "JobID|State|NodeList\\n77_0|COMPLETED|\\n77_1|PENDING|\\n"'
    commands = {"srun": "", "sbatch": 'cp "$1" array.sh; echo Submitted batch job 77', "sacct": states}
    for name, body in commands.items():
        Path("bin", name).write_text(f"#!/bin/bash\n{body}\n")
        Path("bin", name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').resolve()}:{os.environ['PATH']}")
    arguments = ["grid.yaml", "--output", "out", "--jobs", "4"]
    main([*arguments, "--slurm", "{slurm_partition: short}"])
    assert "2 of 2 unfinished cells submitted" in capsys.readouterr().out
    script = set(Path("array.sh").read_text().splitlines())
    assert {"#SBATCH --array=0-1%2", "#SBATCH --signal=USR2@90", "#SBATCH --partition=short"} <= script
    (start,) = (line.split(" ", 1)[1] for line in script if line.startswith("srun"))
    start = start[start.index(sys.executable) :]
    job = {"SLURM_JOB_ID": "78", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "0", "SUBMITIT_EXECUTOR": "slurm"}
    Path("a.npz").unlink()
    done = subprocess.run(start, shell=True, env={**os.environ, **job}, capture_output=True, text=True)
    assert "a.npz" in done.stdout + done.stderr  # which is what the first unfinished cell runs on
    main([*arguments, "--slurm", "{slurm_partition: short}"])
    assert "1 of 2 unfinished cells submitted" in capsys.readouterr().out  # the other one is in the queue
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--slurm", "{slurm_portion: short}"])
    assert "slurm_portion" in capsys.readouterr().err


def test_dry_run_prints_the_missing_commands(capsys: pytest.CaptureFixture[str]) -> None:
    finish(next(Grid.read(Path("grid.yaml")).cells(Path("out"))), **{"test/acc": 0.5})
    main(["grid.yaml", "--output", "out", "--dry_run", "true", "--only", "quick", "--only", "long"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("supercm fit --config=supercm.yaml --data.steps_per_epoch=2 --trainer.max_epochs=300")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"rows": {"a": {"method": "supercm", "over": "b"}}}, [], "'a' is over b"),
        ({"rows": {"a": {"method": "baseline: kmeans"}}}, [], "from another row"),
        ({"rows": {"a": {"methd": "supercm"}}}, [], "methd"),
        ({"config": "{name}.yaml"}, [], "only {method} and {data}"),
        ({"config": "{method}.yml"}, [], "config=supercm.yml: no such file"),
        ({}, ["--only", "fast"], "has no fast; there are quick, long, broken"),
        ({}, ["--columns", "pixels"], "has no pixels; there are features"),
        ({}, ["--seeds", "0"], "seeds=0"),
    ],
)
def test_wrong_grids_are_named(
    changes: dict[str, Any], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_grid(**changes)
    with pytest.raises(SystemExit, match="2"):
        main(["grid.yaml", *options])
    assert re.search(f"^error: (?s:.*){re.escape(message)}", capsys.readouterr().err)


# ---------------------------------------------------------------------------------------------------- statistics
def test_paired_differences_by_hand() -> None:
    gain = paired(pd.Series({0: 11.0, 1: 13.0, 2: 12.0, 7: 99.0}), pd.Series({2: 9.0, 0: 10.0, 1: 11.0, 5: 0.0}))
    # Differences 1, 2, 3: t = 2 √3, and with two degrees of freedom p = 1 - t / √(t² + 2).
    t = 2 * math.sqrt(3)
    # For the same reason t = √2 p' / √(1 - p'²) where p' = 0.95 of the mass lie within ± t.
    quantile = 0.95 * math.sqrt(2) / math.sqrt(1 - 0.95**2) / math.sqrt(3)
    expected = {"mean": 2, "std": 1, "low": 2 - quantile, "high": 2 + quantile, "p": 1 - t / math.sqrt(t**2 + 2)}
    assert gain == pytest.approx(expected)


def test_differences_without_a_test() -> None:
    one = paired(pd.Series({0: 3.0}), pd.Series({0: 1.0}))
    assert one.pop("mean") == 2
    assert all(map(math.isnan, one.values()))
    same = paired(pd.Series({0: 3.0, 1: 4.0}), pd.Series({0: 2.0, 1: 3.0}))
    assert (same["mean"], same["std"]) == (1, 0)
    assert math.isnan(same["p"])
    assert math.isnan(paired(pd.Series({0: 1.0}), pd.Series({1: 1.0}))["mean"])


def test_a_gain_is_over_the_better_partner_and_over_the_best_free_row() -> None:
    rows = {
        "plain": {"method": "supercm"},
        "joint": {"method": "supercm", "options": {"model.beta": 0}},
        "new": {"method": "supercm", "over": ["plain", "joint"], "options": {"model.beta": 2}},
        "spreading": {"method": "baseline: label_spreading"},
        "neighbor": {"method": "baseline: nearest_neighbor"},
    }
    accuracies = {
        "plain": [0.5, 0.6],
        "joint": [0.6, 0.7],
        "new": [0.8, 0.8],
        "spreading": [0.7, 0.9],
        "neighbor": [0.1],
    }
    results = finished({(row, "features"): values for row, values in accuracies.items()}, rows=rows)
    table = {entry["row"]: entry for entry in results.table}
    assert table["new"]["gain"]["over"] == "joint"
    assert table["new"]["gain"]["mean"] == pytest.approx(15)
    assert {row: entry["free"] and entry["free"]["over"] for row, entry in table.items()} == {
        **dict.fromkeys(("plain", "joint", "new", "neighbor"), "spreading"), "spreading": None
    }  # fmt: skip
    assert table["new"]["free"]["mean"] == pytest.approx(0)
    assert cells_of(results.markdown(), "new")[-1].startswith("+0.0 ± 14.1, p 1.000")
    results.write(Path("out"))
    assert json.loads(Path("out/results.json").read_text())["table"][2]["values"] == pytest.approx({"0": 80, "1": 80})


def test_a_free_method_runs_on_the_data_of_the_first_row() -> None:
    rows = {"free": {"method": "baseline: label_spreading"}, **GRID["rows"]}
    free, quick, *_ = Grid.read(write_grid(rows=rows, seeds=2)).cells(Path("out"))
    assert free.folder.parts[1:4] == ("free", "features", "seed0")
    assert "--trainer.max_epochs" not in "".join(free.arguments)
    jobs.run_cell(replace(free, arguments=(*free.arguments, "--data.num_labeled=9")))
    (run,) = json.loads((free.folder / "baselines.json").read_text())["runs"]
    assert (run["seed"], run["data"]["labeled"], run["data"]["num_labeled"]) == (0, "a.npz", 9)
    (row,) = run["rows"]
    assert row["method"] == "label_spreading"
    summary = free.summary()
    assert summary is not None
    assert summary["metrics"]["test/acc"] == row["test/acc"]
    assert quick.summary() is None


def cells_of(table: str, row: str) -> list[str]:
    """Cells of the last line of a Markdown table that begins with this name."""
    line = [line for line in table.splitlines() if line.startswith(f"| {row} |")][-1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tasks_are_averaged_seed_by_seed() -> None:
    values = {
        ("quick", "a"): [0.5, 0.7, 0.6],
        ("quick", "b"): [0.7, 0.9, 0.8],
        ("long", "a"): [0.6, 0.8, 0.9],
        ("long", "b"): [0.8, 1.0],  # the third seed is not finished
    }
    columns = {"a": {}, "b": {}}
    results = finished(values, columns=columns, average=True, metrics={"test/acc": 100.0, "test/pad": 1.0})
    assert results.series("quick", None).to_dict() == pytest.approx({0: 60, 1: 80, 2: 70})
    assert results.series("long", None).to_dict() == pytest.approx({0: 70, 1: 90})
    table = results.markdown()
    assert cells_of(table, "long") == ["long", "80.0 ± 14.1", "70.0, 90.0", "+10.0 ± 0.0", "", "", "quick", "1.0 ± 0.0"]
    assert "| long | 76.7 ± 15.3 | 90.0 ± 14.1 |" in table
    assert "broken" not in table
    assert "11 of 18 runs, on cpu, torch 2.6.0" in table


def test_label_counts_are_compared_one_by_one() -> None:
    values = {(row, n): [0.5 + k, 0.6 + k] for k, row in ((0, "quick"), (0.1, "long")) for n in ("9", "100")}
    values["long", "100"] = [0.7, 0.9]
    results = finished(values, columns={"9": {}, "100": {}})
    gain = next(entry["gain"] for entry in results.table if (entry["row"], entry["column"]) == ("long", "100"))
    assert (gain["mean"], gain["std"]) == pytest.approx((25, math.sqrt(50)))
    assert cells_of(results.markdown().split("## 100 labels")[1], "long")[3] == "+25.0 ± 7.1"


# -------------------------------------------------------------------------------------------------------- tables
@pytest.mark.parametrize("file", TABLES, ids=lambda file: str(file.relative_to(ROOT / "configs" / "bench")))
def test_a_table_says_how_to_run_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert f"#   supercm-bench {file.relative_to(ROOT)}" in file.read_text()
    grid = Grid.read(file)
    cells = list(grid.cells(Path("out")))  # whose configurations exist
    assert (
        len({(cell.arguments, cell.baseline) for cell in cells})
        == len(cells)
        == len(grid.rows) * len(grid.columns) * grid.seeds
    )
    trained = [row for row in grid.rows.values() if not row.baseline]
    assert all(row.over is not None for row in trained[1:])


@pytest.mark.slow
def test_the_command_line_takes_the_options_of_every_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    kinds: dict[Any, Cell] = {}
    for file in TABLES:
        for cell in (cell for cell in Grid.read(file).cells(Path("out")) if not cell.baseline):
            # One of those that differ in method, task or seed alone: test_configs.py trains every configuration.
            config = Path(cell.arguments[1])
            classes = [argument for argument in cell.arguments if argument.startswith("--model=")]
            names = {argument.partition("=")[0] for argument in cell.arguments}
            kinds.setdefault((*config.parts[1:3], *classes, *sorted(names)), cell)
    for cell in kinds.values():
        with pytest.raises(SystemExit) as end:
            run([*cell.arguments, "--print_config"])
        assert end.value.code == 0, f"{cell.command}: {capsys.readouterr().err}"
        capsys.readouterr()
    assert len(kinds) > 40
