"""The folder of a run: a new one, or that of the run that is resumed."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.saving import load_hparams_from_yaml
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from yaml import YAMLError

from supercm_lightning.callbacks.runs.metrics_table import MetricsTable, drop_rows
from supercm_lightning.callbacks.runs.named_loggers import NamedLogger, csv
from supercm_lightning.utils.checkpoints import newest_checkpoint
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.trainer import is_rank_zero

_FOLDER = "lightning_logs"
_LOCK = ".lock"
_TRACES = (_LOCK, "config.yaml", "hparams.yaml", "summary.json")  # of a command that failed before its first step
_PATIENCE = 15  # seconds; loader processes of a run that was killed hold its lock until they miss it


@dataclass
class RunFolder:
    """Where a run logs, and what it starts from.

    Its folder in `root/lightning_logs` is called `version`, or as the first process says. It resumes from `checkpoint`,
    if there is one; its logs keep `steps` from before, None for a new run. The lock is held while it is in progress.
    """

    root: Path
    version: str | None = None
    checkpoint: Any = None
    steps: int | None = None
    lock: FileLock | None = None

    def loggers(self, chosen: NamedLogger, title: str) -> list[Logger]:
        """The loggers of a run, in its folder, without the steps that will be repeated.

        Args:
            chosen: What logs beside `metrics.csv`.
            title: Method and data.
        """
        # Readers of event files drop what was logged from `purge_step` on before the resumed run began.
        board = TensorBoardLogger(self.root, version=self.version, default_hp_metric=False, purge_step=self.steps)
        table = MetricsTable(board.log_dir)
        if self.steps is not None and is_rank_zero():
            drop_rows(table.file, self.steps)
        files = [table] if isinstance(chosen, csv) else [board, table]
        return files + chosen.beside(Path(board.log_dir), re.sub(r"[^\w.]+", "-", title))

    def close(self, failed: bool) -> None:
        """Ends the run; the new folder of one that failed before it logged anything is removed."""
        if self.lock is None:
            return
        self.lock.release()
        folder = Path(self.lock.lock_file).parent
        files = list(folder.iterdir()) if folder.is_dir() else []
        is_trace = [file.name in _TRACES or "tfevents" in file.name for file in files]
        if failed and self.steps is None and all(is_trace) and not _steps_of(folder):
            with suppress(OSError):  # what cannot be removed must not hide the command's own error
                for file in files:
                    file.unlink(missing_ok=True)
                folder.rmdir()
                folder.parent.rmdir()  # refused where there are other runs


def local_folder(option: str | Path) -> Path:
    """The folder that `default_root_dir`, a path or a URL of a file, names, with `~` and variables replaced."""
    if "://" in str(option):
        url = urlsplit(str(option))
        if url.scheme != "file":
            raise SuperCMError(
                f"trainer.default_root_dir={option}: runs are written into local folders alone. Give one, and copy the "
                "finished run."
            )
        option = url2pathname(url.path)
    try:
        return Path(os.path.expandvars(option)).expanduser()
    except RuntimeError as error:
        raise SuperCMError(f"trainer.default_root_dir={option}: {error} Give a full path.") from error


def run_folder(command: str | None, start: Any, config: dict[str, Any], callbacks: Any) -> RunFolder:
    """The folder of a new run, or of the one that is resumed.

    A run is resumed by `ckpt_path=last`, the option `start`, and after SLURM started the job again; that of another
    command than `fit` is always new. The folders that the `callbacks` save to may hold the run's checkpoints. A folder
    that cannot be made, and a run that is in progress, are errors.
    """
    root = Path((config.get("trainer") or {}).get("default_root_dir") or os.getcwd())
    requeued = command == "fit" and start is None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    if start != "last" and not requeued:
        folder = new_run(root)
        folder.checkpoint = start
        return folder
    given = callbacks if isinstance(callbacks, Sequence) else [callbacks]
    saving = [Path(c.dirpath) for c in given if isinstance(c, ModelCheckpoint) and c.dirpath]
    return resumed_run(root, config, saving, own_job=requeued) or new_run(root)


def new_run(root: Path) -> RunFolder:
    """Makes the folder of a new run, which no other run has, however many start at the same time.

    Its name is `version_N`. Under SLURM it is the job's number, and number_1, number_2 and so on for further runs of
    the same job, such as those of an interactive session or of a script that trains several seeds.
    """
    if not is_rank_zero():  # the folder is broadcast from the first process
        return RunFolder(root)
    job = os.environ.get("SLURM_JOB_ID")
    number = 0
    try:
        (root / _FOLDER).mkdir(parents=True, exist_ok=True)
        if job is None:
            names = (path.name.removeprefix("version_") for path in (root / _FOLDER).glob("version_*"))
            number = max((int(name) + 1 for name in names if name.isdecimal()), default=0)
        while True:
            version = f"version_{number}" if job is None else f"{job}_{number}" if number else job
            try:
                (root / _FOLDER / version).mkdir(parents=True)  # a run that failed may have removed the parent
            except FileExistsError:
                number += 1
            else:
                return RunFolder(root, version, lock=_lock(root / _FOLDER / version))
    except OSError as error:
        raise SuperCMError(
            f"trainer.default_root_dir={root}: the run's folder {root / _FOLDER} cannot be made ({error.strerror}). "
            "Give another folder."
        ) from error


def resumed_run(root: Path, config: dict[str, Any], elsewhere: Iterable[Path], own_job: bool) -> RunFolder | None:
    """The newest run with the same model, data, seed and callbacks, to be resumed from its newest checkpoint, or None.

    Its checkpoints may lie in further folders, `elsewhere`; with `own_job` it must be a run of this SLURM job. One that
    is in progress is an error.
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
        except (YAMLError, OSError, ValueError, AttributeError):  # written by hand, or on a full disk
            rank_zero_warn(f"{file}: cannot be read as the configuration of a run, which is passed over.")
            continue
        if found.keys() == wanted.keys() and _agree(wanted, found):
            lock = _lock(folder) if is_rank_zero() else None
            path, checkpoint = newest_checkpoint(folder, elsewhere) or (None, {"global_step": 0})
            steps = checkpoint.get("run", {}).get("steps", checkpoint["global_step"])
            rank_zero_info(f"Going on with the run in {folder} from {path or 'its beginning'}.")
            return RunFolder(root, folder.name, path, steps, lock)
    return None


def _steps_of(folder: Path) -> int:
    """Number of steps in the summary of a run; 0 without one."""
    try:
        return int(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _lock(folder: Path) -> FileLock:
    lock = FileLock(folder / _LOCK, timeout=_PATIENCE)
    try:
        lock.acquire()
    except Timeout as error:
        raise SuperCMError(
            f"ckpt_path=last: the run in {folder} is in progress. Wait for its end, or start a new one without last."
        ) from error
    except (OSError, NotImplementedError) as error:  # a file system without locks
        rank_zero_warn(f"{folder} cannot be locked ({error}): do not start this run twice at once.")
    return lock


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
