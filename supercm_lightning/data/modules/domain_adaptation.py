"""A labelled source domain, or several, and an unlabelled target domain."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from supercm_lightning.data.modules.base import ViewDataModule
from supercm_lightning.data.sources.domain_files import folder_set
from supercm_lightning.data.sources.domain_readers import DatasetReader, DigitReader, DomainReader, FileReader
from supercm_lightning.data.sources.domains import DIGITS, DOMAIN_SETS
from supercm_lightning.data.sources.folder import new_images
from supercm_lightning.data.sources.images import BadImage, check_bad_image_policy
from supercm_lightning.data.sources.stores import Samples, Store
from supercm_lightning.data.splits import check_label_range, count_rows, domain_strata, make_split
from supercm_lightning.data.transforms.crops import CenterCrop, Crop, RandomCrop, RandomResizedCrop
from supercm_lightning.data.transforms.strong import StrongAugmentation
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation, check_weak_options
from supercm_lightning.utils.options import SuperCMError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class AugmentOptions(TypedDict, total=False):
    """Options of the augmentation that may differ between source and target."""

    crop: Literal["resized", "random", "center"]
    crop_scale: tuple[float, float]
    flip: bool
    shift: int
    noise: float


class DomainAdaptationDataModule(ViewDataModule):
    """Labelled images of a source domain and unlabelled images of a target domain.

    The source takes the part of the labelled rows, the target that of the unlabelled ones. A share of the source is
    held out for validation. Target labels serve the test alone: all images of the target are both trained on, without
    labels, and tested on, except where the target has a test set of its own (digits).

    Validation reads two loaders: the source validation rows, and the target training rows, whose labels are -1 there;
    scores that choose a model without target labels are computed from both. Testing reads the target test rows and the
    source validation rows.

    Args:
        source: The source domain by name, short code or alias (`amazon`, `A`, `Real World`, `Rw`), a list of several,
            or, from Python, a torch data set of (image, label).
        target: The target domain likewise, or a torch data set of images, whose labels, if any, are not read.
        dataset: `digits` (MNIST, USPS, SVHN), `office31`, `office_home`, `office_caltech10`, `imageclef`, `visda2017`,
            `pacs`; `folder` for a folder of domains; None for torch data sets.
        root: Folder that holds the data set's folder, or is it; for `folder` the folder of the domains. Each domain is
            `<domain>/<class>/…`, `<domain>/images/<class>/…`, or `image_list/<domain>.txt` with lines of a path and a
            label; a target without labels is `<domain>/…`.
        source_batch_size: Source images per step and device.
        target_batch_size: Target images per step and device.
        eval_batch_size: Images per step of validation, test and prediction.
        steps_per_epoch: Steps per epoch; None: one pass over the target.
        num_val: Number of source images held out for validation, or their share of the source below 1.
        split_seed: Seed of that draw, apart from the run's own seed.
        image_size: Side of the square images that the model receives; None: 224 for photographs, the largest of the
            domains' sizes for digits, but at least 28, and as they are for torch data sets.
        crop: Cut of the training images: `resized`, a box of random area and aspect ratio; `random`, a box of the final
            size at a random place; `center`. Photographs are stored at 8/7 of `image_size` (256 for 224), both sides
            resized, and evaluated on the central box. None: `resized` for photographs, else `center`.
        crop_scale: Range of the area of a `resized` box as a share of the image's.
        flip: Mirror left-right with probability 1/2; None: for photographs.
        shift: Largest shift in pixels; None: 2 for digits, else 0.
        noise: Standard deviation of the noise added to normalised pixels.
        target_augment: Those of `crop`, `crop_scale`, `flip`, `shift` and `noise` that differ for the target.
        mean: Mean per channel, or one for all, on the scale [0, 1]; None: ImageNet's for photographs, else 0.5.
        std: Standard deviation likewise.
        in_memory: Hold all images in memory; None: if they take at most 4 GiB (a torch data set stays as it is).
        on_bad_image: What to do about a file that cannot be read as an image: `error` stops and names it, `skip` leaves
            it out, counts and lists it.
        num_workers: Worker processes per loader, for images that are not held in memory; None: one for each core that
            this process may use, at most four.
        predict_on: Images that `predict` reads: `unlabeled` (the target's training images), `test`, `val`, `labeled`,
            or the path of a folder of new images, at any depth, which are prepared as those of the target.
        oracle_labels: Give validation the labels of the target training rows, for scores that stand under `oracle/`;
            training never sees them.
        download: Fetch digits that are missing.
        val: A torch data set of source validation images (from Python).
        test: A torch data set of target test images with labels (from Python).
        num_classes: For torch data sets: the number of classes; None: that of the source's `classes`, else its largest
            label + 1.

    Raises:
        FileNotFoundError: If the data is missing; the message tells the layout and where to get it.
        ValueError: If source and target are the same or have different classes, or an option is out of its range.
    """

    is_domain_adaptation = True
    labeled_view = "source"
    missing_messages: ClassVar[dict[str, str]] = {
        "labeled": "The source is empty.",
        "unlabeled": "The target is empty.",
        "val": "There are no source validation rows: set num_val.",
        "test": "The target has no labels, so that there is nothing to test. Use predict.",
    }

    def __init__(
        self,
        source: str | list[str] | Dataset[Any],
        target: str | Dataset[Any],
        dataset: str | None = None,
        root: str | Path = "data",
        source_batch_size: int = 32,
        target_batch_size: int = 32,
        eval_batch_size: int = 200,
        steps_per_epoch: int | None = None,
        num_val: int | float = 0.1,
        split_seed: int = 0,
        image_size: int | None = None,
        crop: Literal["resized", "random", "center"] | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip: bool | None = None,
        shift: int | None = None,
        noise: float = 0.0,
        target_augment: AugmentOptions | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        in_memory: bool | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
        num_workers: int | None = None,
        predict_on: str = "unlabeled",
        oracle_labels: bool = False,
        download: bool = False,
        val: Dataset[Any] | None = None,
        test: Dataset[Any] | None = None,
        num_classes: int | None = None,
    ) -> None:
        for name, size in (("source_batch_size", source_batch_size), ("target_batch_size", target_batch_size)):
            if size < 1:
                raise SuperCMError(f"{name}={size}: must be at least 1.")
        super().__init__(
            source_batch_size, target_batch_size, eval_batch_size, steps_per_epoch, predict_on, num_workers
        )
        if image_size is not None and image_size < 1:
            raise SuperCMError(f"image_size={image_size}: must be at least 1.")
        self.num_val = num_val
        self.split_seed = split_seed
        self.oracle_labels = oracle_labels
        self.download = download
        self.in_memory = in_memory
        self.on_bad_image = on_bad_image
        self.reader: DomainReader
        if dataset is None:
            sources = source if isinstance(source, list | tuple) else [source]
            if any(isinstance(data, str) for data in (*sources, target)):
                raise SuperCMError(f"dataset: name the data set of the domains, one of {', '.join(_known())}.")
            if any(data is target for data in sources):
                raise SuperCMError("source and target are the same data set.")
            self.reader = DatasetReader(sources, target, val, test, num_classes, image_size, in_memory)  # type: ignore[arg-type]
        else:
            if val is not None or test is not None:
                raise SuperCMError(f"val and test go with torch data sets; dataset={dataset!r} brings its own.")
            check_bad_image_policy(on_bad_image)
            self.reader = _reader(dataset, Path(root).expanduser(), source, target, image_size, in_memory, on_bad_image)
        if download and not isinstance(self.reader, DigitReader):
            raise SuperCMError("download: only digits can be fetched. docs/data.md says where to get the other sets.")
        self.num_classes, self.class_names = self.reader.num_classes, self.reader.class_names
        self.input_shape = self.reader.input_shape
        if self.num_classes < 2:
            raise SuperCMError(f"dataset: {self.num_classes} class, where at least two are needed.")

        photographs = self.reader.photographs
        mean = mean or (IMAGENET_MEAN if photographs else (0.5,))
        std = std or (IMAGENET_STD if photographs else (0.5,))
        self.source_augment: AugmentOptions = {
            "crop": crop or ("resized" if photographs else "center"),
            "crop_scale": crop_scale,
            "flip": photographs if flip is None else flip,
            "shift": self.reader.shift if shift is None else shift,
            "noise": noise,
        }
        self.target_augment = self.source_augment | (target_augment or {})
        for options in (self.source_augment, self.target_augment):
            check_weak_options(self.input_shape, options["shift"], options["noise"], mean, std)
            self._check_crop(options)
        self.normalization = Normalization(tuple(mean), tuple(std))
        self.preprocessing = asdict(self.normalization)

    # ------------------------------------------------------------------------------------------------- reading
    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a stored image."""
        return self.reader.sample_shape

    def prepare_data(self) -> None:
        """Downloads digits, in one process, if asked to."""
        if self.download and isinstance(self.reader, DigitReader):
            self.reader.download()

    def read(self) -> dict[str, Samples]:
        """Reads the images and holds out validation rows of the source."""
        stores = self.reader.read()
        source, target = stores.source, stores.target
        check_label_range(source.labels, self.num_classes, "source")
        num_val = count_rows("val", self.num_val, len(source)) if stores.val is None else 0
        domain = torch.arange(len(stores.sizes)).repeat_interleave(torch.tensor(stores.sizes))
        strata = domain_strata(source.labels, domain, self.num_classes)
        split = make_split(strata, "source", None, num_val, 0, self.split_seed).rows(labeled_in_unlabeled=False)
        labelled = (target.labels >= 0).nonzero().flatten()
        return {
            "labeled": Samples(source, split["labeled"]),
            "unlabeled": Samples.all_of(target, hide_labels=not self.oracle_labels),
            "val": Samples(source, split["val"]) if stores.val is None else Samples.all_of(stores.val),
            "test": Samples(target, labelled) if stores.test is None else Samples.all_of(stores.test),
        }

    def read_new(self, path: Path) -> Store:
        """Reads the images of a folder."""
        if isinstance(self.reader, DatasetReader):
            return super().read_new(path)
        keep_aspect = not self.reader.photographs  # as the readers do
        return new_images(path, self.sample_shape, self.in_memory, self.on_bad_image, keep_aspect)

    # -------------------------------------------------------------------------------------------- augmentation
    def _check_crop(self, options: AugmentOptions) -> None:
        if strange := set(options) - set(AugmentOptions.__annotations__):
            raise SuperCMError(
                f"target_augment: {min(strange)!r} is none of its options {', '.join(AugmentOptions.__annotations__)}."
            )
        if options["crop"] not in _CROPS:
            raise SuperCMError(f"crop={options['crop']!r}: choose one of {', '.join(_CROPS)}.")
        low, high = options["crop_scale"]
        if not 0 < low <= high <= 1:
            raise SuperCMError(f"crop_scale={options['crop_scale']}: give two ascending numbers above 0 and up to 1.")
        if any(size > stored for size, stored in zip(self.input_shape, self.sample_shape, strict=True)):
            raise SuperCMError(f"image_size={self.input_shape[1]}: larger than the images, {self.sample_shape[1:]}.")

    def _crop(self, options: AugmentOptions) -> Crop | None:
        if self.sample_shape == self.input_shape and options["crop"] != "resized":
            return None
        return _CROPS[options["crop"]](self._size, options["crop_scale"])

    @property
    def _size(self) -> tuple[int, int]:
        return self.input_shape[1], self.input_shape[2]

    def normalize(self, rows: Tensor) -> Tensor:
        """Normalised images without augmentation: the central box."""
        return self.normalization(CenterCrop(self._size)(rows))

    def configure_augmentations(self) -> dict[str, Any]:
        """The view of the source, and the weak and the strong view of the target."""

        def weak(options: AugmentOptions) -> WeakAugmentation:
            drawn = options["flip"], options["shift"], options["noise"]
            return WeakAugmentation(self.normalization, *drawn, self._crop(options))

        target = self.target_augment
        strong = StrongAugmentation(self.normalization, target["flip"], target["shift"], crop=self._crop(target))
        return {"source": weak(self.source_augment), "weak": weak(target), "strong": strong}


_CROPS: Mapping[str, Callable[[tuple[int, int], tuple[float, float]], Crop]] = {
    "resized": RandomResizedCrop,
    "random": lambda size, _: RandomCrop(size),
    "center": lambda size, _: CenterCrop(size),
}


def _known() -> tuple[str, ...]:
    return "digits", *DOMAIN_SETS, "folder"


def _reader(
    dataset: str,
    root: Path,
    source: Any,
    target: Any,
    image_size: int | None,
    in_memory: bool | None,
    on_bad_image: BadImage,
) -> DomainReader:
    if dataset not in _known():
        raise SuperCMError(f"dataset={dataset!r}: choose one of {', '.join(_known())}.")
    names = [source] if isinstance(source, str) else source
    if not names or not all(isinstance(name, str) for name in (*names, target)):
        raise SuperCMError(f"dataset={dataset!r}: give source and target by name; torch data sets go without dataset.")
    spec = folder_set(root) if dataset == "folder" else {"digits": DIGITS, **DOMAIN_SETS}[dataset]
    sources, to = [spec.find(dataset, "source", name) for name in names], spec.find(dataset, "target", target)
    if to in sources:
        raise SuperCMError(f"source and target are the same domain, {to.name}.")
    if len(set(sources)) < len(sources):
        raise SuperCMError(f"source={names}: a domain stands there twice.")
    if dataset == "digits":
        return DigitReader(root, sources, to, image_size)
    return FileReader(dataset, spec, root, sources, to, image_size or 224, in_memory, on_bad_image)
