"""The command `supercm-tune`: a search for options by Optuna, each trial a run of the command line."""

import ast
import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from supercm_lightning.cli import run
from supercm_lightning.tools.arguments import parse
from supercm_lightning.utils.options import SuperCMError

if TYPE_CHECKING:
    import optuna

_FORM = re.compile(r"\s*([\w.]+)\s*=\s*(log|uniform|int|choice)\((.+)\)\s*")


@dataclass(frozen=True)
class Range:
    """Values of one option among which to search.

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
            ValueError: If the text has another form, or the bounds make no range.
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
            if (
                len(numbers) != 2
                or len(values) != 2
                or not numbers[0] < numbers[1]
                or (kind == "log" and values[0] <= 0)
            ):
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
    """Reports every validation of a run to a trial, stops the run if the trial is pruned, and leaves its test out.

    Args:
        trial: Optuna's trial, or what has its `report` and `should_prune`.
        metric: The metric; None: `val/score` for data of two domains, else `val/acc`.
        first_step: Number of the run's first validation among those of the trial.

    Attributes:
        metric: Name of the metric, once there was a validation.
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
        if trainer.world_size > 1:
            raise SuperCMError("A trial runs in one process: add --fixed trainer.devices=1, and start several workers.")
        trainer.limit_test_batches = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the metric."""
        if trainer.sanity_checking:
            return
        if self.metric is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            self.metric = "val/score" if getattr(data, "is_domain_adaptation", False) else "val/acc"
        if self.metric not in trainer.callback_metrics:
            raise SuperCMError(f"metric={self.metric!r} is not logged, only {', '.join(trainer.callback_metrics)}.")
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
    trial's value is the metric of its last validation. Neither test rows nor target labels are looked at. A trial whose
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
        ModuleNotFoundError: If Optuna is missing (extra `tune`).
        ValueError: If an option has no sense, or no trial came to its end.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Optuna not found: pip install 'supercm-lightning[tune]'.") from error
    if metric is not None and metric.startswith(("test/", "oracle/", "target/")):
        raise SuperCMError(
            f"metric={metric!r}: options are not chosen by test rows or target labels; take a val/ metric."
        )
    if min(20 if trials is None else trials, repeats) < 1:
        raise SuperCMError(f"trials={trials}, repeats={repeats}: must be at least 1.")
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

    def objective(trial: optuna.Trial) -> float:
        chosen = [f"--{r.option}={r.suggest(trial)}" for r in ranges]
        folder = output / f"trial_{trial.number}"
        values: list[float] = []
        step = 0
        for repeat in range(repeats):
            varied = [f"--{option}={repeat}" for option in vary or ["seed_everything"]] if repeats > 1 else []
            watch = TrialWatch(trial, metric, step)
            arguments = ["fit", *common, *chosen, *varied, f"--trainer.default_root_dir={folder}"]
            cli = run(arguments, extra_callbacks=[watch])
            if watch.pruned:
                raise optuna.TrialPruned
            if watch.value is None:
                raise SuperCMError(
                    "The runs have no validation to choose by: give validation rows, such as data.num_val."
                )
            values.append(watch.value)
            step = watch.step
            trial.set_user_attr("run", str(cli.trainer.log_dir))
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
    complete = found.get_trials(states=(state.COMPLETE,))
    if not complete:
        raise SuperCMError("No trial came to its end; nothing to choose from.")
    _write(found, ranges, output)
    return found


def _write(study: "optuna.Study", ranges: Sequence[Range], output: Path) -> None:
    """The best configuration, the table of trials and the pictures."""
    output.mkdir(parents=True, exist_ok=True)
    best = study.best_trial
    said = f"{best.user_attrs['metric']} {best.value:.4f} in trial {best.number} of {len(study.trials)}"
    text = (Path(best.user_attrs["run"]) / "config.yaml").read_text()
    text = re.sub(r"^  default_root_dir: .*$", "  default_root_dir: null", text, count=1, flags=re.MULTILINE)
    (output / "best.yaml").write_text(f"# {said}: {', '.join(f'{k}={v}' for k, v in best.params.items())}\n{text}")
    options = [r.option for r in ranges]
    with (output / "trials.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", "state", "value", "std", *options])
        for trial in study.trials:
            values = trial.user_attrs.get("values", [])
            std = stdev(values) if len(values) > 1 else None
            table.writerow([trial.number, trial.state.name, trial.value, std, *(trial.params.get(o) for o in options)])
    for r in ranges:
        if all(isinstance(value, int | float) for value in r.values):
            _plot(study, r, best.user_attrs["metric"], output / f"{r.option}.png")
    print(f"{said}: {output / 'best.yaml'}")


def _plot(study: "optuna.Study", r: Range, metric: str, file: Path) -> None:
    """The metric of the complete trials against one option, with the deviation over repeats."""
    done = sorted(
        (t for t in study.trials if t.value is not None and r.option in t.params), key=lambda t: t.params[r.option]
    )
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    x = [t.params[r.option] for t in done]
    repeats = [t.user_attrs["values"] for t in done]
    deviations = [stdev(values) if len(values) > 1 else 0.0 for values in repeats]
    means = [t.value for t in done if t.value is not None]
    axes.errorbar(x, means, deviations, marker="o", capsize=3, linestyle="-" if r.kind == "choice" else "")
    positive = [value for value in x if value > 0]
    if r.kind == "log" or (positive and max(x) > 20 * min(positive)):
        # A range that contains zero is logarithmic from its smallest positive value on.
        axes.set_xscale("symlog", linthresh=min(positive))
    axes.set(xlabel=r.option, ylabel=metric)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


def main(args: list[str] | None = None) -> None:
    """The console script.

    Args:
        args: Arguments without the program's name; None: those of the process.
    """
    tune(**parse(tune, args, several=("config", "search", "fixed", "vary")))
