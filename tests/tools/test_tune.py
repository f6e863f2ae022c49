"""The search for options, with real runs on little data."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from supercm_lightning.cli import run
from supercm_lightning.tools.trial_watch import TrialWatch
from supercm_lightning.tools.tune import main, read_range, tune
from supercm_lightning.utils.options import SuperCMError

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


def test_two_trials_then_one_more_and_a_configuration_that_runs() -> None:
    arguments = [
        "--config",
        "base.yaml",
        "--search",
        "model.beta=log(0.01,10)",
        "--search",
        "model.lr=choice(0.01,0.1)",
    ]
    arguments += ["--storage", "sqlite:///tune.db", "--fixed", "data.split_seed=3"]
    main([*arguments, "--trials", "2"])
    first = table()
    assert len(first) == 2
    assert len({row["model.beta"] for row in first}) == 2
    for _ in range(2):
        main([*arguments, "--trials", "3"])
        assert table()[:2] == first
        assert len(table()) == 3

    best = max((row for row in table() if row["value"]), key=lambda row: float(row["value"]))
    for file in Path("tuned").rglob("summary.json"):
        assert not any(name.startswith("test/") for name in json.loads(file.read_text())["metrics"])
    cli = run(["fit", "--config", "tuned/best.yaml"])
    assert cli.model.hparams.beta == pytest.approx(float(best["model.beta"]))
    assert cli.model.hparams.lr == float(best["model.lr"])
    assert cli.datamodule.hparams.split_seed == 3
    assert "test/acc" in cli.trainer.callback_metrics
    assert Path("tuned/search.png").stat().st_size > 1000


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


def states() -> list[tuple[str, str]]:
    return [(row["state"], row["result"]) for row in table()]


def test_bad_trials_fail_and_the_search_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    # Refused by the parser, by a constructor, and by the loss.
    search = ["model.lr=choice(high,-1.0,1e30,0.01)"]
    study = tune([Path("base.yaml")], search, sampler="grid", fixed=["trainer.max_epochs=1"])
    assert [state for state, _ in states()].count("FAIL") == 3
    assert study.best_params == {"model.lr": 0.01}
    assert {result.split(":")[0] for state, result in states() if state == "FAIL"} >= {
        "its options are refused",
        "lr=-1.0",
    }
    assert "Traceback" not in capsys.readouterr().err
    best = yaml.safe_load(Path("tuned/best.yaml").read_text())
    assert (
        best["trainer"]["max_epochs"] == BASE["trainer"]["max_epochs"]
    )  # the length that was searched with is shorter


@pytest.mark.slow
def test_a_search_whose_trials_all_fail_ends_early() -> None:
    with pytest.raises(SuperCMError, match="first five trials"):
        tune([Path("base.yaml")], ["model.betta=log(0.1,1)"], trials=50, storage="tune.journal")
    assert [state for state, _ in states()] == ["FAIL"] * 5


@pytest.mark.parametrize("storage", ["sqlite:///tune.db", pytest.param("tune.journal", marks=pytest.mark.slow)])
def test_a_study_refuses_another_search(storage: str) -> None:
    Path("other.yaml").write_text(yaml.safe_dump(BASE | {"seed_everything": 3}))
    options: dict[str, Any] = {
        "config": [Path("base.yaml")], "search": ["model.beta=log(0.1,1)"], "fixed": ["trainer.max_epochs=1"],
        "trials": 1, "storage": storage,
    }  # fmt: skip
    tune(**options)
    for changed, value in {
        "config": [Path("other.yaml")], "search": ["model.beta=log(0.1,2)"], "fixed": [], "metric": "val/loss",
        "minimize": True, "repeats": 2,
    }.items():  # fmt: skip
        with pytest.raises(SuperCMError, match={"minimize": "direction"}.get(changed, changed)):
            tune(**options | {changed: value})
    assert len(tune(**options | {"trials": 2, "output": Path("elsewhere")}).trials) == 2
    assert Path("elsewhere/best.yaml").is_file()


def test_a_damaged_storage_is_named() -> None:
    Path("tune.db").write_bytes(b"no data base" * 100)
    with pytest.raises(SuperCMError, match=r"storage=sqlite:///tune\.db"):
        tune([Path("base.yaml")], ["model.beta=log(0.1,1)"], storage="sqlite:///tune.db")


def test_an_interrupted_search_writes_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    calls = []

    def run_or_interrupt(arguments: list[str], extra_callbacks: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            monkeypatch.setattr(TrialWatch, "on_train_epoch_end", interrupt)
        return run(arguments, extra_callbacks=extra_callbacks)

    arguments = ["--config", "base.yaml", "--search", "model.beta=choice(1,2,3)", "--sampler", "grid"]
    monkeypatch.setattr("supercm_lightning.tools.tune.run", run_or_interrupt)
    with pytest.raises(SystemExit, match="130"):
        main([*arguments, "--storage", "tune.journal"])
    monkeypatch.delattr(TrialWatch, "on_train_epoch_end", raising=True)
    assert [state for state, _ in states()] == ["COMPLETE", "FAIL"]
    assert states()[1][1] == "interrupted"
    assert "trial 0 of 2" in Path("tuned/best.yaml").read_text()
    main([*arguments, "--storage", "tune.journal"])
    assert sorted(row["model.beta"] for row in table() if row["state"] == "COMPLETE") == ["1", "2", "3"]


def test_values_of_a_grid_whose_worker_died_are_tried_again() -> None:
    options: dict[str, Any] = {"fixed": ["trainer.max_epochs=1"], "sampler": "grid", "storage": "tune.journal"}
    study = tune([Path("base.yaml")], ["model.beta=choice(1,2)"], trials=1, **options)
    study.enqueue_trial({"model.beta": 2})
    study.ask({"model.beta": optuna.distributions.CategoricalDistribution([1, 2])})  # and is never told
    study = tune([Path("base.yaml")], ["model.beta=choice(1,2)"], **options)
    assert sorted(trial.params["model.beta"] for trial in study.trials if trial.value is not None) == [1, 2]


def test_a_warning_where_the_validation_samples_cannot_tell(capsys: pytest.CaptureFixture[str]) -> None:
    tune([Path("base.yaml")], ["model.beta=choice(1,1.01)"], sampler="grid", fixed=["trainer.max_epochs=1"])
    assert re.search(r"12 validation samples tell apart .* 1 of 2 trials", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.beta=log(1e-2, 10)", optuna.distributions.FloatDistribution(0.01, 10, log=True)),
        ("data.labeled_batch_size = int(2,8)", optuna.distributions.IntDistribution(2, 8)),
        ("model.optimizer=choice(adam, sgd)", optuna.distributions.CategoricalDistribution(["adam", "sgd"])),
        ("model.bottleneck=choice(None,64)", optuna.distributions.CategoricalDistribution([None, 64])),
    ],
)
def test_ranges_are_read(text: str, expected: Any) -> None:
    assert read_range(text) == (text.split("=")[0].strip(), expected)


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
        (["--search", "model.beta=log(0.1,1)", "--search", "model.beta=log(1,2)"], "twice"),
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
    assert not list(Path("tuned").rglob("metrics.csv"))  # the run that was refused leaves no folder
    assert not Path("tuned", "trial_1").exists()
