"""Frozen features of image files and of their augmented views, computed by `Trainer.predict` and written in chunks."""

import hashlib
import json
import logging
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supercm_lightning.data.sources.images import is_rank_zero, read_image
from supercm_lightning.data.sources.npz import Blocks, load_npz, save_npz
from supercm_lightning.data.sources.worker_stores import FileStore, default_num_workers
from supercm_lightning.data.transforms.strong import StrongAugmentation
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation
from supercm_lightning.nn.extractor import FrozenExtractor
from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.loggers import logger_level
from supercm_lightning.utils.options import SuperCMError, check_range
from supercm_lightning.utils.random import generator

BATCH_ON_CPU = 16
"""Images per forward on a CPU; of more, the layers' outputs leave its caches."""


@dataclass(frozen=True)
class Views:
    """What is written of each image.

    Attributes:
        weak_views: Weak views: flip, and shift by up to an eighth of the shorter side.
        strong_views: Strong views: these, RandAugment and Cutout.
        flip: Whether views may be mirrored left-right.
        dtype: Type of the features.
    """

    weak_views: int = 0
    strong_views: int = 0
    flip: bool = True
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        check_range(0, weak_views=self.weak_views, strong_views=self.strong_views)


@dataclass(frozen=True)
class ImageSet:
    """Image files of one feature file.

    Attributes:
        store: The files and labels.
        root: Folder from which the names of the files count.
        class_names: Names of the classes, or None.
        backbone: Name of the network.
    """

    store: FileStore
    root: Path
    class_names: Sequence[str] | None
    backbone: str

    @property
    def files(self) -> list[str]:
        """Names of the files."""
        return [os.path.relpath(name, self.root) for name in self.store.names]

    def key(self, extractor: FrozenExtractor, views: Views, chunk: int) -> str:
        """Hash of all that decides what is written: files, labels, weights and options."""
        found = [os.stat(name) for name in self.store.names]
        files = [(name, one.st_size, one.st_mtime_ns) for name, one in zip(self.files, found, strict=True)]
        network = (self.backbone, extractor.weights, sorted(extractor.settings.items()))
        said = (files, self.store.labels.tolist(), self.class_names, network, asdict(views), chunk)
        return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()[:16]


