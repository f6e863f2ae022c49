"""Checkpoint files: written in one piece, and read with an error that names what is wrong."""

from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.options import MissingFileError, SuperCMError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and renames, so that a checkpoint is always whole: the old one or the new one.

    Lightning writes to the system's temporary folder and moves from there, which is a copy in place wherever that
    folder lies on another file system, as it does on most clusters: a job killed during it leaves half a file.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", logger=False, plugins=[AtomicCheckpointIO()])
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a local file in one piece; leaves remote ones to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_atomically(Path(path), lambda stream: torch.save(checkpoint, stream))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint; tensors stay in the file until they are used.

    Args:
        path: The file.

    Raises:
        MissingFileError: If there is no such file.
        SuperCMError: If it is truncated, no checkpoint, or holds more than tensors, numbers and strings.
    """
    if not path.is_file():
        raise MissingFileError(f"ckpt_path={path}: no such file.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise SuperCMError(
            f"ckpt_path={path}: refused, because it holds more than tensors, numbers and strings, or is no checkpoint "
            "at all. Reading it could run code that somebody put there. Save options of plain values only."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise SuperCMError(
            f"ckpt_path={path}: cannot be read as a checkpoint; the file is truncated or damaged. Give an earlier one."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise SuperCMError(f"ckpt_path={path}: holds no state_dict; it is no checkpoint of Lightning.")
    return checkpoint


def check_method(path: Path, class_path: str) -> None:
    """Checks that a checkpoint is one of a method.

    Args:
        path: The checkpoint.
        class_path: Class of the method, with or without its module.

    Raises:
        SuperCMError: If the file cannot be read as a checkpoint, or names another class.
    """
    saved = read_checkpoint(path).get("hyper_parameters", {}).get("_class_path")
    if saved is not None and saved.rpartition(".")[2] != class_path.rpartition(".")[2]:
        raise SuperCMError(f"ckpt_path={path}: a checkpoint of {saved}, but the model is {class_path}.")


def newest_checkpoint(run: Path, elsewhere: Iterable[Path] = ()) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint from which a run can be resumed.

    Files that cannot be read, those with weights alone, and those of other runs in a shared folder are passed over.

    Args:
        run: The run's folder; its own checkpoints are in its subfolder `checkpoints`.
        elsewhere: Further folders that the run saved to.

    Returns:
        The file and its contents; None: there is none.
    """
    own = run / "checkpoints"
    files = {file for folder in (own, *elsewhere) for file in folder.glob("*.ckpt")}
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        try:
            checkpoint = read_checkpoint(file)
        except SuperCMError as error:
            rank_zero_warn(f"{error} The one before it is taken.")
            continue
        writer = checkpoint.get("run", {}).get("folder", str(run.resolve()))
        if "loops" in checkpoint and (file.parent == own or writer == str(run.resolve())):
            return file, checkpoint
    return None
