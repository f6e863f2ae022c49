"""Scores a run on an unlabelled target domain, and reports what selecting by them would have given."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from supercm_lightning.metrics import (
    batch_nuclear_norm_score,
    class_ami,
    deep_embedded_validation,
    information_maximization,
    negative_entropy,
    proxy_a_distance,
    soft_neighborhood_density,
)
from supercm_lightning.utils.collectives import gather_objects
from supercm_lightning.utils.options import SuperCMError

_FEWEST_ROWS = 5  # of a domain, for a classifier that tells domains apart


class AdaptationScores(Callback):
    """Logs scores that need no target label after every validation, the distance of the domains after the test.

    Needs two validation loaders, source rows and target rows, two test loaders, target rows and source rows, and a
    module that returns `features` and `logits` from its evaluation steps, as every method does. The command line adds
    it for data of two domains.

    After validation, the higher the better: `val/score`, the source accuracy plus information maximisation divided by
    log K, in [0, 2], meant for `ModelCheckpoint(monitor="val/score", mode="max")`; and of the target rows `val/im`,
    `val/neg_entropy`, `val/bnm`, `val/snd`, `val/class_ami` and `val/dev`. After the test: `test/pad`, the proxy
    A-distance of source validation and target test features.

    Where validation knows the labels of target rows (data modules of this package tell them only if asked, by
    `oracle_labels`), it also logs `oracle/target_acc`, the accuracy on them; and the test that follows a `fit` reports
    it at three validations of that fit, side by side: `target/acc_last`; `target/acc_selected`, where the score that
    `ModelCheckpoint` monitors was best (`val/score` if it monitors none of these); and `oracle/target_acc_best`, where
    the accuracy itself was. No score depends on these labels.

    Scores are those of the weights that are validated, averaged ones if the run averages. Rows are gathered over
    processes, each once. Scores are not a number where features are not finite, and `val/dev` where a domain has fewer
    than five rows.

    Args:
        max_samples: Most target rows for the scores that compare rows (`snd`, `class_ami`), a random choice, >= 2.
        seed: Of the choices of rows, of k-means and of the folds.

    Attributes:
        curve: What each validation of the fit gave: `step`, `val/acc`, the scores, and `target_acc`, not a number where
            target labels are unknown. Part of the checkpoints.

    Raises:
        ValueError: If `max_samples` is too small; at the first validation, if there are not two loaders or the module
            returns no features.
    """

    def __init__(self, max_samples: int = 5000, seed: int = 0) -> None:
        if max_samples < 2:
            raise SuperCMError(f"max_samples={max_samples}: must be at least 2.")
        self.max_samples = max_samples
        self.seed = seed
        self.curve: list[dict[str, float]] = []
        self._batches: tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]] = ([], [])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the curve of a new fit."""
        if stage == "fit":
            self.curve = []

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
                f"AdaptationScores needs two validation loaders, source rows and target rows; there are {loaders}. Use "
                "a data module of two domains, or remove the callback."
            )
        self._batches = ([], [])

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps what the scores need of each row."""
        self._keep(outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the scores."""
        if trainer.sanity_checking:
            return
        source, target = map(_rows_of_all_ranks, self._batches)
        self._batches = ([], [])
        # One process computes: the others would find the same, slower.
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
        if not all(rows[name].isfinite().all() for rows in (source, target) for name in ("features", "logits")):
            rank_zero_warn("AdaptationScores: features or logits are not finite, and so are the scores.")
            return scores | {f"val/{name}": math.nan for name in names}
        im = information_maximization(logits)
        losses = F.cross_entropy(source["logits"], source["labels"], reduction="none")
        enough = min(len(losses), len(logits)) >= _FEWEST_ROWS
        values = (
            accuracy + im / math.log(logits.shape[1]),
            im,
            negative_entropy(logits),
            batch_nuclear_norm_score(logits),
            soft_neighborhood_density(logits, max_samples=self.max_samples),
            class_ami(features, logits, self.seed, self.max_samples),
            deep_embedded_validation(losses, source["features"], features, self.seed) if enough else math.nan,
        )
        return scores | {f"val/{name}": value for name, value in zip(names, values, strict=True)}

    # ------------------------------------------------------------------------------------------------------ test
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the rows of validation."""
        self._batches = ([], [])

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the features of each row."""
        self._keep(outputs, batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the distance of the domains, and the report on the fit."""
        report = self._report(trainer)
        if all(self._batches):
            target, source = map(_rows_of_all_ranks, self._batches)
            self._batches = ([], [])
            if trainer.is_global_zero and min(len(source["labels"]), len(target["labels"])) >= _FEWEST_ROWS:
                report["test/pad"] = proxy_a_distance(source["features"], target["features"], self.seed)
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
        # The first of equals, as ModelCheckpoint; not a number never wins.
        selected = max(curve, key=lambda v: -math.inf if math.isnan(v[monitor]) else sign * v[monitor])
        return {
            "target/acc_last": curve[-1]["target_acc"],
            "target/acc_selected": selected["target_acc"],
            "oracle/target_acc_best": max(validation["target_acc"] for validation in curve),
        }

    def _keep(self, outputs: Any, batch: Any, dataloader_idx: int) -> None:
        if not isinstance(outputs, dict) or not {"features", "logits"} <= outputs.keys():
            raise SuperCMError(
                "AdaptationScores needs features and logits from the evaluation steps of the module, as in "
                'return {"features": features, "logits": logits}.'
            )
        rows = {"features": outputs["features"].float(), "logits": outputs["logits"].float(), "labels": batch[1]}
        if len(batch) > 2:
            rows["index"] = batch[2]
        self._batches[dataloader_idx].append({name: value.detach().cpu() for name, value in rows.items()})


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the rows whose largest logit is their label's; not a number without rows."""
    return float((logits.argmax(dim=1) == labels).double().mean())


def _rows_of_all_ranks(batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The rows of all processes, in the order of their set and each once where loaders tell the index.

    Only the first process has them; the others get nothing.
    """
    own = {name: torch.cat([batch[name] for batch in batches]) for name in next(iter(batches))}
    parts = gather_objects(own)
    if not parts:
        return {}
    rows = {name: torch.cat([part[name] for part in parts]) for name in own}
    if "index" in rows:
        # Samplers repeat rows, so that every process has equally many.
        first = torch.from_numpy(np.unique(rows["index"].numpy(), return_index=True)[1])
        rows = {name: value[first] for name, value in rows.items()}
    return rows