def write_features(
    path: Path,
    images: ImageSet,
    extractor: FrozenExtractor,
    views: Views,
    trainer: Trainer,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> bool:
    """Writes one feature file; processes share the work, and what an interrupted call has computed is kept.

    Each chunk of `batch_size` images is a file of its own in a hidden folder beside `path`; the first process joins
    them. The random numbers of a chunk depend on its place alone.

    Args:
        path: The file, replaced unless it is what would be written.
        images: The images.
        extractor: The network.
        views: What is written of each image.
        trainer: Runs the network; of `feature_trainer`.
        batch_size: Images per chunk, decoded at a time.
        num_workers: Processes that decode images; None: none on a CPU, where threads decode between the forwards, else
            one for each core that this process may use, at most four.

    Returns:
        Whether the file was written, rather than found.

    Raises:
        SuperCMError: If an image cannot be read or has a feature that is not finite.
    """
    key = images.key(extractor, views, batch_size)
    folder = path.with_name(f".{path.stem}.{key}.partial")
    if _is_written(path, key):
        return False
    if num_workers is None:
        num_workers = 0 if trainer.strategy.root_device.type == "cpu" else default_num_workers()
    work = _Extraction(extractor, images, views, folder, batch_size, num_workers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", "predict returned None")
        warnings.filterwarnings("ignore", r".isinstance\(treespec, LeafSpec\)")
        warnings.filterwarnings("ignore", "Total length of `DataLoader` across ranks is zero")
        for bar in (c for c in trainer.callbacks if isinstance(c, _Progress)):  # type: ignore[attr-defined]
            bar.what = f"{path.stem}: {len(images.store):,} images"
        trainer.predict(work, return_predictions=False)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        _join(path, folder, images, extractor, views, key, work.starts)
        for left in path.parent.glob(f".{path.stem}.*.partial"):
            shutil.rmtree(left, ignore_errors=True)
    trainer.strategy.barrier()
    return True


def feature_trainer(**options: Any) -> Trainer:
    """A trainer that predicts and leaves no files; `options` are those of Lightning's Trainer."""
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    with logger_level(logging.WARNING, "lightning.pytorch.utilities.rank_zero"):  # it lists devices that are not there
        return Trainer(**off | {"use_distributed_sampler": False, "callbacks": [_Progress()]} | options)


class _Progress(RichProgressBar):
    """Shows which file is being written, and the remaining time."""

    what = ""

    @property
    def predict_description(self) -> str:
        return self.what


class _Chunks(Dataset[tuple[int, list[Tensor]]]):
    """The decoded images of some chunks."""

    def __init__(self, names: Sequence[str], starts: Sequence[int], size: int, at_most: int, threads: int) -> None:
        self.names, self.starts, self.size, self.at_most, self.threads = names, starts, size, at_most, threads

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> tuple[int, list[Tensor]]:
        start = self.starts[number]
        with ThreadPoolExecutor(self.threads) as pool:
            return start, list(pool.map(self._read, self.names[start : start + self.size]))

    def _read(self, name: str) -> Tensor:
        return read_image(name, 3, None, at_most=self.at_most)


class _Bytes(Normalization):
    """Leaves images as they are; the extractor normalizes them."""

    def __call__(self, images: Tensor) -> Tensor:
        return images


class _Extraction(LightningModule):
    """Writes the chunks of a feature file that are missing, those of its rank."""

    def __init__(
        self,
        extractor: FrozenExtractor,
        images: ImageSet,
        views: Views,
        folder: Path,
        chunk: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.extractor, self.images, self.views = extractor, images, views
        self.folder, self.chunk, self.num_workers = folder, chunk, num_workers
        self.starts = range(0, len(images.store), chunk)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # all may be there but one

    def predict_dataloader(self) -> DataLoader[Any]:
        mine = self.starts[self.trainer.global_rank :: self.trainer.world_size]
        missing = [start for start in mine if not _chunk(self.folder, start).exists()]
        threads = 1 if self.num_workers else torch.get_num_threads()
        chunks = _Chunks(self.images.store.names, missing, self.chunk, self.extractor.resized, threads)
        return DataLoader(chunks, batch_size=None, num_workers=self.num_workers)

    def predict_step(self, batch: tuple[int, list[Tensor]], batch_idx: int) -> None:
        start, images = batch
        shapes: defaultdict[torch.Size, list[int]] = defaultdict(list)
        for number, image in enumerate(images):
            shapes[image.shape].append(number)
        groups = [(torch.stack([images[number] for number in group]), group) for group in shapes.values()]
        order = torch.tensor([number for _, group in groups for number in group]).argsort()
        kinds = ["clean"] + ["weak"] * self.views.weak_views + ["strong"] * self.views.strong_views
        dtype = torch.float16 if self.views.dtype == "float16" else torch.float32
        found = torch.empty(len(images), len(kinds), self.extractor.num_features, dtype=dtype)
        for view, kind in enumerate(kinds):
            prepared = torch.cat([
                self.extractor.preprocess(self._augmented(kind, stack, (start, view, number)))
                for number, (stack, _) in enumerate(groups)
            ])  # fmt: skip
            size = BATCH_ON_CPU if prepared.device.type == "cpu" else 512
            features = torch.cat([self.extractor.network(part) for part in prepared.split(size)])
            found[:, view] = features.cpu().to(dtype)[order]
        finite = found.isfinite().flatten(1).all(1)
        if not finite.all():
            name = self.images.store.names[start + int(finite.logical_not().nonzero()[0])]
            raise SuperCMError(f"{name}: has a feature that is not finite in {dtype}; give dtype: float32.")
        write_atomically(_chunk(self.folder, start), lambda stream: np.save(stream, found.numpy()))

    def _augmented(self, kind: str, images: Tensor, place: tuple[int, ...]) -> Tensor:
        if kind == "clean":
            return images
        shift = min(images.shape[2:]) // 8
        make = WeakAugmentation if kind == "weak" else StrongAugmentation
        stream = generator("features", *place, device=images.device)
        return make(_Bytes(), flip=self.views.flip, shift=shift)(images, stream)


def _chunk(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.npy"


def _is_written(path: Path, key: str) -> bool:
    if not path.exists():
        return False
    try:
        return str(load_npz(path, ["key"])[0].get("key", "")) == key
    except (OSError, ValueError, SuperCMError):  # some other file, which is replaced
        return False


def _join(
    path: Path,
    folder: Path,
    images: ImageSet,
    extractor: FrozenExtractor,
    views: Views,
    key: str,
    starts: Sequence[int],
) -> None:
    """Writes the feature file from its chunks, one of them in memory at a time."""
    n, d, v, s = len(images.store), extractor.num_features, views.weak_views, views.strong_views

    def blocks(part: Any) -> Iterator[np.ndarray]:
        return (np.load(_chunk(folder, start), mmap_mode="r")[:, part] for start in starts)

    parts = {"features": Blocks((n, d), views.dtype, blocks(0))}
    if v:
        parts["weak"] = Blocks((n, v, d), views.dtype, blocks(slice(1, 1 + v)))
    if s:
        parts["strong"] = Blocks((n, s, d), views.dtype, blocks(slice(1 + v, None)))
    labels = images.store.labels
    arrays = {
        "labels": labels.numpy(),
        "files": np.array(images.files),
        "backbone": np.array(images.backbone),
        "weights": np.array(extractor.weights),
        "image_size": np.array(extractor.settings["input_size"][-1]),
        "key": np.array(key),
    }
    if images.class_names is not None and bool((labels >= 0).any()):
        arrays["classes"] = np.array(images.class_names)
    save_npz(path, parts, arrays)


def announce(message: str) -> None:
    """Prints a line, in the first process alone."""
    if is_rank_zero():
        print(message)
