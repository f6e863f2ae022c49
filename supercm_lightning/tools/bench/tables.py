"""What the cells of a benchmark reached: a table of all runs, means with paired differences, and pictures."""

import csv
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from supercm_lightning.tools.bench.grid import Cell, Grid

Values = Mapping[int, float]  # by seed


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


def paired(values: Values, base: Values) -> Gain | None:
    """The gain of a row over its base on the seeds that both have; None where there is none.

    One seed, and differences that are all equal, have no t-test.
    """
    seeds = sorted(values.keys() & base.keys())
    if not seeds:
        return None
    differences = [values[seed] - base[seed] for seed in seeds]
    std = stdev(differences) if len(seeds) > 1 else math.nan
    if not std > 1e-9:
        return Gain(fmean(differences), std, math.nan, math.nan, math.nan)
    test = ttest_rel([values[seed] for seed in seeds], [base[seed] for seed in seeds])
    low, high = test.confidence_interval(0.95)
    return Gain(fmean(differences), std, float(low), float(high), float(test.pvalue))


class Results:
    """What the finished cells of a grid reached.

    Args:
        grid: The grid.
        cells: Its cells, all or some; those that are not finished are missing in the tables.
    """

    def __init__(self, grid: Grid, cells: Sequence[Cell]) -> None:
        self.grid = grid
        self.first = next(iter(grid.metrics))
        found = [(cell, cell.summary(self.first)) for cell in cells]
        self.total = len(found)
        self.done = [(cell, summary) for cell, summary in found if summary is not None]
        self.rows = [row for row in grid.rows if any(cell.row == row for cell, _ in self.done)]
        self.columns = [column for column in grid.columns if any(cell.column == column for cell, _ in self.done)]
        self.label_counts = len(self.columns) > 1 and all(column.isdecimal() for column in self.columns)
        # The parts of the table that rows are compared in: the mean over tasks, or every column for itself.
        self.scopes: list[str | None] = [None] if grid.average and len(self.columns) > 1 else [*self.columns]

    def series(self, row: str, column: str | None, metric: str | None = None) -> dict[int, float]:
        """A metric in the unit of the tables, by seed; without a column its mean over all, where none is missing."""
        metric = metric or self.first
        if column is None:
            every = [self.series(row, column, metric) for column in self.columns]
            seeds = set.intersection(*(set(one) for one in every))
            return {seed: fmean(one[seed] for one in every) for seed in sorted(seeds)}
        factor = self.grid.metrics[metric]
        return {
            cell.seed: factor * summary["metrics"][metric]
            for cell, summary in self.done
            if (cell.row, cell.column) == (row, column) and metric in summary["metrics"]
        }

    def gain(self, row: str, column: str | None) -> Gain | None:
        """The gain over the row that it is compared with, or None."""
        over = self.grid.rows[row].over
        return paired(self.series(row, column), self.series(row=over, column=column)) if over in self.rows else None

    # ------------------------------------------------------------------------------------------------- files
    def write(self, output: Path) -> None:
        """Writes `results.csv`, `results.md` and the pictures into a folder."""
        output.mkdir(parents=True, exist_ok=True)
        with (output / "results.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["row", "column", "seed", *self.grid.metrics, "seconds", "device", "folder", "command"])
            for cell, summary in self.done:
                metrics = [summary["metrics"].get(metric) for metric in self.grid.metrics]
                run = [summary["fit_seconds"], summary["device"], summary["folder"]]
                command = shlex.join(["supercm", *cell.arguments])
                table.writerow([cell.row, cell.column, cell.seed, *metrics, *run, command])
        (output / "results.md").write_text(self.markdown())
        figures = {"gain.png": self.plot_gains(), "labels.png": self.plot_labels()}
        for name, figure in figures.items():
            if figure is not None:
                figure.savefig(output / name, dpi=150)

    def markdown(self) -> str:
        """The tables, with what they were run on."""
        parts = [f"# {self.grid.title}"]
        if len(self.columns) > 1:
            parts.append(self._overview())
        for scope in self.scopes:
            heading = [f"## {self._heading(scope)}"] if len(self.scopes) > 1 else []
            parts += [*heading, self._details(scope)]
        machines = {f"{s['device']}, torch {s['versions']['torch']}" for _, s in self.done}
        seeds = "; the seed sets " + ", ".join(f"`{option}`" for option in self.grid.vary)
        parts.append(f"{len(self.done)} of {self.total} runs, on {' and '.join(sorted(machines)) or 'nothing'}{seeds}.")
        return "\n\n".join(parts) + "\n"

    def _heading(self, scope: str | None) -> str:
        return "mean over tasks" if scope is None else f"{scope} labels" if self.label_counts else scope

    def _overview(self) -> str:
        """Rows by columns."""
        lines = [[row, *(_mean_std(self.series(row, column).values()) for column in self.columns)] for row in self.rows]
        return _table(["", *self.columns], lines)

    def _details(self, scope: str | None) -> str:
        """Rows of one scope: the first metric by seed, what it gains, and the other metrics."""
        others = [metric for metric in self.grid.metrics if metric != self.first]
        heads = [f"{'mean ' if scope is None else ''}{self.first}", "by seed", "gain", "95 % interval", "p", "over"]
        lines = []
        for row in self.rows:
            values, gain = self.series(row, scope), self.gain(row, scope)
            by_seed = ", ".join(f"{value:.1f}" for value in values.values())
            compared = ["", "", "", ""]
            if gain is not None:
                interval = "" if math.isnan(gain.low) else f"{gain.low:+.1f} to {gain.high:+.1f}"
                p = "" if math.isnan(gain.p) else f"{gain.p:.3f}" if gain.p >= 0.001 else "< 0.001"
                gained = _with_std(gain.mean, gain.std, "+")
                compared = [gained, interval, p, str(self.grid.rows[row].over)]
            rest = [_mean_std(self.series(row, scope, metric).values()) for metric in others]
            lines.append([row, _mean_std(values.values()), by_seed, *compared, *rest])
        return _table(["", *heads, *others], lines)

    # ---------------------------------------------------------------------------------------------- pictures
    def plot_gains(self) -> Figure | None:
        """The gain of every row that is compared, with its interval; None where there is none."""
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
                colour = f"C{_order(self.grid.rows[row].over, self.rows) % 10}"
                if not math.isnan(gain.low):
                    axes.plot([gain.low, gain.high], [place, place], color=colour, alpha=0.5)
                axes.plot([gain.mean], [place], "o", color=colour)
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set(title=self._heading(scope), xlabel=f"gain in {self.first}")
            axes.grid(axis="x", alpha=0.3)
        every[0].set_yticks(range(len(rows)), [f"{row}  over  {self.grid.rows[row].over}" for row in rows])
        figure.suptitle(f"{self.grid.title}: gain with 95 % interval" if self.grid.title else "gain")
        return figure

    def plot_labels(self) -> Figure | None:
        """The first metric against the number of labels; None where columns are something else."""
        if not self.label_counts:
            return None
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for number, row in enumerate(self.rows):
            known = [
                (int(column), [*values.values()]) for column in self.columns if (values := self.series(row, column))
            ]
            labels, means = [count for count, _ in known], [fmean(values) for _, values in known]
            spread = [stdev(values) if len(values) > 1 else 0.0 for _, values in known]
            style = "-" if self.grid.rows[row].over else "--"
            axes.errorbar(labels, means, spread, label=row, marker="o", capsize=3, linestyle=style, color=f"C{number}")
        axes.set_xscale("log")
        axes.set_xticks([int(column) for column in self.columns], self.columns)
        axes.minorticks_off()
        axes.set(xlabel="labels", ylabel=self.first, title=self.grid.title)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper")
        return figure


def _order(row: str | None, rows: Sequence[str]) -> int:
    return rows.index(row) if row in rows else 0


def _mean_std(values: Any) -> str:
    known = [*values]
    return _with_std(fmean(known), stdev(known) if len(known) > 1 else math.nan) if known else ""


def _with_std(mean: float, std: float, sign: str = "") -> str:
    return f"{mean:{sign}.1f}" + ("" if math.isnan(std) else f" ± {std:.1f}")


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])
