"""From the options of an estimator to a trained method: the model, Lightning's trainer, prediction, pickling."""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.seed import isolate_rng
from safetensors.torch import load, save
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.validation import check_is_fitted
from torch import nn

from supercm_lightning import methods
from supercm_lightning.data.transforms.weak import Normalization
from supercm_lightning.estimators.inputs import check_samples
from supercm_lightning.methods import Method
from supercm_lightning.utils.loggers import logger_level
from supercm_lightning.utils.options import SuperCMError, check_choice, check_range

Shift = tuple[np.ndarray, np.ndarray]
"""Mean and deviation of each feature, (d,) each."""

CHECK_EVERY = 25
"""Steps between two validations."""


class KeepBest(EarlyStopping):
    """Stops when the validation accuracy no longer rises, and gives the model its best weights back."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the weights if they are the best so far."""
        super().on_validation_end(trainer, pl_module)
        if self.wait_count == 0:
            self.best = copy.deepcopy(pl_module.state_dict())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores them."""
        pl_module.load_state_dict(self.best)


@dataclass(eq=False, repr=False, kw_only=True)
class LightningEstimator(BaseEstimator):
    """Options, training and prediction of the estimators.

    Attributes:
        model_: The trained method; None where there is one class only.
        n_steps_: Number of training steps.
    """

    needs_labeled: ClassVar[bool]
    input_shape_: ClassVar[tuple[int, ...]]

    method: str | type[Method]
    method_options: dict[str, Any] | None = None
    backbone: str | nn.Module | None = None
    max_steps: int = 500
    epochs: int | None = None
    batch_size: int = 64
    noise: float = 0.1
    device: str = "auto"
    precision: str = "32-true"
    verbose: bool = False
    random_state: int | np.random.RandomState | None = None

    # ------------------------------------------------------------------------------------------------- training
    def _check_options(self) -> type[Method]:
        """The class of the method; everything that needs no data is checked."""
        check_range(1, max_steps=self.max_steps, epochs=self.epochs)
        check_range(2, batch_size=self.batch_size)
        check_range(0, noise=self.noise)
        if isinstance(self.method, str):
            known = [(name, getattr(methods, name)) for name in methods.__all__]
            suitable = {
                name: kind for name, kind in known if _learns(kind) and kind.needs_labeled == self.needs_labeled
            }
            check_choice(method=(self.method, suitable))
            return suitable[self.method]
        if not _learns(self.method):
            raise SuperCMError(f"method={self.method!r}: give a name or a class derived from Method.")
        return self.method

    def _train(
        self, kind: type[Method], make_data: Callable[[], Any], num_classes: int, samples: int, **more: Any
    ) -> None:
        """Trains a new model with the options `more`, unless there is one class; an epoch has so many `samples`."""
        self.model_: Method | None = None
        self._shift: tuple[Shift | None, ...] = (None,)
        self.n_steps_ = 0
        if num_classes == 1:
            return
        data = make_data()
        steps = self.max_steps if self.epochs is None else self.epochs * math.ceil(samples / self.batch_size)
        validated = bool(data.hparams.get("num_val"))
        data.steps_per_epoch = min(CHECK_EVERY, steps) if validated else steps
        accelerator, _, number = self.device.partition(":")
        with isolate_rng(include_cuda=torch.cuda.is_initialized()):
            torch.manual_seed(check_random_state(self.random_state).randint(2**31))
            model = self._build(kind, num_classes, more)
            trainer = Trainer(
                accelerator=accelerator,
                devices=[int(number)] if number else 1,
                precision=self.precision,  # type: ignore[arg-type]
                max_epochs=-1,
                max_steps=steps,
                callbacks=[KeepBest("val/acc", patience=10, mode="max")] if validated else None,
                num_sanity_val_steps=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=self.verbose,
                enable_model_summary=False,
                plugins=[LightningEnvironment()],  # one process, also where a cluster's variables tell of many
            )
            trainer.fit(model, datamodule=data)
        self.n_steps_ = trainer.global_step
        model.trainer = None  # which holds the data
        self.model_ = model.eval().requires_grad_(False)
        self._shift = self._shifts(data)

    def _shifts(self, data: Any) -> tuple[Shift | None, ...]:
        """Mean and deviation that the data module took out of features; one for each domain."""
        found = data.preprocessing if self._on_features else {}
        return ((np.float32(found["mean"]), np.float32(found["std"])) if "mean" in found else None,)

    @property
    def _on_features(self) -> bool:
        return len(self.input_shape_) == 1

    def _build(self, kind: type[Method], num_classes: int, more: Mapping[str, Any]) -> Method:
        backbone = self.backbone or ("mlp" if self._on_features else "small_cnn")
        options = {"backbone": copy.deepcopy(backbone), **more, **(self.method_options or {})}
        self._recipe = (kind, {"num_classes": num_classes, "input_shape": self.input_shape_, **options})
        try:
            return kind(num_classes=num_classes, input_shape=self.input_shape_, **options)
        except TypeError as error:
            name = kind.__name__
            raise SuperCMError(f"method_options={self.method_options}: {name} refuses them ({error}).") from error

    def _feature_noise(self, views: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Noise of the views: five times as much in the strong one, unless strong views are stored."""
        stored = bool(views) and views[1].shape[1] > 0
        return {"noise": self.noise, "strong_noise": self.noise if stored else 5 * self.noise}

    # ----------------------------------------------------------------------------------------------- prediction
    def _probabilities(self, X: Any, domain: int = 0) -> np.ndarray:
        """Probabilities (n, K) float64; `domain`: 0, or 1 for the source of two."""
        check_is_fitted(self)
        X = check_samples(self, X, reset=False)
        if self.model_ is None:
            return np.ones((len(X), 1))
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        shift = [torch.as_tensor(values, device=device) for values in self._shift[domain] or ()]
        model, parts = self.model_.to(device), []
        with quiet(), torch.inference_mode():
            for chunk in gen_batches(len(X), 2000):
                x = torch.as_tensor(X[chunk]).to(device)
                x = x.float() if self._on_features else Normalization()(x)
                x = (x - shift[0]) / shift[1] if shift else x
                parts.append(model(x).double().softmax(dim=1).cpu())
        return torch.cat(parts).numpy()

    # ------------------------------------------------------------------------------------------------- pickling
    def __getstate__(self) -> dict[str, Any]:
        """Weights as safetensors, so that a pickle holds no module."""
        state: dict[str, Any] = dict(super().__getstate__())
        if state.get("model_") is not None:
            tensors = {name: value.cpu().clone() for name, value in state["model_"].state_dict().items()}
            state["model_"] = save(tensors)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Builds the method again and loads its weights."""
        weights = state.get("model_")
        if isinstance(weights, bytes):
            kind, options = state["_recipe"]
            with isolate_rng():
                model = kind(**options)
            model.load_state_dict(load(weights))
            state = state | {"model_": model.eval().requires_grad_(False)}
        super().__setstate__(state)


def _learns(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Method)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what Lightning says about devices, loaders and itself."""
    with warnings.catch_warnings(), logger_level(logging.ERROR, "lightning.pytorch", "lightning.fabric"):
        warnings.simplefilter("ignore")
        yield
