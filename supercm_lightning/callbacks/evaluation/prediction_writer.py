"""Writes predictions as a table."""

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from supercm_lightning.utils.collectives import gather_objects
from supercm_lightning.utils.options import SuperCMError


class PredictionWriter(Callback):
    """On `predict`, writes one line per row: `file` (or `index`, where rows have no files), `class` and `confidence`.

    On `test`, also the true `label`, into a file of the same name with `test_` in front.

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
        self._rows: dict[tuple[int, int], tuple[int, float, int]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes the run's folder, which all ranks must ask for together."""
        if stage in ("predict", "test"):
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
            raise SuperCMError(
                "PredictionWriter cannot put the rows of several processes in order without their index. Let the "
                "loader give (x, y, index), or predict with one device."
            )
        self._keep(probabilities, index, None, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the class, confidence and label of each row of the first loader."""
        index = batch[2] if len(batch) > 2 else None
        in_order = index is not None or trainer.world_size == 1  # else a test goes without its table
        if dataloader_idx == 0 and in_order and isinstance(outputs, dict) and "logits" in outputs:
            self._keep(outputs["logits"].float().softmax(dim=1), index, batch[1], dataloader_idx)

    def _keep(self, probabilities: Tensor, index: Tensor | None, labels: Tensor | None, loader: int) -> None:
        places = index.tolist() if index is not None else range(len(self._rows), len(self._rows) + len(probabilities))
        confidence, predicted = probabilities.max(dim=1)
        known = labels.tolist() if labels is not None else [-1] * len(predicted)
        for place, *row in zip(places, predicted.tolist(), confidence.tolist(), known, strict=True):
            self._rows[loader, place] = (row[0], row[1], row[2])

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the rows of all ranks and writes them."""
        assert self._path is not None
        count = self._write(trainer, "predict", self._path)
        if trainer.is_global_zero:
            print(f"{count} predictions: {self._path}")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise."""
        assert self._path is not None
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write(trainer, "test", self._path.with_name(f"test_{self._path.name}"))

    def _write(self, trainer: Trainer, part: str, path: Path) -> int:
        rows = {key: row for one in gather_objects(self._rows) for key, row in one.items()}
        if not trainer.is_global_zero or (part == "test" and not rows):
            return 0
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = getattr(data, "class_names", None)
        describe = getattr(data, "describe_sample", None)
        files = {key: describe(part, key[1]) if describe is not None else None for key in rows}
        has_files = any(file not in (None, str(key[1])) for key, file in files.items())

        def name(label: int) -> Any:
            return (names[label] if names else label) if label >= 0 else None

        path.parent.mkdir(parents=True, exist_ok=True)
        order = sorted(rows)
        columns: dict[str, list[Any]] = {
            "file" if has_files else "index": [files[key] if has_files else key[1] for key in order],
            **({"label": [name(rows[key][2]) for key in order]} if part == "test" else {}),
            "class": [name(rows[key][0]) for key in order],
            "confidence": [rows[key][1] for key in order],
        }
        _write_table(path, columns)
        return len(rows)


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
