"""Frozen features of image files and of their augmented views, computed by `Trainer.predict` and written in chunks."""

import hashlib
import json
import logging
import os
import shutil
import warnings
import zlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader

from supercm_lightning.data.sources.images import read_image
from supercm_lightning.data.sources.npz import load_npz
from supercm_lightning.data.sources.worker_stores import FileStore, default_num_workers
from supercm_lightning.data.transforms.strong import StrongAugmentation
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation
from supercm_lightning.nn.extractor import FrozenExtractor
from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.loggers import logger_level
from supercm_lightning.utils.options import SuperCMError, check_range
from supercm_lightning.utils.random import generator
from supercm_lightning.utils.trainer import callbacks_of

BATCH_ON_CPU = 16
"""Images per forward on a CPU; of more, the layers' outputs leave its caches."""

_EXPECTED_WARNINGS = (
    ".*does not have many workers",
    "predict returned None",
    r".isinstance\(treespec, LeafSpec\)",
    "Total length of `DataLoader` across ranks is zero",
)


@dataclass(frozen=True)
class Views:
    """What is written of each image: weak views (flip and shift), strong ones (RandAugment too), and the type."""

    weak_views: int = 0
    strong_views: int = 0
    flip: bool = True
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        check_range(0, weak_views=self.weak_views, strong_views=self.strong_views)


class FeatureFile(LightningModule):
    """Writes the feature file of some images; processes share the work, and an interrupted call is continued.

    Each chunk of images is a file of its own in a hidden folder beside `path`; the first process joins them. The random
    numbers of a chunk depend on its place alone. Names of images count from `root`. Without `num_workers` threads
    decode between the forwards on a CPU, else a process for each core that this one may use, at most four.
    """

    def __init__(
        self,
        path: Path,
        store: FileStore,
        root: Path,
        class_names: Sequence[str] | None,
        extractor: FrozenExtractor,
        backbone: str,
        views: Views,
        chunk: int = 64,
        num_workers: int | None = None,
        precision: str = "32-true",
    ) -> None:
        super().__init__()
        self.path, self.store, self.class_names = path, store, class_names
        self.extractor, self.backbone, self.views = extractor, backbone, views
        self.chunk, self.num_workers = chunk, num_workers
        self.files = [os.path.relpath(name, root) for name in store.names]
        # All that decides what is written: files, labels, weights and options.
        found = [os.stat(name) for name in store.names]
        files = [(name, one.st_size, one.st_mtime_ns) for name, one in zip(self.files, found, strict=True)]
        network = (backbone, extractor.weights, sorted(extractor.settings.items()), precision)
        content = json.dumps((files, store.labels.tolist(), class_names, network, asdict(views), chunk), default=str)
        self.key = hashlib.sha256(content.encode()).hexdigest()[:16]
        self.folder = path.with_name(f".{path.stem}.{self.key}.partial")
        self.chunks = {start: self.folder / f"{start:09d}.npy" for start in range(0, len(store), chunk)}
        self.allow_zero_length_dataloader_with_multiple_devices = True  # all may be there but one

    def write(self, trainer: Trainer) -> bool:
        """Writes the file with a trainer of `feature_trainer`; returns whether it was not there."""
        if self._is_written():
            return False
        with warnings.catch_warnings():
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message)
            for bar in (callback for callback in callbacks_of(trainer) if isinstance(callback, _Progress)):
                bar.what = f"{self.path.stem}: {len(self.store):,} images"
            trainer.predict(self, return_predictions=False)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._join()
            for left in self.path.parent.glob(f".{self.path.stem}.*.partial"):
                shutil.rmtree(left, ignore_errors=True)
        trainer.strategy.barrier()
        return True

    def _is_written(self) -> bool:
        try:
            return self.path.exists() and str(load_npz(self.path, ["key"])[0].get("key", "")) == self.key
        except (OSError, ValueError, SuperCMError, BadZipFile, zlib.error):  # some other file, which is replaced
            return False

    def predict_dataloader(self) -> DataLoader[Any]:
        """The decoded images of the chunks of this rank that are missing."""
        mine = list(self.chunks.items())[self.trainer.global_rank :: self.trainer.world_size]
        workers = self.num_workers
        if workers is None:
            workers = 0 if self.trainer.strategy.root_device.type == "cpu" else default_num_workers()
        threads = 1 if workers else torch.get_num_threads()
        decode = partial(_decoded, self.store.names, self.chunk, self.extractor.resized, threads)
        missing: Any = [start for start, file in mine if not file.exists()]
        return DataLoader(missing, batch_size=None, collate_fn=decode, num_workers=workers)

    def predict_step(self, batch: tuple[int, list[Tensor]], batch_idx: int) -> None:
        """Writes one chunk."""
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
            name = self.store.names[start + int(finite.logical_not().nonzero()[0])]
            raise SuperCMError(f"{name}: has a feature that is not finite in {dtype}; give dtype: float32.")
        write_atomically(self.chunks[start], lambda stream: np.save(stream, found.numpy()))

    def _augmented(self, kind: str, images: Tensor, place: tuple[int, ...]) -> Tensor:
        if kind == "clean":
            return images
        make = WeakAugmentation if kind == "weak" else StrongAugmentation
        stream = generator("features", *place, device=images.device)
        return make(_Bytes(), flip=self.views.flip, shift=min(images.shape[2:]) // 8)(images, stream)

    def _join(self) -> None:
        """Writes the feature file from its chunks, on the disk: they may be larger than the memory."""
        v, s = self.views.weak_views, self.views.strong_views
        shape = (len(self.store), 1 + v + s, self.extractor.num_features)
        joined = np.lib.format.open_memmap(self.folder / "joined.npy", "w+", self.views.dtype, shape)
        for start, file in self.chunks.items():
            joined[start : start + self.chunk] = np.load(file)
        content: dict[str, Any] = {"features": joined[:, 0], "labels": self.store.labels.numpy(), "files": self.files}
        content |= {"weak": joined[:, 1 : 1 + v]} if v else {}
        content |= {"strong": joined[:, 1 + v :]} if s else {}
        content |= {"backbone": self.backbone, "weights": self.extractor.weights, "key": self.key}
        content["image_size"] = self.extractor.settings["input_size"][-1]
        if self.class_names is not None and bool((self.store.labels >= 0).any()):
            content["classes"] = self.class_names
        write_atomically(self.path, lambda stream: np.savez(stream, **content))


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


class _Bytes(Normalization):
    """Leaves images as they are; the extractor normalizes them."""

    def __call__(self, images: Tensor) -> Tensor:
        return images


def _decoded(names: Sequence[str], chunk: int, at_most: int, threads: int, start: int) -> tuple[int, list[Tensor]]:
    """The images of the chunk that starts here."""
    read = partial(read_image, channels=3, image_size=None, at_most=at_most)
    with ThreadPoolExecutor(threads) as pool:
        return start, list(pool.map(read, names[start : start + chunk]))
