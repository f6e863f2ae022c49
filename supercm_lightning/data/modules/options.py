"""Options of a data module as plain values."""

from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.parsing import collect_init_args

_PLAIN = (bool, int, float, str, Path, type(None))


def save_options(module: LightningDataModule, frame: FrameType | None) -> None:
    """Keeps the arguments of the constructors of a module's subclasses in `hparams`, those that are plain values.

    Torch data sets, arrays and tensors are left out; paths become strings, which checkpoints load safely.

    Args:
        module: The data module.
        frame: Frame of the base's constructor, which a constructor of a subclass has called.
    """
    frame = frame.f_back if frame is not None else None
    assert frame is not None
    given: dict[str, Any] = {}
    for arguments in collect_init_args(frame, [], classes=(LightningDataModule,)):
        given |= arguments
    ignored = [name for name, value in given.items() if not _is_plain(value)]
    # Not to the logger: a model's option of the same name would clash with it there.
    module.save_hyperparameters(ignore=ignored, frame=frame, logger=False)
    for name, value in module.hparams.items():
        module.hparams[name] = _without_paths(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, _PLAIN)


def _without_paths(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_without_paths, value))
    return str(value) if isinstance(value, Path) else value
