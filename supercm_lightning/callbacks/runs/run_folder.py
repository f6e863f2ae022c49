"""The folder of a run: a new one, or that of the run that is resumed."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.saving import load_hparams_from_yaml
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from yaml import YAMLError

from supercm_lightning.callbacks.runs.metrics_table import MetricsTable, drop_rows
from supercm_lightning.utils.checkpoints import newest_checkpoint

_FOLDER = "lightning_logs"


class RunFolder(NamedTuple):
    """Where a run logs, and what it starts from.

    Attributes:
        root: Folder of all runs, `default_root_dir`.
        version: Name of the run's folder in `root/lightning_logs`; None: the next `version_N`.
        checkpoint: Checkpoint to resume from; None: the run starts at its beginning.
        steps: Number of steps that the logs keep from before; None: a new run.
    """

    root: Path
    version: str | None = None
    checkpoint: Path | None = None
    steps: int | None = None

    def loggers(self) -> list[Logger]:
        """TensorBoard's event file and `metrics.csv` in the run's folder, without the steps that will be repeated."""
        # Readers of event files drop what was logged from `purge_step` on before the resumed run began.
        board = TensorBoardLogger(self.root, version=self.version, default_hp_metric=False, purge_step=self.steps)
        table = MetricsTable(board.log_dir)
        if self.steps is not None and _is_rank_zero():
            drop_rows(table.file, self.steps)
        return [board, table]


def run_folder(command: str | None, start: Any, config: dict[str, Any], callbacks: Any) -> RunFolder:
    """The folder of a new run, or of the one that is resumed.

    A run is resumed by `ckpt_path=last`, and after SLURM started the job again.

    Args:
        command: `fit`, or another command, whose run is always new.
        start: The option `ckpt_path`.
        config: Configuration of the run, plain values.
        callbacks: The callbacks of the configuration; the folders that they save to may hold the run's checkpoints.
    """
    root = Path((config.get("trainer") or {}).get("default_root_dir") or os.getcwd())
    requeued = command == "fit" and start is None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    if start != "last" and not requeued:
        return new_run(root)._replace(checkpoint=start)
    given = callbacks if isinstance(callbacks, Sequence) else [callbacks]
    saving = [Path(c.dirpath) for c in given if isinstance(c, ModelCheckpoint) and c.dirpath]
    return resumed_run(root, config, saving, own_job=requeued) or new_run(root)


def new_run(root: Path) -> RunFolder:
    """A folder for a new run.

    Under SLURM its name is the job's number, and number_1, number_2 and so on for further runs of the same job, such as
    those of an interactive session or of a script that trains several seeds.

    Args:
        root: Folder of all runs.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or not _is_rank_zero():  # the folder is broadcast from the first process
        return RunFolder(root, job)
    number = 0
    while True:
        version = f"{job}_{number}" if number else job
        try:
            # Claimed here: runs of one job may start at the same time.
            (root / _FOLDER / version).mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return RunFolder(root, version)


def resumed_run(root: Path, config: dict[str, Any], elsewhere: Iterable[Path], own_job: bool) -> RunFolder | None:
    """The newest run with the same model, data, seed and callbacks, to be resumed from its newest checkpoint.

    Args:
        root: Folder of all runs.
        config: Configuration of the present run, plain values.
        elsewhere: Further folders that the run saves checkpoints to.
        own_job: Whether the run must be one of this SLURM job.

    Returns:
        The run; None: there is none.
    """
    wanted = _identity(config)
    job = os.environ.get("SLURM_JOB_ID", "")
    files = sorted((root / _FOLDER).glob("*/config.yaml"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for file in files:
        folder = file.parent
        if own_job and folder.name != job and not folder.name.startswith(f"{job}_"):
            continue
        try:
            found = _identity(load_hparams_from_yaml(file, use_omegaconf=False))
        except YAMLError:  # cut off when the process was killed
            continue
        if found.keys() == wanted.keys() and _agree(wanted, found):
            path, checkpoint = newest_checkpoint(folder, elsewhere) or (None, {"global_step": 0})
            steps = checkpoint.get("run", {}).get("steps", checkpoint["global_step"])
            rank_zero_info(f"Going on with the run in {folder} from {path or 'its beginning'}.")
            return RunFolder(root, folder.name, path, steps)
    return None


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same: everything but their length, their machine and their checkpoint."""
    run = {name: value for name, value in config.items() if name not in ("trainer", "ckpt_path")}
    return run | {"callbacks": (config.get("trainer") or {}).get("callbacks")}


def _agree(one: Any, other: Any) -> bool:
    """Whether two configurations agree in their common options; a newer version may have added some."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[name], other[name]) for name in one.keys() & other.keys())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_agree, one, other))
    return bool(one == other)


def _is_rank_zero() -> bool:
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]
