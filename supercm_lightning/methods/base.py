"""The base of every method: one joint forward, a dictionary of weighted losses, evaluation and the optimiser."""

import math
from functools import reduce
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from supercm_lightning.contracts import Step
from supercm_lightning.nn import build_backbone, frozen_batch_norm_stats
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.random import seed_of


class Method(LightningModule):
    """A backbone, a linear head and cross-entropy on the labelled rows; methods add their terms to `losses`.

    A method declares the unlabelled `views` it needs and extends `losses` through `super()`. The base makes one joint
    forward over labelled and unlabelled rows, sums the terms and logs each as `train/<name>`, already weighted, so that
    they add up to `train/loss`. A class with several methods as bases is their combination, with the longest `views`.
    Views that only targets are computed from, such as a teacher's, stand apart in `target_views`. A method that labels
    rows itself sets `needs_labeled` to false and overrides `labeled_samples`.

    Args:
        num_classes: Number of classes K; the command line takes it from the data.
        input_shape: Shape of one input, (C, H, W) for images or (d,) for features; likewise.
        backbone: Name understood by `supercm_lightning.nn.build_backbone` (`small_cnn`, `wrn_28_2`, `wrn_28_8`,
            `resnet18_32`, `mlp`, `identity`, or any timm model), or a module with an attribute `num_features`.
        backbone_options: Keyword arguments for the backbone's constructor, such as `{"pretrained": True}` for timm.
        bottleneck: Width of a linear layer with batch norm and ReLU between backbone and head, the custom of domain
            adaptation with pretrained backbones (256); None: the head reads the backbone's features.
        optimizer: `adam`, `adamw`, or `sgd` (Nesterov).
        lr: Learning rate, > 0.
        momentum: Momentum of `sgd`, in [0, 1).
        weight_decay: Weight decay, >= 0, on all parameters.
        lr_schedule: Multiplier of `lr` at every step: `constant`; `step`, x 0.2 after 80 % of the steps;
            `cosine`, cos(7π/16 · progress) (FixMatch); `inverse`, (1 + 0.001 step)^-0.75 (DANN).
        backbone_lr_scale: Factor on `lr` for the backbone's parameters, for pretrained backbones.
        ramp_up: Fraction of the training, in [0, 1], over which unlabelled terms that ramp up reach their full weight.
        batch_norm: `joint`: labelled and unlabelled rows share one forward and its batch statistics; `split`: one
            forward each.
        channels_last: Keep images and convolutions in channels-last memory order.
        compile: Compile the backbone with `torch.compile`.

    Raises:
        ValueError: If an option is outside its range, or the data contradicts `num_classes` or `input_shape`.
    """

    views: tuple[str, ...] = ("weak",)
    target_views: tuple[str, ...] = ()
    needs_labeled = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Lets a combination of methods take the longest of its bases' views.

        Raises:
            TypeError: If its bases need different views at the same place.
        """
        super().__init_subclass__(**kwargs)
        for name in ("views", "target_views"):
            if name not in vars(cls):
                asked = [getattr(base, name) for base in cls.__bases__ if issubclass(base, Method)]
                longest = max(asked, key=len)
                if any(views != longest[: len(views)] for views in asked):
                    raise TypeError(f"{cls.__name__}: its bases need {name} {' and '.join(map(str, asked))}.")
                setattr(cls, name, longest)

    @property
    def all_views(self) -> tuple[str, ...]:
        """Names of the views that a batch must hold, in their order."""
        return self.views + self.target_views

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        backbone: str | nn.Module = "small_cnn",
        backbone_options: dict[str, Any] | None = None,
        bottleneck: int | None = None,
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        lr_schedule: Literal["constant", "step", "cosine", "inverse"] = "constant",
        backbone_lr_scale: float = 1.0,
        ramp_up: float = 0.4,
        batch_norm: Literal["joint", "split"] = "joint",
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        # A module cannot be stored in a checkpoint that loads safely; a name can.
        self.save_hyperparameters(ignore=["backbone"] if isinstance(backbone, nn.Module) else [])
        if num_classes < 2:
            raise SuperCMError(f"num_classes={num_classes}: a classifier needs at least 2 classes.")
        for name, value, values in (
            ("optimizer", optimizer, ("adam", "adamw", "sgd")),
            ("lr_schedule", lr_schedule, tuple(_SCHEDULES)),
            ("batch_norm", batch_norm, ("joint", "split")),
        ):
            if value not in values:
                raise SuperCMError(f"{name}={value!r}: choose one of {', '.join(values)}.")
        if not lr > 0:
            raise SuperCMError(f"lr={lr}: the learning rate must be positive.")
        if bottleneck is not None and bottleneck < 1:
            raise SuperCMError(f"bottleneck={bottleneck}: give the width of the layer, or null for none.")
        if not 0 <= ramp_up <= 1:
            raise SuperCMError(f"ramp_up={ramp_up}: give the fraction of the training, between 0 and 1.")
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.optimizer_name = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.lr_schedule = lr_schedule
        self.backbone_lr_scale = backbone_lr_scale
        self.ramp_up = ramp_up
        self.batch_norm = batch_norm
        self.channels_last = channels_last
        self.compile_backbone = compile

        if isinstance(backbone, str):
            backbone = build_backbone(backbone, self.input_shape, **(backbone_options or {}))
        elif not hasattr(backbone, "num_features"):
            raise SuperCMError(
                f"backbone: {type(backbone).__name__} needs an attribute num_features, its output width."
            )
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.bottleneck = nn.Identity() if bottleneck is None else _bottleneck(width, bottleneck)
        self.num_features = bottleneck or width
        self.head = self.build_head(self.num_features)
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)

        self.val_scores, self.test_scores = (nn.ModuleDict(self.build_scores()) for _ in range(2))
        self._finite: dict[str, Tensor] = {}
        self._seed: int | None = None

    def build_head(self, in_features: int) -> nn.Module:
        """The classifier on top of the features; called once by the constructor."""
        return nn.Linear(in_features, self.num_classes)

    def build_scores(self) -> dict[str, Metric]:
        """Metrics of predicted and known classes, by name; the constructor builds them for validation and test."""
        return {"acc": MulticlassAccuracy(self.num_classes, average="micro")}

    # ------------------------------------------------------------------------------------------------ forward
    def features(self, x: Tensor) -> Tensor:
        """Features (n, d) of inputs (n, *input_shape)."""
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.bottleneck(self.backbone(x))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (n, K) of inputs (n, *input_shape)."""
        return self.head(self.features(x))

    def labeled_samples(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Labelled inputs (B, *input_shape) and labels (B,) of a batch; a method may make its own."""
        return batch["labeled"]

    def joint_forward(self, batch: dict[str, Any]) -> Step:
        """Forwards the labelled rows and every unlabelled view together."""
        x, y = self.labeled_samples(batch)
        given, index = batch["unlabeled"] if self.all_views else ((), None)
        views, target_views = tuple(given[: len(self.views)]), tuple(given[len(self.views) :])
        groups = [x, *views]
        if self.batch_norm == "joint" or not views:
            features = self.features(torch.cat(groups) if views else x)
        else:
            features = torch.cat([self.features(x), self.features(torch.cat(groups[1:]))])
        logits, temperature = self.head(features), getattr(self.head, "temperature", 1.0)
        return Step(x, y, views, target_views, index, features, logits, temperature)

    def forward_matched(self, step: Step, unlabeled: Tensor, network: nn.Module | None = None) -> Tensor:
        """Logits (U, K) of other unlabelled inputs in the company in which the first view was forwarded.

        The other views come along, and with joint batch norm the labelled rows, so that a change of the logits is due
        to the inputs and not to other batch statistics. Running statistics stay as they are.

        Args:
            step: The step of the joint forward.
            unlabeled: Inputs, (U, *input_shape).
            network: What forwards them, a teacher for instance, from inputs to logits; None: this model.
        """
        network = self if network is None else network
        before = [step.x] if self.batch_norm == "joint" else []
        start = len(step.x) * len(before)
        with frozen_batch_norm_stats(network):
            logits = network(torch.cat([*before, unlabeled, *step.views[1:]]))
        return logits[start : start + len(unlabeled)]

    # ------------------------------------------------------------------------------------------------ training
    def on_train_start(self) -> None:
        """Keeps the random state of the process, which the steps will move to states of their own."""
        self._random_state = torch.get_rng_state()

    def check_rows(self, known: int) -> None:
        """Compares the number of unlabelled rows that a checkpoint knew with that of the data.

        Raises:
            ValueError: If they differ: what is kept by row number would be that of other rows.
        """
        if known != (count := self.trainer.datamodule.num_unlabeled):  # type: ignore[attr-defined]
            raise SuperCMError(
                f"ckpt_path: the checkpoint follows {known} unlabelled rows, and the data has {count}. Resume with the "
                "data of the checkpoint."
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Ties the random numbers of a step, dropout's and perturbations', to seed, step and rank.

        A resumed run then draws what the uninterrupted one would have drawn.
        """
        assert self._seed is not None
        seed = seed_of(self._seed, self.trainer.fit_loop.total_batch_idx, self.trainer.global_rank)
        # torch.manual_seed formats the whole stack for accelerators that are absent: 0.4 ms of every step.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def on_train_end(self) -> None:
        """Gives the process its random state back, so that another model is not the same one again.

        Raises:
            FloatingPointError: If a term became NaN or infinite since the last logged step.
        """
        torch.set_rng_state(self._random_state)
        self._raise_if_not_finite()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores the seed of the run.

        Raises:
            FloatingPointError: If a term became NaN or infinite since the last logged step.
        """
        self._raise_if_not_finite()
        checkpoint["seed"] = self._seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the seed of the run."""
        self._seed = checkpoint.get("seed")

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The weighted terms of the loss, scalars by name; extend with `super().losses(step) | {...}`."""
        return {"ce": self.supervised_loss(step)}

    def supervised_loss(self, step: Step) -> Tensor:
        """Cross-entropy, mean over the labelled rows."""
        return F.cross_entropy(step.labeled_logits, step.y)

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Scalars worth a curve, computed without gradient and only at steps that are logged; extend like `losses`."""
        return {}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Joint forward, sum of the terms, logs."""
        step = self.joint_forward(batch)
        # Lightning has no hook between forward and loss; callbacks that follow the features need one.
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "on_train_forward"):
                callback.on_train_forward(self.trainer, self, step)
        terms = self.losses(step)
        _check_terms(type(self).__name__, terms)
        loss = reduce(torch.add, terms.values())
        # Reading a flag from an accelerator waits for it, so flags gather on the device between logged steps.
        for name, term in terms.items():
            finite = term.detach().isfinite()
            self._finite[name] = self._finite[name] & finite if name in self._finite else finite
        # Between the steps that are written, logging costs a tenth of a small step, and the progress bar's value has
        # an accelerator wait for it.
        at_log_step = self._at_log_step(batch_idx)
        if at_log_step or loss.device.type == "cpu":
            self._raise_if_not_finite()
        if at_log_step:
            logged = {f"train/{name}": term.detach() for name, term in terms.items()}
            with torch.no_grad():
                logged |= {f"train/{name}": value for name, value in self.diagnostics(step).items()}
            self.log("train/loss", loss.detach().cpu(), prog_bar=True, batch_size=len(step.y))
            self.log_dict(logged, batch_size=len(step.y))
        return loss

    def _at_log_step(self, batch_idx: int) -> bool:
        """Whether the logger writes at this step, or callbacks may read after it: at its end an epoch, a validation."""
        trainer = self.trainer
        step, every = trainer.global_step + 1, trainer.log_every_n_steps  # type: ignore[attr-defined]
        batch = batch_idx if trainer.check_val_every_n_epoch else trainer.fit_loop.total_batch_idx
        return (
            (every > 0 and step % every == 0)
            or step == trainer.max_steps
            or trainer.is_last_batch
            or (batch + 1) % (trainer.val_check_batch or math.inf) == 0
        )

    def _raise_if_not_finite(self) -> None:
        bad = [f"train/{name}" for name, finite in self._finite.items() if not finite]
        self._finite.clear()
        if bad:
            raise FloatingPointError(
                f"{' and '.join(bad)} became NaN or infinite at or before step {self.trainer.global_step}. "
                f"Lower lr or the weight of that term, or clip gradients with --trainer.gradient_clip_val."
            )

    @property
    def total_steps(self) -> int:
        """Number of optimiser steps of the whole training.

        Raises:
            ValueError: If the trainer has no end.
        """
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise SuperCMError(
                "The schedule needs the length of the training: set trainer.max_epochs or trainer.max_steps."
            )
        return int(steps)

    @property
    def progress(self) -> float:
        """Fraction of the training that is done, in [0, 1]."""
        return min(self.trainer.global_step / max(self.total_steps, 1), 1.0)

    def ramp(self) -> float:
        """Weight exp(-5 (1 - t)²) of a term that ramps up; t reaches 1 after the fraction `ramp_up` of the training."""
        t = min(self.progress / self.ramp_up, 1.0) if self.ramp_up else 1.0
        return math.exp(-5.0 * (1.0 - t) ** 2)

    # ---------------------------------------------------------------------------------------------- evaluation
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Accuracy and cross-entropy on the first loader as `val/acc` and `val/loss`.

        Returns:
            `features` (n, d) and `logits` (n, K) of the rows, for callbacks; further loaders exist for these alone.
        """
        return self._evaluate(batch, "val", self.val_scores, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Accuracy and cross-entropy on the first loader as `test/acc` and `test/loss`; returns as in validation."""
        return self._evaluate(batch, "test", self.test_scores, dataloader_idx)

    def _evaluate(self, batch: Any, stage: str, scores: nn.ModuleDict, dataloader_idx: int) -> dict[str, Tensor]:
        x, y = batch[0], batch[1]
        features = self.features(x)
        logits = self.head(features).float()
        if dataloader_idx == 0:
            options: dict[str, Any] = {"batch_size": len(y), "on_epoch": True, "add_dataloader_idx": False}
            if self.needs_labeled:  # without labels the outputs are clusters, not the classes
                self.log(f"{stage}/loss", F.cross_entropy(logits, y), sync_dist=True, **options)
            for name, score in scores.items():
                cast(Metric, score).update(logits.argmax(dim=1), y)
                self.log(f"{stage}/{name}", cast(Metric, score), prog_bar=name == "acc", on_step=False, **options)
        return {"features": features, "logits": logits}

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Class probabilities (n, K) and, where the loader gives it, the index (n,) of each row."""
        rows = batch if isinstance(batch, (tuple, list)) else (batch,)
        return {"probabilities": self(rows[0]).float().softmax(dim=1), "index": rows[2] if len(rows) > 2 else None}

    # ----------------------------------------------------------------------------------------------- optimiser
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser; extend to give parameters their own settings, of which the last count."""
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        seen = {id(p) for p in backbone}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in seen]
        return [{"params": backbone, "lr": self.lr * self.backbone_lr_scale}, {"params": rest, "lr": self.lr}]

    def configure_optimizers(self) -> Any:
        """The optimiser and its per-step schedule."""
        groups: list[dict[str, Any]] = []
        for group in reversed(self.parameter_groups()):
            taken = {id(p) for later in groups for p in later["params"]}
            if parameters := [p for p in group["params"] if id(p) not in taken]:
                groups.insert(0, group | {"params": parameters})
        optimizer: torch.optim.Optimizer
        if self.optimizer_name == "sgd":
            optimizer = torch.optim.SGD(
                groups, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.momentum > 0
            )
        else:
            kind = torch.optim.Adam if self.optimizer_name == "adam" else torch.optim.AdamW
            optimizer = kind(groups, self.lr, weight_decay=self.weight_decay)
        if self.lr_schedule == "constant":
            return optimizer
        factor = _SCHEDULES[self.lr_schedule]
        total = self.total_steps if self.lr_schedule != "inverse" else 1
        scheduler = LambdaLR(optimizer, lambda step: factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def weight_statistics(self) -> tuple[str, ...]:
        """Names of the buffers that belong to the weights, apart from those of batch norm; for weight averaging."""
        return ()

    def estimate_statistics(self, batches: Any) -> None:
        """Estimates these buffers from training batches, for the present weights."""

    # --------------------------------------------------------------------------------------------------- setup
    def setup(self, stage: str) -> None:
        """Compares the model with the data and the trainer: a contradiction is an error before the first step.

        Raises:
            ValueError: If the data has other classes or another shape, the strategy shards the model, or the weights
                themselves are in half precision.
        """
        data = getattr(self.trainer, "datamodule", None)
        for name in ("num_classes", "input_shape"):
            theirs = getattr(data, name, None)
            theirs = tuple(theirs) if isinstance(theirs, (list, tuple)) else theirs
            if theirs is not None and theirs != getattr(self, name):
                raise SuperCMError(f"{name}: the model was built for {getattr(self, name)}, the data has {theirs}.")
        if isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
            raise SuperCMError(
                f"trainer.strategy: {type(self.trainer.strategy).__name__} shards the model, but centroids, thresholds "
                "and teachers belong to the whole one on every device. Use trainer.strategy=ddp."
            )
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise SuperCMError(
                f"trainer.precision={self.trainer.precision}: weights and running means in half precision stand still, "
                "as their small changes are rounded away. Use trainer.precision=bf16-mixed."
            )
        if stage == "fit":  # a second one starts from its own time
            self._seed = int(self.trainer.strategy.broadcast(torch.initial_seed()))
            self._finite.clear()
        if self.compile_backbone and self.backbone._compiled_call_impl is None:
            self.backbone.compile()


def _check_terms(name: str, terms: Any) -> None:
    """What the author of a method may get wrong, in words rather than in those of the sum that fails."""
    if not isinstance(terms, dict):
        raise TypeError(f"{name}.losses must return a dictionary, super().losses(step) | {{'mine': term}}.")
    for term, value in terms.items():
        if not isinstance(value, Tensor) or value.ndim:
            shape = tuple(getattr(value, "shape", ()))
            raise TypeError(
                f"{name}.losses: {term!r} must be a tensor without dimensions, the mean over its rows; it is a "
                f"{type(value).__name__} of shape {shape}."
            )


def _bottleneck(in_features: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True))


_SCHEDULES = {
    "constant": lambda step, total: 1.0,
    "step": lambda step, total: 0.2 if step >= 0.8 * total else 1.0,
    "cosine": lambda step, total: math.cos(7 * math.pi / 16 * min(step / max(total, 1), 1.0)),
    "inverse": lambda step, total: (1 + 0.001 * step) ** -0.75,
}
