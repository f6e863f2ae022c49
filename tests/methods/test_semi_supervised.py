"""Every method that learns from unlabelled rows: its term is there, reaches the student, and nothing else moves."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.modules.batchnorm import _BatchNorm

from supercm_lightning import (
    VAT,
    CentroidUpdate,
    FixMatch,
    FlexMatch,
    FreeMatch,
    MeanTeacher,
    Method,
    PiModel,
    PseudoLabel,
    SemiSupervisedDataModule,
    Step,
    SuperCM,
    SuperCMMeanTeacher,
)
from tests.every_method import METHODS, Twice, combinations_slow, eager_options, weight_options


def trainer(steps: int, *callbacks: Callback, **kwargs: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    settings: dict[str, Any] = {
        "max_steps": steps, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
    }  # fmt: skip
    return Trainer(**settings | kwargs, callbacks=list(callbacks))


def model_of(kind: type[Method], **kwargs: Any) -> Method:
    """A small network with known initial weights."""
    seed_everything(3)
    return kind(num_classes=10, input_shape=(1, 8, 8), **eager_options(kind) | kwargs)


class Inspect(Callback):
    """Looks at the second step before its update, when a teacher is no longer equal to the student.

    Attributes:
        terms: Values of the terms.
        reached: Whether a term's gradient reaches every weight of the student.
        leaked: Whether it reaches what only targets come from.
    """

    def __init__(self) -> None:
        self.terms: dict[str, float] = {}
        self.reached: dict[str, bool] = {}
        self.leaked: dict[str, bool] = {}

    @torch.enable_grad()
    def observe(self, trainer: Trainer, pl_module: Method, step: Step) -> None:
        """Sends each unlabelled term alone through the network."""
        norms = [module for module in pl_module.backbone.modules() if isinstance(module, _BatchNorm)]
        assert norms
        assert all(int(norm.num_batches_tracked) == trainer.global_step + 1 for norm in norms)
        if trainer.global_step != 1:
            return
        with torch.random.fork_rng():
            before = {name: buffer.clone() for name, buffer in pl_module.backbone.named_buffers()}
            for view in step.target_views:
                view.requires_grad_()
            terms = pl_module.losses(step)
            for name, buffer in pl_module.backbone.named_buffers():
                if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                    assert torch.equal(buffer, before[name]), f"{name} moved outside the joint forward"
        self.terms = {name: term.item() for name, term in terms.items() if name != "ce"}
        for name in self.terms:
            # A domain loss acts on the features, in a discriminator of its own.
            last = pl_module.discriminator if name in ("dann", "cdan") else pl_module.head
            learning = [*pl_module.backbone.parameters(), *last.parameters()]
            self.reached[name] = all(reaches(terms[name], p) for p in learning)
            rows = target_rows(pl_module, name, step)
            self.leaked[name] = any(reaches(terms[name], view) for view in step.target_views) or reaches(
                terms[name], step.all_logits, rows
            )


def reaches(term: torch.Tensor, tensor: torch.Tensor, rows: int | None = None) -> bool:
    """Whether the gradient of a term with respect to the (first rows of a) tensor is not zero."""
    (grad,) = torch.autograd.grad(term, tensor, retain_graph=True, allow_unused=True)
    return grad is not None and bool(grad[:rows].abs().sum() > 0)


def target_rows(model: Method, term: str, step: Step) -> int:
    """How many of the first rows of the joint logits are mere targets of a term."""
    if term in ("vat", "cdan"):  # what learns is the forward of the perturbed rows, or the features
        return len(step.all_logits)
    return len(step.logits) if "strong" in model.views and term not in ("cm", "propagation") else 0


class CrossEntropies(Callback):
    """Keeps the supervised loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.values.append(float(outputs["terms"]["ce"]))


@dataclass
class Fitted:
    """A method after a short run on digits, which several tests read."""

    model: Method
    inspect: Inspect
    twice: Twice
    losses: list[float]
    checkpoint: Path


