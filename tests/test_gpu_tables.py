"""The tables for a GPU name rows and columns of their grids, and go on where they ended."""

from pathlib import Path

import pytest

from benchmarks import gpu_tables
from supercm_lightning.tools.bench.grid import Grid

GRID = """
title: Digits
config: {config}
rows: {{supervised: {{method: supervised_cpu}}, SuperCM: {{method: supercm_cpu, over: supervised}}}}
columns: {{20 labels: {{}}}}
options: {{trainer.max_epochs: 1, data.steps_per_epoch: 3, trainer.callbacks: null}}
"""


def test_rows_and_columns_are_in_the_grids() -> None:
    for _, grid, options in gpu_tables.TABLES:
        table = Grid.read(gpu_tables.CONFIGS / grid)
        chosen = [option.split("=", 1) for option in options if option.startswith(("--only", "--columns"))]
        assert {value for name, value in chosen if name == "--only"} <= set(table.rows)
        assert {value for name, value in chosen if name == "--columns"} <= set(table.columns)


@pytest.mark.slow
def test_a_later_call_goes_on(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    config = Path(gpu_tables.__file__).parents[1] / "configs/ssl/digits/{method}.yaml"
    Path("digits.yaml").write_text(GRID.format(config=config))
    monkeypatch.setattr(gpu_tables, "TABLES", (("digits", str(Path("digits.yaml").resolve()), ("--seeds=1",)),))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    given = ["--root", "data", "--output", "out", "--jobs", "1", "--minutes"]
    assert gpu_tables.main([*given, "0"]) == 0
    assert "goes on" in capfd.readouterr().out
    assert gpu_tables.main([*given, "5"]) == 0
    first = Path("out/digits/results.json").read_text()
    capfd.readouterr()
    assert gpu_tables.main([*given, "5"]) == 0
    assert "test/acc" not in capfd.readouterr().out  # nothing is run again
    assert Path("out/digits/results.json").read_text() == first
