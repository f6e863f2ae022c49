"""What only a GPU can show: samples held on it, half precision, no waiting for it within a step, finite losses."""

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from supercm_lightning import Method, SemiSupervisedDataModule, SuperCM, SuperCMFreeMatch, SuperCMVAT
from supercm_lightning.data.sources.stores import ArrayStore
from tests.every_method import METHODS, eager_options

pytestmark = pytest.mark.gpu


def trained(model: Method, steps: int = 4, accelerator: str = "gpu", **options: Any) -> Trainer:
    """A short run on digits."""
    trainer = Trainer(
        max_steps=steps, accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20))
    assert trainer.global_step == steps
    return trainer


def model_of(kind: type[Method]) -> Method:
    seed_everything(0)
    return kind(num_classes=10, input_shape=(1, 8, 8), **eager_options(kind))


def test_samples_in_memory_move_to_the_device_once() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    data, index = torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2), torch.tensor([7, 0, 7])
    store = ArrayStore(data, torch.arange(10))
    fetched = store.fetch(index, device)
    assert fetched.device == store.data.device == device
    assert torch.equal(fetched.cpu(), data[index])
    held = store.data
    store.fetch(index, device)
    assert store.data is held


def test_samples_that_do_not_fit_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 1))
    device = torch.device("cuda", torch.cuda.current_device())
    store = ArrayStore(torch.arange(40, dtype=torch.uint8).view(10, 4), torch.arange(10))
    assert store.fetch(torch.tensor([3]), device).device == device
    assert store.data.device.type == "cpu"


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("kind", [SuperCM, SuperCMFreeMatch], ids=lambda kind: kind.__name__)
def test_half_precision_trains(kind: type[Method], precision: Any) -> None:
    model = model_of(kind)
    trainer = trained(model, steps=30, precision=precision)
    assert math.isfinite(trainer.callback_metrics["train/loss"])
    assert model.head.centroids.dtype == torch.float32
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_a_training_step_does_not_wait_for_the_device(kind: type[Method], monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(kind)
    step, checked = model.training_step, []

    def without_waiting(batch: Any, batch_idx: int) -> Any:
        if batch_idx < 2:  # libraries choose their algorithms in the first steps
            return step(batch, batch_idx)
        checked.append(batch_idx)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(batch, batch_idx)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(model, "training_step", without_waiting)
    trained(model, steps=5)
    assert len(checked) >= 3


@pytest.mark.parametrize("kind", [SuperCMVAT, SuperCMFreeMatch], ids=lambda kind: kind.__name__)
def test_losses_on_the_device_are_finite_and_close_to_those_of_the_cpu(kind: type[Method]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weak, strong = torch.randn(3, 16, 1, 8, 8, generator=generator)
    y, views = torch.arange(16) % 10, (weak, strong)
    values = []
    for device in ("cpu", "cuda"):
        model = model_of(kind).to(device)
        given = {
            "labeled": (x.to(device), y.to(device)),
            "unlabeled": (tuple(v.to(device) for v in views[: len(model.all_views)]), torch.arange(16, device=device)),
        }
        step = model.joint_forward(given)
        with torch.no_grad():
            model.observe(step)
        terms = {name: term.item() for name, term in model.losses(step).items()}
        assert all(map(math.isfinite, terms.values())), terms
        values.append(terms)
    # VAT starts from directions that each device draws for itself.
    for name in values[0].keys() - {"vat"}:
        assert values[1][name] == pytest.approx(values[0][name], rel=0.01, abs=1e-4), name
