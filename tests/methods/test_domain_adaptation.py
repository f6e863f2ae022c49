"""DANN, CDAN, MCC and BNM: schedules, gradients, unequal domains, and that they adapt."""

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import TensorDataset

import supercm_lightning
from supercm_lightning import (
    BNM,
    CDAN,
    DANN,
    MCC,
    SDAT,
    FeatureDataModule,
    Method,
    SuperCM,
    SuperCMDANN,
    Supervised,
)
from supercm_lightning.losses import certainty_weight

ADAPTING = [
    kind
    for name in supercm_lightning.__all__
    if isinstance(kind := getattr(supercm_lightning, name), type) and issubclass(kind, (DANN, MCC, BNM))
]


def domains(degrees: float = 35.0, rows: int = 300) -> FeatureDataModule:
    """Two moons as the source, the same moons rotated as the target."""
    from sklearn.datasets import make_moons

    x, y = make_moons(2 * rows, noise=0.1, random_state=0)
    x = torch.tensor(x - x.mean(0), dtype=torch.float32)
    labels = torch.tensor(y)
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    source, target = TensorDataset(x[:rows], labels[:rows]), TensorDataset(x[rows:] @ turn.T, labels[rows:])
    return FeatureDataModule(
        source, target, test=target, labeled_batch_size=32, unlabeled_batch_size=48, steps_per_epoch=50
    )


