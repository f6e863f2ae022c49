"""The command `supercm-tune`: a search for options by Optuna, each trial a run of the command line."""

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, LogLocator, NullLocator

from supercm_lightning.cli import run
from supercm_lightning.contracts import ViewData
from supercm_lightning.tools.arguments import check_installed, errors_in_one_line, parse
from supercm_lightning.utils.options import SuperCMError, check_range
from supercm_lightning.utils.parser import find_local_modules
from supercm_lightning.utils.trainer import datamodule_of

if TYPE_CHECKING:
    import optuna
    import pandas as pd

_FORM = re.compile(r"\s*([\w.]+)\s*=\s*(log|uniform|int|choice)\((.+)\)\s*")


@dataclass(frozen=True)
class Range:
    """Values of one option to search among.

    Attributes:
        option: Name of the option, such as `model.beta`.
        kind: `log` and `uniform` (real numbers between two bounds), `int` (whole ones), `choice` (the values listed).
        values: The bounds, or the values.
    """

    option: str
    kind: str
    values: list[Any]

    @classmethod
    def parse(cls, text: str) -> "Range":
        """Reads `model.beta=log(0.01,10)`.

        Raises:
            SuperCMError: If the text has another form, or the bounds are not in ascending order.

        Examples:
            >>> Range.parse("model.beta=log(0.01,10)")
            Range(option='model.beta', kind='log', values=[0.01, 10])
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise SuperCMError(
                f"search={text!r}: expected option=log(low,high), uniform(low,high), int(low,high) or choice(a,b,…)."
            )
        option, kind, listed = match.groups()
        values = [_value(value.strip()) for value in listed.split(",")]
        if kind != "choice":
            numbers = [value for value in values if isinstance(value, int if kind == "int" else int | float)]
            ascending = len(numbers) == len(values) == 2 and numbers[0] < numbers[1]
            if not ascending or (kind == "log" and numbers[0] <= 0):
                raise SuperCMError(
                    f"search={text!r}: {kind} takes two ascending numbers; log: positive, int: integers."
                )
        return cls(option, kind, values)

    def suggest(self, trial: "optuna.Trial") -> Any:
        """The value of a trial."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.option, self.values)
        if self.kind == "int":
            return trial.suggest_int(self.option, *self.values)
        return trial.suggest_float(self.option, *self.values, log=self.kind == "log")


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


