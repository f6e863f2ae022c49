"""The CSV log of a run, which a resumed run goes on with."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from supercm_lightning.utils.files import write_atomically


class MetricsTable(CSVLogger):
    """Logs metrics into `metrics.csv` of a folder, one row for each call.

    Lightning's `CSVLogger` deletes the file of an earlier start; this logger appends to it.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        super().__init__(folder.parents[1], folder.parent.name, folder.name)
        self.file = folder / "metrics.csv"
        self._columns: list[str] | None = None

    @property
    def experiment(self) -> Any:
        """None: the writer of Lightning would delete the rows."""

    def save(self) -> None:
        """Nothing: every row is written at once."""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: options stand in `config.yaml` and `summary.json`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Appends a row with the values of a step, by name."""
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row = {"step": step} | values
        if self._columns is None:
            self._columns = _read(self.file)[0]
        if new := row.keys() - set(self._columns):
            self._columns = sorted({*self._columns, *new})
            _write(self.file, self._columns, _read(self.file)[1])
        with self.file.open("a", encoding="utf-8", newline="") as stream:
            csv.DictWriter(stream, self._columns).writerow(row)


def drop_rows(file: Path, start: int) -> None:
    """Drops what a resumed run logs again from a table of `MetricsTable`, if there is one; 0 deletes the file.

    These are the steps from `start` on and its test, which Lightning may have logged at the step before.
    """
    if not start:
        file.unlink(missing_ok=True)
    elif file.exists():
        columns, rows = _read(file)
        _write(file, columns, [row for row in rows if not _comes_again(row, columns[-1], start)])


def _comes_again(row: dict[str, str], last: str, start: int) -> bool:
    # A row without its last column was cut off when the process was killed.
    is_test = any(value for name, value in row.items() if name.startswith("test/"))
    return row[last] is None or is_test or int(row["step"] or 0) >= start


def _read(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    if not file.exists():
        return [], []
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
        return list(reader.fieldnames or ()), rows


def _write(file: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(file, text.getvalue())
