import json
from pathlib import Path

import pytest

from supercm_lightning.cli import run
from supercm_lightning.tools.baselines import main

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ["--data", "SemiSupervisedDataModule", "--data.num_labeled", "20"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_table_file_and_advice_over_two_seeds(capsys) -> None:
    config = ROOT / "configs" / "quickstart.yaml"
    names = "--names=nearest_neighbour,label_spreading"
    main(["--config", str(config), names, "--seeds", "2", "--data.num_labeled", "40"])
    runs = json.loads(Path("baselines.json").read_text())["runs"]
    assert [(run["seed"], run["data"]["split_seed"], run["data"]["num_labeled"]) for run in runs] == [
        (0, 0, 40),
        (1, 1, 40),
    ]
    assert [entry["method"] for entry in runs[0]["rows"]] == ["nearest_neighbour", "label_spreading"]
    printed = capsys.readouterr().out
    assert printed.index("label_spreading") < printed.index("nearest_neighbour")
    assert "40 labels: label spreading" in printed


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--config", "none.yaml"], "none.yaml"),
        ([*DIGITS, "--names", "coral"], "coral"),
        ([*DIGITS, "--seeds", "0"], "seeds"),
        ([*DIGITS, "--data.num_labele", "3"], "num_labeled"),
        (["--seeds", "1"], "data"),
    ],
)
def test_what_cannot_be_used_is_one_line(options: list[str], named: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert named in line


def test_a_run_below_its_floor_names_the_command(caplog) -> None:
    main([*DIGITS, "--names", "label_spreading"])
    trainer = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    with caplog.at_level("INFO"):
        run(["fit", "--model=Supervised", *DIGITS, "--data.labeled_batch_size=10", *trainer])
    assert "supercm-baselines" in caplog.text
    assert "label_spreading" in caplog.text
