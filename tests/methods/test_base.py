"""The base of every method: joint forward, sum of terms, evaluation, schedules, checks."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from supercm_lightning import (
    DANN,
    VAT,
    FixMatch,
    FreeMatch,
    Method,
    SemiSupervisedDataModule,
    Step,
    SuperCM,
    Supervised,
)

SHAPE: dict[str, Any] = {"num_classes": 3, "input_shape": (4,)}


def fit(model: Method, steps: int = 5, **data: Any) -> Trainer:
    """A short run on the built-in digits."""
    seed_everything(0)
    module = SemiSupervisedDataModule(num_labeled=20, steps_per_epoch=steps, **data)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(model, datamodule=module)
    return trainer


def digits_model(kind: type[Method] = Supervised, **kwargs: Any) -> Method:
    """A small network for the built-in digits, with known initial weights."""
    seed_everything(1)
    return kind(num_classes=10, input_shape=(1, 8, 8), **kwargs)


class Recorder(Callback):
    """Keeps the steps of a run."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def observe(self, trainer: Trainer, pl_module: Method, step: Step) -> None:
        """Called between forward and loss."""
        self.steps.append(step)


class TwoViews(Method):
    """Needs two views; its term is a constant."""

    views = ("weak", "weak")

    def losses(self, step: Step) -> dict[str, Tensor]:
        return super().losses(step) | {"two": step.unlabeled_logits[1].mean() * 0 + 2.0}


