"""What the data modules of images share: how images are read, normalized and augmented."""

from dataclasses import asdict
from typing import Any, Literal

from supercm_lightning.data.modules.base import ViewDataModule
from supercm_lightning.data.sources.base import Source
from supercm_lightning.data.sources.files import Reading
from supercm_lightning.data.transforms.strong import StrongAugmentation
from supercm_lightning.data.transforms.weak import Normalization, WeakAugmentation, check_weak_options


class ImageDataModule(ViewDataModule):
    """Base of the data modules of images, with the options of reading, normalization and augmentation.

    Args:
        flip: Mirror left-right with probability 1/2; None: where the data set allows it (photographs and folders do).
        shift: Largest shift in pixels; None: the data set's default (2; 1 for digits and USPS; an eighth for folders; 0
            for photographs of several domains).
        noise: Standard deviation of the noise in weak views, in units of normalized values; None: CIFAR 0.15 (but for
            several domains), other images 0.
        mean: Mean per channel, or one for all, on the scale [0, 1].
        std: Standard deviation likewise.
        image_size: For image files: resized on the shorter side and cut to this square; None: all have one size, or 96
            for ImageNet. Of several domains, the side of what the model receives; None: 224 for photographs, for digits
            the largest of the domains' but at least 28, and as they are for torch data sets.
        in_memory: Hold all images in memory; None: if they take at most 4 GiB (a torch data set stays as it is).
        on_bad_image: For an image file that cannot be read: `error` stops and names it, `skip` decodes every file
            before the split, leaves the bad ones out, and counts and lists them.
        download: Fetch a registered data set that is missing.
        **kwargs: Options of `ViewDataModule`.
    """

    def __init__(
        self,
        flip: bool | None = None,
        shift: int | None = None,
        noise: float | None = None,
        mean: tuple[float, ...] | None = (0.5,),
        std: tuple[float, ...] | None = (0.5,),
        image_size: int | None = None,
        in_memory: bool | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
        download: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.reading = Reading(image_size, in_memory, on_bad_image)

    def _choose_views(self, source: Source) -> None:
        """Takes the user's options of the views, and those of the source where the user gave none."""
        given, defaults = self.hparams, asdict(source.defaults)
        chosen = {name: value if given.get(name) is None else given[name] for name, value in defaults.items()}
        self.flip, self.shift, self.noise = chosen["flip"], chosen["shift"], chosen["noise"]
        mean, std = tuple(chosen["mean"]), tuple(chosen["std"])
        check_weak_options(self.input_shape, self.shift, self.noise, mean, std)
        self.normalization = Normalization(mean, std)
        self.preprocessing = asdict(self.normalization)

    def configure_augmentations(self) -> dict[str, Any]:
        """The weak view: flip, shift and noise; the strong view: flip, shift, RandAugment and Cutout."""
        return {
            "weak": WeakAugmentation(self.normalization, self.flip, self.shift, self.noise),
            "strong": StrongAugmentation(self.normalization, self.flip, self.shift),
        }
