"""Clusters without labels."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import ClusterMixin
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state, gen_batches
from torch.utils.data import TensorDataset

from supercm_lightning.data import ClusteringDataModule
from supercm_lightning.estimators.features import ScaledClusteringData, common_scale
from supercm_lightning.estimators.inputs import check_samples
from supercm_lightning.estimators.training import LightningEstimator, quiet
from supercm_lightning.methods import ASD, Method
from supercm_lightning.utils.options import SuperCMError, check_choice, check_range

KMEANS_SAMPLES = 20_000
"""Samples that k-means is fitted on, and that it numbers at a time."""


@dataclass(eq=False, repr=False)
class ASDClusterer(ClusterMixin, LightningEstimator):
    """Clusters of features or images, by ASD and the method that learns from the labels it makes.

    X is an array or a memory map of features (n, d), which are standardized, or of images (n, c, h, w), uint8 or in
    [0, 1].

    Args:
        n_clusters: Number of clusters.
        method: Name of a method that needs no labels, such as `ASDFreeMatch` or `ASDSuperCM`, or a class derived from
            `Clusterer`.
        init: `kmeans`: labels come from k-means until ASD has clusters of its own; None: there are none until then.
        method_options: Options of the method, such as `{"asd_hold": 5, "lr": 0.001}`.
        backbone: Network below the head, see `build_backbone`; None: `mlp` for features, `small_cnn` for images.
        max_steps: Training steps.
        epochs: Passes over the samples, in place of `max_steps`.
        batch_size: Samples per step.
        noise: Deviation of the noise in the weak view of features; the strong view has five times as much.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: Lightning's `precision`, such as `32-true` or `bf16-mixed`.
        verbose: Show a progress bar.
        random_state: Seed of the weights, the batches and the views.

    Attributes:
        labels_: Cluster of each sample, (n,) int64, from 0 on; a cluster without samples has no number.
        model_: The trained method, a LightningModule; None for a single cluster.
        n_steps_: Number of training steps.
        n_features_in_: Number of features of a sample.

    Raises:
        SuperCMError: If an option is unknown or outside its range.

    Examples:
        >>> from sklearn.datasets import make_blobs
        >>> X, y = make_blobs(300, centers=3, random_state=0, cluster_std=0.5)
        >>> ASDClusterer(n_clusters=3, max_steps=200, random_state=0).fit_predict(X).shape
        (300,)
    """

    needs_labeled: ClassVar[bool] = False

    n_clusters: int = 8
    method: str | type[Method] = field(default="ASDFreeMatch", kw_only=True)
    init: Literal["kmeans"] | None = field(default="kmeans", kw_only=True)
    max_steps: int = field(default=1000, kw_only=True)

    def fit(self, X: Any, y: Any = None) -> "ASDClusterer":
        """Trains, and clusters the samples.

        Args:
            X: Features (n, d) or images (n, c, h, w).
            y: Not read.

        Raises:
            ValueError: If X cannot be used; the message says why.
        """
        kind = self._check_options()
        check_range(1, n_clusters=self.n_clusters)
        check_choice(init=(self.init, ("kmeans", None)))
        X = check_samples(self, X, reset=True)
        if len(X) < self.n_clusters:
            raise SuperCMError(f"n_clusters={self.n_clusters}: n_samples={len(X)} are fewer.")

        def data() -> ClusteringDataModule:
            noise = self._feature_noise(()) if self._on_features else {}
            samples = TensorDataset(torch.as_tensor(X))
            size = self.batch_size
            return ScaledClusteringData(
                samples, num_classes=self.n_clusters, unlabeled_batch_size=size, num_workers=0, **noise
            )

        with quiet(), TemporaryDirectory() as folder:
            options: dict[str, Any] = {}
            if issubclass(kind, ASD):
                # Four a cluster is the default; fewer samples make do with what there is.
                options["asd_samples"] = min(4 * self.n_clusters, len(X))
                if self.init == "kmeans" and self.n_clusters > 1:
                    options["asd_init_labels"] = str(Path(folder, "kmeans.npy"))
                    np.save(options["asd_init_labels"], self._kmeans(X))
            self._train(kind, data, self.n_clusters, len(X), **options)
        clusters = self._probabilities(X).argmax(axis=1)
        used = np.bincount(clusters, minlength=self.n_clusters) > 0
        self._number = np.where(used, used.cumsum() - 1, used.sum() + (~used).cumsum() - 1)
        self.labels_ = self._number[clusters]
        return self

    def _kmeans(self, X: np.ndarray) -> np.ndarray:
        """Clusters (n,) by k-means on at most `KMEANS_SAMPLES` samples."""
        stream = check_random_state(self.random_state)
        chosen = np.sort(stream.choice(len(X), min(len(X), KMEANS_SAMPLES), replace=False))
        some = X[chosen].reshape(len(chosen), -1).astype(np.float32)
        std = some.std(axis=0)
        scale = common_scale(torch.from_numpy(np.where(std > 0, std, 1))).numpy()
        kmeans = KMeans(self.n_clusters, n_init=10, random_state=stream.randint(2**31)).fit(some / scale)
        chunks = (X[chunk].reshape(-1, len(scale)).astype(np.float32) for chunk in gen_batches(len(X), KMEANS_SAMPLES))
        return np.concatenate([kmeans.predict(chunk / scale) for chunk in chunks])

    def predict(self, X: Any) -> np.ndarray:
        """Clusters (n,) of samples."""
        probabilities = self._probabilities(X)
        return self._number[probabilities.argmax(axis=1)]
