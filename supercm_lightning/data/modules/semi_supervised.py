"""Few labelled and many unlabelled images."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from supercm_lightning.data.modules.base import ViewDataModule
from supercm_lightning.data.sources.folder import new_images, scan_folder
from supercm_lightning.data.sources.images import check_bad_image_policy, sampled_shapes
from supercm_lightning.data.sources.registered import DATASETS
from supercm_lightning.data.sources.stores import ArrayStore, DatasetStore, Samples, Store, file_stores
from supercm_lightning.data.splits import Split, check_labels, count_rows, make_split
from supercm_lightning.data.transforms.strong import StrongAugmentation
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation, check_weak_options
from supercm_lightning.data.transforms.zca import ZCA, global_contrast_normalize
from supercm_lightning.utils.options import SuperCMError


class SemiSupervisedDataModule(ViewDataModule):
    """Labelled, unlabelled, validation and test images of a registered data set, a folder, or torch data sets.

    The labelled images are drawn from the training set, the same number of every class, by `split_seed` alone; the
    validation images too, before them; all others are unlabelled. The test set is never split nor trained on; data
    without one gives `num_test` rows, the same for every `split_seed`.

    Args:
        dataset: `digits`, `mnist`, `fashion_mnist`, `usps`, `svhn`, `cifar10`, `cifar100`, `cifar20`, `stl10`; `folder`
            for image files under `root`; or, from Python, a torch data set of (image, label).
        root: Folder of the data. For `folder`: `labeled/<class>/…` and `unlabeled/…`, or `train/<class>/…`, or
            `<class>/…`, and optionally `val/<class>/…` and `test/<class>/…`.
        num_labeled: Number of labelled images; None: every training image that has a label.
        labeled_batch_size: Labelled images per step and device.
        unlabeled_batch_size: Unlabelled images per step and device.
        eval_batch_size: Images per step of validation, test and prediction.
        steps_per_epoch: Steps per epoch; None: one pass over the unlabelled images.
        num_val: Number of validation images, or their share of the training set below 1; None: the data set's custom
            (digits 150, MNIST and CIFAR 5,000, SVHN 7,326, USPS 1,000, STL-10 500; a tenth for `train/<class>` or
            `<class>` folders, none for `labeled/<class>`).
        num_test: Number or share of test images for data without a test set; None: the data set's custom (digits 450,
            otherwise 0).
        split_seed: Seed of the split, apart from the run's own seed.
        split_file: JSON file of the split: read if it exists, else written. Numbers given beside a file that exists
            must agree with it, and so must a `split_seed` other than 0.
        labeled_in_unlabeled: Let the labelled images appear among the unlabelled ones too.
        flip: Mirror left-right with probability 1/2; None: where the data set allows it.
        shift: Largest shift in pixels; None: the data set's custom (2; 1 for digits and USPS; an eighth for folders).
        noise: Standard deviation of the noise added to normalised pixels; None: the data set's custom (CIFAR 0.15,
            others 0).
        mean: Mean per channel, or one for all, on the scale [0, 1].
        std: Standard deviation likewise.
        whitening: Global contrast normalisation and ZCA in place of `mean` and `std`, as in the published CIFAR runs;
            such images have no strong view.
        image_size: For folders: images are resized on the shorter side and cut to this square; None: all have one size.
        in_memory: Hold all images in memory; None: if they take at most 4 GiB (a torch data set stays as it is).
        num_workers: Worker processes per loader, for images that are not held in memory; None: one for each core that
            this process may use, at most four.
        on_bad_image: For folders, what to do about a file that cannot be read as an image: `error` stops and names it,
            `skip` decodes every file before the split, leaves the bad ones out of all sets, and counts and lists them.
        predict_on: Images that `predict` reads: `test`, `val`, `unlabeled`, `labeled`, or the path of a folder of new
            images, at any depth, which become as large as those of the training.
        download: Fetch a registered data set that is missing.
        unlabeled: A torch data set of unlabelled images, beside those of `dataset` (from Python).
        val: A torch data set of validation images (from Python).
        test: A torch data set of test images (from Python).
        num_classes: For torch data sets: the number of classes; None: that of its `classes`, else its largest label
            + 1.

    Raises:
        FileNotFoundError: If the data is missing; the message tells where it was expected.
        ValueError: If an option contradicts the data; the message names it.
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
        self.dataset = dataset
        self.root = Path(root).expanduser()
        self.num_labeled = num_labeled
        self.num_val = num_val
        self.num_test = num_test
        self.split_seed = split_seed
        self.split_file = Path(split_file).expanduser() if split_file is not None else None
        self.labeled_in_unlabeled = labeled_in_unlabeled
        self.whitening = whitening
        self.image_size = image_size
        self.in_memory = in_memory
        self.on_bad_image = on_bad_image
        self.download = download
        self._given = {"unlabeled": unlabeled, "val": val, "test": test}
        self.split: Split | None = None
        self._zca: ZCA | None = None
        self._defaults: tuple[int | float, int | float]
        if isinstance(dataset, str) and (strange := [name for name, data in self._given.items() if data is not None]):
            raise SuperCMError(f"{strange[0]}: goes with a torch data set; dataset={dataset!r} brings its own.")

        flip_by_default, default_shift, default_noise = False, 0, 0.0
        if not isinstance(dataset, str):
            self._labeled = DatasetStore(dataset)
            names = getattr(dataset, "classes", None)
            self.class_names = tuple(map(str, () if names is None else names)) or None
            known = len(self.class_names or ()) or int(self._labeled.labels.max()) + 1
            self.num_classes = num_classes or known
            self.input_shape = tuple(self._labeled[0].shape)
            self._defaults = (0, 0)
            if len(self.input_shape) != 3:
                raise SuperCMError(
                    f"dataset: items of shape {self.input_shape}, where images (C, H, W) were expected. "
                    "Vectors go into FeatureDataModule."
                )
        elif dataset == "folder":
            self._folder = scan_folder(self.root)
            self.class_names = self._folder.class_names
            self.num_classes = len(self.class_names)
            # A set with colours may well begin with a grey image.
            shapes = sampled_shapes([file for file, _ in self._folder.labeled], image_size, on_bad_image)
            self.input_shape = (max(channels for channels, _, _ in shapes), *shapes[0][1:])
            # Where a few images were labelled by hand, none is taken away from training unasked.
            self._defaults = (0.1 if self._folder.fully_labeled else 0, 0)
            flip_by_default, default_shift = True, min(self.input_shape[1:]) // 8
        elif dataset in DATASETS:
            spec = DATASETS[dataset]
            self.class_names, self.num_classes, self.input_shape = spec.class_names, spec.num_classes, spec.input_shape
            self._defaults = (spec.num_val, spec.num_test)
            flip_by_default, default_shift, default_noise = spec.flip, spec.shift, spec.noise
        else:
            raise SuperCMError(f"dataset={dataset!r}: choose one of {', '.join(DATASETS)}, folder.")
        if self.num_classes < 2:
            raise SuperCMError(f"dataset: {self.num_classes} class, where at least two are needed.")
        if num_labeled is not None and num_labeled < self.num_classes:
            raise SuperCMError(
                f"num_labeled={num_labeled}: fewer labels than the {self.num_classes} classes; every class needs one."
            )
        self.flip = flip_by_default if flip is None else flip
        self.shift = default_shift if shift is None else shift
        self.noise = default_noise if noise is None else noise
        check_weak_options(self.input_shape, self.shift, self.noise, mean, std)
        check_bad_image_policy(on_bad_image)
        if whitening and in_memory is False:
            raise SuperCMError("whitening=true needs all images in memory: leave in_memory unset.")
        self.normalization = Normalization(tuple(mean), tuple(std))
        self.preprocessing = {"whitening": True} if whitening else asdict(self.normalization)

    # ------------------------------------------------------------------------------------------------- reading
    def prepare_data(self) -> None:
        """Downloads a registered data set, in one process, if asked to."""
        if self.download and isinstance(self.dataset, str) and self.dataset in DATASETS:
            spec = DATASETS[self.dataset]
            parts = {"train": True, "test": not spec.num_test, "unlabeled": spec.has_unlabeled}
            for part in (part for part, exists in parts.items() if exists):
                spec.store(self.dataset, self.root, part, download=True)

    def read(self) -> dict[str, Samples]:
        """Reads the images and draws the split."""
        stores = self._read_images()
        train = stores["train"]
        check_labels(train.labels[train.labels >= 0], self.num_classes, self.class_names, "training set")
        self.split = self._read_split(train.labels, held_out={part for part in ("val", "test") if part in stores})
        rows = {part: Samples(train, index) for part, index in self.split.rows(self.labeled_in_unlabeled).items()}
        return rows | {part: Samples.all_of(store) for part, store in stores.items() if part != "train"}

    def _read_images(self) -> dict[str, Store]:
        """Stores of `train` (labelled images first, further unlabelled ones after), `val` and `test`."""
        if not isinstance(self.dataset, str):
            stores = self._read_datasets(self.dataset)
        elif self.dataset == "folder":
            stores = self._read_folder()
        else:
            stores = self._read_registered(self.dataset)
        if self.whitening:
            arrays = {part: store for part, store in stores.items() if isinstance(store, ArrayStore)}
            if len(arrays) < len(stores):
                raise SuperCMError("whitening=true needs all images in memory: set in_memory=true.")
            for store in arrays.values():
                store.data = global_contrast_normalize(store.data)
            # Fitted on every training image, as published; labels play no part in it.
            self._zca = ZCA.fit(arrays["train"].data)
            for store in arrays.values():
                store.data = self._zca(store.data)
        return stores

    def read_new(self, path: Path) -> Store:
        """Reads the images of a folder."""
        if not isinstance(self.dataset, str):
            return super().read_new(path)
        store = new_images(path, self.input_shape, self.whitening or self.in_memory, self.on_bad_image)
        if self.whitening:
            self._read_sets()
            assert self._zca is not None
            assert isinstance(store, ArrayStore)
            store.data = self._zca(global_contrast_normalize(store.data))
        return store

    def _read_registered(self, name: str) -> dict[str, Store]:
        spec = DATASETS[name]
        train = spec.store(name, self.root, "train", download=False)
        if spec.has_unlabeled:
            more = spec.store(name, self.root, "unlabeled", download=False)
            train = ArrayStore(torch.cat([train.data, more.data]), torch.cat([train.labels, more.labels]))
        stores: dict[str, Store] = {"train": train}
        if not spec.num_test:
            stores["test"] = spec.store(name, self.root, "test", download=False)
        return stores

    def _read_folder(self) -> dict[str, Store]:
        folder = self._folder
        parts = {"train": folder.labeled + [(file, -1) for file in folder.unlabeled]}
        parts |= {part: files for part in ("val", "test") if (files := getattr(folder, part)) is not None}
        return file_stores(parts, self.input_shape, self.image_size, self.in_memory, on_bad_image=self.on_bad_image)

    def _read_datasets(self, labeled: Dataset[Any]) -> dict[str, Store]:
        train = self._labeled
        kind = train[0].dtype
        for part, data in self._given.items():
            # uint8 images are normalised and floats are not: together they would be two different inputs.
            if data is not None and (found := DatasetStore(data, torch.zeros(len(data)))[0].dtype) != kind:  # type: ignore[arg-type]
                raise SuperCMError(f"{part}: images of type {found}, but those of the labelled data set are {kind}.")
        if (more := self._given["unlabeled"]) is not None:
            labels = torch.cat([train.labels, torch.full((len(more),), -1)])  # type: ignore[arg-type]
            train = DatasetStore(ConcatDataset([labeled, more]), labels)
        given = {part: self._given[part] for part in ("val", "test")}
        stores = {"train": train} | {part: DatasetStore(data) for part, data in given.items() if data is not None}
        if self.in_memory or self.whitening:
            return {part: store.in_memory(self.input_shape) for part, store in stores.items()}
        return dict(stores)

    # ----------------------------------------------------------------------------------------------- splitting
    def _read_split(self, labels: Tensor, held_out: set[str]) -> Split:
        name = self.dataset if isinstance(self.dataset, str) else type(self.dataset).__name__
        known = int((labels >= 0).sum())
        counts = {
            part: 0 if part in held_out else count_rows(part, custom if asked is None else asked, known)
            for part, asked, custom in zip(("val", "test"), (self.num_val, self.num_test), self._defaults, strict=True)
        }
        if self.split_file is not None and self.split_file.exists():
            return self._checked_split(Split.load(self.split_file), name, len(labels), counts)
        split = make_split(labels, name, self.num_labeled, counts["val"], counts["test"], self.split_seed)
        if self.split_file is not None and getattr(rank_zero_only, "rank", 0) == 0:
            split.save(self.split_file)
        return split

    def _checked_split(self, split: Split, name: str, num_rows: int, counts: dict[str, int]) -> Split:
        other = "Leave the option out, or name another file to draw a new split."
        if (split.dataset, split.num_rows) != (name, num_rows):
            raise SuperCMError(
                f"split_file={self.split_file}: made for {split.num_rows:,} rows of {split.dataset}, but the data is "
                f"{name} with {num_rows:,} rows. Name another file to draw a new split."
            )
        sizes = {
            "num_labeled": ("labelled", split.labeled, self.num_labeled, self.num_labeled),
            "num_val": ("validation", split.val, self.num_val, counts["val"]),
            "num_test": ("test", split.test, self.num_test, counts["test"]),
        }
        for option, (what, rows, asked, count) in sizes.items():
            if asked is not None and len(rows) != count:
                of = f" ({count:,} rows)" if count != asked else ""
                raise SuperCMError(
                    f"split_file={self.split_file}: has {len(rows):,} {what} rows, but {option}={asked}{of}. {other}"
                )
        if self.split_seed not in (0, split.seed):
            raise SuperCMError(
                f"split_file={self.split_file}: drawn with split_seed={split.seed}, but split_seed={self.split_seed}. "
                f"{other}"
            )
        return split

    # -------------------------------------------------------------------------------------------- augmentation
    def normalize(self, rows: Tensor) -> Tensor:
        """Normalised images without augmentation."""
        return self.normalization(rows)

    def configure_augmentations(self) -> dict[str, Any]:
        """The weak view: flip, shift and noise; but for whitened images, the strong view: RandAugment and Cutout."""
        augmentations: dict[str, Any] = {
            "weak": WeakAugmentation(self.normalization, self.flip, self.shift, self.noise)
        }
        if not self.whitening:
            augmentations["strong"] = StrongAugmentation(self.normalization, self.flip, self.shift)
        return augmentations

    @property
    def _views(self) -> tuple[str, ...]:
        try:
            return super()._views
        except ValueError as error:
            if self.whitening and "'strong'" in str(error):
                raise SuperCMError(f"{error} Or set whitening=false: whitened images have no strong view.") from None
            raise