@pytest.fixture(scope="module", params=METHODS, ids=lambda kind: kind.__name__)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Every method in turn, trained for 25 steps."""
    inspect, twice, losses = Inspect(), Twice(), CrossEntropies()
    model = model_of(request.param)
    run = trainer(25, inspect, twice, losses)
    run.fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20))
    checkpoint = tmp_path_factory.mktemp("fitted") / "run.ckpt"
    run.save_checkpoint(checkpoint)
    return Fitted(model, inspect, twice, losses.values, checkpoint)


def test_terms_reach_every_weight_of_the_student_and_no_target(fitted: Fitted) -> None:
    inspect = fitted.inspect
    assert inspect.terms
    for name, value in inspect.terms.items():
        assert value < 0 if name in ("fairness", "bnm") else value > 0, f"{name} = {value}"
        assert inspect.reached[name], f"{name} does not reach every weight"
        assert not inspect.leaked[name], f"{name} reaches its targets"


def test_losses_have_no_side_effects(fitted: Fitted) -> None:
    assert fitted.twice.compared == 4


def test_fit_lowers_the_loss(fitted: Fitted) -> None:
    assert len(fitted.losses) == 25
    assert sum(fitted.losses[-5:]) < 0.7 * sum(fitted.losses[:5])


def test_a_checkpoint_keeps_everything(fitted: Fitted) -> None:
    loaded = type(fitted.model).load_from_checkpoint(fitted.checkpoint, weights_only=True).state_dict()
    for name, value in fitted.model.state_dict().items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize("kind", combinations_slow(METHODS))
def test_terms_move_the_weights(kind: type[Method]) -> None:
    def weights(**options: float) -> torch.Tensor:
        model = model_of(kind, optimizer="sgd", lr=0.1, **options)
        trainer(2).fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20))
        return torch.cat([p.detach().flatten() for p in model.backbone.parameters()])

    names = weight_options(model_of(kind))
    assert names
    on, off = weights(), weights(**dict.fromkeys(names, 0.0))
    assert (on - off).norm() > 1e-3 * off.norm()


@pytest.mark.parametrize("kind", combinations_slow(METHODS))
def test_resumed_run_is_bit_identical(kind: type[Method]) -> None:
    def fit(folder: str, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        model = model_of(kind, lr_schedule="cosine", backbone=_dropout_backbone())
        seed_everything(0 if checkpoint is None else 99)
        saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(7, saving, enable_checkpointing=True)
        run.fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20, steps_per_epoch=4), ckpt_path=checkpoint)
        return model.state_dict()

    whole = fit("whole")
    for step in (3, 4):  # in the middle and at the end of an epoch
        for name, value in fit(f"from_{step}", Path(f"whole/step={step}.ckpt")).items():
            assert torch.equal(value, whole[name]), f"{name}, resumed from step {step}"


def _dropout_backbone() -> torch.nn.Module:
    backbone = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.2)
    )
    backbone.num_features = 16  # type: ignore[assignment]
    return backbone


class RestatedTeacher(Callback):
    """Averages the student by hand and compares before every loss."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: list[torch.Tensor] = []
        self.compared = 0

    @staticmethod
    def student(module: Any) -> list[torch.Tensor]:
        """The student's parameters."""
        parts = (module.backbone, module.bottleneck, module.head)
        return [p.detach().clone() for part in parts for p in part.parameters()]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.average = self.student(pl_module)

    def observe(self, trainer: Trainer, pl_module: Any, step: Step) -> None:
        if trainer.global_step:
            decay = min(1 - 1 / trainer.global_step, self.decay)
            self.average = [
                decay * a + (1 - decay) * p for a, p in zip(self.average, self.student(pl_module), strict=True)
            ]
        for mine, theirs in zip(self.average, pl_module.teacher.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)
            assert theirs.grad is None
        norms = [
            (s, t)
            for s, t in zip(pl_module.backbone.modules(), pl_module.teacher.module[0].modules(), strict=True)
            if isinstance(s, _BatchNorm)
        ]
        # The teacher has the student's statistics as they were before this step's forward.
        assert norms
        assert all(int(t.num_batches_tracked) == trainer.global_step for _, t in norms)
        self.compared += 1


def test_mean_teacher_is_the_average_of_the_student_and_gets_no_gradient() -> None:
    restated = RestatedTeacher(0.9)
    model = model_of(SuperCMMeanTeacher, mean_teacher_decay=0.9, bottleneck=16)
    trainer(12, restated).fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20))
    assert restated.compared == 12


