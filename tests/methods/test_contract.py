"""What every method promises: losses without side effects, state that moves once a batch, optimizers by name."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn

from supercm_lightning import (
    ASD,
    SDAT,
    CentroidUpdate,
    ClusteringDataModule,
    Method,
    SemiSupervisedDataModule,
    SoftMatch,
    Step,
    SuperCM,
    Supervised,
    methods,
)
from supercm_lightning.methods.optim import build_optimizer
from tests.every_method import METHODS, Twice, combinations_slow, differing, eager_options, state_of

EVERY = [
    kind for kind in map(vars(methods).get, methods.__all__) if isinstance(kind, type) and issubclass(kind, Method)
]
EVERY = [kind for kind in EVERY if kind is not Method and kind.__name__ != "Clusterer"]


def data_of(kind: type[Method]) -> Any:
    """Digits, with labels where the method reads them."""
    if issubclass(kind, ASD):
        return ClusteringDataModule("digits", unlabeled_batch_size=16, steps_per_epoch=4)
    return SemiSupervisedDataModule(num_labeled=20, labeled_batch_size=10, unlabeled_batch_size=16, steps_per_epoch=4)


def model_of(kind: type[Method], **options: Any) -> Method:
    """A small network with known initial weights."""
    seed_everything(3, verbose=False)
    asd = {"asd_warmup": 0.0, "asd_map_every": 2} if issubclass(kind, ASD) else {}
    return kind(num_classes=10, input_shape=(1, 8, 8), **eager_options(kind) | asd | options)


def trainer_of(*callbacks: Callback, **options: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    return Trainer(
        callbacks=list(callbacks), accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        **{"max_steps": 4, "log_every_n_steps": 1} | options,
    )  # fmt: skip


# Those of the others: test_semi_supervised.py.
@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind not in METHODS], ids=lambda kind: kind.__name__)
def test_losses_have_no_side_effects(kind: type[Method]) -> None:
    twice = Twice()
    trainer_of(twice).fit(model_of(kind), datamodule=data_of(kind))
    assert twice.compared == 4


class EvaluatesTwice(torch.optim.SGD):
    """Steps like SGD, but evaluates the loss at perturbed weights before, as SAM does."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Two evaluations, one step."""
        closure()
        moved = [(p, 1e-3 * p.grad) for g in self.param_groups for p in g["params"] if p.grad is not None]
        with torch.no_grad():
            for p, change in moved:
                p.add_(change)
        loss = closure()
        with torch.no_grad():
            for p, change in moved:
                p.sub_(change)
        super().step()
        return loss


def statistics(model: Method) -> dict[str, Tensor]:
    """Counters and statistics that must move once a batch, whatever the weights are."""
    counted = ("num_batches_tracked", "position", *(() if isinstance(model, ASD) else ("updates",)))
    return {name: v.clone() for name, v in model.state_dict().items() if name.endswith(counted) and "discr" not in name}