class OneView(Method):
    """Adds a constant term."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        return super().losses(step) | {"one": step.features.mean() * 0 + 1.0}


class Both(OneView, TwoViews):
    """The combination of the two."""


def test_step_orders_labelled_rows_then_views() -> None:
    x, first, second = torch.randn(2, 4), torch.randn(3, 4), torch.randn(3, 4)
    model = TwoViews(**SHAPE, backbone="identity")
    step = model.joint_forward({"labeled": (x, torch.tensor([0, 1])), "unlabeled": ((first, second), torch.arange(3))})
    assert torch.equal(step.labeled_features, x)
    assert torch.equal(step.unlabeled_features[0], first)
    assert torch.equal(step.unlabeled_features[1], second)
    assert torch.equal(step.features, torch.cat([x, first]))
    assert torch.equal(step.logits, model.head(torch.cat([x, first])))
    torch.testing.assert_close(step.unlabeled_logits[1], model.head(second))
    torch.testing.assert_close(step.assignments.sum(1), torch.ones(5))


@pytest.mark.parametrize("mode", ["joint", "split"])
def test_batch_norm_sees_rows_together_or_apart(mode: str) -> None:
    backbone = nn.Sequential(nn.BatchNorm1d(4, affine=False))
    backbone.num_features = 4  # type: ignore[assignment]
    model = OneView(**SHAPE, backbone=backbone, batch_norm=mode)
    x, u = torch.randn(6, 4), torch.randn(10, 4) * 3 + 5
    step = model.joint_forward(
        {"labeled": (x, torch.zeros(6, dtype=torch.long)), "unlabeled": ((u,), torch.arange(10))}
    )
    rows = torch.cat([x, u])
    groups = [rows] if mode == "joint" else [x, u]
    expected = torch.cat([(g - g.mean(0)) / (g.var(0, unbiased=False) + 1e-5).sqrt() for g in groups])
    torch.testing.assert_close(step.features, expected, atol=1e-5, rtol=1e-5)


def test_combination_sums_terms_of_all_bases_and_takes_longest_views() -> None:
    assert Both.views == ("weak", "weak")
    trainer = fit(digits_model(Both), steps=1)
    logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
    assert logged["train/one"] == 1
    assert logged["train/two"] == 2
    assert logged["train/loss"] == pytest.approx(logged["train/ce"] + 3)


def test_diagnostics_are_computed_at_logged_steps_and_at_the_end_of_an_epoch() -> None:
    class Counting(OneView):
        def diagnostics(self, step: Step) -> dict[str, Tensor]:
            seen.append(self.trainer.global_step + 1)
            return super().diagnostics(step)

    seen: list[int] = []
    trainer = quiet(max_steps=11, log_every_n_steps=3)
    trainer.fit(digits_model(Counting), datamodule=SemiSupervisedDataModule(num_labeled=20, steps_per_epoch=5))
    assert seen == [3, 5, 6, 9, 10]


def test_a_diagnostic_named_like_a_term_is_refused() -> None:
    class Twice(OneView):
        def diagnostics(self, step: Step) -> dict[str, Tensor]:
            return {"one": step.features.mean()}

    with pytest.raises(TypeError, match=r"Twice\.diagnostics: rename one"):
        fit(digits_model(Twice), steps=1)


def test_bases_whose_terms_share_a_name_are_refused_when_the_class_is_made() -> None:
    class Named(Method):
        terms = ("entropy",)

    with pytest.raises(TypeError, match="both add a term 'entropy'"):

        class Wrong(VAT, Named):
            pass


def test_unnamed_terms_that_share_a_name_are_refused_at_the_first_step() -> None:
    class Again(Method):
        def losses(self, step: Step) -> dict[str, Tensor]:
            return super().losses(step) | {"one": step.features.mean()}

    class Wrong(OneView, Again):
        pass

    with pytest.raises(TypeError, match="two terms are called one"):
        fit(digits_model(Wrong), steps=1)


def test_supervised_ignores_the_unlabelled_rows_unless_asked() -> None:
    assert Supervised(**SHAPE, backbone="mlp").views == ()
    assert Supervised(**SHAPE, backbone="mlp", use_unlabeled=True).views == ("weak",)
    x, y, u = torch.randn(4, 4), torch.tensor([0, 1, 2, 0]), torch.randn(4, 4)
    model = Supervised(**SHAPE, backbone="identity", use_unlabeled=True)
    step = model.joint_forward({"labeled": (x, y), "unlabeled": ((u,), torch.arange(4))})
    assert list(model.losses(step)) == ["ce"]
    torch.testing.assert_close(model.losses(step)["ce"], F.cross_entropy(model(x), y))


def test_callbacks_see_the_step_between_forward_and_loss() -> None:
    recorder = Recorder()
    seed_everything(0)
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[recorder],
    )  # fmt: skip
    trainer.fit(digits_model(OneView), datamodule=SemiSupervisedDataModule(num_labeled=20))
    assert len(recorder.steps) == 3
    assert all(step.features.requires_grad for step in recorder.steps)


def test_cross_entropy_and_accuracy_of_evaluation_match_a_plain_loop() -> None:
    x, y = torch.randn(50, 4), torch.randint(0, 3, (50,))
    model = Supervised(**SHAPE, backbone="mlp")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (result,) = trainer.test(model, DataLoader(TensorDataset(x, y), batch_size=16), verbose=False)
    model.eval()
    with torch.no_grad():
        assert result["test/acc"] == pytest.approx((model(x).argmax(1) == y).float().mean().item())
        assert result["test/loss"] == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-5)


def test_predictions_are_probabilities_with_their_index() -> None:
    model = digits_model()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    data = SemiSupervisedDataModule(num_labeled=20, eval_batch_size=100)
    outputs = trainer.predict(model, datamodule=data)
    assert outputs is not None
    index = torch.cat([out["index"] for out in outputs])
    probabilities = torch.cat([out["probabilities"] for out in outputs])
    assert torch.equal(index, torch.arange(450))
    rows = data.samples["test"]
    expected = model.eval()(data.normalize(rows.store.data[rows.index])).softmax(1)
    torch.testing.assert_close(probabilities, expected.detach())


@pytest.mark.parametrize("kind", [Supervised, SuperCM])
def test_checkpoint_loads_safely_with_the_same_logits(kind: type[Method]) -> None:
    trainer = fit(digits_model(kind, lr=0.003))
    trainer.save_checkpoint("run.ckpt")
    loaded = kind.load_from_checkpoint("run.ckpt", weights_only=True)
    assert loaded.hparams == trainer.lightning_module.hparams
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(loaded.eval()(x), trainer.lightning_module.eval()(x))


def test_a_module_as_backbone_stays_out_of_the_checkpoint() -> None:
    backbone = nn.Flatten()
    backbone.num_features = 64  # type: ignore[assignment]
    trainer = fit(digits_model(Supervised, backbone=backbone))
    trainer.save_checkpoint("run.ckpt")
    again = nn.Flatten()
    again.num_features = 64  # type: ignore[assignment]
    loaded = Supervised.load_from_checkpoint("run.ckpt", backbone=again, weights_only=True)
    assert torch.equal(loaded.head.weight, trainer.lightning_module.head.weight)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", lambda t: 1.0),
        ("step", lambda t: 1.0 if t < 8 else 0.2),
        ("cosine", lambda t: math.cos(7 * math.pi / 16 * t / 10)),
        ("inverse", lambda t: (1 + 0.001 * t) ** -0.75),
    ],
)
def test_learning_rate_follows_its_schedule_every_step(schedule: str, expected: Any) -> None:
    rates: list[tuple[float, float]] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            groups = trainer.optimizers[0].param_groups
            rates.append((groups[0]["lr"], groups[1]["lr"]))

    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Watch()],
    )  # fmt: skip
    model = digits_model(Supervised, lr=0.01, lr_schedule=schedule, backbone_lr_scale=0.1, optimizer="sgd")
    trainer.fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20, steps_per_epoch=5))
    for t, (backbone, head) in enumerate(rates):
        assert head == pytest.approx(0.01 * expected(t))
        assert backbone == pytest.approx(0.001 * expected(t))
    assert len(rates) == 10


def test_ramp_reaches_full_weight_after_its_fraction() -> None:
    weights: list[float] = []

    class Ramped(OneView):
        def losses(self, step: Step) -> dict[str, Tensor]:
            weights.append(self.ramp())
            return super().losses(step)

    fit(digits_model(Ramped, ramp_up=0.5), steps=10)
    assert weights == pytest.approx([math.exp(-5 * (1 - min(t / 5, 1)) ** 2) for t in range(10)])


def test_every_parameter_gets_into_the_optimizer_once() -> None:
    model = digits_model(SuperCM)
    groups = model.parameter_groups()
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())


def test_a_term_that_is_not_finite_stops_the_run_and_is_named() -> None:
    class Broken(OneView):
        def losses(self, step: Step) -> dict[str, Tensor]:
            nan = float("nan") if self.trainer.global_step == 2 else 0.0
            return super().losses(step) | {"broken": step.features.mean() * nan}

    model = digits_model(Broken)
    with pytest.raises(FloatingPointError, match=r"train/broken became NaN or infinite at or before step 3"):
        fit(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes=1"),
        ({"lr_schedule": "linear"}, "lr_schedule='linear'"),
        ({"batch_norm": "none"}, "batch_norm='none'"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"ramp_up": 2.0}, "ramp_up=2.0"),
        ({"backbone": nn.Flatten()}, "num_features"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Supervised(**({"num_classes": 3, "input_shape": (4,), "backbone": "mlp"} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 7, "input_shape": (1, 8, 8)}, "num_classes: the model was built for 7, the data has 10"),
        ({"num_classes": 10, "input_shape": (3, 8, 8)}, r"input_shape: the model was built for \(3, 8, 8\)"),
    ],
)
def test_a_model_that_contradicts_the_data_is_refused_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Supervised(**options))


@pytest.mark.parametrize("kind", [Supervised, SuperCM])
def test_bfloat16_and_channels_last_train(kind: type[Method]) -> None:
    seed_everything(0)
    trainer = Trainer(
        max_steps=30, accelerator="cpu", precision="bf16-mixed", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    model = digits_model(kind, channels_last=True)
    losses: list[float] = []
    trainer.callbacks.append(_LossLog(losses))  # type: ignore[attr-defined]
    trainer.fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


class _LossLog(Callback):
    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(float(outputs["loss"]))


class GivesNoDictionary(Method):
    """Forgets that terms have names."""

    def losses(self, step: Step) -> Any:
        return super().losses(step)["ce"]


class GivesRows(Method):
    """Forgets the mean."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        return super().losses(step) | {"mine": step.features.square().mean(dim=1)}


