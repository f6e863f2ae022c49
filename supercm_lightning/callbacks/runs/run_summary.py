"""Writes what a run did and what it reached into one small JSON file."""

import json
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from scipy.stats import binomtest
from torch import Tensor
from torch.utils._pytree import tree_leaves

from supercm_lightning.callbacks.evaluation.prediction_collapse import PredictionCollapse
from supercm_lightning.callbacks.runs.run_text import checkpoint_card
from supercm_lightning.contracts import ViewData
from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.lightning_private import datamodule_of_call
from supercm_lightning.utils.random import run_seed
from supercm_lightning.utils.trainer import callbacks_of, datamodule_of, is_dry_run

_CHECKPOINTS = ("best_checkpoint", "last_checkpoint")
_PLAIN = (bool, int, float, str, type(None))


class RunSummary(Callback):
    """Writes `summary.json` into the run's folder at the end of `fit`, and adds to it after `test`.

    The same content as a page, `card.md`, is written beside the checkpoints.

    The file holds `status` (`completed`, `interrupted` by the user or the scheduler, or `failed`, with the exception as
    `error`), `metrics` (the last value of everything logged), `test_accuracy_interval` (95 %, Wilson's),
    `collapse` (that nearly all predictions are of one class), `best_checkpoint` and `best_score` (null where no metric
    is monitored), `last_checkpoint`,
    `seed`, `model`, `model_options`, `data`, `data_options` (the `hparams` of module and data module), `samples` (their
    number in each split), `versions`, `device`, `world_size`, `steps`, `epochs`, `fit_seconds` and `images_per_second`:
    samples of training batches, every view counted, of all ranks, divided by the time from the first batch on without
    validation.

    The folder is the logger's, else `default_root_dir`. Only rank zero writes, and a reader never sees half a file.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[RunSummary()])
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._started = 0.0
        self._samples = 0
        self._training_seconds = 0.0
        self._clock: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes the run's folder, which all ranks must ask for together."""
        self._path = Path(trainer.log_dir or trainer.default_root_dir) / "summary.json"
        if stage == "fit":
            self._started = time.monotonic()
            self._samples, self._training_seconds, self._clock = 0, 0.0, None

    # ---------------------------------------------------------------------------------------------------- speed
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Counts the samples of the batch and starts the clock after a pause."""
        if self._clock is None:
            self._clock = time.monotonic()
        self._samples += _forwarded_samples(batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock until the next training batch."""
        if self._clock is not None:
            if trainer.strategy.root_device.type != "cpu":
                # The device works asynchronously; unfinished steps are training time.
                torch.accelerator.synchronize(trainer.strategy.root_device)
            self._training_seconds += time.monotonic() - self._clock
            self._clock = None

    on_train_end = on_validation_start

    # --------------------------------------------------------------------------------------------------- writing
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the summary of a completed run; that of one which was resumed after its last step stays."""
        resumed = trainer.is_global_zero and not self._samples
        if not resumed or self._read(pl_module).get("status") != "completed":
            self._write(trainer, self._describe(trainer, pl_module, "completed"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the summary of a run that was interrupted or failed."""
        if trainer.state.fn != TrainerFn.FITTING or self._path is None:
            return
        interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        # Without waiting for the device: a failed one would raise again.
        if self._clock is not None:
            self._training_seconds += time.monotonic() - self._clock
        summary = self._describe(trainer, pl_module, "interrupted" if interrupted else "failed")
        if not interrupted:
            summary["error"] = f"{type(exception).__name__}: {exception}"
        self._write(trainer, summary)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the test metrics to the summary of the fit, if the folder has one of this model."""
        if not trainer.is_global_zero or self._path is None:
            return
        summary = self._read(pl_module) or self._describe(trainer, pl_module, "completed")
        metrics = _metrics(trainer)
        summary["metrics"] |= metrics
        summary["collapse"] = _collapse(trainer)
        summary["test_accuracy_interval"] = accuracy_interval(trainer, metrics)
        self._write(trainer, summary)

    def _read(self, pl_module: LightningModule) -> dict[str, Any]:
        """The summary that the folder has of this model; empty without one."""
        try:
            summary = json.loads(self._path.read_text(encoding="utf-8")) if self._path is not None else {}
        except (OSError, ValueError):
            return {}
        if not isinstance(summary, dict) or summary.get("model") != type(pl_module).__name__:
            return {}
        return summary if isinstance(summary.get("metrics"), dict) else {}

    def _describe(self, trainer: Trainer, pl_module: LightningModule, status: str) -> dict[str, Any]:
        checkpoint = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        best_score = checkpoint.best_model_score if checkpoint is not None else None
        data = datamodule_of(trainer)
        chosen = checkpoint is not None and checkpoint.monitor is not None
        saved, last = (checkpoint.best_model_path, checkpoint.last_model_path) if checkpoint is not None else ("", "")
        fitted = trainer.state.fn == TrainerFn.FITTING
        speed = self._samples * trainer.world_size / self._training_seconds if self._training_seconds else None
        return {
            "status": status,
            "metrics": _metrics(trainer),
            "collapse": _collapse(trainer),
            "best_checkpoint": (saved or None) if chosen else None,
            "best_score": float(best_score) if best_score is not None else None,
            "last_checkpoint": last or (None if chosen else saved or None),
            "seed": run_seed(trainer),
            "model": type(pl_module).__name__,
            "model_options": _plain(pl_module.hparams),
            "data": type(data).__name__ if data is not None else None,
            "data_options": _plain(data.hparams) if isinstance(data, LightningDataModule) else {},
            "samples": {split: len(part) for split, part in data.samples.items()} if isinstance(data, ViewData) else {},
            "versions": _versions(),
            "device": _device(trainer.strategy.root_device),
            "world_size": trainer.world_size,
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "fit_seconds": round(time.monotonic() - self._started, 3) if fitted else None,
            "images_per_second": round(speed, 1) if speed is not None else None,
        }

    def _write(self, trainer: Trainer, summary: dict[str, Any]) -> None:
        if self._path is None or not trainer.is_global_zero or is_dry_run(trainer):
            return
        write_atomically(self._path, json.dumps(summary, indent=2) + "\n")
        if summary["fit_seconds"] is None:  # a later test; the card beside the checkpoint is that of the training
            return
        for folder in {Path(file).parent for name in _CHECKPOINTS if (file := summary[name])}:
            write_atomically(folder / "card.md", checkpoint_card(summary))


def _plain(value: Any) -> Any:
    """Options as JSON can hold them; of arrays and objects given from Python the class remains."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items() if not str(name).startswith("_")}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, _PLAIN) else type(value).__name__