def step_of(model: Method, weak: torch.Tensor, strong: torch.Tensor, index: torch.Tensor) -> Step:
    """A step with given unlabelled logits."""
    x, y = torch.zeros(1, *model.input_shape), torch.zeros(1, dtype=torch.long)
    logits = torch.cat([torch.zeros(1, model.num_classes), weak, strong])
    features = torch.zeros(len(logits), model.head.in_features)
    return Step(x, y, (weak, strong), (), index, features, logits)


def test_flexmatch_thresholds_follow_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    model = FlexMatch(num_classes=3, input_shape=(4,), backbone="mlp", fixmatch_threshold=0.6)
    model.selected_label = torch.full((12,), -1)
    selected = [-1] * 12
    for _ in range(15):
        weak = 2 * torch.randn(5, 3, generator=generator)
        index = torch.randperm(12, generator=generator)[:5]
        counts = [selected.count(k) for k in (-1, 0, 1, 2)]
        beta = [counts[k + 1] / max(max(counts), 1) for k in range(3)]
        p = weak.softmax(1)
        expected = [0.6 * beta[k] / (2 - beta[k]) for k in p.argmax(1).tolist()]
        step = step_of(model, weak, weak, index)
        model.observe(step)
        torch.testing.assert_close(model.thresholds(weak), torch.tensor(expected))
        for row, probabilities in zip(index.tolist(), p.tolist(), strict=True):
            if max(probabilities) >= 0.6:
                selected[row] = probabilities.index(max(probabilities))
        assert model.selected_label.tolist() == selected


def test_freematch_statistics_and_fairness_follow_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    model = FreeMatch(num_classes=3, input_shape=(4,), backbone="mlp", freematch_decay=0.8)
    tau, p_mean, share = 1 / 3, [1 / 3] * 3, [1 / 3] * 3
    for _ in range(10):
        weak, strong = torch.randn(2, 6, 3, generator=generator)
        step = step_of(model, 2 * weak, strong, torch.arange(6))
        model.observe(step)
        terms = model.losses(step)
        p = (2 * weak).softmax(1).tolist()
        labels = [row.index(max(row)) for row in p]
        tau = 0.8 * tau + 0.2 * sum(map(max, p)) / 6
        p_mean = [0.8 * p_mean[k] + 0.2 * sum(row[k] for row in p) / 6 for k in range(3)]
        share = [0.8 * share[k] + 0.2 * labels.count(k) / 6 for k in range(3)]
        mask = [max(row) >= tau * p_mean[label] / max(p_mean) for row, label in zip(p, labels, strict=True)]
        log_q = strong.log_softmax(1)
        loss = -sum(log_q[i, labels[i]].item() for i in range(6) if mask[i]) / 6
        assert terms["freematch"].item() == pytest.approx(loss, rel=1e-4)
        rows = [strong.softmax(1)[i].tolist() for i in range(6) if mask[i]]
        batch_mean = [sum(row[k] for row in rows) / len(rows) for k in range(3)]
        hard = [row.index(max(row)) for row in rows]
        batch_share = [hard.count(k) / len(rows) for k in range(3)]
        a = [p_mean[k] / share[k] for k in range(3)]
        b = [batch_mean[k] / batch_share[k] if batch_share[k] else 0.0 for k in range(3)]
        a, b = [v / sum(a) for v in a], [v / sum(b) for v in b]
        fairness = sum(x * torch.tensor(y + 1e-12).log().item() for x, y in zip(a, b, strict=True))
        assert terms["fairness"].item() == pytest.approx(0.01 * fairness, rel=1e-3)
    assert float(model.confidence) == pytest.approx(tau, rel=1e-5)


def test_freematch_clips_its_thresholds() -> None:
    model = FreeMatch(num_classes=3, input_shape=(4,), backbone="mlp", freematch_clip=(0.3, 0.6))
    model.confidence.fill_(0.8)
    model.mean_probability.copy_(torch.tensor([0.6, 0.3, 0.1]))
    torch.testing.assert_close(model.thresholds(torch.eye(3)), torch.tensor([0.6, 0.4, 0.3]))  # of 0.8, 0.4, 0.133


