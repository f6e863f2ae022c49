"""Images, or frozen features, to be clustered without labels."""

import csv
from collections.abc import Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from supercm_lightning.data.modules.base import ViewDataModule
from supercm_lightning.data.modules.features import joined, new_features, read_features
from supercm_lightning.data.sources.folder import new_images, scan_clusters
from supercm_lightning.data.sources.images import check_bad_image_policy, sampled_shapes
from supercm_lightning.data.sources.registered import DATASETS, IMAGENET_SUBSETS
from supercm_lightning.data.sources.stores import ArrayStore, DatasetStore, Samples, Store, file_stores
from supercm_lightning.data.splits import check_label_range
from supercm_lightning.data.transforms.affine import AffineAugmentation
from supercm_lightning.data.transforms.strong import StrongAugmentation
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation, check_weak_options
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.random import generator


class ClusteringDataModule(ViewDataModule):
    """Images or frozen features without labels; where labels are known, the test alone reads them.

    A training batch has unlabelled rows only. Two protocols, whose numbers must not be compared: `whole` clusters all
    images, training and test set together, and evaluates on the same images; `split` clusters the training set and
    evaluates on the test set. Without labels there is no test, and `predict` writes the clusters, by number: they have
    no names, also where classes have (`class_names` is None).

    Args:
        dataset: `digits`, `mnist`, `fashion_mnist`, `usps`, `svhn`, `cifar10`, `cifar100`, `cifar20`, `stl10` (its
            unlabelled part, which has other classes, is left out); `imagenet10` and `imagenet_dogs`, ILSVRC-2012's
            training folders; `folder` for image files; `features` for frozen features; or, from Python, a torch data
            set of images or (image, label).
        root: Folder of the data. `imagenet10`, `imagenet_dogs`: `<class id>/*.JPEG`, or `train/<class id>` and
            `test/<class id>`. `folder`: images at any depth, or `train` and `test`; the folders right below are classes
            if their number is that of the clusters. `features`: a `.npz` or `.pt` file with `features` (n, d) and, if
            known, `labels` (n,), or a folder with `train` and `test` of either kind.
        protocol: `whole` or `split`.
        num_rows: Use only so many of the rows, the first ones; None: all.
        num_classes: Number of clusters, where the data does not tell.
        unlabeled_batch_size: Samples per step and device.
        eval_batch_size: Samples per step of test and prediction.
        steps_per_epoch: Steps per epoch; None: one pass over the rows.
        flip: Mirror left-right with probability 1/2; None: where the data set allows it (folders do).
        shift: Largest shift in pixels; None: the data set's custom (2; 1 for digits and USPS; an eighth for folders).
        noise: Standard deviation of the noise in the weak view, in units of normalised pixels; None: the data set's
            custom (CIFAR 0.15, others 0). Features, which are standardised: None is 0.1.
        strong: The strong view: `randaugment` (and Cutout), or `affine`, for figures on a dark ground; None: affine for
            grey images, RandAugment for others. Features have noise.
        strong_noise: Standard deviation of the noise in the strong view of features.
        mean: Mean per channel, or one for all, on the scale [0, 1].
        std: Standard deviation likewise.
        image_size: For image files: resized on the shorter side and cut to this square; None: 96 for `imagenet10` and
            `imagenet_dogs`; all have one size for `folder`.
        in_memory: Hold all image files in memory; None: if they take at most 4 GiB.
        on_bad_image: For image files, what to do about one that cannot be read: `error` stops and names it, `skip`
            leaves it out, counts and lists it.
        num_workers: Worker processes per loader, for images that are not held in memory; None: one for each core that
            this process may use, at most four.
        predict_on: Samples that `predict` reads: `unlabeled`, the clustered ones, `test`, or the path of new ones: a
            folder of images, at any depth, or a file of features.
        download: Fetch a registered data set that is missing.
        test: A torch data set of test images beside `dataset` (from Python).

    Raises:
        FileNotFoundError: If the data is missing; the message tells where it was expected.
        ValueError: If an option contradicts the data; the message names it.
    """

    missing_messages: ClassVar[dict[str, str]] = ViewDataModule.missing_messages | {
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
        eval_batch_size: int = 500,
        steps_per_epoch: int | None = None,
        flip: bool | None = None,
        shift: int | None = None,
        noise: float | None = None,
        strong: Literal["randaugment", "affine"] | None = None,
        strong_noise: float = 0.5,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
        image_size: int | None = None,
        in_memory: bool | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
        num_workers: int | None = None,
        predict_on: str = "unlabeled",
        download: bool = False,
        test: Dataset[Any] | None = None,
    ) -> None:
        super().__init__(1, unlabeled_batch_size, eval_batch_size, steps_per_epoch, predict_on, num_workers)
        if protocol not in ("whole", "split"):
            raise SuperCMError(f"protocol={protocol!r}: choose whole or split.")
        if strong not in (None, "randaugment", "affine"):
            raise SuperCMError(f"strong={strong!r}: choose randaugment or affine.")
        if num_rows is not None and num_rows < 1:
            raise SuperCMError(f"num_rows={num_rows}: must be at least 1.")
        if test is not None and isinstance(dataset, str):
            raise SuperCMError(f"test goes with a torch data set; dataset={dataset!r} brings its own.")
        check_bad_image_policy(on_bad_image)
        self.dataset = dataset
        self.root = Path(root).expanduser()
        self.protocol = protocol
        self.num_rows = num_rows
        self.strong_noise = strong_noise
        self.image_size = image_size
        self.in_memory = in_memory
        self.on_bad_image = on_bad_image
        self.download = download
        self._test = test
        found, customs = self._look(num_classes)
        asked = found or num_classes
        if asked is None:
            raise SuperCMError("num_classes: the data has no labels, so give the number of clusters.")
        if num_classes not in (None, asked):
            raise SuperCMError(f"num_classes={num_classes}: the data has {found} classes; leave it out.")
        if asked < 2:
            raise SuperCMError(f"num_classes={asked}: there must be at least two clusters.")
        self.num_classes = asked
        self.flip = customs[0] if flip is None else flip
        self.shift = customs[1] if shift is None else shift
        self.noise = customs[2] if noise is None else noise
        self.strong = strong or ("affine" if self.input_shape[0] == 1 else "randaugment")
        if self.of_images:
            check_weak_options(self.input_shape, self.shift, self.noise, mean, std)
        if min(self.noise, strong_noise) < 0:
            raise SuperCMError(f"noise={noise}, strong_noise={strong_noise}: must not be negative.")
        self.normalization = Normalization(tuple(mean), tuple(std))
        if self.of_images:
            self.preprocessing = asdict(self.normalization)

    @property
    def of_images(self) -> bool:
        """Whether the rows are images, not features."""
        return len(self.input_shape) == 3

    def _look(self, num_classes: int | None) -> tuple[int | None, tuple[bool, int, float]]:
        """Learns shape and classes; gives the number of classes, if known, and customs of flip, shift and noise."""
        name = self.dataset
        if not isinstance(name, str):
            store = _store(name)
            self._stores: dict[str, Store] = {"train": store}
            self.input_shape = tuple(store[0].shape)
            if self._test is not None:
                self._stores["test"] = _store(self._test)
            return (int(store.labels.max()) + 1) or None, (False, 0, 0.0)
        if name == "features":
            files = {"train": self.root}
            if self.root.is_dir():
                files = {part: path for part in ("train", "test") for path in self.root.glob(f"{part}.*")}
                if "train" not in files:
                    raise FileNotFoundError(f"dataset=features: there is no train.npz or train.pt in root={self.root}.")
            read = {part: read_features(part, path, "if known") for part, path in files.items()}
            self._stores = {part: store for part, (store, _) in read.items()}
            train, _ = read["train"]
            self.input_shape = tuple(train.data.shape[1:])
            return (int(train.labels.max()) + 1) or None, (False, 0, 0.1)
        if name in DATASETS:
            spec = DATASETS[name]
            self.input_shape = spec.input_shape
            return spec.num_classes, (spec.flip, spec.shift, spec.noise)
        if name != "folder" and name not in IMAGENET_SUBSETS:
            raise SuperCMError(
                f"dataset={name!r}: choose one of {', '.join((*DATASETS, *IMAGENET_SUBSETS))}, folder, features."
            )
        self._files, classes = scan_clusters(self.root, IMAGENET_SUBSETS.get(name), num_classes)
        if name in IMAGENET_SUBSETS and self.image_size is None:
            self.image_size = 96
        # A set with colours may well begin with a grey image.
        shapes = sampled_shapes([file for file, _ in self._files["train"]], self.image_size, self.on_bad_image)
        self.input_shape = (max(channels for channels, _, _ in shapes), *shapes[0][1:])
        return len(classes) if classes else None, (True, self.input_shape[-1] // 8, 0.0)

    # ------------------------------------------------------------------------------------------------- reading
    def prepare_data(self) -> None:
        """Downloads a registered data set, in one process, if asked to."""
        if self.download and isinstance(self.dataset, str) and self.dataset in DATASETS:
            spec = DATASETS[self.dataset]
            for part in ("train", *(() if spec.num_test else ("test",))):
                spec.store(self.dataset, self.root, part, download=True)

    def read(self) -> dict[str, Samples]:
        """Reads the rows; the clustered ones show no label."""
        stores = self._read_stores()
        train = stores["train"]
        index = torch.arange(len(train))[: self.num_rows]
        if self.protocol == "whole":
            rows = {"unlabeled": Samples(train, index, hide_labels=True)}
            tested, candidates = train, index
        elif "test" in stores:
            rows = {"unlabeled": Samples(train, index, hide_labels=True)}
            tested, candidates = stores["test"], torch.arange(len(stores["test"]))
        elif isinstance(self.dataset, str) and self.dataset in DATASETS:
            # The same test images for every seed, drawn without a look at labels.
            order = index[torch.randperm(len(index), generator=generator(0, "test split"))]
            held_out = DATASETS[self.dataset].num_test
            rows = {"unlabeled": Samples(train, order[held_out:].sort().values, hide_labels=True)}
            tested, candidates = train, order[:held_out].sort().values
        else:
            raise SuperCMError("protocol='split': the data has no test set. Give one, or choose whole.")
        candidates = candidates[tested.labels[candidates] >= 0]
        check_label_range(tested.labels[candidates], self.num_classes, "test set")
        if len(candidates):
            rows["test"] = Samples(tested, candidates)
        elif self.protocol == "split":
            rows["test"] = Samples(tested, torch.arange(len(tested)), hide_labels=True)
        return rows

    def _read_stores(self) -> dict[str, Store]:
        """Stores of `train` and `test`; for the protocol `whole` one of all rows, as `train`."""
        whole = self.protocol == "whole"
        if isinstance(self.dataset, str) and self.dataset in DATASETS:
            spec = DATASETS[self.dataset]
            parts = ("train",) if spec.num_test else ("train", "test")
            arrays = {part: spec.store(self.dataset, self.root, part, download=False) for part in parts}
            return {"train": joined(list(arrays.values()))} if whole else dict(arrays)
        if isinstance(self.dataset, str) and self.dataset != "features":
            files = {"train": [file for part in self._files.values() for file in part]} if whole else self._files
            size, memory = self.image_size, self.in_memory
            return dict(file_stores(files, self.input_shape, size, memory, on_bad_image=self.on_bad_image))
        if isinstance(self.dataset, str):
            features = [cast(ArrayStore, store) for store in self._stores.values()]
            std, mean = torch.std_mean(
                torch.cat([store.data for store in features] if whole else [features[0].data]), 0
            )
            std = torch.where(std > 0, std, 1.0)
            self.preprocessing = {"mean": mean.tolist(), "std": std.tolist()}
            for store in features:
                store.data = (store.data - mean) / std
            return {"train": joined(features)} if whole else self._stores
        if whole and "test" in self._stores:
            labels = torch.cat([store.labels for store in self._stores.values()])
            return {"train": DatasetStore(ConcatDataset([self.dataset, cast(Dataset[Any], self._test)]), labels)}
        return self._stores

    def read_new(self, path: Path) -> Store:
        """Reads the images of a folder, or a file of features."""
        if not isinstance(self.dataset, str):
            return super().read_new(path)
        if self.dataset != "features":
            return new_images(path, self.input_shape, self.in_memory, self.on_bad_image)
        self._read_sets()  # which finds their mean and deviation
        return new_features(path, self.input_shape, self.preprocessing)

    # -------------------------------------------------------------------------------------------- augmentation
    def normalize(self, rows: Tensor) -> Tensor:
        """Normalised rows without augmentation."""
        return self.normalization(rows)

    def configure_augmentations(self) -> dict[str, Any]:
        """The weak view: flip, shift and noise; the strong one: `strong`, for features more noise."""
        weak = WeakAugmentation(self.normalization, self.flip, self.shift, self.noise)
        strong: Any
        if not self.of_images:
            strong = WeakAugmentation(self.normalization, noise=self.strong_noise)
        elif self.strong == "affine":
            strong = AffineAugmentation(self.normalization)
        else:
            strong = StrongAugmentation(self.normalization, self.flip, self.shift)
        return {"weak": weak, "strong": strong}


def _store(dataset: Dataset[Any]) -> DatasetStore:
    item = dataset[0]
    has_labels = isinstance(item, tuple | list) and len(item) > 1
    return DatasetStore(dataset, None if has_labels else torch.full((len(cast(Sized, dataset)),), -1))


def read_clusters(path: Path, num_rows: int, num_clusters: int) -> Tensor:
    """Reads a clustering, one number per row.

    Args:
        path: A `.npy` file, or a table as `PredictionWriter` writes it.
        num_rows: Number of rows that it must have.
        num_clusters: Number of clusters that it may have.

    Returns:
        Cluster of each row, (num_rows,) int64 in [0, num_clusters), -1 for none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its numbers do not fit.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file. Expected .npy, or a table written by predict.")
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as table:
                known = torch.tensor([int(row["class"]) for row in csv.DictReader(table)], dtype=torch.int64)
        else:
            numbers = np.load(path, allow_pickle=False)
            if numbers.dtype.kind not in "iu":
                raise SuperCMError(f"numbers of type {numbers.dtype}")
            known = torch.from_numpy(numbers).long()
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise SuperCMError(
            f"{path}: not a clustering ({error}). Expected .npy of whole numbers, or a table written by predict, with "
            "a column `class`."
        ) from error
    if tuple(known.shape) != (num_rows,):
        raise SuperCMError(f"{path}: clusters of shape {tuple(known.shape)}; expected one for each of {num_rows} rows.")
    if int(known.min()) < -1 or int(known.max()) >= num_clusters:
        raise SuperCMError(
            f"{path}: clusters from {int(known.min())} to {int(known.max())}; expected 0 to {num_clusters - 1}, or -1."
        )
    return known
