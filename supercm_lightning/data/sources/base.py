"""The source of a data module: what is known of a data set before it is read, and how it is read."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supercm_lightning.data.sources.stores import Store
from supercm_lightning.utils.options import SuperCMError


@dataclass(frozen=True)
class Defaults:
    """Values of the data modules' options of these names, which a data set suggests where the user gives none."""

    flip: bool = False
    shift: int = 0
    noise: float = 0.0
    num_val: int | float = 0
    num_test: int | float = 0
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    crop: str = "center"


class Source(ABC):
    """A data set before it is read: its classes, its shape, its defaults, and how to read it.

    The splits that a source reads are `train`, whose labels are -1 where unknown, and optionally `unlabeled` (the
    target of two domains, or further data in place of the unlabeled samples of `train`), `val` and `test`.

    Attributes:
        name: Name of the data set, for messages and split files.
        num_classes: Number of classes; None where only the user knows it.
        class_names: Their names, or None.
        sample_shape: Shape of a stored sample.
        input_size: Side of what the model receives, where images are cropped from `sample_shape`; else None.
        defaults: Values of options that the data set suggests.
        is_fixed: Whether it is a published set, which is split by number as in published tables, rather than by name.
        can_download: Whether `download` fetches what is missing.
        train_sizes: Number of samples of each domain in `train`, once it is read.

    Examples:
        >>> import torch
        >>> from supercm_lightning.data.sources.stores import ArrayStore
        >>> class Noise(Source):
        ...     name, num_classes, sample_shape = "noise", 2, (4,)
        ...     def read(self):
        ...         return {"train": ArrayStore(torch.randn(20, 4), torch.arange(20) % 2)}
        >>> len(Noise().read()["train"])
        20
    """

    name: str
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    sample_shape: tuple[int, ...]
    input_size: int | None = None
    defaults: Defaults = Defaults()
    is_fixed: bool = False
    can_download = False
    train_sizes: Sequence[int] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of what the model receives."""
        size = self.input_size
        return self.sample_shape if size is None else (self.sample_shape[0], size, size)

    @property
    def preparation(self) -> dict[str, Any]:
        """How files become samples of `sample_shape`, plain values; empty where there are no files."""
        return {}

    @abstractmethod
    def read(self) -> Mapping[str, Store]:
        """Reads the splits; what is missing or does not fit is a `SuperCMError`."""

    def download(self) -> None:  # noqa: B027  (most sources have nothing to fetch)
        """Fetches what is missing, in one process."""

    def read_new(self, path: Path, preprocessing: Mapping[str, Any]) -> Store:
        """Reads samples that are in none of the splits, for prediction; `preprocessing` is the data module's."""
        reason = "files cannot be prepared as the items of a torch data set are"
        raise SuperCMError(f"predict_on={path}: {reason}. Give trainer.predict a loader of new samples.")
