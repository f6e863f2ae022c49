"""The grid of a benchmark: rows, columns and seeds, and the command line of each cell."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from supercm_lightning.tools.arguments import read_config
from supercm_lightning.utils.configs import config_file
from supercm_lightning.utils.options import MissingFileError, SuperCMError


@dataclass(frozen=True)
class Row:
    """A row of the table, usually a method.

    Attributes:
        method: Stands for `{method}` in the grid's `config`; or `baseline: NAME`, a free method of
            `supercm_lightning.baselines` on the data of the first other row.
        over: Name of the row that this one is compared with; of several, the one with the better mean.
        options: Options of `supercm fit` and their values, in this order.
    """

    method: str
    over: str | list[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def baseline(self) -> str | None:
        """Name of the free method, or None."""
        kind, _, name = self.method.partition(":")
        return name.strip() if kind == "baseline" else None

    @property
    def partners(self) -> list[str]:
        """The rows that it is compared with."""
        return [self.over] if isinstance(self.over, str) else self.over or []


@dataclass(frozen=True)
class Column:
    """A column of the table: data, a number of labels, or a task.

    Attributes:
        data: Stands for `{data}` in the grid's `config`.
        options: As those of a row.
    """

    data: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """The runs of a benchmark.

    Attributes:
        config: File of each cell's configuration, with `{method}` and `{data}` to be filled in.
        rows: The rows by name.
        columns: The columns by name; a number is a number of labels.
        title: Heading of the results.
        average: Whether columns are tasks of one problem, whose mean counts.
        metrics: Metrics of the test and the factors by which the tables multiply them; the first is compared.
        seeds: Number of seeds 0, 1, …
        vary: Options that take the seed.
        options: Options of all cells, such as a shorter training; `{root}` in a value is the folder of the data.
    """

    config: str
    rows: dict[str, Row]
    columns: dict[str, Column]
    title: str = ""
    average: bool = False
    metrics: dict[str, float] = field(default_factory=lambda: {"test/acc": 100.0})
    seeds: int = 3
    vary: list[str] = field(default_factory=lambda: ["seed_everything"])
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> "Grid":
        """Reads a YAML file; `rows` may be the name of a file, relative to this one, that several tables share."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls)
        try:
            grid = cls(**parser.instantiate_classes(parser.parse_object(read_config(file))))
        except Exception as error:  # jsonargparse has one kind for all
            raise SuperCMError(f"{file}: {error}") from error
        for name, row in grid.rows.items():
            if missing := set(row.partners) - grid.rows.keys():
                raise SuperCMError(f"{file}: {name!r} is over {', '.join(missing)}, which is no row; name another row.")
        if all(row.baseline for row in grid.rows.values()):
            raise SuperCMError(f"{file}: rows of free methods take their data from another row; add one.")
        return grid

    def cells(self, output: Path, root: Path = Path("data"), more: Sequence[str] = ()) -> Iterator["Cell"]:
        """Every cell, seed by seed, so that an unfinished table compares all rows.

        They lie in the folder `output`, their data in `root`, and `more` are further arguments of all.
        """
        metric = next(iter(self.metrics))
        first = next(row for row in self.rows.values() if not row.baseline)
        for seed in range(self.seeds):
            for row_name, row in self.rows.items():
                for column_name, column in self.columns.items():
                    options = {**self.options, **column.options, **row.options, **dict.fromkeys(self.vary, seed)}
                    arguments = [*(f"--{name}={_text(value)}" for name, value in options.items()), *more]
                    config = f"--config={self._config(first if row.baseline else row, column)}"
                    if row.baseline:
                        kept = [text for text in arguments if text.startswith(("--data", "--seed_everything"))]
                        arguments = [config, *kept]
                    else:
                        arguments = ["fit", config, *arguments]
                    mark = _fingerprint([*arguments, *([row.method] if row.baseline else [])])
                    folder = Path(output, *map(_slug, (row_name, column_name)), f"seed{seed}", mark)
                    arguments = [argument.replace("{root}", str(root)) for argument in arguments]
                    yield Cell(row_name, column_name, seed, tuple(arguments), folder, metric, row.baseline)

    def _config(self, row: Row, column: Column) -> str:
        try:
            file = self.config.format(method=row.method, data=column.data)
        except (KeyError, IndexError) as error:
            raise SuperCMError(f"config={self.config!r}: only {{method}} and {{data}} are filled in.") from error
        if not (found := config_file(file)).is_file():
            raise MissingFileError(f"config={file}: no such file; paths are relative to {Path.cwd()}.")
        return str(found)


@dataclass(frozen=True)
class Cell:
    """One run of the table: of `supercm fit` with these arguments, or of a free method on the data that they name.

    The last part of its folder is a fingerprint of arguments and configuration, except the folder of the data, so that
    a changed command runs again and the earlier result stays. A finished run has the metric of the test.
    """

    row: str
    column: str
    seed: int
    arguments: tuple[str, ...]
    folder: Path
    metric: str
    baseline: str | None = None

    @property
    def name(self) -> str:
        """Row, column and seed."""
        return f"{self.row} | {self.column} | seed {self.seed}"

    @property
    def command(self) -> list[str]:
        """The command line that runs the cell, or goes on with it where it was stopped."""
        if self.baseline:
            return ["supercm-baselines", *self.arguments, f"--names={self.baseline}"]
        place = [f"--trainer.default_root_dir={self.folder}", "--trainer.enable_progress_bar=false"]
        return ["supercm", *self.arguments, *place, "--ckpt_path=last"]

    def summary(self) -> dict[str, Any] | None:
        """The newest summary with the metric, or None. Damaged ones are passed over, so that their cell runs again."""
        for file in sorted(self.folder.rglob("summary.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True):
            try:
                summary = json.loads(file.read_text(encoding="utf-8"))
                value = summary["metrics"][self.metric]
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(value, int | float) and {"fit_seconds", "device", "versions"} <= summary.keys():
                return {**summary, "folder": str(file.parent)}
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in name)


def _fingerprint(arguments: Sequence[str]) -> str:
    """Eight digits that change with the arguments and with the configuration, however divided into files."""
    options = (argument.partition("=") for argument in arguments)
    config = [read_config(Path(value)) for name, _, value in options if name == "--config"]
    return hashlib.sha256(json.dumps([*arguments, config], sort_keys=True).encode()).hexdigest()[:8]
