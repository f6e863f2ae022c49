"""Few labeled and many unlabeled images."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch.utils.data import Dataset

from supercm_lightning.data.modules.base import ViewDataModule
from supercm_lightning.data.sources.files import Reading
from supercm_lightning.data.sources.make import make_source
from supercm_lightning.data.sources.stores import ArrayStore, Samples, Store, join
from supercm_lightning.data.splits import Split, check_labels
from supercm_lightning.data.transforms.strong import StrongAugmentation
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation, check_weak_options
from supercm_lightning.data.transforms.zca import ZCA, global_contrast_normalize
from supercm_lightning.utils.options import SuperCMError


class SemiSupervisedDataModule(ViewDataModule):
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
        eval_batch_size: Images per step of validation, test and prediction.
        steps_per_epoch: Steps per epoch; None: one pass over the unlabeled images.
        num_val: Number of validation images, or their fraction of the training set below 1; None: the data set's
            default (digits 150, MNIST and CIFAR 5,000, …; a tenth of `train/<class>`, nothing of `labeled/<class>`).
        num_test: Number or fraction of test images for data without a test set; None: digits 450, otherwise 0.
        split_seed: Seed of the split, independent of the run's seed.
        split_file: JSON file of the split: read if it exists, else written. Numbers and a `split_seed` other than 0
            that are given beside a file must agree with it.
        labeled_in_unlabeled: Let the labeled images appear among the unlabeled ones too.
        flip: Mirror left-right with probability 1/2; None: where the data set allows it.
        shift: Largest shift in pixels; None: the data set's default (2; 1 for digits and USPS; an eighth for folders).
        noise: Standard deviation of the noise added to normalized pixels; None: CIFAR 0.15, others 0.
        mean: Mean per channel, or one for all, on the scale [0, 1].
        std: Standard deviation likewise.
        whitening: Global contrast normalization and ZCA in place of `mean` and `std`; such images have no strong view.
        image_size: For image files: resized on the shorter side and cut to this square; None: all have one size.
        in_memory: Hold all images in memory; None: if they take at most 4 GiB (a torch data set stays as it is).
        num_workers: Worker processes per loader, for images that are not in memory; None: one per core, at most four.
        on_bad_image: For an image file that cannot be read: `error` stops and names it, `skip` decodes every file
            before the split, leaves the bad ones out, and counts and lists them.
        predict_on: Images that `predict` reads: `test`, `val`, `unlabeled`, `labeled`, or a folder of new images.
        download: Fetch a registered data set that is missing.
        unlabeled: A torch data set of unlabeled images, in addition to those of `dataset` (from Python).
        val: A torch data set of validation images (from Python).
        test: A torch data set of test images (from Python).
        num_classes: For torch data sets: the number of classes; None: that of `classes`, else the largest label + 1.

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
        eval_batch_size: int = 500,
        steps_per_epoch: int | None = None,
        num_val: int | float | None = None,
        num_test: int | float | None = None,
        split_seed: int = 0,
        split_file: str | Path | None = None,
        labeled_in_unlabeled: bool = False,
        flip: bool | None = None,
        shift: int | None = None,
        noise: float | None = None,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
        whitening: bool = False,
        image_size: int | None = None,
        in_memory: bool | None = None,
        num_workers: int | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
        predict_on: str = "test",
        download: bool = False,
        unlabeled: Dataset[Any] | None = None,
        val: Dataset[Any] | None = None,
        test: Dataset[Any] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(
            labeled_batch_size, unlabeled_batch_size, eval_batch_size, steps_per_epoch, predict_on, num_workers
        )
        if whitening and in_memory is False:
            raise SuperCMError("whitening=true needs all images in memory: leave in_memory unset.")
        reading = Reading(image_size, True if whitening else in_memory, on_bad_image)
        others = {"unlabeled": unlabeled, "val": val, "test": test}
        self._use(source := make_source(dataset, root, reading, others, num_classes))
        if num_labeled is not None and num_labeled < self.num_classes:
            raise SuperCMError(
                f"num_labeled={num_labeled}: fewer labels than the {self.num_classes} classes; every class needs one."
            )
        defaults = source.defaults
        self.flip = defaults.flip if flip is None else flip
        self.shift = defaults.shift if shift is None else shift
        self.noise = defaults.noise if noise is None else noise
        check_weak_options(self.input_shape, self.shift, self.noise, mean, std)
        self.normalization = Normalization(tuple(mean), tuple(std))
        self.preprocessing = {"whitening": True} if whitening else asdict(self.normalization)
        if whitening:
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
        """The weak view: flip, shift and noise; the strong view, except for whitened images: RandAugment and Cutout."""
        weak = WeakAugmentation(self.normalization, self.flip, self.shift, self.noise)
        if self.hparams.whitening:
            return {"weak": weak}
        return {"weak": weak, "strong": StrongAugmentation(self.normalization, self.flip, self.shift)}
