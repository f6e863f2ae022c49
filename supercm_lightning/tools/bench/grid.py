"""The grid of a benchmark: rows, columns and seeds, and the command line of each cell."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, get_loader

from supercm_lightning.utils.options import MissingFileError, SuperCMError


@dataclass(frozen=True)
class Row:
    """A row of the table, usually a method.

    Attributes:
        method: Stands for `{method}` in the grid's `config`.
        over: Name of the row that this one is compared with.
        options: Options of `supercm fit` and their values, in this order.
    """

    method: str
    over: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


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
        columns: The columns by name; where all names are numbers, they are numbers of labels and give a curve.
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
        """Reads a YAML file; `rows` may be the name of a file, relative to this one, that several tables share.

        Raises:
            SuperCMError: If it has another form, or a row is compared with one that does not exist.
        """
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls)
        try:
            grid = cls(**parser.instantiate_classes(parser.parse_object(_read(file))))
        except Exception as error:  # jsonargparse has one kind for all
            raise SuperCMError(f"{file}: {error}") from error
        for name, row in grid.rows.items():
            if row.over is not None and row.over not in grid.rows:
                raise SuperCMError(
                    f"{file}: {name!r} is over {row.over!r}, which is no row; give the name of another row."
                )
        return grid

    def cells(self, output: Path, root: Path = Path("data"), more: Sequence[str] = ()) -> Iterator["Cell"]:
        """Every cell, seed by seed, so that an unfinished table compares all rows.

        Args:
            output: Folder of the benchmark.
            root: Folder of the data.
            more: Further arguments of all cells.

        Raises:
            SuperCMError: If `config` names something else than method and data, or a file that does not exist.
        """
        for seed in range(self.seeds):
            for row_name, row in self.rows.items():
                for column_name, column in self.columns.items():
                    options = {**self.options, **column.options, **row.options, **dict.fromkeys(self.vary, seed)}
                    arguments = [f"--{name}={_text(value)}" for name, value in options.items()]
                    arguments = ["fit", f"--config={self._config(row, column)}", *arguments, *more]
                    folder = Path(output, *map(_slug, (row_name, column_name)), f"seed{seed}", _fingerprint(arguments))
                    arguments = [argument.replace("{root}", str(root)) for argument in arguments]
                    yield Cell(row_name, column_name, seed, tuple(arguments), folder)

    def _config(self, row: Row, column: Column) -> str:
        try:
            file = self.config.format(method=row.method, data=column.data)
        except (KeyError, IndexError) as error:
            raise SuperCMError(f"config={self.config!r}: only {{method}} and {{data}} are filled in.") from error
        if not Path(file).is_file():
            raise MissingFileError(f"config={file}: no such file; paths are relative to {Path.cwd()}.")
        return file


@dataclass(frozen=True)
class Cell:
    """One run of the table.

    Attributes:
        row: Name of its row.
        column: Name of its column.
        seed: Its seed.
        arguments: Arguments of `supercm`.
        folder: Folder of the run. Its last part is a fingerprint of arguments and configuration, except the folder of
            the data, so that a changed command runs again and the earlier result stays.
    """

    row: str
    column: str
    seed: int
    arguments: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        """Row, column and seed."""
        return f"{self.row} | {self.column} | seed {self.seed}"

    @property
    def command(self) -> list[str]:
        """Arguments of a process that runs the cell, or goes on with it where it was stopped."""
        place = [f"--trainer.default_root_dir={self.folder}", "--trainer.enable_progress_bar=false"]
        return [*self.arguments, *place, "--ckpt_path=last"]

    def summary(self, metric: str) -> dict[str, Any] | None:
        """The summary of the newest run that has this metric of the test, or None."""
        files = sorted(self.folder.rglob("summary.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        found = ({**json.loads(file.read_text()), "folder": str(file.parent)} for file in files)
        return next((summary for summary in found if metric in summary["metrics"]), None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)


def _read(file: Path) -> dict[str, Any]:
    """Content of a YAML file, with the content of the files that it names as its sections."""
    content: dict[str, Any] = get_loader("yaml")(file.read_text(encoding="utf-8"))
    for name in {"model", "data", "trainer", "rows"} & content.keys():
        if isinstance(content[name], str) and (named := file.parent / content[name]).is_file():
            content[name] = _read(named)
    return content


def _fingerprint(arguments: Sequence[str]) -> str:
    """Eight digits that change with the arguments and with the configuration, however divided into files."""
    options = (argument.partition("=") for argument in arguments)
    config = [_read(Path(value)) for name, _, value in options if name == "--config"]
    return hashlib.sha256(json.dumps([*arguments, config], sort_keys=True).encode()).hexdigest()[:8]
