"""The search for options, with real runs on little data."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from supercm_lightning.cli import run
from supercm_lightning.tools.tune import Range, TrialWatch, _write, main, plot_trials, tune

optuna = pytest.importorskip("optuna")

BASE = {
    "model": {"class_path": "SuperCM", "init_args": {"backbone": "mlp"}},
    "data": {
        "class_path": "FeatureDataModule",
        "init_args": {"labeled": "a.npz", "num_labeled": 6, "num_val": 12, "num_test": 12, "steps_per_epoch": 2},
    },
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}


@pytest.fixture(autouse=True)
def _config() -> None:
    stream = np.random.default_rng(0)
    for name in ("a", "b"):
        labels = np.arange(60) % 3
        features = stream.normal(size=(60, 4)) + 2 * np.eye(3, 4)[labels]
        np.savez(f"{name}.npz", features=features.astype("f4"), labels=labels)
    Path("base.yaml").write_text(yaml.safe_dump(BASE))


def table() -> list[dict[str, str]]:
    with Path("tuned/trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_three_trials_then_two_more_and_a_configuration_that_runs() -> None:
    arguments = [
        "--config",
        "base.yaml",
        "--search",
        "model.beta=log(0.01,10)",
        "--search",
        "model.lr=choice(0.01,0.1)",
    ]
    arguments += ["--storage", "sqlite:///tune.db", "--fixed", "data.split_seed=3"]
    main([*arguments, "--trials", "3"])
    first = table()
    assert len(first) == 3
    assert len({row["model.beta"] for row in first}) == 3
    main([*arguments, "--trials", "5"])
    assert table()[:3] == first
    assert len(table()) == 5
    main([*arguments, "--trials", "5"])
    assert len(table()) == 5

    best = max((row for row in table() if row["value"]), key=lambda row: float(row["value"]))
    for file in Path("tuned").rglob("summary.json"):
        assert not any(name.startswith("test/") for name in json.loads(file.read_text())["metrics"])
    cli = run(["fit", "--config", "tuned/best.yaml"])
    assert cli.model.hparams.beta == pytest.approx(float(best["model.beta"]))
    assert cli.model.hparams.lr == float(best["model.lr"])
    assert cli.datamodule.hparams.split_seed == 3
    assert "test/acc" in cli.trainer.callback_metrics
    assert Path("tuned/model.beta.png").stat().st_size > 1000


def test_every_value_of_a_grid_over_repeated_splits() -> None:
    study = tune(
        [Path("base.yaml")], ["model.beta=choice(0,1)"], trials=9, sampler="grid", repeats=2, vary=["data.split_seed"]
    )
    assert sorted(trial.params["model.beta"] for trial in study.trials) == [0, 1]
    for trial in study.trials:
        folder = Path("tuned", f"trial_{trial.number}", "lightning_logs")
        runs = [json.loads((folder / f"version_{n}" / "summary.json").read_text()) for n in (0, 1)]
        assert [r["data_options"]["split_seed"] for r in runs] == [0, 1]
        values = [r["metrics"]["val/acc"] for r in runs]
        assert trial.user_attrs["values"] == pytest.approx(values)
        assert trial.value == pytest.approx(np.mean(values))


def test_two_domains_are_scored_without_target_labels() -> None:
    domains = {"source": "a.npz", "target": "b.npz", "steps_per_epoch": 2}
    Path("base.yaml").write_text(
        yaml.safe_dump(BASE | {"data": {"class_path": "FeatureDataModule", "init_args": domains}})
    )
    study = tune([Path("base.yaml")], ["model.beta=uniform(0,1)"], trials=1)
    (summary,) = Path("tuned").rglob("summary.json")
    assert study.trials[0].value == pytest.approx(json.loads(summary.read_text())["metrics"]["val/score"])
    assert study.trials[0].user_attrs["metric"] == "val/score"


class Pruned:
    """A trial that is pruned at its second validation."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, int]] = []

    def report(self, value: float, step: int) -> None:
        self.reports.append((value, step))

    def should_prune(self) -> bool:
        return len(self.reports) == 2


def test_a_pruned_run_stops_and_is_not_tested() -> None:
    trial = Pruned()
    watch = TrialWatch(trial, None, first_step=4)
    cli = run(["fit", "--config", "base.yaml", "--trainer.max_epochs", "5"], extra_callbacks=[watch])
    assert watch.pruned
    assert cli.trainer.global_step == 4
    assert [step for _, step in trial.reports] == [4, 5]
    assert "test/acc" not in cli.trainer.callback_metrics


