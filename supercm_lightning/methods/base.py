"""The training of every method: one joint forward, state in `observe`, a dictionary of weighted losses."""

from functools import reduce
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from supercm_lightning.callbacks.training.finite_losses import FiniteLosses
from supercm_lightning.callbacks.training.step_seed import StepSeed
from supercm_lightning.contracts import Batch, Step, StepObserver, Terms
from supercm_lightning.losses import balanced_cross_entropy, class_balance
from supercm_lightning.methods.checks import check_balance, check_bases, check_data, check_terms, labeled_counts
from supercm_lightning.methods.optim import Optimized
from supercm_lightning.nn import frozen_batch_norm_stats
from supercm_lightning.utils.options import check_choice
from supercm_lightning.utils.trainer import callbacks_of, check_trainer, datamodule_of, log_interval


class Method(Optimized):
    """Cross-entropy on the labeled samples; methods add their terms to `losses`.

    A method names the unlabeled `views` it needs, and extends `losses` through `super()`. Terms that it also names in
    `terms` are compared with those of other bases when a combination is made.
    State (centroids, thresholds, labels) moves in `observe`, state that follows the weights (teachers) in
    `observe_weights`; `losses` has no side effects. A class with several methods as bases is their combination, with
    the longest `views`. Views from which only targets are computed, such as a teacher's, are `target_views`. The terms
    are logged as `train/<name>`, already weighted, and add up to `train/loss`.

    Args:
        batch_norm: `joint`: labeled and unlabeled samples share one forward and its batch statistics; `split`: one
            forward each.
        class_weight: Weight of each class in the cross-entropy, [w_1, …, w_K], or `balanced`: in inverse proportion to
            its number of labeled samples, with mean 1 over the samples.
        logit_adjustment: Factor τ on the log of each class's fraction of the labeled samples, added to its logit in the
            cross-entropy alone (Menon et al., ICLR 2021); 1 is the paper's, 0 none. Rare classes are predicted more
            often.
        **kwargs: Options of `Optimized` and `Classifier`: optimizer and network.

    Raises:
        SuperCMError: If an option is outside its range, or the data contradicts `num_classes` or `input_shape`.

    Examples:
        >>> from supercm_lightning import SuperCM
        >>> model = SuperCM(num_classes=3, input_shape=(1, 8, 8), beta=0.5)
        >>> model(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """

    views: tuple[str, ...] = ("weak",)
    target_views: tuple[str, ...] = ()
    terms: tuple[str, ...] = ("ce",)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Gives a combination the longest of its bases' views; refuses bases that do not go together."""
        super().__init_subclass__(**kwargs)
        check_bases(cls, [base for base in cls.__bases__ if issubclass(base, Method)])

    def __init__(
        self,
        batch_norm: Literal["joint", "split"] = "joint",
        class_weight: Literal["balanced"] | list[float] | None = None,
        logit_adjustment: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_choice(batch_norm=(batch_norm, ("joint", "split")))
        super().__init__(**kwargs)
        check_balance(self)
        self._observed_batch = -1
        self._class_balance: tuple[Tensor | None, Tensor | None] = (None, None)

    # ------------------------------------------------------------------------------------------------ forward
    @property
    def all_views(self) -> tuple[str, ...]:
        """Names of the views that a batch must hold, in their order."""
        return self.views + self.target_views

    @property
    def temperature(self) -> float:
        """Softmax temperature of the assignments."""
        return 1.0

    def labeled_samples(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Labeled inputs (B, *input_shape) and labels (B,) of a batch; a method may make its own."""
        return batch["labeled"]

    def joint_forward(self, batch: Batch) -> Step:
        """Forwards the labeled samples and every unlabeled view together."""
        x, y = self.labeled_samples(batch)
        given, index = batch["unlabeled"] if self.all_views else ((), None)
        views, target_views = tuple(given[: len(self.views)]), tuple(given[len(self.views) :])
        if self.hparams.batch_norm == "joint" or not views:
            features = self.features(torch.cat([x, *views]) if views else x)
        else:
            features = torch.cat([self.features(x), self.features(torch.cat(views))])
        return Step(x, y, views, target_views, index, features, self.head(features), self.temperature)

    def forward_matched(self, step: Step, unlabeled: Tensor, network: nn.Module | None = None) -> Tensor:
        """Logits (U, K) of modified unlabeled inputs, in a batch composed like that of the joint forward.

        Batch norm statistics then match, so that a change of the logits is due to the inputs. Running statistics stay.

        Args:
            step: The step of the joint forward.
            unlabeled: Inputs, (U, *input_shape).
            network: Network from inputs to logits, a teacher for instance; None: this model.
        """
        network = self if network is None else network
        before = [step.x] if self.hparams.batch_norm == "joint" else []
        start = len(step.x) * len(before)
        with frozen_batch_norm_stats(network):
            logits = network(torch.cat([*before, unlabeled, *step.views[1:]]))
        return logits[start : start + len(unlabeled)]

    # ------------------------------------------------------------------------------------------------ training
    def observe(self, step: Step) -> None:
        """Moves the state that follows the samples, without gradient, once a batch; extend through `super()`."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The weighted terms, scalars by name, without side effects; extend by `super().losses(step) | {...}`."""
        return Terms(ce=self.supervised_loss(step))

    def supervised_loss(self, step: Step) -> Tensor:
        """Cross-entropy, mean over the labeled samples, with the weights and the adjustment of the options."""
        weight, shift = (None if one is None else one.to(step.y.device) for one in self._class_balance)
        return balanced_cross_entropy(step.labeled_logits, step.y, weight, shift)

    def diagnostics(self, step: Step) -> dict[str, Tensor]:
        """Scalars worth a curve, computed without gradient at logged steps; extend like `losses`."""
        return {}

    def observed_step(self, batch: Batch) -> Step:
        """Joint forward, after which state moves, once a batch.

        A method or an optimizer that forwards the batch again, at other weights for instance, finds the state as the
        first forward left it; batch norm statistics too.
        """
        number = self.trainer.fit_loop.total_batch_idx
        if number == self._observed_batch:
            with frozen_batch_norm_stats(self):
                return self.joint_forward(batch)
        step, self._observed_batch = self.joint_forward(batch), number
        with torch.no_grad():
            self.observe(step)
            for callback in callbacks_of(self.trainer):
                if isinstance(callback, StepObserver):
                    callback.observe(self.trainer, self, step)
        return step

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Forward and state, sum of the terms, logs."""
        step = self.observed_step(batch)
        terms = check_terms(type(self), self.losses(step))
        loss = reduce(torch.add, terms.values())
        self._log(step, {name: term.detach() for name, term in terms.items()} | {"loss": loss.detach()})
        return {"loss": loss, "terms": {name: term.detach() for name, term in terms.items()}}

    @torch.no_grad()
    def _log(self, step: Step, logs: dict[str, Tensor]) -> None:
        if (self.trainer.global_step + 1) % log_interval(self.trainer) == 0 or self.trainer.is_last_batch:
            diagnostics = self.diagnostics(step)
            if taken := logs.keys() & diagnostics.keys():
                raise TypeError(f"{type(self).__name__}.diagnostics: rename {', '.join(taken)}, a term of the loss.")
            logs |= diagnostics
        self.log_dict({f"train/{name}": value for name, value in logs.items()}, batch_size=len(step.y))

    # ----------------------------------------------------------------------------------------------- trainer
    def configure_callbacks(self) -> list[Callback]:
        """Adds callbacks that the training needs and the trainer lacks: the seed of each step, the check for NaN."""
        present = {type(callback) for callback in callbacks_of(self.trainer)}
        return [kind() for kind in (StepSeed, FiniteLosses) if kind not in present]

    def weight_statistics(self) -> tuple[str, ...]:
        """Names of the buffers that belong to the weights, apart from those of batch norm; for weight averaging."""
        return ()

    def estimate_statistics(self, batches: Any) -> None:
        """Estimates these buffers from training batches, for the present weights."""

    def setup(self, stage: str) -> None:
        """Compares the model with the data and the trainer: a contradiction is an error before the first step."""
        data = datamodule_of(self.trainer)
        check_data(self, data)
        check_trainer(self.trainer, type(self).__name__)
        super().setup(stage)
        if stage == "fit" and (self.hparams.class_weight is not None or self.hparams.logit_adjustment):
            counts = labeled_counts(data, self.num_classes)
            self._class_balance = class_balance(counts, self.hparams.class_weight, self.hparams.logit_adjustment)
