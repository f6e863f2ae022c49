"""Options and preprocessing as a checkpoint stores them, and a file as an input of a model by these alone."""

from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.parsing import collect_init_args
from PIL import Image
from torch import Tensor, nn

from supercm_lightning.data.sources.images import pixels_of, read_image
from supercm_lightning.data.transforms.crops import CenterCrop
from supercm_lightning.data.transforms.weak import Normalization
from supercm_lightning.data.transforms.zca import ZCA, global_contrast_normalize
from supercm_lightning.utils.options import SuperCMError


class Preparation(nn.Module):
    """What a data module does to samples before a model receives them.

    Args:
        state: State of the data module in a checkpoint: `class_names`, `preprocessing` and `measured`.
        input_shape: Shape of one input of the model.

    Attributes:
        state: The state.
        class_names: Names of the classes, or None.
        stored_shape: Shape (C, H, W) to which image files are brought; None: the data had no files.
        extractor: `backbone`, `weights` (a hash) and `image_size` of the network that gave features, those that are
            known.
        kind: What `forward` takes: `pixels` (bytes), `features` as they are in their file, or `inputs` of the model.

    Examples:
        >>> state = {"preprocessing": {"stored_shape": [1, 8, 8], "keep_aspect": True, "mean": [0.5], "std": [0.5]}}
        >>> prepare = Preparation(state, (1, 8, 8))
        >>> prepare(prepare.read(Image.new("RGB", (30, 20), "white"))[None]).mean()
        tensor(1.)
    """

    def __init__(self, state: Mapping[str, Any], input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.state = state
        known: Mapping[str, Any] = state.get("preprocessing") or {}
        measured = dict(state.get("measured") or {})
        names = state.get("class_names")
        self.class_names: tuple[str, ...] | None = tuple(names) if names else None
        self.input_shape, self.preprocessing = tuple(input_shape), dict(known)
        self.stored_shape = tuple(known["stored_shape"]) if "stored_shape" in known else None
        self.extractor: Mapping[str, str] = known.get("extractor") or {}
        self.whitening = ZCA(**measured) if known.get("whitening") and measured else None
        self.features: Tensor | None = measured.get("features")
        self.kind = "features" if len(self.input_shape) == 1 else "inputs"
        if self.stored_shape is not None and (self.whitening is not None or "mean" in known):
            self.kind = "pixels"
            self.normalization = Normalization(*(tuple(known.get(name, (0.5,))) for name in ("mean", "std")))

    def read(self, image: str | Path | Image.Image | np.ndarray) -> Tensor:
        """Pixels (C, H, W) in bytes of a file, of an image of Pillow, or of an array (H, W[, C]) in bytes."""
        if self.stored_shape is None or self.kind != "pixels":
            raise SuperCMError(f"{image}: the checkpoint does not say how images were read{self._origin()}.")
        channels, height, width = self.stored_shape
        side = height if height == width else None
        aspect = bool(self.preprocessing.get("keep_aspect", True))
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim not in (2, 3):
                raise SuperCMError(f"images: an array {image.shape} of {image.dtype}; give bytes (H, W) or (H, W, C).")
            image = Image.fromarray(image.squeeze())
        if isinstance(image, Image.Image):
            pixels = pixels_of(image.copy(), channels, side, aspect)
        else:
            pixels = read_image(image, channels, side, aspect)
        if tuple(pixels.shape) != self.stored_shape:
            raise SuperCMError(f"{image}: {tuple(pixels.shape)} pixels, where the model reads {self.stored_shape}.")
        return pixels

    def _origin(self) -> str:
        if self.kind != "features":
            return ": it was trained on a data set of Python. Give its inputs to the model itself"
        if "backbone" not in self.extractor:
            return ": the model reads features of an unknown network. Predict a file of features"
        named = ", ".join(f"{name} {value}" for name, value in self.extractor.items())
        return (
            f": the model reads features of a network ({named}). Give its file of weights as `weights`, or write the "
            "features with supercm-features and predict their file"
        )

    def forward(self, samples: Tensor) -> Tensor:
        """Inputs of the model (n, *input_shape) of samples of the kind that `kind` says."""
        if self.kind == "features" and self.features is not None:
            return (samples.float() - self.features[0]) / self.features[1]
        if self.kind != "pixels":
            return samples
        if self.whitening is not None:
            return self.whitening(global_contrast_normalize(samples))
        return self.normalization(CenterCrop((self.input_shape[1], self.input_shape[2]))(samples))


OPTIONS = ("image_size", "mean", "std", "whitening", "standardize")
"""Options of data modules by which samples are prepared; the command line takes them from a checkpoint."""


def check_preparation(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Compares the preparation of a checkpoint with that of the data; the error has both."""
    measured = {"mean", "std"} if "standardize" in {**saved, **own} else set()
    both = saved.keys() & own.keys()  # how files are read says nothing about samples of another kind
    for name in sorted(({*OPTIONS} & (saved.keys() | own.keys()) | both) - measured):
        if _spread(saved.get(name)) != _spread(own.get(name)):
            shown = [s if len(s := str(at.get(name))) < 60 else f"{s[:50]} …" for at in (own, saved)]
            raise SuperCMError(
                f"ckpt_path: the samples are prepared with {name}={shown[0]}, those of the checkpoint with "
                f"{name}={shown[1]}. Give the data the options of the training."
            )


def _spread(value: Any) -> Any:
    """One value for all channels where all have the same."""
    if not isinstance(value, list | tuple):
        return value
    values = [round(one, 6) if isinstance(one, float) else one for one in value]
    return values[:1] if len(set(values)) == 1 else values


_PLAIN = (bool, int, float, str, Path, type(None))


def save_options(module: LightningDataModule, frame: FrameType | None) -> None:
    """Keeps the plain arguments of the constructors of a module and its bases in `hparams`.

    Torch data sets, arrays and tensors are left out; paths become strings, which checkpoints load safely. `frame` is
    that of the base's constructor, which the constructors of its subclasses have called.
    """
    assert frame is not None
    given: dict[str, Any] = {}
    for arguments in collect_init_args(frame, [], classes=(LightningDataModule,)):
        given |= arguments
    ignored = [name for name, value in given.items() if not _is_plain(value)]
    # Not to the logger: a model's option of the same name would clash with it there.
    module.save_hyperparameters(ignore=ignored, frame=frame, logger=False)
    for name, value in module.hparams.items():
        module.hparams[name] = _without_paths(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, _PLAIN)


def _without_paths(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_without_paths, value))
    return str(value) if isinstance(value, Path) else value
