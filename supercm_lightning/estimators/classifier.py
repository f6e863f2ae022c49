"""A classifier for few labels and many unlabeled samples."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_consistent_length
from torch.utils.data import TensorDataset

from supercm_lightning.data import SemiSupervisedDataModule
from supercm_lightning.estimators.features import ScaledFeatures
from supercm_lightning.estimators.inputs import check_samples, encode_labels, view_tensors
from supercm_lightning.estimators.training import LightningEstimator, quiet
from supercm_lightning.methods import Method
from supercm_lightning.utils.options import check_range


@dataclass(eq=False, repr=False)
class SuperCMClassifier(ClassifierMixin, LightningEstimator):
    """A semi-supervised classifier: any method of the package that learns from labeled and unlabeled samples.

    X is an array or a memory map of features (n, d), or of images (n, c, h, w), uint8 or in [0, 1]. In y, -1 means
    unlabeled; None and NaN do too, so that labels may be strings: `np.array(["cat", None, "dog"], dtype=object)`. In
    arrays of strings it is "-1", which NumPy makes of -1. Where every sample is labeled, all serve as unlabeled too.
    Batches are read by index: a memory map is never copied.

    Args:
        method: Name of a method, such as `SuperCM`, `FreeMatch`, `SuperCMFreeMatch` or `Supervised`, or a class derived
            from `Method`.
        method_options: Options of the method, such as `{"beta": 0.5, "lr": 0.001}`.
        backbone: Network below the head, see `build_backbone`; None: `mlp` for features, `small_cnn` for images.
        max_steps: Training steps.
        epochs: Passes over the unlabeled samples, in place of `max_steps`.
        batch_size: Labeled samples per step, and as many unlabeled ones.
        validation_fraction: Fraction of the labeled samples held out, in [0, 1): the training stops when their accuracy
            no longer rises, and keeps the best weights. 0: it runs to its end.
        standardize: Give every feature mean 0 and deviation 1.
        noise: Deviation of the noise in the weak view of features; the strong view has five times as much, if X has no
            strong views of its own.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: Lightning's `precision`, such as `32-true` or `bf16-mixed`.
        verbose: Show a progress bar.
        random_state: Seed of the weights, the batches and the views.

    Attributes:
        classes_: The classes, sorted, in the type of y.
        model_: The trained method, a LightningModule; None where the labels have one class only.
        n_steps_: Number of training steps.
        n_features_in_: Number of features of a sample.

    Raises:
        SuperCMError: If an option is unknown or outside its range.

    Examples:
        >>> import numpy as np
        >>> from sklearn.datasets import make_blobs
        >>> X, truth = make_blobs(300, centers=3, random_state=0, cluster_std=0.5)
        >>> y = np.where(np.arange(300) < 9, truth, -1)
        >>> model = SuperCMClassifier(max_steps=100, random_state=0).fit(X, y)
        >>> bool(model.score(X, truth) > 0.95)
        True
    """

    needs_labeled: ClassVar[bool] = True

    method: str | type[Method] = "SuperCM"
    validation_fraction: float = field(default=0.0, kw_only=True)
    standardize: bool = field(default=True, kw_only=True)

    def fit(self, X: Any, y: Any, *, weak: Any = None, strong: Any = None) -> "SuperCMClassifier":
        """Trains on labeled and unlabeled samples.

        Args:
            X: Features (n, d) or images (n, c, h, w).
            y: Labels (n,), -1 where unlabeled.
            weak: Features of weak views, (n, v, d), of which every step takes one at random, or X; None: X with noise.
            strong: Features of strong views, (n, s, d), for methods that need them; None: X with more noise.

        Raises:
            ValueError: If X or y cannot be used; the message says why.
        """
        self._fit(X, y, None, weak, strong)
        return self

    def _fit(self, X: Any, y: Any, source: np.ndarray | None, weak: Any, strong: Any) -> None:
        """Trains; `source` tells which samples are of the source domain, (n,) bool, None: those with a label."""
        kind = self._check_options()
        X = check_samples(self, X, reset=True)
        self.classes_, codes = encode_labels(self, y, source)
        check_consistent_length(X, codes, source, weak, strong)
        unlabeled = codes < 0 if source is None else ~source
        # Where there are none, the labeled samples serve as unlabeled ones too.
        unlabeled = unlabeled if unlabeled.any() else codes >= 0
        with quiet():
            tensors = [torch.as_tensor(one) for one in (X, codes, *view_tensors(X, weak, strong))]
            self._train(kind, partial(self._data, tensors, unlabeled), len(self.classes_), int(unlabeled.sum()))

    def _data(self, tensors: Sequence[torch.Tensor], unlabeled: np.ndarray) -> Any:
        train = TensorDataset(*tensors)
        others = train if unlabeled.all() else None
        if not self._on_features:
            return SemiSupervisedDataModule(
                train, unlabeled=others, num_classes=len(self.classes_), num_workers=0, **self._data_options(tensors[1])
            )
        standardize: Any = "joint" if self.standardize else None
        # Another object than the labeled set, which must not be given twice.
        others = TensorDataset(*tensors) if unlabeled.all() else None
        noise = self._feature_noise(tensors[2:])
        return ScaledFeatures(train, others, standardize=standardize, **noise, **self._data_options(tensors[1]))

    def _check_options(self) -> type[Method]:
        check_range(0, 0.99, validation_fraction=self.validation_fraction)
        return super()._check_options()

    def _data_options(self, labels: torch.Tensor) -> dict[str, Any]:
        """Batch sizes, and the number of labeled samples that are held out: at least one of each class is left."""
        labeled = int((labels >= 0).sum())
        num_val = min(round(self.validation_fraction * labeled), labeled - len(self.classes_))
        return {"num_val": num_val, "labeled_batch_size": self.batch_size, "unlabeled_batch_size": self.batch_size}

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, K) of the classes, in the order of `classes_`."""
        return self._probabilities(X)

    def predict(self, X: Any) -> np.ndarray:
        """Classes (n,) of samples."""
        number = self.predict_proba(X).argmax(axis=1)
        return self.classes_[number]
