"""State per unlabeled sample: sized by the data, loaded with any size, refused with another number of samples."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer

from supercm_lightning import ClusteringDataModule, Method
from supercm_lightning.methods.per_sample import PerSampleState
from supercm_lightning.utils.options import SuperCMError


class Visits(PerSampleState):
    """Keeps a number and a pair for every sample."""

    needs_labeled = False
    sample_buffers = {"visits": 0}  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("visits", torch.zeros(1, dtype=torch.int64))


class Marks(PerSampleState):
    """Keeps a pair for every sample, in a submodule."""

    sample_buffers = {"inner.marks": -1.0}  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = torch.nn.Module()
        self.inner.register_buffer("marks", torch.zeros(1, 2))


class Both(Visits, Marks):
    """A combination keeps the state of both bases."""


def model_of(kind: type[Method]) -> Any:
    return kind(num_classes=10, input_shape=(1, 8, 8), backbone="small_cnn")


def trainer() -> Trainer:
    return Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip


def attached(kind: type[Method], count: int) -> Any:
    """A model whose trainer has a data module with so many samples."""
    model, run = model_of(kind), trainer()
    data = ClusteringDataModule(num_rows=count)
    data.setup("predict")
    model.trainer = run
    run.datamodule = data  # type: ignore[attr-defined]
    return model


def test_a_combination_sizes_the_state_of_all_its_bases() -> None:
    model = attached(Both, 30)
    model.visits += 5
    model.setup("fit")
    assert model.visits.tolist() == [0] * 30
    assert model.inner.marks.tolist() == [[-1.0, -1.0]] * 30


def test_other_stages_leave_the_state_as_it_is() -> None:
    model = attached(Both, 30)
    model.setup("predict")
    assert len(model.visits) == 1


def test_a_state_of_any_size_loads_without_data() -> None:
    saved, loaded = model_of(Both), model_of(Both)
    saved.reset_samples(17)
    saved.visits += torch.arange(17)
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded.visits, saved.visits)
    assert loaded.inner.marks.shape == (17, 2)


def test_a_checkpoint_of_other_data_is_refused() -> None:
    model, other = attached(Both, 30), model_of(Both)
    other.reset_samples(29)
    model.setup("fit")
    model.on_train_start()
    model.load_state_dict(other.state_dict())
    with pytest.raises(SuperCMError, match=r"ckpt_path.* 29 .* 30\b"):
        model.on_train_start()


def test_data_without_a_number_of_samples_is_refused() -> None:
    model = model_of(Visits)
    model.trainer = trainer()
    model.trainer.datamodule = LightningDataModule()
    with pytest.raises(SuperCMError, match="num_unlabeled"):
        model.setup("fit")