@pytest.mark.parametrize("kind", combinations_slow(EVERY))
def test_an_optimizer_may_evaluate_the_loss_twice(kind: type[Method], monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(optimizer: type[torch.optim.Optimizer]) -> Method:
        model = model_of(kind)
        model.configure_optimizers = lambda: optimizer(model.parameters(), lr=0.01)  # type: ignore[assignment]
        trainer_of().fit(model, datamodule=data_of(kind))
        return model

    once, twice = fit(torch.optim.SGD), fit(EvaluatesTwice)
    assert statistics(once)
    assert not differing(statistics(once), statistics(twice))
    assert all(p.isfinite().all() for p in twice.parameters())
    assert differing(state_of(once.backbone), state_of(twice.backbone))


# ------------------------------------------------------------------------------------------------------ SoftMatch
def test_softmatch_weights_follow_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    model = SoftMatch(num_classes=3, input_shape=(4,), backbone="mlp", softmatch_decay=0.8)
    mu, var, mean = 1 / 3, 1.0, [1 / 3] * 3
    for _ in range(10):
        weak, strong = torch.randn(2, 6, 3, generator=generator)
        logits = torch.cat([torch.zeros(1, 3), 2 * weak, strong])
        step = Step(torch.zeros(1, 4), torch.zeros(1).long(), (weak, strong), (), torch.arange(6), logits, logits)
        model.observe(step)
        p = (2 * weak).softmax(1).tolist()
        top = [max(row) for row in p]
        center = sum(top) / 6
        mu = 0.8 * mu + 0.2 * center
        var = 0.8 * var + 0.2 * sum((c - center) ** 2 for c in top) / 5
        mean = [0.8 * mean[k] + 0.2 * sum(row[k] for row in p) / 6 for k in range(3)]
        loss = 0.0
        for row, log_q in zip(p, strong.log_softmax(1).tolist(), strict=True):
            aligned = [value / mean[k] for k, value in enumerate(row)]
            confidence = max(aligned) / sum(aligned)
            weight = torch.tensor(-(min(confidence - mu, 0.0) ** 2) * 4 / (2 * var)).exp().item()
            loss -= weight * log_q[row.index(max(row))] / 6
        assert model.losses(step)["softmatch"].item() == pytest.approx(loss, rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- SDAT
class Restated(Callback):
    """What the gradient of a step of SDAT should be, taken by hand on a copy of the model."""

    def __init__(self) -> None:
        self.expected: list[Tensor] = []
        self.weights: dict[str, Tensor] = {}
        self.compared = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Two gradients: of the cross-entropy at w, of all losses at w + ε."""
        self.weights = state_of(pl_module.backbone)
        twin = copy.deepcopy(pl_module)
        twin.trainer = trainer
        twin.zero_grad()
        x, y = batch["labeled"]
        (u,), _ = batch["unlabeled"]
        F.cross_entropy(twin(torch.cat([x, u]))[: len(y)], y).backward()
        used = [p for p in twin.parameters() if p.grad is not None]
        norm = sum(float(p.grad.square().sum()) for p in used) ** 0.5  # type: ignore[union-attr]
        with torch.no_grad():
            for p in used:
                p.add_(pl_module.hparams.sdat_rho * p.grad / norm)
        twin.zero_grad()
        sum(twin.losses(twin.joint_forward(batch)).values()).backward()  # type: ignore[union-attr]
        self.expected = [p.grad.clone() for p in twin.parameters() if p.grad is not None]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        """The weights are back at w, with the gradient of w + ε."""
        own = {name: p for name, p in self.weights.items() if name in dict(pl_module.backbone.named_parameters())}
        assert not differing(own, state_of(pl_module.backbone))
        found = [p.grad for p in pl_module.parameters() if p.grad is not None]
        for one, other in zip(found, self.expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        self.compared += 1


def test_sdat_steps_with_the_gradient_at_the_sharpest_point_of_the_task_loss() -> None:
    restated = Restated()
    model = model_of(SDAT, sdat_rho=0.5, optimizer="sgd", lr=0.05)
    trainer_of(restated, max_steps=3).fit(model, datamodule=data_of(SDAT))
    assert restated.compared == 3


# ------------------------------------------------------------------------------- several optimizers and passes: MCD
class MCD(Method):
    """Maximum classifier discrepancy (Saito et al., CVPR 2018): two classifiers, three steps a batch."""

    automatic_optimization = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.second = nn.Linear(self.num_features, self.num_classes)

    def configure_optimizers(self) -> Any:
        """One optimizer for the features, one for the classifiers."""
        heads = [*self.head.parameters(), *self.second.parameters()]
        return [torch.optim.SGD(self.backbone.parameters(), 0.05), torch.optim.SGD(heads, 0.05)]

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """Classify; maximize the discrepancy by the classifiers; minimize it by the features."""
        features, heads = self.optimizers()  # type: ignore[misc]
        for which, sign in ((features, 0.0), (heads, -1.0), (features, 1.0)):
            step = self.observed_step(batch)
            loss = self.supervised_loss(step) + F.cross_entropy(self.second(step.labeled_features), step.y)
            one, other = (head(step.unlabeled_features[0]).softmax(1) for head in (self.head, self.second))
            which.zero_grad()
            self.manual_backward(loss + sign * (one - other).abs().mean())
            which.step()
            if sign == 0.0:
                heads.step()


def test_a_method_with_several_optimizers_and_passes_learns_and_moves_statistics_once_a_batch() -> None:
    model = model_of(MCD)
    trainer_of(max_epochs=10, max_steps=-1).fit(model, datamodule=data_of(MCD))
    counts = {int(v) for name, v in model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {40}
    with torch.no_grad():
        assert model.trainer.callback_metrics["val/acc"] > 0.3


# ------------------------------------------------------------------------------------------------------ optimizers
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sgd", None, {"momentum": 0.9, "nesterov": True}),
        ("sgd", {"momentum": 0.0}, {"momentum": 0.0, "nesterov": False}),
        ("adam", {"eps": 1e-3}, {"eps": 1e-3}),
        ("radam", None, {"weight_decay": 0.1}),
        ("lamb", None, {"weight_decay": 0.1}),
    ],
)
def test_optimizers_are_found_by_name(name: str, options: Any, expected: dict[str, Any]) -> None:
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    groups = [{"params": [first, second]}, {"params": [second], "lr": 0.5}]
    optimizer = build_optimizer(name, groups, 0.1, 0.1, options)
    assert [(len(g["params"]), g["lr"]) for g in optimizer.param_groups] == [(1, 0.1), (1, 0.5)]
    assert {key: optimizer.defaults[key] for key in expected} == expected
    first.grad = torch.ones(2)
    optimizer.step()
    assert first.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamm", None, "optimizer='adamm'.*adam"),
        ("sgd", {"beta": 1}, "optimizer_options=.*beta"),
        ("sgd", {"momentum": 1.5}, "momentum=1.5"),
    ],
)
def test_unknown_optimizers_and_options_are_named(name: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of().fit(
            model_of(Supervised, optimizer=name, optimizer_options=options), datamodule=data_of(Supervised)
        )


# ------------------------------------------------------------------------------------------------------- networks
@pytest.mark.parametrize("kind", [Supervised, SuperCM], ids=lambda kind: kind.__name__)
def test_heads_are_initialized_alike(kind: type[Method]) -> None:
    def weight(init: str) -> Tensor:
        head = model_of(kind, head_init=init).head
        return (head.linear if kind is SuperCM else head).weight.detach()

    for init in ("default", "xavier"):
        assert torch.equal(weight(init), weight(init))
    reference = model_of(Supervised, head_init="default").head.weight
    assert torch.equal(weight("default"), reference)
    assert float(weight("xavier").std()) == pytest.approx((2 / (10 + reference.shape[1])) ** 0.5, rel=0.2)


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
def test_weights_to_start_from_are_loaded_and_frozen_stages_stay() -> None:
    source = model_of(Supervised)
    trainer_of().fit(source, datamodule=data_of(Supervised))
    torch.save(source.backbone.state_dict(), "backbone.pt")
    for kind in (SuperCM, methods.MeanTeacher):
        model = model_of(kind, backbone_checkpoint="backbone.pt", freeze="all")
        trainer_of().fit(model, datamodule=data_of(kind))
        assert not differing(source.backbone.state_dict(), model.backbone.state_dict())
    teacher = model.teacher.module[0].state_dict()  # type: ignore[union-attr, index]
    assert not differing(source.backbone.state_dict(), teacher)


def test_the_callback_gives_the_centroids_back() -> None:
    model = model_of(SuperCM)
    for callbacks in ([CentroidUpdate()], []):
        before = model.head.updates.clone()
        trainer_of(*callbacks).fit(model, datamodule=data_of(SuperCM))
        assert (model.head.updates > before).any()
