"""The command `supercm-baselines`: what needs no training, on the data of a configuration or of options."""

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, seed_everything
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from supercm_lightning import data  # noqa: F401  whose classes the parser then knows by name
from supercm_lightning.baselines import (
    FLOOR_FILE,
    advise,
    default_names,
    keep_rows,
    mean_accuracy,
    prepare,
    run_baseline,
)
from supercm_lightning.data import ViewDataModule
from supercm_lightning.tools.arguments import read_config
from supercm_lightning.utils.configs import found_configs
from supercm_lightning.utils.help import asked_help, class_help
from supercm_lightning.utils.options import MissingFileError, SuperCMError, check_range
from supercm_lightning.utils.parser import CommandParser, errors_in_one_line, find_local_modules


def read_options(given: Sequence[str]) -> tuple[CommandParser, Namespace]:
    """Reads the arguments: `--config FILE`, `--data …` and `--seed_everything` as in `supercm`, and a few more."""
    parser = CommandParser(
        prog="supercm-baselines",
        description="What needs no training, on your data: a table, a file, and what to start with.",
        epilog="Example: supercm-baselines --data SemiSupervisedDataModule --data.num_labeled 20 --seeds 5",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=str, help="a configuration of `supercm`, whose data is used")
    parser.add_argument("--seed_everything", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds from there on; the split's seed likewise")
    parser.add_argument("--names", type=str, help="methods, separated by commas; all of the problem by default")
    parser.add_argument("--output", type=Path, default=Path(FLOOR_FILE), help="JSON file that gets the rows")
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    return parser, parser.parse_args(list(_without_config(given)))


def _without_config(given: Sequence[str]) -> Iterator[str]:
    arguments = iter(found_configs(given))
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name != "--config":
            yield argument
            continue
        if not (file := Path(value or next(arguments, ""))).is_file():
            raise MissingFileError(f"config={file}: no such file.")
        config = read_config(file)
        if "data" not in config:
            raise SuperCMError(f"config={file}: has no data. Give --data as well.")
        yield f"--data={json.dumps(config['data'])}"
        if isinstance(seed := config.get("seed_everything"), int):
            yield f"--seed_everything={seed}"


def tabulate(parser: CommandParser, options: Namespace, console: Console) -> tuple[list[dict[str, Any]], int]:
    """Runs the methods for every seed, and keeps the rows in the output file.

    Gives the rows of all seeds, and the number of labeled samples.
    """
    check_range(1, seeds=options.seeds)
    rows: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("")
        for number in range(options.seeds):
            seed = seed_everything(options.seed_everything + number, verbose=False)
            given = options.clone()
            if "split_seed" in given.data.init_args:
                given.data.init_args.split_seed += number
            module = parser.instantiate_classes(given).data
            if not isinstance(module, ViewDataModule):
                raise SuperCMError(f"data={type(module).__name__}: must derive from ViewDataModule.")
            progress.stop()  # reading shows a bar of its own
            module.prepare_data()
            problem, labels = prepare(module)
            progress.start()
            names = options.names.split(",") if options.names else default_names(problem.protocol)
            progress.update(bar, total=options.seeds * len(names))
            found = []
            for name in names:
                progress.update(bar, description=name)
                found.append(run_baseline(name, problem, labels))
                progress.advance(bar)
            keep_rows(options.output, module.hparams, seed, found)
            rows += found
    return rows, len(problem.y)


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Mean and standard deviation of each metric over the seeds, in percent, best accuracy first."""
    metrics = [name for name in rows[0] if name.startswith("test/")]
    table = Table("method", *metrics, "seconds")
    accuracy = mean_accuracy(rows)
    for method in sorted(accuracy, key=accuracy.__getitem__, reverse=True):
        own = [row for row in rows if row["method"] == method]
        cells = (_percent([row[name] for row in own]) for name in metrics)
        table.add_row(method, *cells, f"{statistics.fmean(row['seconds'] for row in own):.1f}")
    return table


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


@errors_in_one_line()
def main(args: list[str] | None = None) -> None:
    """The console script, with arguments without the program's name, or those of the process."""
    find_local_modules()
    given = sys.argv[1:] if args is None else args
    for section, name in asked_help(given):
        print(class_help(section, name))
        return
    parser, options = read_options(given)
    console = Console()
    rows, num_labeled = tabulate(parser, options, console)
    console.print(table_of(rows))
    console.print(advise(rows, num_labeled), soft_wrap=True, highlight=False)
    console.print(f"Written to {options.output}", soft_wrap=True, highlight=False)
