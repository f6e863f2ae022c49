"""Evaluation in several processes: every sample once, the same metrics as in one process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback, Trainer, seed_everything

from supercm_lightning import FeatureDataModule, Supervised
from supercm_lightning.data.samplers import ShardSampler


@pytest.mark.parametrize("size", [1, 2, 3, 5, 32, 500])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [4, 5, 7, 33, 64, 65, 129, 151])
def test_shards_have_every_sample_once_and_the_same_number_of_batches(count: int, world: int, size: int) -> None:
    shards = [ShardSampler(count, rank, world) for rank in range(world)]
    assert sorted(number for shard in shards for number in shard) == list(range(count))
    (batch,) = {shard.batch_size(size) for shard in shards}
    assert len({-(-len(shard) // batch) for shard in shards}) == 1
    if count % world == 0:
        assert batch == size


def test_fewer_samples_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="val: 3 samples for 4 processes"):
        ShardSampler(3, 0, 4, "val")


class Watch(Callback):
    """Writes down what each process validates on, and the metrics."""

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        with Path(f"{trainer.world_size}_{trainer.global_rank}.txt").open("a") as file:
            file.write(" ".join(map(str, batch[2].tolist())) + "\n")

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        scores = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val")}
        Path(f"{trainer.world_size}_{trainer.global_rank}.json").write_text(json.dumps(scores))
        assert len(trainer.datamodule.test_dataloader().sampler) == len(
            range(trainer.global_rank, 63, trainer.world_size)
        )


def fit(devices: int) -> None:
    """A model that is the same in one process and two; 41 validation samples in batches of 20."""
    seed_everything(0)
    data = FeatureDataModule(
        "a.npz", num_labeled=20, num_val=41, num_test=63, labeled_batch_size=20 // devices, eval_batch_size=20,
        unlabeled_batch_size=20 // devices, steps_per_epoch=3,
    )  # fmt: skip
    model = Supervised(num_classes=4, input_shape=(5,), backbone="identity", optimizer="sgd", lr=0.1)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, callbacks=[Watch()],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)


def test_two_processes_measure_what_one_does(two_processes: Callable[..., list[Any]]) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 4
    np.savez("a.npz", features=rng.normal(size=(160, 5)).astype("f4") + 0.7 * labels[:, None], labels=labels)
    fit(1)
    two_processes(fit, 2)
    alone, *together = ([int(n) for n in Path(f"{name}.txt").read_text().split()] for name in ("1_0", "2_0", "2_1"))
    assert alone == sorted([*together[0], *together[1]]) == list(range(41))
    metrics, *both = (json.loads(Path(f"{name}.json").read_text()) for name in ("1_0", "2_0", "2_1"))
    assert set(metrics) == {"val/acc", "val/loss"}
    for scores in both:
        assert scores["val/acc"] == metrics["val/acc"]
        assert scores == pytest.approx(metrics, rel=1e-5)