class GivesNumber(Method):
    """A term that learns nothing."""

    def losses(self, step: Step) -> dict[str, Any]:
        return super().losses(step) | {"mine": 0.5}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GivesNoDictionary, r"GivesNoDictionary\.losses must return a dictionary"),
        (GivesRows, r"'mine' must be a tensor without dimensions.* Tensor of shape \(100,\)"),
        (GivesNumber, "'mine' must be a tensor without dimensions.* float"),
    ],
)
def test_terms_of_a_wrong_kind_are_named(kind: type[Method], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fit(digits_model(kind), steps=1)


# ------------------------------------------------------------------------------------------- what must not surprise
def test_a_model_built_after_a_run_is_another_one_and_the_same_one_when_repeated() -> None:
    def first_and_second() -> list[torch.Tensor]:
        seed_everything(0)
        weights = []
        for _ in range(2):
            model = Supervised(num_classes=10, input_shape=(1, 8, 8))
            weights.append(model.head.weight.detach().clone())
            quiet(max_steps=3).fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20))
        return weights

    first, second = first_and_second()
    assert not torch.equal(first, second)
    assert torch.equal(second, first_and_second()[1])


def quiet(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        callbacks=list(callbacks), accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **{"enable_checkpointing": False} | options,
    )  # fmt: skip


