"""Results of the cells of a benchmark: a table of all runs, means with paired differences, and pictures."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from supercm_lightning.tools.bench.grid import Cell, Grid


class Gain(NamedTuple):
    """Differences of two rows, seed by seed.

    Attributes:
        mean: Their mean.
        std: Their standard deviation (n - 1); NaN for one seed.
        low: Lower end of the 95 % interval of the mean by Student's t; NaN where the test is undefined.
        high: Its upper end.
        p: Two-sided p-value of the paired t-test; likewise.
    """

    mean: float
    std: float
    low: float
    high: float
    p: float


def paired(values: pd.Series, base: pd.Series) -> Gain | None:
    """The gain of a row over its base on the seeds that both have; None without such seeds.

    One seed, and differences that are all equal, have no t-test.

    Args:
        values: Values of the row by seed.
        base: Values of its base by seed.

    Examples:
        >>> paired(pd.Series([3.0, 4.0, 5.0]), pd.Series([1.0, 3.0, 2.0])).mean
        2.0
    """
    both = pd.concat([values, base], axis=1, join="inner")
    differences = both.iloc[:, 0] - both.iloc[:, 1]
    if differences.empty:
        return None
    mean, std = float(differences.mean()), float(differences.std())
    if not std > 1e-9:
        return Gain(mean, std, math.nan, math.nan, math.nan)
    test = ttest_rel(both.iloc[:, 0], both.iloc[:, 1])
    low, high = test.confidence_interval(0.95)
    return Gain(mean, std, float(low), float(high), float(test.pvalue))


class Results:
    """Results of the finished cells of a grid.

    Args:
        grid: The grid.
        cells: Its cells, all or some; unfinished ones are missing in the tables.

    Attributes:
        runs: One line for each finished run, the lines of `results.csv`.
    """

    def __init__(self, grid: Grid, cells: Sequence[Cell]) -> None:
        self.grid = grid
        self.total = len(cells)
        self.first = next(iter(grid.metrics))
        lines = [
            {"row": cell.row, "column": cell.column, "seed": cell.seed}
            | {metric: summary["metrics"].get(metric, math.nan) for metric in grid.metrics}
            | {"seconds": summary["fit_seconds"], "device": summary["device"], "torch": summary["versions"]["torch"]}
            | {"folder": summary["folder"], "command": shlex.join(["supercm", *cell.arguments])}
            for cell in cells
            if (summary := cell.summary(self.first)) is not None
        ]
        columns = ["row", "column", "seed", *grid.metrics, "seconds", "device", "torch", "folder", "command"]
        self.runs = pd.DataFrame(lines, columns=columns)
        self.rows = [row for row in grid.rows if row in set(self.runs["row"])]
        self.columns = [column for column in grid.columns if column in set(self.runs["column"])]
        self.label_counts = len(self.columns) > 1 and all(column.isdecimal() for column in self.columns)
        # Rows are compared in the mean over tasks, or in every column.
        self.scopes: list[str | None] = [None] if grid.average and len(self.columns) > 1 else [*self.columns]

    def series(self, row: str, column: str | None, metric: str | None = None) -> pd.Series:
        """A metric in the unit of the tables, by seed; without a column its mean over all, where none is missing."""
        metric = metric or self.first
        table = self.runs[self.runs["row"] == row].pivot(index="seed", columns="column", values=metric)
        chosen = table.reindex(columns=self.columns if column is None else [column])
        return self.grid.metrics[metric] * chosen.mean(axis=1, skipna=False).dropna()

    def gain(self, row: str, column: str | None) -> Gain | None:
        """The gain over the row that it is compared with, or None."""
        over = self.grid.rows[row].over
        return paired(self.series(row, column), self.series(over, column)) if over in self.rows else None

    # ------------------------------------------------------------------------------------------------- files
    def write(self, output: Path) -> None:
        """Writes `results.csv`, `results.md` and the pictures into a folder."""
        output.mkdir(parents=True, exist_ok=True)
        self.runs.to_csv(output / "results.csv", index=False)
        (output / "results.md").write_text(self.markdown())
        for name, figure in (("gain.png", self.plot_gains()), ("labels.png", self.plot_labels())):
            if figure is not None:
                figure.savefig(output / name, dpi=150)

    def markdown(self) -> str:
        """The tables, and the machines that the runs were made on."""
        parts = [f"# {self.grid.title}"]
        if len(self.columns) > 1:
            cells = [[_mean_std(self.series(row, column)) for column in self.columns] for row in self.rows]
            parts.append(_markdown(pd.DataFrame(cells, self.rows, self.columns)))
        for scope in self.scopes:
            heading = [f"## {self._heading(scope)}"] if len(self.scopes) > 1 else []
            parts += [*heading, _markdown(pd.DataFrame({row: self._details(row, scope) for row in self.rows}).T)]
        machines = sorted(set(self.runs["device"] + ", torch " + self.runs["torch"]))
        seeds = "; the seed sets " + ", ".join(f"`{option}`" for option in self.grid.vary)
        parts.append(f"{len(self.runs)} of {self.total} runs, on {' and '.join(machines) or 'no machine'}{seeds}.")
        return "\n\n".join(parts) + "\n"

    def _heading(self, scope: str | None) -> str:
        return "mean over tasks" if scope is None else f"{scope} labels" if self.label_counts else scope

    def _details(self, row: str, scope: str | None) -> dict[str, str]:
        """A row in one scope: the first metric by seed, its gain, and the other metrics."""
        values, gain = self.series(row, scope), self.gain(row, scope)
        cells = {
            f"{'mean ' if scope is None else ''}{self.first}": _mean_std(values),
            "by seed": ", ".join(f"{value:.1f}" for value in values),
            **dict.fromkeys(("gain", "95 % interval", "p", "over"), ""),
        }
        if gain is not None:
            cells["gain"] = _with_std(gain.mean, gain.std, "+")
            cells["over"] = str(self.grid.rows[row].over)
            if not math.isnan(gain.p):
                cells["95 % interval"] = f"{gain.low:+.1f} to {gain.high:+.1f}"
                cells["p"] = f"{gain.p:.3f}" if gain.p >= 0.001 else "< 0.001"
        others = [metric for metric in self.grid.metrics if metric != self.first]
        return cells | {metric: _mean_std(self.series(row, scope, metric)) for metric in others}

    # ---------------------------------------------------------------------------------------------- pictures
    def plot_gains(self) -> Figure | None:
        """The gain of every row that is compared, with its interval; None where no row is compared."""
        rows = [row for row in self.rows if any(self.gain(row, scope) for scope in self.scopes)][::-1]
        if not rows:
            return None
        figure = Figure(figsize=(4 + 2.5 * len(self.scopes), 1.5 + 0.3 * len(rows)), layout="constrained")
        every = figure.subplots(1, len(self.scopes), sharey=True, squeeze=False)[0]
        for axes, scope in zip(every, self.scopes, strict=True):
            for place, row in enumerate(rows):
                gain = self.gain(row, scope)
                if gain is None:
                    continue
                color = f"C{self.rows.index(str(self.grid.rows[row].over)) % 10}"
                if not math.isnan(gain.low):
                    axes.plot([gain.low, gain.high], [place, place], color=color, alpha=0.5)
                axes.plot([gain.mean], [place], "o", color=color)
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set(title=self._heading(scope), xlabel=f"gain in {self.first}")
            axes.grid(axis="x", alpha=0.3)
        every[0].set_yticks(range(len(rows)), [f"{row}  over  {self.grid.rows[row].over}" for row in rows])
        figure.suptitle(f"{self.grid.title}: gain with 95 % interval" if self.grid.title else "gain")
        return figure

    def plot_labels(self) -> Figure | None:
        """The first metric against the number of labels; None where the columns are no numbers of labels."""
        if not self.label_counts:
            return None
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for number, row in enumerate(self.rows):
            known = {int(column): values for column in self.columns if len(values := self.series(row, column))}
            means, spread = [v.mean() for v in known.values()], [v.std() if len(v) > 1 else 0 for v in known.values()]
            style = "-" if self.grid.rows[row].over else "--"
            axes.errorbar([*known], means, spread, label=row, marker="o", capsize=3, ls=style, color=f"C{number}")
        axes.set_xscale("log")
        axes.set_xticks([int(column) for column in self.columns], self.columns)
        axes.minorticks_off()
        axes.set(xlabel="labels", ylabel=self.first, title=self.grid.title)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper")
        return figure


def _mean_std(values: pd.Series) -> str:
    return _with_std(values.mean(), values.std()) if len(values) else ""


def _with_std(mean: float, std: float, sign: str = "") -> str:
    return f"{mean:{sign}.1f}" + ("" if math.isnan(std) else f" ± {std:.1f}")


def _markdown(table: pd.DataFrame) -> str:
    """The table as Markdown; `DataFrame.to_markdown` needs a further package."""
    lines = [
        ["", *table.columns],
        ["---"] * (1 + len(table.columns)),
        *([row.Index, *row[1:]] for row in table.itertuples()),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
