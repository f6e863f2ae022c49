"""Backbones by name: ours, else timm's."""

import difflib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from supercm_lightning.nn.batch_norm import evaluating
from supercm_lightning.nn.fast_cnn import FastCNN
from supercm_lightning.nn.small import MLP, Identity, ResNet18, SmallCNN
from supercm_lightning.nn.wide_resnet import WideResNet
from supercm_lightning.utils.loggers import logger_level
from supercm_lightning.utils.options import SuperCMError

_FEATURE_BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "mlp": lambda shape, **kwargs: MLP(shape[0], **kwargs),
    "identity": lambda shape, **kwargs: Identity(shape[0], **kwargs),
}
_IMAGE_BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": SmallCNN,
    "fast_cnn": lambda shape, **kwargs: FastCNN(shape[0], **kwargs),
    "wrn_28_2": lambda shape, **kwargs: WideResNet(28, 2, shape[0], **kwargs),
    "wrn_28_8": lambda shape, **kwargs: WideResNet(28, 8, shape[0], **kwargs),
    "resnet18_32": lambda shape, **kwargs: ResNet18(shape[0], **kwargs),
}


class TimmBackbone(nn.Module):
    """A model of timm, with or without a tag of its weights in the name, without its classifier.

    Further arguments are those of `timm.create_model`, such as `pretrained=True`, which downloads the weights. A model
    that does not take images (C, H, W) of this shape or does not reduce them to vectors is an error.
    """

    def __init__(self, name: str, input_shape: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__()
        import timm

        try:
            with logger_level(logging.ERROR, "huggingface_hub"):  # it warns of every retry
                self.model = timm.create_model(name, num_classes=0, in_chans=input_shape[0], **kwargs)
        except OSError as error:
            raise SuperCMError(
                f"timm's {name}: the weights could not be fetched ({str(error).splitlines()[0]}). Without a network "
                "give pretrained=false and a local file of weights as backbone_checkpoint (supercm-features: "
                "checkpoint), or fill the cache: on a machine with a network run "
                f"`timm.create_model({name!r}, pretrained=True)` and copy its ~/.cache/huggingface."
            ) from error
        # timm's own num_features is not the width of the output in every family (MobileNetV3 has a layer behind it).
        try:
            with evaluating(self.model), torch.no_grad():
                output = self.model(torch.zeros(1, *input_shape))
        except (RuntimeError, AssertionError) as error:
            raise SuperCMError(
                f"timm's {name} does not take images of shape {tuple(input_shape)} ({error}); resize them, or give the "
                f"backbone their size if it has such an option (transformers: img_size={input_shape[-1]})."
            ) from error
        if output.ndim != 2:
            raise SuperCMError(f"timm's {name} gives {tuple(output.shape[1:])} per image; pool it to a vector.")
        self.num_features = output.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, num_features) of images (n, C, H, W)."""
        return self.model(x)


def build_backbone(name: str, input_shape: tuple[int, ...], **kwargs: Any) -> nn.Module:
    """Builds a backbone by name: a module from (n, *input_shape) to (n, num_features), which is an attribute.

    Args:
        name: For images `small_cnn`, `fast_cnn`, `wrn_28_2`, `wrn_28_8`, `resnet18_32` or any model of timm; for
            vectors `mlp` or `identity`.
        input_shape: Shape of one input, (C, H, W) for images or (d,) for vectors; one that does not fit is an error.
        **kwargs: Arguments of the backbone's constructor. timm's models are untrained unless `pretrained=True`.
    """
    shape = tuple(input_shape)
    takes_vectors = name in _FEATURE_BACKBONES
    build = _FEATURE_BACKBONES.get(name) or _IMAGE_BACKBONES.get(name) or _timm_constructor(name)
    if len(shape) != (1 if takes_vectors else 3):
        expected, others = (
            ("vectors (d,)", _IMAGE_BACKBONES) if takes_vectors else ("images (C, H, W)", _FEATURE_BACKBONES)
        )
        raise SuperCMError(
            f"backbone {name!r} takes {expected}, but the inputs have shape {shape}; choose one of "
            f"{', '.join(others)}, or give a module of your own."
        )
    try:
        return build(shape, **kwargs)
    except TypeError as error:
        if not kwargs:
            raise
        raise SuperCMError(f"backbone_options={kwargs}: {name} refuses them ({error}).") from error


def _timm_constructor(name: str) -> Callable[..., nn.Module]:
    import timm

    # A prefix such as hf-hub: or local-dir: names a source outside timm's registry.
    if not timm.is_model(name) and ":" not in name:
        ours = [*_IMAGE_BACKBONES, *_FEATURE_BACKBONES]
        close = difflib.get_close_matches(name, ours, 2) + difflib.get_close_matches(name, timm.list_models(), 3)
        raise SuperCMError(
            f"backbone {name!r} is neither one of {', '.join(ours)} nor a model of timm."
            + (f" Did you mean {', '.join(close)}?" if close else "")
        )
    return lambda shape, **kwargs: TimmBackbone(name, shape, **kwargs)
