"""Scores of a run on an unlabeled target domain, and the accuracy of the models that they would select."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from supercm_lightning.callbacks.evaluation.sample_table import SampleTable
from supercm_lightning.metrics import (
    batch_nuclear_norm_score,
    class_ami,
    deep_embedded_validation,
    information_maximization,
    negative_entropy,
    proxy_a_distance,
    soft_neighborhood_density,
)
from supercm_lightning.utils.options import SuperCMError, check_range
from supercm_lightning.utils.trainer import callbacks_of

_FEWEST_SAMPLES = 5  # of a domain, for a classifier that tells domains apart


class AdaptationScores(Callback):
    """Logs scores that need no target label after every validation, and the distance of the domains after the test.

    Needs two validation loaders (source, target), two test loaders (target, source), and a module whose evaluation
    steps return `features` and `logits`, as those of every method do. The command line adds it for domain adaptation.

    After validation, the higher the better: `val/score`, the source accuracy plus information maximization divided by
    log K, in [0, 2], meant for `ModelCheckpoint(monitor="val/score", mode="max")`; and of the target samples `val/im`,
    `val/neg_entropy`, `val/bnm`, `val/snd`, `val/class_ami` and `val/dev`. After the test: `test/pad`, the proxy
    A-distance of source validation and target test features.

    Where the target labels are known in validation (data modules of this package give them with `oracle_labels`), it
    also logs `oracle/target_acc`, the accuracy on them; and the test that follows a `fit` reports it at three
    validations of that fit: `target/acc_last`; `target/acc_selected`, where the score that `ModelCheckpoint` monitors
    was best (`val/score` if it monitors none of these); and `oracle/target_acc_best`, where the accuracy itself was. No
    score depends on these labels.

    Scores are those of the weights that are validated, averaged ones if the run averages. The first process gathers the
    samples of all, each once, and computes. Scores are NaN where features are not finite, and `val/dev` where a domain
    has fewer than five samples.

    Args:
        max_samples: Most target samples for `snd` and `class_ami`, which compare samples, a random choice, >= 2.

    Attributes:
        curve: Results of each validation of the fit: `step`, `val/acc`, the scores, and `target_acc`, NaN where target
            labels are unknown. Part of the checkpoints.

    Raises:
        SuperCMError: If `max_samples` is too small; at the first validation, if there are not two loaders or the module
            returns no features.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AdaptationScores(max_samples=1000)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, max_samples: int = 5000) -> None:
        check_range(2, max_samples=max_samples)
        self.max_samples = max_samples
        self.curve: list[dict[str, float]] = []
        self._tables = (SampleTable(), SampleTable())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the curve of a new fit, and warns of a choice by the target's labels."""
        if stage == "fit":
            self.curve = []
            for callback in callbacks_of(trainer):
                monitor = callback.monitor if isinstance(callback, ModelCheckpoint | EarlyStopping) else None
                if monitor is not None and monitor.startswith("oracle/"):
                    rank_zero_warn(
                        f"{type(callback).__name__}: monitor={monitor} chooses by labels of the target, which "
                        "a user of the method does not have. Use val/score for a result that holds there."
                    )

    def state_dict(self) -> dict[str, Any]:
        """The curve."""
        return {"curve": self.curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the curve of the checkpoint."""
        self.curve = list(state_dict["curve"])

    # ------------------------------------------------------------------------------------------------ validation
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that there are two domains."""
        loaders = len(trainer.num_val_batches)
        if loaders != 2:
            raise SuperCMError(
                f"AdaptationScores needs two validation loaders, source and target; there are {loaders}. Use "
                "DomainAdaptationDataModule, or remove the callback."
            )
        self._tables = (SampleTable(), SampleTable())

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps features, logits and labels."""
        if not isinstance(outputs, dict) or not {"features", "logits"} <= outputs.keys():
            raise SuperCMError(
                "AdaptationScores needs features and logits from the evaluation steps of the module, as in "
                'return {"features": features, "logits": logits}.'
            )
        index = batch[2] if len(batch) > 2 else None
        features, logits = outputs["features"].float(), outputs["logits"].float()
        self._tables[dataloader_idx].add(index, features=features, logits=logits, labels=batch[1])

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the scores."""
        if trainer.sanity_checking:
            return
        source, target = (table.gather() for table in self._tables)
        scores = trainer.strategy.broadcast(self._score(source, target) if trainer.is_global_zero else {})
        if trainer.state.fn == TrainerFn.FITTING:
            self.curve.append({"step": trainer.global_step} | scores)
        options: dict[str, Any] = {"add_dataloader_idx": False, "rank_zero_only": False}
        target_acc = scores.pop("target_acc")
        if not math.isnan(target_acc):
            pl_module.log("oracle/target_acc", target_acc, **options)
        pl_module.log("val/score", scores.pop("val/score"), prog_bar=True, **options)
        del scores["val/acc"]  # the method logs it
        pl_module.log_dict(scores, **options)

    def _score(self, source: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, float]:
        logits, features, labels = target["logits"], target["features"], target["labels"]
        known = labels >= 0
        accuracy = _accuracy(source["logits"], source["labels"])
        scores = {"val/acc": accuracy, "target_acc": _accuracy(logits[known], labels[known])}
        names = ("score", "im", "neg_entropy", "bnm", "snd", "class_ami", "dev")
        if not all(domain[name].isfinite().all() for domain in (source, target) for name in ("features", "logits")):
            rank_zero_warn("AdaptationScores: features or logits are not finite, and so are the scores.")
            return scores | {f"val/{name}": math.nan for name in names}
        im = information_maximization(logits)
        losses = F.cross_entropy(source["logits"], source["labels"], reduction="none")
        enough = min(len(losses), len(logits)) >= _FEWEST_SAMPLES
        values = (
            accuracy + im / math.log(logits.shape[1]),
            im,
            negative_entropy(logits),
            batch_nuclear_norm_score(logits),
            soft_neighborhood_density(logits, max_samples=self.max_samples),
            class_ami(features, logits, max_samples=self.max_samples),
            deep_embedded_validation(losses, source["features"], features) if enough else math.nan,
        )
        return scores | {f"val/{name}": value for name, value in zip(names, values, strict=True)}

    # ------------------------------------------------------------------------------------------------------ test
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the samples of validation."""
        self._tables = (SampleTable(), SampleTable())

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the distance of the domains, and the report on the fit."""
        report = self._report(trainer)
        target, source = (table.gather().get("features", torch.empty(0)) for table in self._tables)
        if min(len(source), len(target)) >= _FEWEST_SAMPLES:
            report["test/pad"] = proxy_a_distance(source, target)
        report = trainer.strategy.broadcast(report)
        pl_module.log_dict(report, add_dataloader_idx=False)

    def _report(self, trainer: Trainer) -> dict[str, float]:
        """Target accuracy at the last, the selected and the best validation of the fit, if the labels are known."""
        curve = [validation for validation in self.curve if not math.isnan(validation["target_acc"])]
        if not curve:
            return {}
        monitor, sign = "val/score", 1
        for saver in trainer.checkpoint_callbacks:
            if isinstance(saver, ModelCheckpoint) and saver.monitor in curve[0]:
                monitor, sign = saver.monitor, 1 if saver.mode == "max" else -1
                break
        # The first of equals, as ModelCheckpoint; NaN never wins.
        selected = max(curve, key=lambda v: -math.inf if math.isnan(v[monitor]) else sign * v[monitor])
        return {
            "target/acc_last": curve[-1]["target_acc"],
            "target/acc_selected": selected["target_acc"],
            "oracle/target_acc_best": max(validation["target_acc"] for validation in curve),
        }


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    """Fraction of the samples whose largest logit is that of their label; NaN without samples."""
    return float((logits.argmax(dim=1) == labels).double().mean())
