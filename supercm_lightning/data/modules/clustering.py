"""Images, or frozen features, to be clustered without labels."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from supercm_lightning.data.modules.images import ImageDataModule
from supercm_lightning.data.sources.feature_store import standardize, statistics
from supercm_lightning.data.sources.features import FeatureSource
from supercm_lightning.data.sources.make import make_cluster_source
from supercm_lightning.data.sources.names import order_of
from supercm_lightning.data.sources.stores import Samples, Store
from supercm_lightning.data.splits import check_label_range
from supercm_lightning.data.transforms.features import VIEW_REMEDY, CleanFeatures, feature_views
from supercm_lightning.data.transforms.strong import AffineAugmentation
from supercm_lightning.utils.options import SuperCMError, check_choice, check_range
from supercm_lightning.utils.random import generator, seed_of


class ClusteringDataModule(ImageDataModule):
    """Images or frozen features without labels; where labels are known, only the test reads them.

    Two protocols, whose numbers must not be compared: `whole` clusters all images, training and test set together, and
    evaluates on the same images; `split` clusters the training set and evaluates on the test set. Without labels there
    is no test, and `predict` writes the clusters, by number: they have no names, also where classes have.

    Args:
        dataset: `digits`, `mnist`, `fashion_mnist`, `usps`, `svhn`, `cifar10`, `cifar100`, `cifar20`, `stl10` (without
            its unlabeled images, which have other classes), `imagenet10`, `imagenet_dogs`; `folder` for image files;
            `features` for frozen features; or, from Python, a torch data set of images or (image, label).
        root: Folder of the data. For image files images at any depth, or `train` and `test`; the folders right below
            are classes if their number is that of the clusters. `features`: a `.npz` or `.pt` file with `features` (n,
            d) and, if known, `labels` (n,), or a folder with `train` and `test` of either kind.
        protocol: `whole` or `split`.
        num_rows: Use only so many of the samples, the first ones, of files a random choice; None: all.
        num_classes: Number of clusters, where the data does not tell.
        unlabeled_batch_size: Samples per step and device.
        noise: Standard deviation of the noise in the weak view, in units of normalized values; None: CIFAR 0.15, other
            images 0, features 0.1, or 0 where views are stored.
        strong: The strong view: `randaugment` (and Cutout), or `affine`, for figures on a dark ground; None: affine for
            gray images, RandAugment for others. Features have stored views, or noise.
        strong_noise: Noise in the strong view of features; None: 0.5, or 0 where views are stored.
        predict_on: Samples that `predict` reads: `unlabeled`, `test`, or a folder of new images or a file of features.
        test: A torch data set of test images in addition to `dataset` (from Python).
        **kwargs: Options of `ImageDataModule` and `ViewDataModule`.

    Raises:
        MissingFileError: If the data is missing; the message tells where it was expected.
        SuperCMError: If an option contradicts the data; the message names it.

    Examples:
        >>> data = ClusteringDataModule("digits", protocol="split")
        >>> data.setup("fit")
        >>> data.num_unlabeled, len(data.samples["test"])
        (1347, 450)
    """

    missing_messages: ClassVar[dict[str, str]] = ImageDataModule.missing_messages | {
        "test": "The data has no labels, so that there is nothing to test. Use predict.",
    }

    def __init__(
        self,
        dataset: str | Dataset[Any] = "digits",
        root: str | Path = "data",
        protocol: Literal["whole", "split"] = "whole",
        num_rows: int | None = None,
        num_classes: int | None = None,
        unlabeled_batch_size: int = 64,
        noise: float | None = None,
        strong: Literal["randaugment", "affine"] | None = None,
        strong_noise: float | None = None,
        predict_on: str = "unlabeled",
        test: Dataset[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(noise=noise, predict_on=predict_on, **kwargs)
        self.unlabeled_batch_size = unlabeled_batch_size
        check_choice(protocol=(protocol, ("whole", "split")), strong=(strong, ("randaugment", "affine", None)))
        check_range(1, num_rows=num_rows)
        self.source = make_cluster_source(dataset, root, protocol == "whole", self.reading, test, num_classes)
        found = self.source.num_classes or num_classes
        if found is None:
            raise SuperCMError("num_classes: the data has no labels, so give the number of clusters.")
        if num_classes not in (None, found):
            raise SuperCMError(f"num_classes={num_classes}: the data has {found} classes; leave it out.")
        check_range(2, num_classes=found)
        self.num_classes, self.input_shape = found, self.source.input_shape
        self.strong = strong or ("affine" if self.input_shape[0] == 1 else "randaugment")
        check_range(0, noise=noise, strong_noise=strong_noise)
        if isinstance(self.source, FeatureSource):
            self.normalization, self.view_remedy = CleanFeatures(), VIEW_REMEDY
            self.preprocessing = {"standardize": "joint"}
        else:
            self._choose_views(self.source)

    def read(self) -> dict[str, Samples]:
        """Reads the samples; the clustered ones show no label."""
        assert self.source is not None
        stores = self.stores()
        train, test = stores["train"], stores.get("test")
        index = torch.arange(len(train))[: self.hparams.num_rows]
        if train.is_named and not self.source.is_fixed:  # the first by name are those of the first classes
            order = torch.from_numpy(order_of(train.keys, seed_of("num_rows")))
            index = order[: self.hparams.num_rows].sort().values
        if isinstance(self.source, FeatureSource):
            self._standardize(train, test)
        if self.hparams.protocol == "whole":
            clustered, tested = index, Samples(train, index)
        elif test is not None:
            clustered, tested = index, Samples.all_of(test)
        elif held_out := int(self.source.defaults.num_test):
            # The same test images for every seed, drawn without their labels.
            order = index[torch.randperm(len(index), generator=generator(0, "test split"))]
            clustered, tested = order[held_out:].sort().values, Samples(train, order[:held_out].sort().values)
        else:
            raise SuperCMError("protocol='split': the data has no test set. Give one, or choose whole.")
        samples = {"unlabeled": Samples(train, clustered, hide_labels=True)}
        labeled = Samples(tested.store, tested.index[tested.labels >= 0])
        check_label_range(labeled.labels, self.num_classes, "test set")
        if len(labeled):
            samples["test"] = labeled
        elif self.hparams.protocol == "split":
            samples["test"] = Samples(tested.store, tested.index, hide_labels=True)
        return samples

    def _standardize(self, train: Store, test: Store | None) -> None:
        if not self.measured:
            self.measured = {"features": torch.stack(statistics(train.parts(torch.arange(len(train))), correction=1))}
        mean, std = self.measured["features"][0], self.scale(self.measured["features"][1])
        self.preprocessing = {"standardize": "joint", "mean": mean.tolist(), "std": std.tolist()}
        for store in (train, *([] if test is None else [test])):
            standardize(store, mean, std)

    def scale(self, std: Tensor) -> Tensor:
        """Numbers (d,) by which features of these deviations are divided."""
        return std

    def configure_augmentations(self) -> dict[str, Any]:
        """The weak view: flip, shift and noise; the strong one: `strong`; for features stored views and noise."""
        if isinstance(self.source, FeatureSource):
            stored = any(self.source.views)
            noise, strong_noise = self.hparams.noise, self.hparams.strong_noise
            noise = (0.0 if stored else 0.1) if noise is None else noise
            strong_noise = (0.0 if stored else 0.5) if strong_noise is None else strong_noise
            return dict(feature_views(self.source.views, noise, strong_noise))
        views = super().configure_augmentations()
        return views | ({"strong": AffineAugmentation(self.normalization)} if self.strong == "affine" else {})
