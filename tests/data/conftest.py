"""Fixtures for the tests of the data modules."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from PIL import Image
from torch import nn

from supercm_lightning import Method, Supervised


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes folders of random images: `image_folder({"train/cat": 3, "unlabeled/deep": 2})` gives the root."""

    def write(counts: dict[str, int], size: tuple[int, int] = (8, 8), mode: str = "RGB", suffix: str = ".png") -> Path:
        stream = np.random.default_rng(0)
        root = tmp_path / "images"
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
                image = Image.fromarray(stream.integers(0, 256, shape, dtype=np.uint8))
                image.save(root / folder / f"{number}{suffix}")
        return root

    return write


class Recorder(Callback):
    """Keeps the training batches and what ran beside them."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.val_batches: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.val_batches.append(batch)


class TinyNet(nn.Sequential):
    """Flattened rows through one layer."""

    num_features = 8

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), 8), nn.Tanh())


@pytest.fixture
def trainer() -> Callable[..., Trainer]:
    """A quiet trainer on the CPU."""

    def make(**kwargs: Any) -> Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        fixed = {"accelerator": "cpu", "devices": 1, "enable_model_summary": False, "num_sanity_val_steps": 0}
        return Trainer(**({"max_epochs": 1} | quiet | fixed | kwargs))

    return make


@pytest.fixture
def model() -> Callable[..., Method]:
    """A small model for a data module; it forwards the unlabelled rows unless told otherwise."""

    def make(data: Any, kind: type[Method] = Supervised, **kwargs: Any) -> Method:
        if kind is Supervised:
            kwargs.setdefault("use_unlabeled", True)
        backbone = TinyNet(data.input_shape)
        return kind(num_classes=data.num_classes, input_shape=data.input_shape, backbone=backbone, **kwargs)

    return make


@pytest.fixture
def fit(trainer: Callable[..., Trainer], model: Callable[..., Method]) -> Callable[..., Recorder]:
    """Trains on a data module and gives the batches that the model received."""

    def run(
        data: LightningDataModule,
        kind: type[Method] = Supervised,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        ckpt_path: Path | None = None,
        **kwargs: Any,
    ) -> Recorder:
        seed_everything(seed)
        recorder = Recorder()
        trained = model(data, kind)
        trainer(callbacks=[recorder, *callbacks], **kwargs).fit(trained, datamodule=data, ckpt_path=ckpt_path)
        return recorder

    return run


@pytest.fixture
def gather(trainer: Callable[..., Trainer], model: Callable[..., Method]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """All (x, y, index) of a part, as `predict` receives them."""

    class Echo(Method):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return batch

    def run(data: Any, part: str) -> tuple[torch.Tensor, ...]:
        data.predict_on = part
        batches = trainer().predict(model(data, Echo), datamodule=data)
        return tuple(torch.cat(column) for column in zip(*batches, strict=True))

    return run