@pytest.mark.parametrize("limits", [(0.95, 0.9), (-0.1, 0.5), (0.5, 1.5)])
def test_limits_that_are_none_are_named(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"freematch_clip=.*: give the lowest and the highest threshold"):
        model_of(FreeMatch, freematch_clip=limits)


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (PseudoLabel, "pseudo_label_threshold", 95.0),
        (FixMatch, "fixmatch_threshold", 95.0),
        (FreeMatch, "freematch_decay", 1.0),
        (MeanTeacher, "mean_teacher_decay", 1.0),
        (VAT, "vat_eps", 0.0),
        (VAT, "vat_xi", 0.0),
        (VAT, "vat_iterations", 0),
    ],
)
def test_an_option_with_which_a_term_would_vanish_is_named(kind: type[Method], option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}={value}"):
        model_of(kind, **{option: value})


def test_pseudo_labelled_rows_join_the_centroids_above_the_confidence() -> None:
    model = SuperCM(num_classes=2, input_shape=(2,), backbone="identity", pseudo_centroids=0.9)
    with torch.no_grad():
        model.head.linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    x, u = torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 0.0], [0.0, 7.0], [1.0, 1.1]])
    step = model.joint_forward({"labeled": (x, torch.tensor([0])), "unlabeled": ((u,), torch.arange(3))})
    model.head.update(*model.centroid_samples(step))
    torch.testing.assert_close(model.head.centroids, torch.tensor([[3.5, 0.0], [0.0, 7.0]]))


def test_pseudo_labelled_centroids_need_the_training_forward() -> None:
    model = model_of(SuperCM, pseudo_centroids=0.9)
    with pytest.raises(ValueError, match=r"pseudo_centroids: .*reuse"):
        trainer(1, CentroidUpdate("eval_forward")).fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20))


@pytest.mark.parametrize("confidence", [-0.1, 1.5])
def test_a_confidence_out_of_range_is_named(confidence: float) -> None:
    with pytest.raises(ValueError, match=f"pseudo_centroids={confidence}"):
        model_of(SuperCM, pseudo_centroids=confidence)


def test_pi_model_target_shares_the_batch_statistics_of_the_student() -> None:
    """Equal views must give a consistency of zero: only the views may make it positive, not the batch norm."""
    model = model_of(PiModel)
    x, u = torch.randn(6, 1, 8, 8), torch.randn(8, 1, 8, 8)
    batch = {"labeled": (x, torch.arange(6)), "unlabeled": ((u, u.clone()), torch.arange(8))}
    model.train()
    step = model.joint_forward(batch)
    again = model.forward_matched(step, step.target_views[0])
    torch.testing.assert_close(again, step.unlabeled_logits[0])


def test_teacher_starts_as_a_copy_that_is_not_shared() -> None:
    model = model_of(MeanTeacher)
    teacher = copy.deepcopy(model.teacher.state_dict())
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, teacher[name]) for name, value in model.teacher.state_dict().items())


def test_a_mean_teacher_is_trained_twice() -> None:
    model = model_of(MeanTeacher)
    for _ in range(2):
        run = trainer(4)
        run.fit(model, datamodule=SemiSupervisedDataModule(num_labeled=20, steps_per_epoch=4))
        assert run.global_step == 4


def test_a_row_that_is_there_twice_keeps_its_confident_label() -> None:
    model = FlexMatch(num_classes=3, input_shape=(4,), backbone="mlp", fixmatch_threshold=0.6)
    confident, unsure = [0.0, 0.0, 9.0], [0.0, 0.0, 0.0]
    for rows in ([confident, unsure], [unsure, confident]):
        model.selected_label = torch.tensor([-1, 1, -1])
        weak = torch.tensor([*rows, unsure])
        model.observe(step_of(model, weak, weak, torch.tensor([0, 0, 1])))
        assert model.selected_label.tolist() == [2, 1, -1]


@pytest.mark.parametrize("rows", [100, 300])
def test_a_checkpoint_of_other_unlabelled_rows_is_refused(rows: int, tmp_path: Path) -> None:
    run = trainer(2)
    run.fit(model_of(FlexMatch), datamodule=SemiSupervisedDataModule(num_labeled=20, num_val=200))
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"ckpt_path: .*num_val"):
        trainer(4).fit(
            model_of(FlexMatch), datamodule=SemiSupervisedDataModule(num_labeled=20, num_val=rows),
            ckpt_path=tmp_path / "a.ckpt",
        )  # fmt: skip