def trainer(steps: int, *callbacks: Callback, **kwargs: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    settings: dict[str, Any] = {
        "max_steps": steps, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
    }  # fmt: skip
    return Trainer(**settings | kwargs, callbacks=list(callbacks))


def model_of(kind: type[Method], **kwargs: Any) -> Method:
    """A small network with known initial weights."""
    seed_everything(1)
    hidden = {"dann_hidden_features": 32} if issubclass(kind, DANN) else {}
    options: dict[str, Any] = {"num_classes": 2, "input_shape": (2,), "backbone": "mlp", "bottleneck": 16}
    return kind(**options | hidden | kwargs)


class Factors(Callback):
    """Writes down λ and the domain accuracy of every step."""

    def __init__(self) -> None:
        self.values: dict[int, tuple[float, float]] = {}

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        logged = trainer.callback_metrics
        self.values[trainer.global_step] = (float(logged["train/lambda"]), float(logged["train/domain_acc"]))


def test_factor_is_a_function_of_the_step_and_exact_after_resume() -> None:
    whole, resumed = Factors(), Factors()
    saving = ModelCheckpoint("saved", filename="{step}", every_n_train_steps=7, save_top_k=-1)
    trainer(20, whole, saving, enable_checkpointing=True).fit(model_of(SuperCMDANN), domains())
    for step, (factor, accuracy) in whole.values.items():
        # The value logged with step t was used before its update, after t − 1 updates.
        assert factor == pytest.approx(2 / (1 + math.exp(-10 * (step - 1) / 20)) - 1, abs=1e-6)
        assert 0 <= accuracy <= 1
    assert sorted(whole.values) == list(range(1, 21))
    again = ModelCheckpoint("again", filename="{step}", every_n_train_steps=7, save_top_k=-1)
    run = trainer(20, resumed, again, enable_checkpointing=True)
    run.fit(model_of(SuperCMDANN), domains(), ckpt_path="saved/step=7.ckpt")
    assert resumed.values == {step: value for step, value in whole.values.items() if step > 7}


def joint_step(model: Method, source: Tensor, target: Tensor) -> Any:
    """The step of one batch."""
    labels = torch.arange(len(source)) % model.num_classes
    return model.joint_forward({"labeled": (source, labels), "unlabeled": ((target,), torch.arange(len(target)))})


def gradients(model: DANN, source: Tensor, target: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Gradients of the domain loss in the features' and in the discriminator's first layer."""
    torch.manual_seed(0)
    type(model).adaptation_factor = property(lambda self: factor)  # type: ignore[assignment]
    model.zero_grad()
    step = joint_step(model, source, target)
    source_logits, target_logits = model.domain_logits(step)
    supercm_lightning.losses.domain_adversarial_loss(source_logits, target_logits).backward()
    first = next(model.backbone.parameters()).grad
    own = next(model.discriminator.parameters()).grad
    assert first is not None
    assert own is not None
    return first.clone(), own.clone()


def test_only_the_reversed_gradient_is_scaled() -> None:
    class Still(DANN):
        """Its factor is set by hand."""

    model = model_of(Still)
    source, target = torch.randn(12, 2), torch.randn(20, 2) + 1
    full, own = gradients(model, source, target, 1.0)  # type: ignore[arg-type]
    half, own_at_half = gradients(model, source, target, 0.5)  # type: ignore[arg-type]
    torch.testing.assert_close(half, 0.5 * full)
    torch.testing.assert_close(own_at_half, own)
    none, own_at_zero = gradients(model, source, target, 0.0)  # type: ignore[arg-type]
    assert not none.any()
    torch.testing.assert_close(own_at_zero, own)


def test_cdan_sees_the_product_and_weighs_certain_rows() -> None:
    model = model_of(CDAN, cdan_entropy=True)
    features, logits = torch.randn(5, 16), torch.randn(5, 2, requires_grad=True)
    seen = model.discriminator_inputs(features, logits)
    expected = torch.stack([torch.outer(f, p).flatten() for f, p in zip(features, logits.softmax(1), strict=True)])
    torch.testing.assert_close(seen, expected)
    assert not seen.requires_grad, "the class probabilities are no way around the reversal"
    torch.testing.assert_close(model.domain_weights(logits), certainty_weight(logits))
    assert model_of(CDAN).domain_weights(logits) is None


@pytest.mark.parametrize("kind", ADAPTING, ids=lambda kind: kind.__name__)
def test_the_term_is_that_of_the_target_and_sizes_may_differ(kind: type[Method]) -> None:
    model = model_of(kind)
    trainer(3).fit(model, domains())
    source, target = torch.randn(7, 2), torch.randn(11, 2)
    name = next(name for base in kind.__mro__ for name in vars(base).get("terms", ()) if name != "cm")
    model.eval()
    terms = model.losses(joint_step(model, source, target))
    assert terms[name].isfinite()
    other = model.losses(joint_step(model, source, target + 0.5))
    assert float(other[name].detach()) != float(terms[name].detach())
    assert float(other["ce"].detach()) == pytest.approx(float(terms["ce"].detach()))


@pytest.mark.parametrize("kind", ADAPTING, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("batch_norm", ["joint", "split"])
def test_low_precision_trains_with_either_batch_norm(kind: type[Method], batch_norm: str) -> None:
    model = model_of(kind, batch_norm=batch_norm)
    before = [p.detach().clone() for p in model.parameters()]
    trainer(3, precision="bf16-mixed").fit(model, domains())
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_classes_absent_from_a_source_batch_keep_their_centroids() -> None:
    """As with 20 of 31 classes in a batch of 32."""
    model = SuperCMDANN(num_classes=31, input_shape=(8,), backbone="identity", dann_hidden_features=8)
    generator = torch.Generator().manual_seed(0)
    seen: dict[int, list[Tensor]] = {k: [] for k in range(31)}
    for _ in range(40):
        labels = torch.randint(0, 31, (32,), generator=generator)
        x = torch.randn(32, 8, generator=generator) + labels[:, None]
        assert len(labels.unique()) < 31
        before = model.head.centroids.clone()
        model.head.update(x, labels)
        absent = [k for k in range(31) if k not in labels]
        assert torch.equal(model.head.centroids[absent], before[absent])
        for k in labels.unique().tolist():
            seen[k].append(x[labels == k].mean(0))
    for k, means in seen.items():
        torch.testing.assert_close(model.head.centroids[k], torch.stack(means).mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fast", [False, True])
def test_fast_bnm_is_another_term(fast: bool) -> None:
    model = model_of(BNM, bnm_fast=fast)
    step = joint_step(model, torch.randn(6, 2), torch.randn(10, 2))
    p = step.unlabeled_logits[0].softmax(1)
    expected = p.norm(dim=0).sum() if fast else torch.linalg.matrix_norm(p, "nuc")
    torch.testing.assert_close(model.losses(step)["bnm"], -expected / 10)


def accuracy_on_target(kind: type[Method], degrees: float, **kwargs: Any) -> float:
    """Accuracy on rotated moons after 400 steps, mean over three seeds."""
    accuracies = []
    for seed in range(3):
        data = domains(degrees)
        model = model_of(kind, lr=1e-3, **kwargs)
        seed_everything(seed)
        run = trainer(400)
        run.fit(model, data)
        (metrics,) = run.test(model, data, verbose=False)
        accuracies.append(metrics["test/acc"])
    return sum(accuracies) / 3


@pytest.mark.slow
def test_every_method_beats_the_source_alone_on_rotated_moons() -> None:
    alone = accuracy_on_target(Supervised, 40.0, use_unlabeled=True)
    # Not with SuperCM: moons are no clusters around their means.
    kinds = [kind for kind in ADAPTING if not issubclass(kind, SuperCM)]
    # The radius of deep networks is too large for a net of two layers. This one was the best of 0.0005, 0.001, 0.002
    # and 0.005 on moons turned by 30 degrees, with seeds 10 to 14.
    radius = {kind: {"sdat_rho": 0.001} if issubclass(kind, SDAT) else {} for kind in kinds}
    gains = {kind.__name__: accuracy_on_target(kind, 40.0, **radius[kind]) - alone for kind in kinds}
    assert all(gain > 0.02 for gain in gains.values()), f"source alone {alone:.3f}, gains {gains}"


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [(MCC, "mcc_temperature", 0.0), (CDAN, "cdan_random_features", 0), (Supervised, "bottleneck", 0)],
)
def test_an_option_out_of_range_is_named(kind: type[Method], option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}={value}"):
        model_of(kind, **{option: value})