class TrialWatch(Callback):
    """Reports every validation of a run to a trial, stops the run if the trial is pruned, and omits its test.

    Args:
        trial: Optuna's trial, or an object with its `report` and `should_prune`.
        metric: The metric; None: `val/score` for data of two domains, else `val/acc`.
        first_step: Number of the run's first validation among those of the trial.

    Attributes:
        metric: Name of the metric, known after the first validation.
        value: Its last value.
        step: Number of the next validation.
        pruned: Whether the run was stopped.
    """

    def __init__(self, trial: Any, metric: str | None, first_step: int = 0) -> None:
        self.trial = trial
        self.metric = metric
        self.step = first_step
        self.value: float | None = None
        self.pruned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Switches the test off, which no choice may depend on."""
        trainer.limit_test_batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks processes and validation samples before the first step."""
        if trainer.world_size > 1:
            raise SuperCMError("A trial runs in one process: add --fixed trainer.devices=1, and start several workers.")
        if not sum(trainer.num_val_batches):
            raise SuperCMError("The runs have no validation to choose by: give validation samples, as by data.num_val.")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the metric."""
        if trainer.sanity_checking:
            return
        if self.metric is None:
            data = datamodule_of(trainer)
            self.metric = "val/score" if isinstance(data, ViewData) and data.is_domain_adaptation else "val/acc"
        if self.metric not in trainer.callback_metrics:
            raise SuperCMError(
                f"metric={self.metric!r} is not logged; choose of {', '.join(trainer.callback_metrics)}."
            )
        self.value = float(trainer.callback_metrics[self.metric])
        self.trial.report(self.value, self.step)
        self.step += 1
        if self.trial.should_prune():
            self.pruned = trainer.should_stop = True


def tune(
    config: list[Path],
    search: list[str],
    fixed: list[str] | None = None,
    trials: int | None = None,
    sampler: Literal["tpe", "random", "grid"] = "tpe",
    metric: str | None = None,
    minimize: bool = False,
    prune: bool = True,
    repeats: int = 1,
    vary: list[str] | None = None,
    storage: str | None = None,
    study: str = "supercm",
    output: Path = Path("tuned"),
) -> "optuna.Study":
    """Searches for the options of a run that give the best validation.

    Writes into `output`: `best.yaml`, the configuration of the best trial, which `supercm fit --config` takes;
    `trials.csv`; for each option with numbers a picture of the metric against it; and the folder of every run. A
    trial's value is the metric of its last validation. Neither test samples nor target labels are used. A trial whose
    loss is not finite counts as failed.

    Args:
        config: Configuration of the runs, as for `supercm fit`; may be given several times.
        search: Option and range, such as `model.beta=log(0.01,10)`, `model.lr=uniform(0.001,0.01)`,
            `data.labeled_batch_size=int(20,60)` or `model.optimizer=choice(adam,sgd)`; several times for several.
        fixed: Further options of all runs, such as `trainer.max_epochs=5`; likewise.
        trials: Number of trials of the study, those of earlier calls and of other workers included; None: 20, for
            `grid` every combination.
        sampler: `tpe`, `random`, or `grid`: every combination once, for options of the kind `choice`.
        metric: Metric of the validation; None: `val/score`, which needs no target label, for data of two domains, else
            `val/acc`.
        minimize: Search for the smallest value, such as of `val/loss`.
        prune: Stop a run whose validation is worse than the median of the trials so far.
        repeats: Runs of each trial; its value is their mean.
        vary: Options that count 0, 1, … over the repeats; none: `seed_everything`.
        storage: Where the study is kept to go on with it and to share it among workers, such as `sqlite:///tune.db`;
            None: nowhere.
        study: Name of the study in the storage.
        output: Folder to write to.

    Returns:
        Optuna's study.

    Raises:
        ModuleNotFoundError: If Optuna or pandas is missing (extra `tune`).
        SuperCMError: If an option is not valid, the data has no validation samples, or no trial was completed.
    """
    check_installed("tune", "optuna", "pandas")
    import optuna

    if metric is not None and metric.startswith(("test/", "oracle/", "target/")):
        raise SuperCMError(
            f"metric={metric!r}: options are not chosen by test samples or target labels; take a val/ metric."
        )
    check_range(1, trials=trials, repeats=repeats)
    ranges = [Range.parse(text) for text in search]
    common = [argument for file in config for argument in ("--config", str(file))]
    common += [f"--{option}" for option in fixed or ()]
    seed = 0 if storage is None else None  # workers with one seed would try the same values
    samplers: optuna.samplers.BaseSampler
    if sampler == "grid":
        if any(r.kind != "choice" for r in ranges):
            raise SuperCMError("sampler='grid' needs ranges of the kind choice(a,b,…).")
        samplers = optuna.samplers.GridSampler({r.option: r.values for r in ranges}, seed=0)
        combinations = math.prod(len(r.values) for r in ranges)
        trials = combinations if trials is None else min(trials, combinations)
    else:
        trials = 20 if trials is None else trials
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[sampler](seed=seed)

    refused: list[SuperCMError] = []

    def objective(trial: optuna.Trial) -> float:
        chosen = [f"--{r.option}={r.suggest(trial)}" for r in ranges]
        folder = output / f"trial_{trial.number}"
        values: list[float] = []
        step = 0
        for repeat in range(repeats):
            varied = [f"--{option}={repeat}" for option in vary or ["seed_everything"]] if repeats > 1 else []
            watch = TrialWatch(trial, metric, step)
            arguments = ["fit", *common, *chosen, *varied, f"--trainer.default_root_dir={folder}"]
            try:
                cli = run(arguments, extra_callbacks=[watch])
            except SuperCMError as error:  # Optuna would print its traceback; every further trial would meet it too
                refused.append(error)
                trial.study.stop()
                raise optuna.TrialPruned from error
            if watch.pruned:
                raise optuna.TrialPruned
            if watch.value is None:
                raise SuperCMError("No run was validated: train for longer, or lower trainer.check_val_every_n_epoch.")
            values.append(watch.value)
            step = watch.step
            trial.set_user_attr("run", str(cli.trainer.log_dir))
        trial.set_user_attr("std", stdev(values) if repeats > 1 else None)
        trial.set_user_attr("values", values)
        trial.set_user_attr("metric", watch.metric)
        return fmean(values)

    found = optuna.create_study(
        storage=storage,
        study_name=study,
        sampler=samplers,
        pruner=optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner(),
        direction="minimize" if minimize else "maximize",
        load_if_exists=True,
    )
    state = optuna.trial.TrialState
    ended = (state.COMPLETE, state.PRUNED, state.FAIL)
    if len(found.get_trials(deepcopy=False, states=ended)) < trials:
        limit = optuna.study.MaxTrialsCallback(trials, states=ended)
        found.optimize(objective, callbacks=[limit], catch=(FloatingPointError,))
    if refused:
        raise refused[0]
    if not found.get_trials(states=(state.COMPLETE,)):
        raise SuperCMError("No trial was completed, so there is nothing to choose from; see the messages above.")
    _write(found, ranges, output)
    return found


def _write(study: "optuna.Study", ranges: Sequence[Range], output: Path) -> None:
    """The best configuration, the table of trials and the pictures."""
    output.mkdir(parents=True, exist_ok=True)
    best = study.best_trial
    metric = best.user_attrs["metric"]
    result = f"{metric} {best.value:.4f} in trial {best.number} of {len(study.trials)}"
    config = yaml.safe_load((Path(best.user_attrs["run"]) / "config.yaml").read_text())
    config["trainer"]["default_root_dir"] = None
    options = ", ".join(f"{name}={value}" for name, value in best.params.items())
    (output / "best.yaml").write_text(f"# {result}: {options}\n{yaml.safe_dump(config, sort_keys=False)}")
    trials = study.trials_dataframe(attrs=("number", "state", "value", "params", "user_attrs"))
    trials = trials.rename(columns=lambda name: name.removeprefix("params_").removeprefix("user_attrs_"))
    trials.to_csv(output / "trials.csv", index=False)
    for r in ranges:
        if all(isinstance(value, int | float) for value in r.values):
            plot_trials(trials[trials["state"] == "COMPLETE"], r, metric).savefig(output / f"{r.option}.png", dpi=150)
    print(f"{result}: {output / 'best.yaml'}")


def plot_trials(trials: "pd.DataFrame", r: Range, metric: str) -> Figure:
    """Draws the metric of trials against one option, with the standard deviation over repeats.

    Args:
        trials: A line for each trial, with the option, `value` and `std`.
        r: The range of the option, of numbers.
        metric: Name of the metric.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    trials = trials.sort_values(r.option)
    spread = trials["std"].astype(float).fillna(0)
    style = "-" if r.kind == "choice" else ""
    axes.errorbar(trials[r.option], trials["value"], spread, marker="o", capsize=3, linestyle=style)
    positive = [value for value in r.values if value > 0]
    if r.kind == "log" or (r.kind == "choice" and positive and max(r.values) > 20 * min(positive)):
        # A list that contains zero is logarithmic from its smallest positive value on.
        axes.set_xscale("symlog", linthresh=min(positive))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)) if max(positive) >= 10 * min(positive) else AutoLocator())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
    if r.kind == "choice":
        axes.set_xticks(sorted(r.values))
    axes.set(xlabel=r.option, ylabel=metric)
    axes.grid(alpha=0.3)
    return figure


@errors_in_one_line()
def main(args: list[str] | None = None) -> None:
    """The console script.

    Args:
        args: Arguments without the program's name; None: those of the process.
    """
    find_local_modules()
    tune(**parse(tune, args, several=("config", "search", "fixed", "vary")))
