"""Checkpoint files: written in one piece, and read with an error that names what is wrong."""

import json
import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from supercm_lightning.utils.files import check_sums, write_atomically
from supercm_lightning.utils.options import MissingFileError, SuperCMError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and renames, so that a checkpoint is always whole: the old one or the new one.

    Lightning writes to the system's temporary folder and moves from there, which is a copy in place wherever that
    folder lies on another file system, as it does on most clusters: a job killed during it leaves half a file.
    Nothing but tensors and plain values is read, and damaged files are named.

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

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint, as `read_checkpoint` does."""
        # ddp_spawn hands weights alone to the first process in a file of this name.
        if "://" in str(path) or Path(path).name == ".temp.ckpt":
            return super().load_checkpoint(path, lambda storage, place: storage, weights_only=True)
        return read_checkpoint(path, mmap=False)


PRETRAINED = ("model.safetensors", "config.json", "README.md")
"""Files of a folder that `save_pretrained` writes."""


def hub() -> Any:
    """The package `huggingface_hub`; a clear error without it."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("huggingface_hub not found: pip install 'supercm-lightning[hub]'.") from error
    return huggingface_hub


def fetched(path: str | Path) -> Path:
    """The local folder of a model that `hf://OWNER/NAME` names on the Hugging Face Hub; other paths as they are.

    Raises:
        SuperCMError: If the Hub cannot be reached or has no such model.
    """
    if not str(path).startswith("hf://"):
        return Path(path).expanduser()
    try:
        return Path(hub().snapshot_download(str(path).removeprefix("hf://"), allow_patterns=list(PRETRAINED)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SuperCMError(
            f"{path}: cannot be fetched ({reason}). Check the name, the network, or `hf auth login`."
        ) from error


def is_pretrained(path: str | Path) -> bool:
    """Whether a folder is one that `save_pretrained` wrote."""
    return all(Path(path, name).is_file() for name in PRETRAINED[:2])


def _read_pretrained(folder: Path) -> dict[str, Any]:
    """Such a folder as a checkpoint."""
    try:
        tensors, content = load_file(folder / PRETRAINED[0]), json.loads((folder / PRETRAINED[1]).read_text("utf-8"))
        own = {"_class_path": content["class_path"], "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        options = content["options"] | own
        measured = {name[9:]: tensors.pop(name) for name in list(tensors) if name.startswith("measured:")}
        known = {"pytorch-lightning_version": lightning.__version__, "data": content["data"] | {"measured": measured}}
        return known | {"state_dict": tensors, "hyper_parameters": options}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise SuperCMError(
            f"{folder}: no model of this package, or damaged ({type(error).__name__}: {error})."
        ) from error


def local_file(path: str | Path) -> Path:
    """The file that `ckpt_path` names; a missing one, a URL and a folder are errors."""
    if "://" in str(path):
        raise SuperCMError(f"ckpt_path={path}: checkpoints are read from files alone. Download it and give its path.")
    file = Path(path).expanduser()
    if str(path) in ("", ".") or file.is_dir():
        raise SuperCMError(f"ckpt_path={path}: is a folder; give a file, such as one in a run's checkpoints/.")
    if not file.is_file():
        raise MissingFileError(f"ckpt_path={path}: no such file.")
    return file


def checkpoint_of(path: str | Path) -> Path:
    """A checkpoint: a file, or the best one of a run's folder by its summary, else the newest there.

    A folder that `save_pretrained` wrote, or its name on the Hub, `hf://OWNER/NAME`, stands for itself.
    """
    run = fetched(path)
    if not run.is_dir():
        return local_file(path)
    if is_pretrained(run):
        return run
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    files = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        raise MissingFileError(f"{path}: no checkpoints in this folder; give that of a run, or a checkpoint.")
    try:
        best = json.loads((run / "summary.json").read_text(encoding="utf-8"))["best_checkpoint"]
    except (OSError, ValueError, KeyError):  # the run was killed
        best = None
    chosen = folder / Path(best).name if best else files[-1]  # the folder may have been moved
    return chosen if chosen.is_file() else files[-1]


def read_checkpoint(path: str | Path, mmap: bool = True) -> dict[str, Any]:
    """The contents of a checkpoint, after its checksums (about half a second for each GB) were compared.

    With `mmap` tensors stay in the file until they are used. A file that is damaged, no checkpoint, or holds more than
    tensors, numbers and strings is an error.
    """
    if is_pretrained(path):
        return _read_pretrained(Path(path))
    file = local_file(path)
    try:
        check_sums(file)
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:
        raise SuperCMError(
            f"ckpt_path={path}: refused, because it holds more than tensors, numbers and strings, or is no checkpoint "
            "at all. Reading it could run code that somebody put there. Save options of plain values only."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, BadZipFile, zlib.error) as error:
        raise SuperCMError(
            f"ckpt_path={path}: cannot be read as a checkpoint; the file is truncated or damaged. Give an earlier one."
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise SuperCMError(f"ckpt_path={path}: holds no state_dict; it is no checkpoint of Lightning.")
    if not isinstance(options := checkpoint.get("hyper_parameters", {}), dict) or not all(map(_is_name, options)):
        raise SuperCMError(f"ckpt_path={path}: its hyper_parameters are no options by name; another program wrote it.")
    return checkpoint


def check_classes(path: str | Path, options: Any) -> None:
    """Checks that the options in a checkpoint name no class that would be imported because of it.

    Classes of this package, and networks that were imported before, are allowed; `path` is for the message.

    Examples:
        >>> check_classes("a.ckpt", {"backbone": {"class_path": "torch.nn.Flatten"}})
    """
    if isinstance(options, dict):
        for name in (options[key] for key in ("_class_path", "class_path") if key in options):
            if not _is_known(str(name)):
                raise SuperCMError(
                    f"ckpt_path={path}: names the class {name}, which is not of this package, and importing it could "
                    "run any code. If you trust the file, name that class yourself, as an option or by an import."
                )
        options = list(options.values())
    for value in options if isinstance(options, list | tuple) else ():
        check_classes(path, value)


def _is_known(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    found = vars(sys.modules[module]).get(kind) if module in sys.modules else None
    is_network = isinstance(found, type) and issubclass(found, nn.Module)
    return not module or module.split(".")[0] == "supercm_lightning" or is_network


def check_method(path: str | Path, options: Mapping[str, Any], class_path: str) -> None:
    """Checks that the options in a checkpoint are those of a method, named with or without its module."""
    saved = options.get("_class_path")
    if saved is not None and str(saved).rpartition(".")[2] != class_path.rpartition(".")[2]:
        raise SuperCMError(f"ckpt_path={path}: a checkpoint of {saved}, but the model is {class_path}.")


def _is_name(key: Any) -> bool:
    return isinstance(key, str)


def newest_checkpoint(run: Path, elsewhere: Iterable[Path] = ()) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint from which a run can be resumed, and its contents; None: there is none.

    It is below the run's folder, in `checkpoints`, or in further folders that the run saved to. Files that cannot be
    read, those with weights alone, and those of other runs in a shared folder are passed over.
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
