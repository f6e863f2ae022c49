"""The command `supercm-tune`: a search for options by Optuna, each trial a run of the command line."""

import ast
import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import product
from operator import index
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
import yaml

from supercm_lightning.cli import run
from supercm_lightning.tools.arguments import (
    check_installed,
    parse,
    read_config,
    sigterm_interrupts,
)
from supercm_lightning.tools.trial_watch import TrialWatch, UnmeasurableError
from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.loggers import logger_level
from supercm_lightning.utils.options import SuperCMError, check_range
from supercm_lightning.utils.parser import errors_in_one_line, find_local_modules

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

_QUIET = ("enable_progress_bar", "enable_model_summary")
_FORM = re.compile(r"\s*([\w.]+)\s*=\s*(log|uniform|int|choice)\((.+)\)\s*")


def read_range(text: str) -> tuple[str, "BaseDistribution"]:
    """Reads an option with its values, such as `model.beta=log(0.01,10)`, into Optuna's distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match = _FORM.fullmatch(text)
    if match is None:
        raise SuperCMError(f"search={text!r}: expected option=log(low,high), or uniform, int, or choice(a,b,…).")
    option, kind, listed = match.groups()
    values = [_value(value.strip()) for value in listed.split(",")]
    try:
        if kind == "choice":
            return option, CategoricalDistribution(values)
        low, high = map(index, values) if kind == "int" else values
        return option, IntDistribution(low, high) if kind == "int" else FloatDistribution(low, high, log=kind == "log")
    except (TypeError, ValueError) as error:
        raise SuperCMError(f"search={text!r}: needs two ascending numbers; log: positive, int: integers.") from error


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


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

    Writes into `output`, after every trial, `trials.csv` and `best.yaml`, the configuration of the best trial with the
    length of `config`, for `supercm fit --config`; and at the end `search.png`, the metric against each option. A value
    is the metric of the last validation, without test samples or target labels. A trial that is refused, or whose loss
    is not finite, counts as failed, and the search goes on.

    Args:
        config: Configuration of the runs, as for `supercm fit`; may be given several times.
        search: Option and range, such as `model.beta=log(0.01,10)`, `model.lr=uniform(0.001,0.01)`,
            `data.labeled_batch_size=int(20,60)` or `model.optimizer=choice(adam,sgd)`; several times for several.
        fixed: Further options of all runs, such as `trainer.max_epochs=5`; likewise.
        trials: Trials of the study, those of earlier calls and other workers included; None: 20, or the whole grid.
        sampler: `tpe`, `random`, or `grid`: every combination of options of the kind `choice` once.
        metric: Metric of the validation; None: `val/score` (no target labels) for two domains, else `val/acc`.
        minimize: Search for the smallest value, such as of `val/loss`.
        prune: Stop a run whose validation is worse than the median of the trials so far.
        repeats: Runs of each trial; its value is their mean.
        vary: Options that count 0, 1, … over the repeats; none: `seed_everything`.
        storage: Where Optuna keeps the study, to continue it and to share it among workers: the URL of a database, such
            as `sqlite:///tune.db`, or a file for its journal, which a network drive may hold; None: nowhere.
        study: Name of the study in the storage.
        output: Folder to write to.

    Returns:
        Optuna's study.

    Raises:
        SuperCMError: If an option is not valid, the study is of another search, or nothing can be measured.
    """
    check_installed("tune", "optuna", "pandas")
    import optuna

    if metric is not None and metric.startswith(("test/", "oracle/", "target/")):
        raise SuperCMError(f"metric={metric!r}: knows test samples or target labels; choose by a val/ metric.")
    check_range(1, trials=trials, repeats=repeats)
    space = dict(map(read_range, search))
    if len(space) < len(search):
        raise SuperCMError(f"search: an option is given twice; give each of {', '.join(space)} one range.")
    lists = [one.choices for one in space.values() if isinstance(one, optuna.distributions.CategoricalDistribution)]
    if sampler == "grid" and len(lists) < len(space):
        raise SuperCMError("sampler='grid' needs ranges of the kind choice(a,b,…).")
    grid = [dict(zip(space, values, strict=True)) for values in product(*lists)] if sampler == "grid" else []
    trials = min(trials or len(grid), len(grid)) if grid else trials or 20
    samplers = optuna.samplers.TPESampler if sampler == "tpe" else optuna.samplers.RandomSampler
    pruner = optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner()
    identity = {
        "direction": "minimize" if minimize else "maximize",
        "metric": metric,
        "search": {name: optuna.distributions.distribution_to_json(one) for name, one in space.items()},
        "config": [read_config(file) for file in config],
        "fixed": sorted(fixed or ()),
        "repeats": [repeats, vary],
    }
    # Workers with one seed would try the same values.
    found = _study(storage, study, identity, samplers(seed=0 if storage is None else None), pruner)
    common = [argument for file in config for argument in ("--config", str(file))]
    common += [*(f"--{option}" for option in fixed or ()), *(f"--trainer.{name}=false" for name in _QUIET)]
    state = optuna.trial.TrialState
    while len(ended := _ended(found)) < trials:
        if not grid and len(ended) >= 5 and all(trial.state == state.FAIL for trial in ended):
            raise SuperCMError("The first five trials failed; see the messages above.")
        # Of a grid what nobody has started, or else has ended: its worker may be dead.
        for params in (found.get_trials(False), ended) if grid else ():
            if left := [values for values in grid if values not in [trial.params for trial in params]]:
                found.enqueue_trial(left[0])
                break
        trial = found.ask(space)
        chosen = [f"{option}={value}" for option, value in trial.params.items()]
        arguments = [*common, *(f"--{option}" for option in chosen)]
        result, end, said = None, state.FAIL, "interrupted"
        try:
            with logger_level(logging.WARNING, "lightning.pytorch", "lightning.fabric"):  # which announce the machine
                result = _measure(trial, arguments, metric, repeats, vary or ["seed_everything"], output)
            end, said = (state.PRUNED, "pruned") if result is None else (state.COMPLETE, f"{result:.4f}")
        except (SuperCMError, FloatingPointError) as error:
            said = str(error)
            if isinstance(error, UnmeasurableError):
                raise
        except SystemExit as stop:
            if stop.code != 2:  # not of the parser, which has printed what is wrong: Lightning was interrupted
                raise KeyboardInterrupt from None
            said = "its options are refused"
        finally:
            trial.set_user_attr("result", said)
            with logger_level(logging.WARNING, "optuna"):  # the line below says it
                found.tell(trial, result, end)
            _write(found, config, output)
        print(f"trial {trial.number} of {trials}: {said} ({', '.join(chosen)})")
    complete = found.get_trials(False, (state.COMPLETE,))
    if not complete:
        raise SuperCMError("No trial was completed, so there is nothing to choose from; see the messages above.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its pictures experimental
        optuna.visualization.matplotlib.plot_slice(found, target_name=complete[0].user_attrs["metric"])
        write_atomically(output / "search.png", partial(plt.savefig, format="png", dpi=150, bbox_inches="tight"))
        plt.close()
    print((output / "best.yaml").read_text(encoding="utf-8").splitlines()[0][2:], output / "best.yaml", sep="\n")
    _warn_of_close_trials(found.best_trial, [float(trial.value or 0) for trial in complete])
    return found


def _ended(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """The trials of a study that came to an end of their own."""
    finished = (trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished())
    return [trial for trial in finished if trial.user_attrs.get("result") != "interrupted"]


def _study(storage: str | None, name: str, identity: dict[str, Any], sampler: Any, pruner: Any) -> "optuna.Study":
    """The study, which stores what it searches for and where, and is refused to another search."""
    import optuna
    from optuna.storages import JournalStorage, journal

    place: Any = storage
    try:
        if storage is not None and "://" not in storage:
            place = JournalStorage(journal.JournalFileBackend(storage))
        # An existing study keeps its direction, which the comparison below sees.
        options: dict[str, Any] = {"direction": identity["direction"], "load_if_exists": True}
        found = optuna.create_study(study_name=name, storage=place, sampler=sampler, pruner=pruner, **options)
        if not found.user_attrs and not found.get_trials(deepcopy=False):
            found.set_user_attr("identity", identity)
        stored = found.user_attrs.get("identity", {})
    except Exception as error:  # of Optuna, of the data base, or of the file
        raise SuperCMError(f"storage={storage}: cannot be used: {str(error).splitlines()[0]}") from error
    identity = json.loads(json.dumps(identity))
    if different := [name for name, value in identity.items() if stored.get(name, ...) != value]:
        raise SuperCMError(f"study={name!r} in {storage} has another {', '.join(different)}; give another --study.")
    return found


def _measure(
    trial: "optuna.Trial", arguments: list[str], metric: str | None, repeats: int, vary: list[str], output: Path
) -> float | None:
    """The value of a trial, the mean over its runs; None if it was pruned."""
    values: list[float] = []
    step = 0
    for repeat in range(repeats):
        varied = [f"--{option}={repeat}" for option in vary] if repeats > 1 else []
        watch = TrialWatch(trial, metric, step)
        folder = f"--trainer.default_root_dir={output / f'trial_{trial.number}'}"
        cli = run(["fit", *arguments, *varied, folder], extra_callbacks=[watch])
        if watch.pruned:
            return None
        if watch.value is None:
            raise UnmeasurableError("No run was validated: train for longer, or lower trainer.check_val_every_n_epoch.")
        values.append(watch.value)
        step = watch.step
    config = (Path(str(cli.trainer.log_dir)) / "config.yaml").read_text(encoding="utf-8")
    found = {"metric": watch.metric, "std": stdev(values) if repeats > 1 else None, "values": values}
    for name, value in (found | {"val_samples": watch.samples, "config": config}).items():
        trial.set_user_attr(name, value)
    return fmean(values)


def _write(study: "optuna.Study", config: Sequence[Path], output: Path) -> None:
    """Writes the table of trials, and the best configuration with the length that `config` has."""
    table = study.trials_dataframe(attrs=("number", "state", "value", "params", "user_attrs"))
    table = table.rename(columns=lambda name: name.removeprefix("params_").removeprefix("user_attrs_"))
    write_atomically(output / "trials.csv", table.drop(columns="config", errors="ignore").to_csv(index=False))
    if "COMPLETE" in set(table["state"]):
        best = study.best_trial
        content = yaml.safe_load(best.user_attrs["config"])
        given: dict[str, Any] = {}
        for file in config:
            given |= read_config(file).get("trainer") or {}
        for name in ("max_epochs", "max_steps", "default_root_dir", *_QUIET):
            content["trainer"].pop(name, None)
            content["trainer"] |= {name: given[name]} if name in given else {}
        value = f"{best.user_attrs['metric']} {best.value:.4f}"
        options = ", ".join(f"{name}={value}" for name, value in best.params.items())
        title = f"# {value} in trial {best.number} of {len(table)}: {options}"
        write_atomically(output / "best.yaml", f"{title}\n{yaml.safe_dump(content, sort_keys=False)}")


def _warn_of_close_trials(best: "optuna.trial.FrozenTrial", values: Sequence[float]) -> None:
    """Counts the trials that lie within twice the binomial standard error of the best accuracy."""
    samples, value, runs = best.user_attrs["val_samples"], float(best.value or 0), len(best.user_attrs["values"])
    if best.user_attrs["metric"] == "val/acc" and samples:
        error = 2 * math.sqrt(max(value * (1 - value), 1 / samples) / (samples * runs))
        if close := sum(other >= value - error for other in values) - 1:
            text = f"{samples} validation samples tell apart what differs by {100 * error:.1f} points; {close} of "
            text += f"{len(values)} trials are that close to the best. Give more validation samples, or --repeats."
            print(f"warning: {text}", file=sys.stderr)


@errors_in_one_line()
def main(args: list[str] | None = None) -> None:
    """The console script, with arguments without the program's name, or those of the process."""
    find_local_modules()
    try:
        with sigterm_interrupts():
            tune(**parse(tune, args, several=("config", "search", "fixed", "vary"), prog="supercm-tune"))
    except KeyboardInterrupt:
        sys.exit(130)
