"""Writes predictions as a table."""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from supercm_lightning.callbacks.evaluation.cluster_names import name_clusters
from supercm_lightning.callbacks.evaluation.sample_table import SampleTable
from supercm_lightning.contracts import ClassModel, ViewConsumer, ViewData
from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.lightning_private import datamodule_of_call
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.text import printable, table_cell
from supercm_lightning.utils.trainer import is_dry_run


class PredictionWriter(Callback):
    """Writes a table with one line per sample: `file` (or `index`, without files), `class` and `confidence`.

    `predict` writes it into the file of this name, `test` into one with `test_` in front, with a column `label`. A
    method without labels gives `cluster` in place of `class`.

    In CSV a cell that a spreadsheet would take for a formula (`=`, `+`, `-`, `@`) has a quote in front; control
    characters, and bytes of a name that are no text, are escaped.

    Lines are in the order of the samples, each once, also if several processes share the work. `class` is the name if
    the data module has `class_names`, else the number; `confidence` is the probability of that class. The first process
    gathers 20 bytes per sample, with `probabilities` 4 more per class, and writes the file beside its place before it
    replaces an older one.

    Args:
        filename: Name of the table in the run's folder (the logger's, else `default_root_dir`), or a full path. A
            name that ends in `.parquet` gives that format (needs the extra `export`), any other CSV.
        probabilities: Adds a column `p_<class>` with the probability of each class.
        names: Table with the columns `file` and `class`, some samples that name clusters in a column `class`; prints
            which clusters have no name, and which classes are split.

    Raises:
        ModuleNotFoundError: If Parquet is requested and pyarrow is not installed.
        SuperCMError: If several processes predict from a loader that gives no index.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> writer = PredictionWriter("predictions.csv", probabilities=True)
        >>> trainer = Trainer(callbacks=[writer], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self, filename: str = "predictions.csv", probabilities: bool = False, names: str | None = None
    ) -> None:
        if not Path(filename).name:
            raise SuperCMError(f"filename={filename!r}: no name of a file. Give one, such as predictions.csv.")
        if filename.endswith(".parquet") and find_spec("pyarrow") is None:
            raise ModuleNotFoundError(f"filename={filename!r} needs pyarrow: pip install 'supercm-lightning[export]'.")
        self.filename = filename
        self.probabilities = probabilities
        self.names = names
        self._path = Path(filename)
        self._tables: defaultdict[int, SampleTable] = defaultdict(SampleTable)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Determines the run's folder, for which all ranks must ask together."""
        if stage in ("predict", "test"):
            self._path = Path(trainer.log_dir or trainer.default_root_dir) / self.filename
            self._tables.clear()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the predictions of a batch."""
        probabilities, index = outputs["probabilities"], outputs["index"]
        assert probabilities is not None
        if index is None and trainer.world_size > 1:
            raise SuperCMError(
                "PredictionWriter cannot sort the samples of several processes without their index. Let the loader "
                "give (x, y, index), or predict with one device."
            )
        self._keep(dataloader_idx, probabilities, index)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the predictions and labels of a batch of the first loader."""
        index = batch[2] if len(batch) > 2 else None
        sortable = index is not None or trainer.world_size == 1  # otherwise the test has no table
        if dataloader_idx == 0 and sortable and isinstance(outputs, dict) and "logits" in outputs:
            self._keep(0, outputs["logits"].float().softmax(dim=1), index, label=batch[1])

    def _keep(self, loader: int, probabilities: Tensor, index: Tensor | None, **columns: Tensor) -> None:
        columns["confidence"], columns["class"] = probabilities.max(dim=1)
        if self.probabilities:
            columns["probabilities"] = probabilities
        self._tables[loader].add(index, **columns)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the predictions of all ranks and writes them."""
        count = self._write(trainer, "predict", self._path)
        if trainer.is_global_zero:
            print(f"{count} predictions: {printable(str(self._path))}")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the predictions of all ranks and writes them beside those of `predict`."""
        if not is_dry_run(trainer):
            self._write(trainer, "test", self._path.with_name(f"test_{self._path.name}"))

    def _write(self, trainer: Trainer, split: str, path: Path) -> int:
        loaders = trainer.num_predict_batches if split == "predict" else [1]
        tables = [self._tables[number].gather() for number in range(len(loaders))]
        tables = [table for table in tables if table]
        if not tables:
            return 0
        data = datamodule_of_call(trainer)
        clusters = has_clusters(trainer.lightning_module)
        parts = [self._columns(table, split, data, clusters) for table in tables]
        columns = {name: [value for part in parts for value in part[name]] for name in parts[0]}
        if clusters:
            columns = cluster_columns(columns, trainer.lightning_module, self.names if split == "predict" else None)
        write_atomically(path, lambda stream: write_table(stream, path.suffix, columns))
        return len(columns["confidence"])

    def _columns(self, table: dict[str, Tensor], split: str, data: object, clusters: bool) -> dict[str, Sequence[Any]]:
        names = data.class_names if isinstance(data, ViewData) else None
        places = table["index"].tolist() if "index" in table else list(range(len(table["class"])))
        files = [data.describe_sample(split, place) for place in places] if isinstance(data, ViewData) else []

        def named(labels: Tensor) -> list[Any]:
            return [(names[label] if names else label) if label >= 0 else None for label in labels.tolist()]

        has_files = any(file != str(place) for file, place in zip(files, places, strict=False))
        columns: dict[str, Sequence[Any]] = {"file": files} if has_files else {"index": places}
        if "label" in table:
            columns["label"] = named(table["label"])
        found = table["class"].tolist() if clusters else named(table["class"])  # cluster 0 is not class 0
        columns |= {"class": found, "confidence": table["confidence"].tolist()}
        if "probabilities" in table:
            classes = (None if clusters else names) or range(table["probabilities"].shape[1])
            columns |= {f"p_{name}": p.tolist() for name, p in zip(classes, table["probabilities"].T, strict=True)}
        return columns


def has_clusters(module: LightningModule) -> bool:
    """Whether the outputs of a module are clusters rather than classes."""
    return isinstance(module, ViewConsumer) and not module.needs_labeled


def cluster_columns(
    columns: dict[str, list[Any]], module: LightningModule, names: str | Path | None
) -> dict[str, list[Any]]:
    """A table of predictions with `cluster` in place of `class`, and the names of clusters as `class`."""
    columns = {"cluster" if name == "class" else name: values for name, values in columns.items()}
    if names is None:
        return columns
    assert isinstance(module, ClassModel)
    files = [str(value) for value in columns.get("file") or columns["index"]]
    found, notes = name_clusters(names, files, columns["cluster"], module.num_classes)
    print("\n".join(map(printable, notes)))
    return columns | {"class": [found[number] for number in columns["cluster"]]}


def write_table(stream: BinaryIO, suffix: str, columns: dict[str, list[Any]]) -> None:
    """Writes columns of one length as Parquet, where the suffix says so, else as CSV."""
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        plain = {
            printable(name): [printable(value) if isinstance(value, str) else value for value in values]
            for name, values in columns.items()
        }
        pyarrow.parquet.write_table(pyarrow.table(plain), stream)
        return
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerows([_cell(value) for value in row] for row in (columns, *zip(*columns.values(), strict=True)))
    text.detach()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return table_cell(value)
    return f"{value:.6f}" if isinstance(value, float) else value
