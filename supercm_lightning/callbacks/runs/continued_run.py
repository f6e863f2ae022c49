"""A resumed run goes on in its own folder, without gap or repetition in the logs."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.trainer.states import TrainerFn

from supercm_lightning.utils.files import write_atomically

_EVENTS = "events.out.tfevents.*"


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSV logger that goes on with a table it finds, where Lightning's deletes it."""

    @property
    @rank_zero_experiment
    def experiment(self) -> "_Table":
        """The table."""
        if self._experiment is None:
            self._experiment = _Table(self.log_dir)
        return self._experiment  # type: ignore[return-value]


class _Table(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        if os.path.exists(self.metrics_file_path):
            self.metrics_keys, _ = _read(Path(self.metrics_file_path))

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        _, rows = _read(Path(self.metrics_file_path))
        _write(Path(self.metrics_file_path), fieldnames, rows)


def _read(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        return list(reader.fieldnames or ()), rows


def _write(table: Path, names: list[str], rows: list[dict[str, str]]) -> None:
    """Writes a table in one piece."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=names)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(table, text.getvalue())


class ContinuedRun(Callback):
    """Lets a run that was killed and resumed leave the logs of an uninterrupted one, and end as it does.

    Every checkpoint says how far the logs had come (`rewind` drops what was logged later) and what its step had left to
    do: Lightning saves at the end of a training batch before it logs that batch and before a validation that is due,
    and a run resumed there does neither. A run resumed after its last step skips the hooks at the end of the training,
    among them those that leave averaged weights in the module.

    Args:
        folder: The run's folder, with `metrics.csv` and TensorBoard's event files.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._left: dict[str, Any] | None = None
        self._max_steps = -1
        self._ended = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes the run's folder, the number of rows, the size of each event file, and what the step has left to do."""
        if (left := _left(trainer)) is not None:
            checkpoint["left"] = left
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        table = self.folder / ExperimentWriter.NAME_METRICS_FILE
        checkpoint["logs"] = {
            "run": str(self.folder.resolve()),
            "rows": len(_read(table)[1]) if table.exists() else 0,
            "events": {file.name: file.stat().st_size for file in self.folder.glob(_EVENTS)},
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes over what the step had left; a validation makes it a checkpoint from within that validation."""
        self._ended = trainer.state.fn != TrainerFn.FITTING
        self._left = None if self._ended else checkpoint.get("left")
        if self._left is None or not self._left["validation"]:
            return
        loops = checkpoint["loops"]["fit_loop"]
        for counts in ("total", "current"):
            loops["epoch_loop.batch_progress"][counts]["completed"] += 1
        validated = loops["epoch_loop.val_loop.batch_progress"]
        validated["current"] = dict.fromkeys(validated["current"], 0)
        done = validated["total"]["completed"]
        validated["total"] |= {"ready": done + 1, "started": done + 1, "processed": done}
        self._max_steps = trainer.fit_loop.epoch_loop.max_steps
        if self._max_steps == checkpoint["global_step"]:
            # With its steps complete, the loop would not start.
            trainer.fit_loop.epoch_loop.max_steps += 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the row of the checkpoint's step."""
        if self._left is not None and self._left["metrics"]:
            for logger in trainer.loggers:
                logger.log_metrics(dict(self._left["metrics"]), step=self._left["step"])
                logger.save()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes back what made the loop start here."""
        if self._left is not None and self._left["validation"]:
            loop = trainer.fit_loop.epoch_loop
            loop.val_loop.batch_progress.total.ready -= 1
            loop.val_loop.batch_progress.total.started -= 1  # type: ignore[attr-defined]
            loop.max_steps = self._max_steps
        self._left = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Knows that the run went on."""
        self._left = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the checkpoint's step, which Lightning does when it goes on after it."""
        self._ended = True
        if self._left is not None:
            trainer.fit_loop.epoch_loop._batches_that_stepped += 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Brings a run that was resumed after its last step to its end."""
        if not self._ended:
            if self._left is not None:
                # max_steps was reached within an epoch, which an uninterrupted run counts.
                trainer.fit_loop.epoch_progress.increment_processed()
                trainer.fit_loop.epoch_progress.increment_completed()
            trainer.fit_loop.on_run_start()
            trainer.fit_loop.on_run_end()


def _left(trainer: Trainer) -> dict[str, Any] | None:
    """What the current step has left to do when a checkpoint is written at the end of its batch; else None."""
    loop, connector, fetcher = trainer.fit_loop.epoch_loop, trainer._logger_connector, trainer.fit_loop._data_fetcher
    batches: Any = loop.batch_progress.current
    if fetcher is None or batches.processed == batches.completed:
        return None
    metrics = {}
    if connector.should_update_logs and not loop._should_accumulate():
        metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
        metrics |= {"epoch": trainer.current_epoch} if metrics else {}
    validation = loop._should_check_val_fx(fetcher)
    if validation:
        loop.val_loop.setup_data()  # tells whether there are rows for it
        validation = not loop.val_loop.skip
    return {"step": loop._batches_that_stepped, "metrics": metrics, "validation": validation}


def rewind(folder: Path, logs: dict[str, Any] | None) -> None:
    """Takes the logs of a run's folder back to where they were when a checkpoint was written.

    Args:
        folder: The run's folder.
        logs: What `ContinuedRun` put into the checkpoint; None: there is no checkpoint, and the run starts over.
    """
    logs = logs or {"rows": 0, "events": {}}
    table = folder / ExperimentWriter.NAME_METRICS_FILE
    if table.exists():
        names, rows = _read(table)
        if logs["rows"]:
            _write(table, names, rows[: logs["rows"]])
        else:
            table.unlink()
    for file in folder.glob(_EVENTS):
        if file.name in logs["events"]:
            os.truncate(file, min(logs["events"][file.name], file.stat().st_size))
        else:
            file.unlink()