def test_a_loss_that_is_not_finite_fails_its_trial_and_not_the_search() -> None:
    with pytest.raises(ValueError, match="No trial was completed"):
        tune([Path("base.yaml")], ["model.beta=log(0.1,1)"], fixed=["model.lr=1.0e+30"], trials=2)
    assert len(list(Path("tuned").rglob("config.yaml"))) == 2


def test_pruned_trials_are_in_the_table_and_not_in_the_pictures() -> None:
    study = optuna.create_study(direction="maximize")
    beta = optuna.distributions.FloatDistribution(0.1, 10, log=True)
    Path("run").mkdir()
    Path("run/config.yaml").write_text("trainer:\n  default_root_dir: here\nseed_everything: 3\n")
    for number, kind in enumerate(("COMPLETE", "PRUNED", "COMPLETE")):
        state = optuna.trial.TrialState[kind]
        attributes = {"run": "run", "metric": "val/acc", "std": None} if kind == "COMPLETE" else {}
        study.add_trial(
            optuna.create_trial(
                state=state, value=0.5 + 0.1 * number, params={"model.beta": 1.0 + number},
                distributions={"model.beta": beta}, user_attrs=attributes, intermediate_values={0: 0.3},
            )
        )  # fmt: skip
    _write(study, [Range.parse("model.beta=log(0.1,10)")], Path("tuned"))
    assert [row["state"] for row in table()] == ["COMPLETE", "PRUNED", "COMPLETE"]
    best = yaml.safe_load(Path("tuned/best.yaml").read_text())
    assert best == {"trainer": {"default_root_dir": None}, "seed_everything": 3}
    assert "trial 2" in Path("tuned/best.yaml").read_text().splitlines()[0]
    assert Path("tuned/model.beta.png").is_file()


@pytest.mark.parametrize(
    ("text", "values", "least"),
    [
        ("log(0.2,0.9)", [0.3, 0.5, 0.8], 2),
        ("log(0.02,0.9)", [0.03, 0.5], 2),
        ("log(0.001,10)", [0.01, 5], 4),
        ("choice(0,0.1,0.3,1,10)", [0, 0.1, 0.3, 1, 10], 5),
        ("uniform(0,1)", [0.2, 0.3], 2),
    ],
)
def test_the_axis_of_an_option_has_labels(text: str, values: list[float], least: int) -> None:
    r = Range.parse(f"model.beta={text}")
    figure = plot_trials(pd.DataFrame({"model.beta": values, "value": 0.5, "std": None}), r, "val/acc")
    figure.canvas.draw()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    assert sum(bool(label.get_text()) and low <= place <= high for place, label in ticks) >= least


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("model.beta=log(1e-2, 10)", "log", [0.01, 10]),
        ("data.labeled_batch_size = int(2,8)", "int", [2, 8]),
        ("model.optimizer=choice(adam, sgd)", "choice", ["adam", "sgd"]),
        ("model.bottleneck=choice(None,64)", "choice", [None, 64]),
    ],
)
def test_ranges_are_read(text: str, kind: str, values: list[Any]) -> None:
    read = Range.parse(text)
    assert (read.kind, read.values) == (kind, values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--search", "model.beta=0.1"], "expected option=log"),
        (["--search", "model.beta=log(0,1)"], "two ascending numbers"),
        (["--search", "model.beta=int(0.5,2)"], "two ascending numbers"),
        (["--search", "model.beta=log(0.1,1)", "--metric", "test/acc"], "metric='test/acc'"),
        (["--search", "model.beta=log(0.1,1)", "--metric", "oracle/target_acc"], "target labels"),
        (["--search", "model.beta=log(0.1,1)", "--sampler", "grid"], "choice"),
        (["--search", "model.beta=log(0.1,1)", "--trials", "0"], "trials=0"),
        (["--search", "model.beta=log(0.1,1)", "--metric", "val/f1"], "val/f1.* is not logged.*val/acc"),
    ],
)
def test_wrong_options_are_named(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--config", "base.yaml", *options])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])


def test_data_without_validation_is_refused_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--config", "base.yaml", "--search", "model.beta=log(0.1,1)", "--fixed", "data.num_val=0"])
    assert re.search(r"^error: .*data\.num_val", capsys.readouterr().err, re.M)
    (summary,) = Path("tuned").rglob("summary.json")
    assert json.loads(summary.read_text())["steps"] == 0
    assert not Path("tuned", "trial_1").exists()
