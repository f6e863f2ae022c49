"""Few labeled and many unlabeled images."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset

from supercm_lightning.data.modules.images import ImageDataModule
from supercm_lightning.data.sources.make import make_source
from supercm_lightning.data.sources.stores import ArrayStore, Samples, Store, join
from supercm_lightning.data.splits import Split, check_labels
from supercm_lightning.data.transforms.zca import ZCA, global_contrast_normalize
from supercm_lightning.utils.options import SuperCMError


class SemiSupervisedDataModule(ImageDataModule):
    """Labeled, unlabeled, validation and test images of a registered data set, a folder, or torch data sets.

    `split_seed` alone draws the validation images from the training set, then the labeled ones, as many of every class;
    all others are unlabeled. Without a test set, `num_test` training images are held out, the same for every seed.

    Args:
        dataset: `digits`, `mnist`, `fashion_mnist`, `usps`, `svhn`, `cifar10`, `cifar100`, `cifar20`, `stl10`,
            `imagenet10`, `imagenet_dogs`; `folder` for image files under `root`; or, from Python, a torch data set of
            (image, label).
        root: Folder of the data. For `folder`: `labeled/<class>/…` and `unlabeled/…`, or `train/<class>/…`, or
            `<class>/…`, and optionally `val/<class>/…` and `test/<class>/…`.
        num_labeled: Number of labeled images; None: every training image that has a label.
        labeled_batch_size: Labeled images per step and device.
        unlabeled_batch_size: Unlabeled images per step and device.
        num_val: Number of validation images, or their fraction of the training set below 1; None: the data set's
            default (digits 150, MNIST and CIFAR 5,000, …; a tenth of `train/<class>`, nothing of `labeled/<class>`).
        num_test: Number or fraction of test images for data without a test set; None: digits 450, otherwise 0.
        split_seed: Seed of the split, independent of the run's seed.
        split_file: JSON file of the split: read if it exists, else written. Numbers and a `split_seed` other than 0
            that are given beside a file must agree with it.
        labeled_in_unlabeled: Let the labeled images appear among the unlabeled ones too.
        balanced_batches: Sample every class equally often into the labeled batches, whatever its number of samples.
        whitening: Global contrast normalization and ZCA in place of `mean` and `std`; such images have no strong view.
        unlabeled: A torch data set of unlabeled images, in addition to those of `dataset` (from Python).
        val: A torch data set of validation images (from Python).
        test: A torch data set of test images (from Python).
        num_classes: For torch data sets: the number of classes; None: that of `classes`, else the largest label + 1.
        **kwargs: Options of `ImageDataModule` and `ViewDataModule`.

    Raises:
        MissingFileError: If the data is missing; the message tells where it was expected.
        SuperCMError: If an option contradicts the data; the message names it.

    Examples:
        >>> data = SemiSupervisedDataModule("digits", num_labeled=20)
        >>> data.setup("fit")
        >>> x, y = data.arrays("labeled")
        >>> x.shape, sorted(y) == sorted([*range(10)] * 2)
        ((20, 1, 8, 8), True)
    """

    def __init__(
        self,
        dataset: str | Dataset[Any] = "digits",
        root: str | Path = "data",
        num_labeled: int | None = None,
        labeled_batch_size: int = 50,
        unlabeled_batch_size: int = 50,
        num_val: int | float | None = None,
        num_test: int | float | None = None,
        split_seed: int = 0,
        split_file: str | Path | None = None,
        labeled_in_unlabeled: bool = False,
        balanced_batches: bool = False,
        whitening: bool = False,
        unlabeled: Dataset[Any] | None = None,
        val: Dataset[Any] | None = None,
        test: Dataset[Any] | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.labeled_batch_size, self.unlabeled_batch_size = labeled_batch_size, unlabeled_batch_size
        if whitening and self.reading.in_memory is False:
            raise SuperCMError("whitening=true needs all images in memory: leave in_memory unset.")
        reading = replace(self.reading, in_memory=True) if whitening else self.reading
        others = {"unlabeled": unlabeled, "val": val, "test": test}
        self._use(source := make_source(dataset, root, reading, others, num_classes))
        if num_labeled is not None and num_labeled < self.num_classes:
            raise SuperCMError(f"num_labeled={num_labeled}: fewer labels than the {self.num_classes} classes.")
        self._choose_views(source)
        if whitening:
            self.preprocessing = {"whitening": True}
            self.view_remedy = "Set whitening=false: whitened images have no strong view."
        self.split: Split | None = None

    def read(self) -> dict[str, Samples]:
        """Reads the images and splits the training set."""
        assert self.source is not None
        stores, options, defaults = self.stores(), self.hparams, self.source.defaults
        if "unlabeled" in stores:
            stores["train"] = join([stores["train"], stores.pop("unlabeled")])
        train = stores.pop("train")
        known = train.labels[train.labels >= 0]
        check_labels(known, self.num_classes, self.class_names, "training set")
        asked = {"val": (options.num_val, defaults.num_val), "test": (options.num_test, defaults.num_test)}
        held_out = {s: default if given is None else given for s, (given, default) in asked.items() if s not in stores}
        file = Path(options.split_file).expanduser() if options.split_file is not None else None
        self.split = self.draw_split(train, held_out, file)
        samples = self.split.samples(train, options.labeled_in_unlabeled)
        samples |= {split: Samples.all_of(store) for split, store in stores.items()}
        return self._whiten(samples) if options.whitening else samples

    def read_new(self, path: Path) -> Store:
        """Reads the images of a folder."""
        store = super().read_new(path)
        if self.hparams.whitening:
            images = cast(ArrayStore, store)
            images.data = ZCA(**self.measured)(global_contrast_normalize(images.data))
        return store

    def _whiten(self, samples: dict[str, Samples]) -> dict[str, Samples]:
        """Fits on every training image, labeled or not, and no other; no label is used."""
        stores = cast(list[ArrayStore], list({id(part.store): part.store for part in samples.values()}.values()))
        images = {id(store): global_contrast_normalize(store.data) for store in stores}
        train = samples["labeled"].store
        index = torch.cat([samples["labeled"].index, samples["unlabeled"].index]).unique()
        if not self.measured:
            self.measured = vars(ZCA.fit(images[id(train)][index]))
        zca = ZCA(**self.measured)
        white = {id(store): replace(store, data=zca(images[id(store)])) for store in stores}
        for store in stores:
            white[id(store)].keys = store.keys
        return {split: replace(part, store=white[id(part.store)]) for split, part in samples.items()}

    def configure_augmentations(self) -> dict[str, Any]:
        """The weak view and, except for whitened images, the strong view."""
        views = super().configure_augmentations()
        return {"weak": views["weak"]} if self.hparams.whitening else views