def test_both_terms_of_a_combination_count_though_both_name_them_by_a_class_attribute() -> None:
    class Two(FixMatch, DANN):
        pass

    model = digits_model(Two)
    rows = {"labeled": (torch.rand(4, 1, 8, 8), torch.arange(4)), "unlabeled": ((torch.rand(4, 1, 8, 8),) * 2, None)}
    model.trainer = quiet(max_steps=10)
    assert set(model.losses(model.joint_forward(rows))) == {"ce", "fixmatch", "dann"}


def test_bases_that_need_different_views_at_one_place_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Wrong: its bases need views .*'weak', 'weak'.*'weak', 'strong'"):

        class Wrong(TwoViews, FixMatch):
            pass


def test_rows_that_are_forwarded_again_have_the_company_of_the_first_time() -> None:
    class Two(VAT, FixMatch):
        pass

    for mode in ("joint", "split"):
        model = digits_model(Two, batch_norm=mode)
        views = (torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8))
        step = model.joint_forward({"labeled": (torch.rand(4, 1, 8, 8), torch.arange(4)), "unlabeled": (views, None)})
        torch.testing.assert_close(
            model.forward_matched(step, views[0]), step.unlabeled_logits[0], rtol=1e-4, atol=1e-5
        )


def test_a_checkpoint_of_a_run_that_became_infinite_is_not_written(tmp_path: Path) -> None:
    class Broken(OneView):
        def losses(self, step: Step) -> dict[str, Tensor]:
            return super().losses(step) | {"broken": step.features.mean() * float("nan")}

    saving = ModelCheckpoint(tmp_path, every_n_train_steps=2)
    trainer = quiet(saving, max_steps=4, log_every_n_steps=50, enable_checkpointing=True)
    with pytest.raises(FloatingPointError, match="train/broken"):
        trainer.fit(digits_model(Broken), datamodule=SemiSupervisedDataModule(num_labeled=20))
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_method_can_give_some_parameters_a_learning_rate_of_their_own() -> None:
    class SlowHead(Supervised):
        def parameter_groups(self) -> list[dict[str, Any]]:
            return [*super().parameter_groups(), {"params": list(self.head.parameters()), "lr": 1e-5}]

    model = digits_model(SlowHead)
    optimizer = model.configure_optimizers()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert all(rates[id(p)] == 1e-5 for p in model.head.parameters())
    assert len(rates) == len(list(model.parameters()))


@pytest.mark.filterwarnings("ignore")
def test_learning_rate_finder_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, trainer = digits_model(), quiet(max_steps=30)
    found = Tuner(trainer).lr_find(
        model, datamodule=SemiSupervisedDataModule(num_labeled=20), num_training=20, update_attr=False
    )
    assert found is not None
    assert len(found.results["loss"]) >= 10


class AlsoSupervised(Supervised):
    """Cross-entropy and a term on the unlabelled rows."""

    views = ("weak",)

    def losses(self, step: Step) -> dict[str, Tensor]:
        return super().losses(step) | {"norm": step.unlabeled_logits[0].square().mean()}


class ThreeViews(Method):
    """Compares two strong views."""

    views = ("weak", "strong", "strong")

    def losses(self, step: Step) -> dict[str, Tensor]:
        _, first, second = step.unlabeled_logits
        return super().losses(step) | {"pair": (first - second).square().mean()}


class ThreeViewsFreeMatch(ThreeViews, FreeMatch):
    """With thresholds."""


@pytest.mark.parametrize(("kind", "names"), [(AlsoSupervised, {"norm"}), (ThreeViewsFreeMatch, {"pair", "fairness"})])
def test_a_class_of_a_user_gets_the_views_that_it_declares(kind: type[Method], names: set[str]) -> None:
    logged = fit(digits_model(kind), steps=2).logged_metrics
    assert all(logged[f"train/{name}"] != 0 for name in names)
