"""Results of the cells of a benchmark: every run, means, and paired differences."""

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import ttest_rel

from supercm_lightning.tools.bench.grid import Cell, Grid
from supercm_lightning.utils.files import write_atomically


def paired(values: pd.Series, base: pd.Series) -> dict[str, float]:
    """The differences of two rows on the seeds that both have.

    `mean`; `std` (n - 1); `low` and `high`, the ends of the 95 % interval of the mean by Student's t; `p` of the
    two-sided paired t-test. NaN where undefined: one seed, and differences that are all equal, have no test.
    """
    both = pd.concat([values, base], axis=1, join="inner")
    differences = both.iloc[:, 0] - both.iloc[:, 1]
    gain = {"mean": float(differences.mean()), "std": float(differences.std())}
    if not gain["std"] > 1e-9:
        return gain | dict.fromkeys(("low", "high", "p"), math.nan)
    test = ttest_rel(both.iloc[:, 0], both.iloc[:, 1])
    low, high = test.confidence_interval(0.95)
    return gain | {"low": float(low), "high": float(high), "p": float(test.pvalue)}


class Results:
    """Results of the finished cells of a grid; unfinished ones are missing in the tables.

    Attributes:
        runs: One line for each finished run. Its `seconds` are those of the training, empty where it was resumed.
        table: A dictionary for each row in each column, or in the mean over the columns where these are tasks: the
            first metric in the unit of the tables by seed (`values`), its `mean` and `std`, the differences (`gain`,
            those of `paired`) to the better of the rows that it is `over`, and those to the best free row (`free`).
    """

    def __init__(self, grid: Grid, cells: Sequence[Cell]) -> None:
        self.grid = grid
        self.total = len(cells)
        self.first = next(iter(grid.metrics))
        lines = [
            {"row": cell.row, "column": cell.column, "seed": cell.seed}
            | {metric: summary["metrics"].get(metric, math.nan) for metric in grid.metrics}
            | {"seconds": math.nan if (cell.folder / "attempt_1").exists() else summary["fit_seconds"]}
            | {"device": summary["device"], "torch": summary["versions"]["torch"], "folder": summary["folder"]}
            | {"command": shlex.join(cell.command)}
            for cell in cells
            if (summary := cell.summary()) is not None
        ]
        columns = ["row", "column", "seed", *grid.metrics, "seconds", "device", "torch", "folder", "command"]
        self.runs = pd.DataFrame(lines, columns=columns)
        self.rows = [row for row in grid.rows if row in set(self.runs["row"])]
        self.columns = [column for column in grid.columns if column in set(self.runs["column"])]
        self.scopes: list[str | None] = [None] if grid.average and len(self.columns) > 1 else [*self.columns]
        self.table = [self._compare(row, scope) for scope in self.scopes for row in self.rows]

    def series(self, row: str, column: str | None, metric: str | None = None) -> pd.Series:
        """A metric in the unit of the tables, by seed; without a column its mean over all, where none is missing."""
        metric = metric or self.first
        table = self.runs[self.runs["row"] == row].pivot(index="seed", columns="column", values=metric)
        chosen = table.reindex(columns=self.columns if column is None else [column])
        return self.grid.metrics[metric] * chosen.mean(axis=1, skipna=False).dropna()

    def _compare(self, row: str, column: str | None) -> dict[str, Any]:
        values = self.series(row, column)
        entry = {"row": row, "column": column, "values": {str(seed): float(v) for seed, v in values.items()}}
        entry |= {"mean": values.mean(), "std": values.std()}
        free = [name for name in self.rows if self.grid.rows[name].baseline]
        for key, names in (("gain", self.grid.rows[row].partners), ("free", free)):
            means = {n: s.mean() for n in names if n in self.rows and len(s := self.series(n, column))}
            best = max(means, key=means.__getitem__, default=row)
            gain = paired(values, self.series(best, column)) if best != row else {"mean": math.nan}
            entry[key] = None if math.isnan(gain["mean"]) else dict[str, Any](over=best, **gain)
        return entry

    def write(self, output: Path) -> None:
        """Writes `results.json` (the tables and every run), `results.csv` and `results.md`."""
        facts = {"title": self.grid.title, "metrics": self.grid.metrics, "vary": self.grid.vary}
        content = facts | {"table": self.table, "runs": self.runs.to_dict(orient="records")}
        write_atomically(output / "results.json", json.dumps(_null(content), indent=1, allow_nan=False) + "\n")
        write_atomically(output / "results.csv", self.runs.to_csv(index=False))
        write_atomically(output / "results.md", self.markdown())

    def markdown(self) -> str:
        """The tables, and the machines that the runs were made on."""
        parts = [f"# {self.grid.title}"]
        if len(self.columns) > 1:
            cells = [[_mean_std(self.series(row, column)) for column in self.columns] for row in self.rows]
            parts.append(_markdown(pd.DataFrame(cells, self.rows, self.columns)))
        for scope in self.scopes:
            if len(self.scopes) > 1:
                parts.append(f"## {scope} labels" if str(scope).isdecimal() else f"## {scope}")
            details = {entry["row"]: self._details(entry) for entry in self.table if entry["column"] == scope}
            parts.append(_markdown(pd.DataFrame(details).T))
        machines = sorted(set(self.runs["device"] + ", torch " + self.runs["torch"]))
        seeds = "; the seed sets " + ", ".join(f"`{option}`" for option in self.grid.vary)
        parts.append(f"{len(self.runs)} of {self.total} runs, on {' and '.join(machines) or 'no machine'}{seeds}.")
        return "\n\n".join(parts) + "\n"

    def _details(self, entry: dict[str, Any]) -> dict[str, str]:
        """A line of a table: the first metric by seed, its gain, and the other metrics."""
        row, scope, gain, free = (entry[name] for name in ("row", "column", "gain", "free"))
        tested = gain is not None and not math.isnan(gain["p"])
        cells = {
            f"{'mean ' if scope is None else ''}{self.first}": _with_std(entry["mean"], entry["std"]),
            "by seed": ", ".join(f"{value:.1f}" for value in entry["values"].values()),
            "gain": _with_std(gain["mean"], gain["std"], "+") if gain else "",
            "95 % interval": f"{gain['low']:+.1f} to {gain['high']:+.1f}" if tested else "",
            "p": _p(gain["p"]) if tested else "",
            "over": gain["over"] if gain else "",
        }
        if any(other["free"] for other in self.table):
            test = f", p {_p(free['p'])}" if free and not math.isnan(free["p"]) else ""
            cells["over the best free row"] = _with_std(free["mean"], free["std"], "+") + test if free else ""
        others = [metric for metric in self.grid.metrics if metric != self.first]
        return cells | {metric: _mean_std(self.series(row, scope, metric)) for metric in others}


def _mean_std(values: pd.Series) -> str:
    return _with_std(values.mean(), values.std())


def _with_std(mean: float, std: float, sign: str = "") -> str:
    return "" if math.isnan(mean) else f"{mean:{sign}.1f}" + ("" if math.isnan(std) else f" ± {std:.1f}")


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _null(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _null(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_null(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _markdown(table: pd.DataFrame) -> str:
    """The table as Markdown; `DataFrame.to_markdown` needs a further package."""
    names = ["", *table.columns]
    rows = [names, ["---"] * len(names), *([row.Index, *row[1:]] for row in table.itertuples())]
    return "\n".join("| " + " | ".join(" ".join(c.split()).replace("|", r"\|") for c in row) + " |" for row in rows)
