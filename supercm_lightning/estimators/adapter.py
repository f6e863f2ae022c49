"""A classifier for an unlabeled target domain, from labeled source domains."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from sklearn.utils.validation import column_or_1d
from torch.utils.data import TensorDataset

from supercm_lightning.data import DomainAdaptationDataModule
from supercm_lightning.data.sources.feature_store import FeatureStore
from supercm_lightning.estimators.classifier import SuperCMClassifier
from supercm_lightning.estimators.features import ScaledFeatures
from supercm_lightning.estimators.training import Shift
from supercm_lightning.utils.options import SuperCMError


class SuperCMAdapter(SuperCMClassifier):
    """A classifier that learns from a labeled source domain, or several, and an unlabeled target domain.

    Domains are numbered as in skada: positive numbers are sources, negative ones targets. Labels of a target are not
    read. Options and attributes are those of `SuperCMClassifier`; the labeled samples are those of the source, and
    `standardize` gives every feature mean 0 and deviation 1 in the source and in the target, each by itself.

    Examples:
        >>> import numpy as np
        >>> from sklearn.datasets import make_blobs
        >>> X, y = make_blobs(400, centers=3, random_state=0, cluster_std=0.5)
        >>> domain = np.where(np.arange(400) < 200, 1, -2)
        >>> X[domain < 0] += 3  # the target lies elsewhere
        >>> model = SuperCMAdapter(max_steps=100, random_state=0).fit(X, y, sample_domain=domain)
        >>> bool(model.score(X[domain < 0], y[domain < 0]) > 0.95)
        True
    """

    def fit(
        self, X: Any, y: Any, sample_domain: Any = None, *, weak: Any = None, strong: Any = None
    ) -> "SuperCMAdapter":
        """Trains on source and target samples.

        Args:
            X: Features (n, d) or images (n, c, h, w) of all domains.
            y: Labels (n,); those of a target are not read, and source samples with label -1 are left out.
            sample_domain: Number of each sample's domain, (n,): positive for a source, negative for a target; None: the
                samples with label -1 are the target. Where there is no target, the source serves as one.
            weak: Features of weak views, as in `SuperCMClassifier.fit`.
            strong: Features of strong views, likewise.

        Raises:
            ValueError: If X, y or the domains cannot be used; the message says why.
        """
        self._fit(X, y, None if sample_domain is None else _is_source(sample_domain), weak, strong)
        return self

    def _data(self, tensors: Sequence[torch.Tensor], unlabeled: np.ndarray) -> Any:
        labeled, hidden = (tensors[1] >= 0).nonzero().flatten(), torch.from_numpy(unlabeled).nonzero().flatten()
        source = TensorDataset(*(one[labeled] for one in tensors))
        x, y, *views = (one[hidden] for one in tensors)
        target = TensorDataset(x, torch.full_like(y, -1), *views)
        options = self._data_options(source.tensors[1])
        if self._on_features:
            standardize: Any = "domain" if self.standardize else None
            noise = self._feature_noise(views)
            return ScaledFeatures(source=source, target=target, standardize=standardize, **noise, **options)
        options = {
            "num_val": options["num_val"], "source_batch_size": self.batch_size, "target_batch_size": self.batch_size,
        }  # fmt: skip
        return DomainAdaptationDataModule(source, target, num_classes=len(self.classes_), num_workers=0, **options)

    def _shifts(self, data: Any) -> tuple[Shift | None, ...]:
        """What standardizes the target, and what standardizes the source."""
        (target,) = super()._shifts(data)
        if target is None:
            return None, None
        found = cast(FeatureStore, data.samples["labeled"].store).standardization
        assert found is not None
        return target, (found[0].numpy(), found[1].numpy())

    def predict_proba(self, X: Any, sample_domain: Any = None) -> np.ndarray:
        """Probabilities (n, K) of the classes, in the order of `classes_`.

        Args:
            X: Features (n, d) or images (n, c, h, w).
            sample_domain: Number of each sample's domain, (n,); None: the target's.
        """
        probabilities = super().predict_proba(X)
        if sample_domain is not None and (source := _is_source(sample_domain)).any():
            probabilities[source] = self._probabilities(X, domain=1)[source]
        return probabilities

    def predict(self, X: Any, sample_domain: Any = None) -> np.ndarray:
        """Classes (n,) of samples; the arguments are those of `predict_proba`."""
        number = self.predict_proba(X, sample_domain).argmax(axis=1)
        return self.classes_[number]


def _is_source(sample_domain: Any) -> np.ndarray:
    domain = column_or_1d(sample_domain)
    if domain.dtype.kind not in "if" or not (domain != 0).all():
        raise SuperCMError("sample_domain: give positive numbers for source domains, negative ones for targets.")
    return domain > 0
