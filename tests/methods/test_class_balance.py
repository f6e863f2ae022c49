"""Classes of unequal size: weights, logit adjustment and balanced batches, on every method."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from sklearn.metrics import recall_score
from sklearn.utils.class_weight import compute_class_weight

from supercm_lightning import ASDFixMatch, FeatureDataModule, Method, Step, SuperCM, Supervised
from supercm_lightning.data.samplers import BalancedSampler
from supercm_lightning.losses import class_balance
from supercm_lightning.utils.options import SuperCMError
from tests.every_method import METHODS, eager_options

COUNTS = (400, 40, 10)


def points(counts: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes in the plane."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.array([(0, 0), (2, 0), (1, 2)])[labels] + rng.normal(size=(len(labels), 2)), labels


def fitted(kind: type[Method], steps: int, balanced_batches: bool = False, **options: Any) -> Any:
    """A trained method and its data."""
    seed_everything(0, verbose=False)
    data = FeatureDataModule(
        points(COUNTS, 0), points(COUNTS, 1), test=points((200, 200, 200), 2), balanced_batches=balanced_batches,
        steps_per_epoch=steps, strong_noise=0.2,
    )  # fmt: skip
    model = kind(num_classes=3, input_shape=(2,), backbone="mlp", **options)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data)
    return model, data


def step_of(logits: torch.Tensor, y: torch.Tensor) -> Step:
    """A step without unlabeled samples."""
    return Step(logits, y, (), (), None, logits, logits)


def test_weights_and_shift_are_those_of_the_literature() -> None:
    labels = np.repeat([0, 1, 2], COUNTS)
    weight, shift = class_balance(torch.tensor(COUNTS), "balanced", 2.0)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
    np.testing.assert_allclose(shift, 2 * np.log(np.array(COUNTS) / 450), rtol=1e-6)
    assert class_balance(torch.tensor(COUNTS), None, 0.0) == (None, None)


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind.__bases__ == (Method,)])
def test_every_method_weighs_its_cross_entropy(kind: type[Method]) -> None:
    model, _ = fitted(
        kind, 2, class_weight=[1.0, 2.0, 4.0], logit_adjustment=1.5, **eager_options(kind) | {"batch_norm": "split"}
    )
    logits, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    adjusted = logits + 1.5 * torch.log(torch.tensor(COUNTS) / 450)
    expected = (torch.tensor([1.0, 2.0, 4.0])[y] * F.cross_entropy(adjusted, y, reduction="none")).mean()
    torch.testing.assert_close(model.supervised_loss(step_of(logits, y)), expected)


def test_rare_classes_are_found_more_often() -> None:
    def recall(**options: Any) -> np.ndarray:
        model, data = fitted(SuperCM, 60, **options)
        x, y = data.arrays("test")
        with torch.no_grad():
            return recall_score(y, model.eval()(torch.from_numpy(x)).argmax(dim=1), average=None)

    plain = recall()
    for options in ({"class_weight": "balanced"}, {"logit_adjustment": 1.0}, {"balanced_batches": True}):
        balanced = recall(**options)
        assert balanced[2] > plain[2] + 0.1, options
        assert balanced.mean() > plain.mean() + 0.05, options


def test_balanced_batches_hold_every_class_equally_often() -> None:
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    order = list(BalancedSampler(labels, 6, 40, seed=0, name="labeled", rank=0, world_size=1))
    assert all(labels[order[start : start + 6]].bincount().tolist() == [2, 2, 2] for start in range(0, 240, 6))
    assert len({one for one in order if one >= 440}) == 10  # every sample of the rare class
    ranks = [list(BalancedSampler(labels, 3, 40, seed=0, name="labeled", rank=r, world_size=2)) for r in (0, 1)]
    assert [one for pair in zip(*ranks, strict=True) for one in pair] == order


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"class_weight": [1.0, 2.0]}, "3 positive numbers"),
        ({"class_weight": "equal"}, "balanced"),
        ({"logit_adjustment": -1.0}, "logit_adjustment"),
        ({"class_weight": "balanced", "balanced_batches": True}, "balanced_batches"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(SuperCMError, match=named):
        fitted(Supervised, 1, **options)


@pytest.mark.parametrize("options", [{"class_weight": "balanced"}, {"logit_adjustment": 1.0}])
def test_clustering_has_no_classes_to_balance(options: dict[str, Any]) -> None:
    with pytest.raises(SuperCMError, match=f"{next(iter(options))}: ASDFixMatch learns without"):
        ASDFixMatch(num_classes=3, input_shape=(1, 8, 8), **options)
