"""Two processes with half the batch each do what one process does with the whole."""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn
from torch.utils.data import TensorDataset

from supercm_lightning import (
    ASD,
    EMA,
    FeatureDataModule,
    FixMatch,
    FlexMatch,
    FreeMatch,
    Method,
    Step,
    SuperCM,
    methods,
)
from supercm_lightning.data import CyclingSampler
from supercm_lightning.nn import ClusteringHead
from tests.every_method import combinations_slow, eager_options

FEATURES = torch.randn(6, 8, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 4, (6, 8), generator=torch.Generator().manual_seed(1))


def head_after_updates(counter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Six updates, this process giving every second row."""
    rank = torch.distributed.get_rank()
    head = ClusteringHead(5, 4, counter=counter)  # type: ignore[arg-type]
    for features, labels in zip(FEATURES, LABELS, strict=True):
        head.update(features[rank::2], labels[rank::2])
    return head.centroids, head.updates


@pytest.mark.parametrize("counter", ["per_class", "global"])
def test_centroids_of_two_processes_are_those_of_one(counter: str, two_processes: Callable[..., list[Any]]) -> None:
    alone = ClusteringHead(5, 4, counter=counter)  # type: ignore[arg-type]
    for features, labels in zip(FEATURES, LABELS, strict=True):
        alone.update(features, labels)
    for centroids, updates in two_processes(head_after_updates, counter):
        torch.testing.assert_close(centroids, alone.centroids)
        assert torch.equal(updates, alone.updates)


LOGITS = 3 * torch.randn(10, 8, 3, generator=torch.Generator().manual_seed(2))
INDEX = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(s))[:8] for s in range(10)])


def state_after_batches(kind: type[Method], rank: int, world: int) -> dict[str, torch.Tensor]:
    """The method's buffers after ten batches of which this process has every `world`-th row."""
    torch.manual_seed(0)
    model = kind(num_classes=3, input_shape=(4,), backbone="identity", fixmatch_threshold=0.7)
    if "selected_label" in dict(model.named_buffers()):
        model.selected_label = torch.full((40,), -1)
    x, y = torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
    for logits, index in zip(LOGITS, INDEX, strict=True):
        rows = torch.cat([torch.zeros(1, 3), logits[rank::world], logits[rank::world]])
        step = Step(x, y, (torch.zeros(8 // world, 4),) * 2, (), index[rank::world], torch.zeros(len(rows), 4), rows)
        model.observe(step)
    return {name: value for name, value in model.named_buffers() if not name.startswith(("val_", "test_"))}


def state_of_this_process(kind: type[Method]) -> dict[str, torch.Tensor]:
    """As `state_after_batches`, in a process of the pool."""
    return state_after_batches(kind, torch.distributed.get_rank(), torch.distributed.get_world_size())


@pytest.mark.parametrize("kind", [FlexMatch, FreeMatch])
def test_thresholds_of_two_processes_are_those_of_one(
    kind: type[Method], two_processes: Callable[..., list[Any]]
) -> None:
    alone = state_after_batches(kind, 0, 1)
    initial = dict(kind(num_classes=3, input_shape=(4,), backbone="identity").named_buffers())
    assert any(name not in initial or not torch.equal(value, initial[name]) for name, value in alone.items())
    for state in two_processes(state_of_this_process, kind):
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, msg=lambda text, name=name: f"{name}: {text}")


class Watch(Callback):
    """Writes down what each rank trains on."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loaders = trainer.train_dataloader
        assert all(type(loader.sampler) is CyclingSampler for loader in loaders.values())
        with Path(f"rows_{trainer.world_size}_{trainer.global_rank}.txt").open("a") as file:
            file.write(" ".join(map(str, batch["unlabeled"][1].tolist())) + "\n")


def fit(devices: int, batch: int, steps: int = 20) -> dict[str, torch.Tensor]:
    """SuperCM on frozen features, without anything that is random per rank."""
    seed_everything(0)
    data = FeatureDataModule(
        "features.npz", num_labeled=12, labeled_batch_size=batch, unlabeled_batch_size=batch, steps_per_epoch=steps // 2
    )
    model = SuperCM(
        num_classes=4, input_shape=(5,), backbone="identity", optimizer="sgd", lr=0.1, beta=1.0, lr_schedule="step"
    )
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, callbacks=[Watch(), EMA(decay=0.9)],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_training_in_two_processes_equals_training_in_one(two_processes: Callable[..., list[Any]]) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    np.savez("features.npz", features=rng.normal(size=(120, 5)).astype("f4") + labels[:, None], labels=labels)
    alone, together = fit(1, 8), two_processes(fit, 2, 4)
    for name, one in alone.items():
        for rank in together:
            torch.testing.assert_close(rank[name], one, msg=f"{name} differs", rtol=1e-4, atol=1e-5)
    assert alone["head.updates"].min() > 10
    rows = {name: [set(map(int, line.split())) for line in Path(f"rows_{name}.txt").read_text().splitlines()]
            for name in ("1_0", "2_0", "2_1")}  # fmt: skip
    assert len(rows["2_0"]) == 20
    for whole, first, second in zip(rows["1_0"], rows["2_0"], rows["2_1"], strict=True):
        assert not first & second
        assert first | second == whole


class PlainViews(FeatureDataModule):
    """Features of four classes whose views depend on the row and on the turn, not on the process."""

    def __init__(self, batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(120) % 4
        features = torch.randn(120, 5, generator=generator) + labels[:, None]
        super().__init__(
            TensorDataset(features, labels), num_labeled=12, labeled_batch_size=batch, unlabeled_batch_size=2 * batch
        )

    def configure_augmentations(self) -> dict[str, Any]:
        """Two weak views of a step differ in the sign."""
        sign = cycle((0.2, -0.2))
        return {
            "weak": lambda rows, stream: rows + next(sign) * rows.sin(),
            "strong": lambda rows, stream: rows + (3 * rows).cos(),
        }


class Curved(nn.Sequential):
    """A network without batch norm, whose statistics would be those of each half."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 6), nn.Tanh())


class FrozenNorms(Callback):
    """Keeps a discriminator's batch norm from the statistics of each half."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for module in pl_module.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()


def weights_of_a_run(kind: type[Method], batch: int, **kwargs: Any) -> dict[str, torch.Tensor]:
    """Everything a checkpoint would hold after 20 steps."""
    seed_everything(0)
    options = eager_options(kind)
    if issubclass(kind, FixMatch):
        options["fixmatch_threshold"] = 0.6
    if issubclass(kind, FreeMatch):
        options |= {"freematch_decay": 0.9, "freematch_fairness_weight": 0.5}
    if issubclass(kind, ASD):  # every stage within the run: draws, prototypes, maps to clusters
        options |= {"asd_hold": 3, "asd_warmup": 0.4, "asd_map_every": 4, "asd_prototype_start": 0.6}
    model = kind(num_classes=4, input_shape=(5,), backbone=Curved(), optimizer="sgd", lr=0.05, **options)
    trainer = Trainer(
        max_steps=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[FrozenNorms()], **kwargs,
    )  # fmt: skip
    # VAT starts from random directions, which each process draws for itself: here they are functions of the row.
    with mock.patch("torch.randn_like", lambda rows, **kwargs: (37 * rows).cos()):
        trainer.fit(model, datamodule=PlainViews(batch))
    assert trainer.global_step == 20
    return {name: value.clone() for name, value in model.state_dict().items()}


def weights_of_a_run_of_two(kind: type[Method]) -> dict[str, torch.Tensor]:
    """The same in a process of the pool, with half of the rows."""
    return weights_of_a_run(kind, batch=4, devices=2, strategy="ddp")


EVERY = [kind for kind in map(vars(methods).get, methods.__all__) if issubclass(kind, Method) and kind is not Method]


@pytest.mark.parametrize("kind", combinations_slow(EVERY))
def test_a_run_of_two_processes_is_that_of_one(kind: type[Method], two_processes: Callable[..., list[Any]]) -> None:
    alone = weights_of_a_run(kind, batch=8)
    ranks = two_processes(weights_of_a_run_of_two, kind)
    off = {name: max(relative_difference(rank[name], value) for rank in ranks) for name, value in alone.items()}
    worst = max(off, key=off.__getitem__)
    print(f"| {kind.__name__} | {off[worst]:.1e} | {worst} |")  # docs/reliability.md has the largest
    assert off[worst] <= 1e-5, worst


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was expected; 0 for equal tensors, zeros among them."""
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if difference else 0.0
