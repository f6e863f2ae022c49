"""A labeled source domain, or several, and an unlabeled target domain."""

from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from torch import Tensor
from torch.utils.data import Dataset

from supercm_lightning.data.modules.images import ImageDataModule
from supercm_lightning.data.sources.make import make_domain_source
from supercm_lightning.data.sources.stores import Samples
from supercm_lightning.data.splits import check_label_range
from supercm_lightning.data.transforms.crops import CenterCrop
from supercm_lightning.data.transforms.strong import AugmentOptions, augmentations_of
from supercm_lightning.utils.options import SuperCMError


class DomainAdaptationDataModule(ImageDataModule):
    """Labeled images of a source domain and unlabeled images of a target domain.

    Source samples are used as labeled data, target samples as unlabeled data. Target labels are used by the test only:
    all images of the target are both trained on, without labels, and tested on, except where the target has a test set
    of its own (digits, DomainNet). Validation reads two loaders: the source validation samples, and the target training
    samples, whose labels are -1 there. Testing reads the target test samples and the source validation samples.

    Args:
        source: The source domain by name, short code or alias (`amazon`, `A`, `Real World`, `Rw`), a list of several,
            or, from Python, a torch data set of (image, label).
        target: The target domain likewise, or a torch data set of images, whose labels, if any, are not read.
        dataset: `digits` (MNIST, USPS, SVHN), `office31`, `office_home`, `office_caltech10`, `imageclef`, `visda2017`,
            `pacs`, `domainnet`; `folder` for a folder of domains; None for torch data sets.
        root: Folder that holds the data set's folder, or is it; for `folder` the folder of the domains. Each domain is
            `<domain>/<class>/…`, `<domain>/images/<class>/…`, or `image_list/<domain>.txt` with lines of a path and a
            label; a target without labels is `<domain>/…`.
        source_batch_size: Source images per step and device.
        target_batch_size: Target images per step and device.
        eval_batch_size: Images per step of validation, test and prediction.
        num_val: Number of source images held out for validation, or their fraction of the source below 1.
        split_seed: Seed of that split, independent of the run's seed.
        balanced_batches: Sample every class equally often into the source batches, whatever its number of samples.
        crop: Cut of the training images: `resized`, a box of random area and aspect ratio; or `center`. Photographs are
            stored at 8/7 of `image_size`, both sides resized, and evaluated on the central box. None: `resized` for
            photographs, else `center`.
        crop_scale: Range of the area of a `resized` box as a fraction of the image's.
        target_augment: Those of `crop`, `crop_scale`, `flip`, `shift` and `noise` that differ for the target.
        mean: Mean per channel, or one for all, on the scale [0, 1]; None: ImageNet's for photographs, else 0.5.
        std: Standard deviation likewise.
        predict_on: Images that `predict` reads: `unlabeled` (the target's training images), `test`, `val`, `labeled`,
            or a folder of new images, which are prepared as those of the target.
        oracle_labels: Give validation the labels of the target, for scores under `oracle/`; training never sees them.
        val: A torch data set of source validation images (from Python).
        test: A torch data set of target test images with labels (from Python).
        num_classes: For torch data sets: the number of classes; None: that of `classes`, else the largest label + 1.
        **kwargs: Options of `ImageDataModule` and `ViewDataModule`.

    Raises:
        MissingFileError: If the data is missing; the message tells the layout and where to get it.
        SuperCMError: If source and target are the same or have different classes, or an option is out of its range.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> photos, sketches = (TensorDataset(torch.rand(30, 3, 8, 8), torch.arange(30) % 3) for _ in range(2))
        >>> data = DomainAdaptationDataModule(photos, sketches, num_workers=0)
        >>> data.setup("fit")
        >>> {split: len(samples) for split, samples in data.samples.items()}
        {'labeled': 27, 'unlabeled': 30, 'val': 3, 'test': 0}
    """

    is_domain_adaptation = True
    labeled_view = "source"
    missing_messages: ClassVar[dict[str, str]] = {
        "labeled": "The source is empty.",
        "unlabeled": "The target is empty.",
        "val": "There are no source validation samples: set num_val.",
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
        num_val: int | float = 0.1,
        split_seed: int = 0,
        balanced_batches: bool = False,
        crop: Literal["resized", "center"] | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        target_augment: AugmentOptions | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        predict_on: str = "unlabeled",
        oracle_labels: bool = False,
        val: Dataset[Any] | None = None,
        test: Dataset[Any] | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(mean=mean, std=std, eval_batch_size=eval_batch_size, predict_on=predict_on, **kwargs)
        self.labeled_batch_size, self.unlabeled_batch_size = source_batch_size, target_batch_size
        others = {"val": val, "test": test}
        domains = make_domain_source(dataset, root, source, target, self.reading, others, num_classes)
        self._use(domains)
        if self.hparams.download and not domains.can_download:
            raise SuperCMError("download: only digits can be fetched. docs/data.md says where to get the other sets.")
        self._choose_views(domains)
        crop = crop or cast(Any, domains.defaults.crop)
        self.source_augment = AugmentOptions(
            crop=crop, crop_scale=crop_scale, flip=self.flip, shift=self.shift, noise=self.noise
        )
        self.target_augment: AugmentOptions = self.source_augment | (target_augment or {})
        (source_view, _), (weak, strong) = (
            augmentations_of(options, self.normalization, self.input_shape, domains.sample_shape)
            for options in (self.source_augment, self.target_augment)
        )
        self._augmentations = {"source": source_view, "weak": weak, "strong": strong}

    def read(self) -> dict[str, Samples]:
        """Reads the images and holds out validation samples of the source."""
        assert self.source is not None
        stores = self.stores()
        train, target, val, test = stores["train"], stores["unlabeled"], stores.get("val"), stores.get("test")
        check_label_range(train.labels, self.num_classes, "source")
        samples = self.draw_split(train, {"val": self.hparams.num_val} if val is None else {}).samples(train)
        return {
            "labeled": samples["labeled"],
            "unlabeled": Samples.all_of(target, hide_labels=not self.hparams.oracle_labels),
            "val": samples["val"] if val is None else Samples.all_of(val),
            "test": Samples.labeled_of(target) if test is None else Samples.all_of(test),
        }

    def normalize(self, samples: Tensor) -> Tensor:
        """Normalized images without augmentation: the central box."""
        return self.normalization(CenterCrop((self.input_shape[1], self.input_shape[2]))(samples))

    def configure_augmentations(self) -> dict[str, Any]:
        """The view of the source, and the weak and the strong view of the target."""
        return dict(self._augmentations)
