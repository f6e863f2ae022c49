"""Writes predictions as a table."""

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed


class PredictionWriter(Callback):
    """On `predict`, writes one line per row: `file` (or `index`, where rows have no files), `class` and `confidence`.

    Lines stand in the order of the rows and each row once, also when several processes share the work. `class` is the
    name where the datamodule has `class_names`, else the number; `confidence` is the probability of that class.

    Args:
        filename: Name of the table in the run's folder (the logger's, else `default_root_dir`), or a full path. A
            name that ends in `.parquet` gives that format (needs the extra `export`), any other CSV.

    Raises:
        ModuleNotFoundError: If Parquet is asked for and pyarrow is not installed.
    """

    def __init__(self, filename: str = "predictions.csv") -> None:
        if filename.endswith(".parquet") and find_spec("pyarrow") is None:
            raise ModuleNotFoundError(f"filename={filename!r} needs pyarrow: pip install 'supercm-lightning[export]'.")
        self.filename = filename
        self._path: Path | None = None
        self._rows: dict[tuple[int, int], tuple[int, float]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes the run's folder, which all ranks must ask for together."""
        if stage == "predict":
            self._path = Path(trainer.log_dir or trainer.default_root_dir) / self.filename
            self._rows = {}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, Tensor | None],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the class and confidence of each row."""
        probabilities, index = outputs["probabilities"], outputs["index"]
        assert probabilities is not None
        if index is None and trainer.world_size > 1:
            raise ValueError(
                "PredictionWriter cannot put the rows of several processes in order without their index. Let the "
                "loader give (x, y, index), or predict with one device."
            )
        positions = (
            index.tolist() if index is not None else range(len(self._rows), len(self._rows) + len(probabilities))
        )
        confidence, label = probabilities.max(dim=1)
        for position, row in zip(positions, zip(label.tolist(), confidence.tolist(), strict=True), strict=True):
            self._rows[dataloader_idx, position] = row

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the rows of all ranks and writes them."""
        parts = [self._rows]
        if trainer.world_size > 1:
            parts = [{} for _ in range(trainer.world_size)]
            distributed.all_gather_object(parts, self._rows)
        if not trainer.is_global_zero:
            return
        rows = {key: row for part in parts for key, row in part.items()}
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = getattr(data, "class_names", None)
        describe = getattr(data, "describe_row", None)
        files = {key: describe("predict", key[1]) if describe is not None else None for key in rows}
        has_files = any(file not in (None, str(key[1])) for key, file in files.items())
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        columns: dict[str, list[Any]] = {
            "file" if has_files else "index": [files[key] if has_files else key[1] for key in sorted(rows)],
            "class": [names[rows[key][0]] if names else rows[key][0] for key in sorted(rows)],
            "confidence": [rows[key][1] for key in sorted(rows)],
        }
        _write_table(self._path, columns)
        print(f"{len(rows)} predictions: {self._path}")


def _write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return
    with path.open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(columns)
        *others, confidence = columns.values()
        writer.writerows(zip(*others, (f"{value:.6f}" for value in confidence), strict=True))
