"""The benchmark: grids, processes, statistics and tables."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock

from supercm_lightning.cli import run
from supercm_lightning.tools.bench import Cell, Grid, main
from supercm_lightning.tools.bench.schedule import devices, environment, run_cells, write_array
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
        deadline = time.monotonic() + 120
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
    (log,) = Path("out", "long").rglob("log.txt")
    assert "Going on with the run" in log.read_text()
    (done,) = Path("out", "long").rglob("summary.json")
    assert json.loads(done.read_text())["steps"] == 600
    with Path("out/results.csv").open() as file:
        rows = {line["row"]: line for line in csv.DictReader(file)}
    assert set(rows) == {"quick", "long"}
    assert float(rows["long"]["test/acc"]) == json.loads(done.read_text())["metrics"]["test/acc"]
    assert Path("out/gain.png").stat().st_size > 1000


def test_a_cell_is_the_command_line_that_its_row_says() -> None:
    (cell,) = (
        cell for cell in Grid.read(Path("grid.yaml")).cells(Path("out"), more=["--model.beta=2"]) if cell.row == "long"
    )
    assert cell.arguments == (
        "fit", "--config=supercm.yaml", "--data.steps_per_epoch=2", "--trainer.max_epochs=300", "--seed_everything=0",
        "--data.split_seed=0", "--model.beta=2",
    )  # fmt: skip
    cli = run([argument.replace("=300", "=1") for argument in cell.command])
    assert cli.model.hparams.beta == 2
    summary = cell.summary("test/acc")
    assert summary is not None
    assert summary["metrics"]["test/acc"] == float(cli.trainer.callback_metrics["test/acc"])
    assert cell.summary("test/nmi") is None


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


def test_a_cell_that_another_process_runs_is_left_to_it(capfd: pytest.CaptureFixture[str]) -> None:
    cell = next(Grid.read(Path("grid.yaml")).cells(Path("out")))
    cell.folder.mkdir(parents=True)
    with FileLock(cell.folder / "run.lock"):
        assert run_cells([cell], "test/acc") == {}
    assert "1 cells are run by another process" in capfd.readouterr().out
    assert not list(cell.folder.rglob("config.yaml"))


def test_the_command_can_be_imported_where_there_is_no_fcntl() -> None:
    code = "import sys; sys.modules['fcntl'] = None; import supercm_lightning.tools.bench.schedule"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_runs_share_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [environment(devices(), slot, 4)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["2", "5", "2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert environment(devices(), 0, 3)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment(devices(), 0, 3)["OMP_NUM_THREADS"] == "5"


def test_a_slurm_array_runs_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = list(Grid.read(write_grid(title="x y", columns={"a b": {}})).cells(Path("out")))
    finish(cells[0], **{"test/acc": 0.5})
    main(["grid.yaml", "--output", "out", "--slurm", "4"])
    assert "sbatch out/array.sbatch" in capsys.readouterr().out
    script = Path("out/array.sbatch").read_text()
    assert "--array=0-1%4" in script
    assert {"#SBATCH --signal=SIGUSR1@90", "#SBATCH --requeue"} <= set(script.splitlines())
    Path("bin").mkdir()
    for name, body in {"srun": 'exec "$@"', "supercm": 'printf "%s\\n" "$@"'}.items():
        Path("bin", name).write_text(f"#!/bin/bash\n{body}\n")
        Path("bin", name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').resolve()}:{os.environ['PATH']}")
    for task, cell in enumerate(cells[1:]):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        done = subprocess.run(["bash", "out/array.sbatch"], capture_output=True, text=True, check=True, cwd="out/..")
        assert done.stdout.splitlines() == cell.command
    finish(cells[1], **{"test/acc": 0.5})
    finish(cells[2], **{"test/acc": 0.5})
    assert write_array(cells, "test/acc", Path("out"), 4) is None


def test_dry_run_prints_the_missing_commands(capsys: pytest.CaptureFixture[str]) -> None:
    finish(next(Grid.read(Path("grid.yaml")).cells(Path("out"))), **{"test/acc": 0.5})
    main(["grid.yaml", "--output", "out", "--dry_run", "true", "--only", "quick", "--only", "long"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("supercm fit --config=supercm.yaml --data.steps_per_epoch=2 --trainer.max_epochs=300")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"rows": {"a": {"method": "supercm", "over": "b"}}}, [], "'a' is over 'b'"),
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
    assert gain is not None
    # Differences 1, 2, 3: t = 2 √3, and with two degrees of freedom p = 1 - t / √(t² + 2).
    t = 2 * math.sqrt(3)
    assert (gain.mean, gain.std) == pytest.approx((2, 1))
    assert gain.p == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    # For the same reason t = √2 p' / √(1 - p'²) where p' = 0.95 of the mass lie within ± t.
    quantile = 0.95 * math.sqrt(2) / math.sqrt(1 - 0.95**2)
    assert (gain.low, gain.high) == pytest.approx((2 - quantile / math.sqrt(3), 2 + quantile / math.sqrt(3)))


def test_differences_without_a_test() -> None:
    one = paired(pd.Series({0: 3.0}), pd.Series({0: 1.0}))
    assert one is not None
    assert one.mean == 2
    assert all(math.isnan(value) for value in one[1:])
    same = paired(pd.Series({0: 3.0, 1: 4.0}), pd.Series({0: 2.0, 1: 3.0}))
    assert same is not None
    assert (same.mean, same.std) == (1, 0)
    assert math.isnan(same.p)
    assert paired(pd.Series({0: 1.0}), pd.Series({1: 1.0})) is None


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


def test_label_counts_are_compared_one_by_one_and_drawn() -> None:
    values = {(row, n): [0.5 + k, 0.6 + k] for k, row in ((0, "quick"), (0.1, "long")) for n in ("9", "100")}
    values["long", "100"] = [0.7, 0.9]
    results = finished(values, columns={"9": {}, "100": {}})
    gain = results.gain("long", "100")
    assert gain is not None
    assert (gain.mean, gain.std) == pytest.approx((25, math.sqrt(50)))
    assert cells_of(results.markdown().split("## 100 labels")[1], "long")[3] == "+25.0 ± 7.1"
    figure = results.plot_labels()
    assert figure is not None
    lines = {bars.get_label(): bars.lines[0].get_xydata() for bars in figure.axes[0].containers}
    assert lines["long"] == pytest.approx(np.array([[9, 65], [100, 80]]))
    assert finished({("quick", "a"): [0.5]}, columns={"a": {}}).plot_labels() is None


# -------------------------------------------------------------------------------------------------------- tables
@pytest.mark.parametrize("file", TABLES, ids=lambda file: str(file.relative_to(ROOT / "configs" / "bench")))
def test_a_table_says_how_to_run_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert f"#   supercm-bench {file.relative_to(ROOT)}" in file.read_text()
    grid = Grid.read(file)
    cells = list(grid.cells(Path("out")))  # whose configurations exist
    assert len({cell.arguments for cell in cells}) == len(cells) == len(grid.rows) * len(grid.columns) * grid.seeds
    assert all(grid.rows[row].over is not None for row in list(grid.rows)[1:])


@pytest.mark.slow
def test_the_command_line_takes_the_options_of_every_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    kinds: dict[Any, Cell] = {}
    for file in TABLES:
        for cell in Grid.read(file).cells(Path("out")):
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