def _metrics(trainer: Trainer) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in trainer.callback_metrics.items()}
    except RuntimeError:  # a failed device gives nothing back, and the failure itself must reach the file
        return {}


def _collapse(trainer: Trainer) -> str | None:
    return next((c.message for c in callbacks_of(trainer) if isinstance(c, PredictionCollapse)), None)


def accuracy_interval(trainer: Trainer, metrics: Mapping[str, float]) -> tuple[float, float] | None:
    """95 % interval of the `test/acc` that a trainer found; None for clusters, and an unknown number of samples."""
    data = datamodule_of_call(trainer)
    count = len(data.samples.get("test", ())) if isinstance(data, ViewData) else 0
    shortened = isinstance(trainer.limit_test_batches, int) or trainer.limit_test_batches != 1
    if "test/acc" not in metrics or "test/nmi" in metrics or not count or shortened:
        return None
    return tuple(binomtest(round(metrics["test/acc"] * count), count).proportion_ci(method="wilson"))


def _forwarded_samples(batch: Any) -> int:
    """Number of samples in a training batch, every unlabeled view counted."""
    if isinstance(batch, dict) and {"labeled", "unlabeled"} & set(batch):
        views = batch["unlabeled"][0] if "unlabeled" in batch else ()
        return sum(len(samples) for samples in (*batch.get("labeled", ())[:1], *views))
    return next((len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim), 0)


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "lightning", "supercm_lightning", "torchvision", "timm"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
