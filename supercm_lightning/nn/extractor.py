"""A trained network that gives features of images, with the preprocessing that its weights were trained with."""

import copy
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from supercm_lightning.contracts import Backbone
from supercm_lightning.nn.backbones import TimmBackbone, build_backbone
from supercm_lightning.nn.weights import load_backbone_weights
from supercm_lightning.utils.options import SuperCMError, check_range


class FrozenExtractor(nn.Module):
    """A backbone in evaluation mode, from images in bytes to features; it resizes, crops and normalizes itself.

    Convolutions and the batch norms behind them are one layer, in channels-last order, where the features stay the
    same.

    Args:
        backbone: Any model of timm, or `small_cnn`, `fast_cnn`, `wrn_28_2`, `wrn_28_8`, `resnet18_32`.
        pretrained: Use timm's weights, fetched unless cached, where there is no checkpoint.
        checkpoint: Local file of weights, or None.
        options: Arguments of the backbone's constructor.
        image_size: Side of the images, or None for the model's own.
        crop_pct: Fraction of the shorter side that the central square shows, in (0, 1]; None: the model's own.

    `weights` is a hash of the weights, `settings` what timm calls `input_size`, `interpolation`, `mean`, `std`,
    `crop_pct` and `crop_mode`, and `resized` the length of the shorter side before the crop.

    Examples:
        >>> extractor = FrozenExtractor("small_cnn", pretrained=False, image_size=16)
        >>> extractor(torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8)).shape
        torch.Size([2, 128])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        pretrained: bool = True,
        checkpoint: Path | None = None,
        options: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        crop_pct: float | None = None,
    ) -> None:
        super().__init__()
        check_range(1, image_size=image_size)
        check_range(0.05, 1, crop_pct=crop_pct)
        size, arguments = _size_and_options(backbone, pretrained and checkpoint is None, image_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # weights that are random are the same in every process and call
            network = build_backbone(backbone, (3, size, size), **(dict(options or {}) | arguments))
        if checkpoint is not None:
            load_backbone_weights(network, checkpoint)
        if isinstance(network, TimmBackbone):
            from timm.data.config import resolve_model_data_config  # timm is slow to import

            self.settings = resolve_model_data_config(network.model) | {"input_size": (3, size, size)}
        else:  # as the data modules do
            self.settings = {"input_size": (3, size, size), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
            self.settings |= {"interpolation": "bilinear", "crop_mode": "center"}
        if crop_pct is not None:
            self.settings["crop_pct"] = crop_pct
        self.num_features = cast(Backbone, network).num_features
        self.weights = _hash(network)
        self.resized = math.floor(size / self.settings["crop_pct"])
        for name in ("mean", "std"):
            values = torch.tensor(self.settings[name]).view(1, 3, 1, 1)
            self.register_buffer(name, values * 255, persistent=False)
        self.network = _fused(network, size)
        self.eval().requires_grad_(False)

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalized floats (n, 3, size, size) of images (n, 3, H, W) in bytes, as timm prepares them."""
        size, (height, width) = self.settings["input_size"][-1], images.shape[2:]
        shape = shorter_side(height, width, self.resized)
        if self.settings["crop_mode"] == "squash":
            shape = (self.resized, self.resized)
        if shape != (height, width):
            mode = "bilinear" if self.settings["interpolation"] == "bilinear" else "bicubic"
            images = images.contiguous(memory_format=torch.channels_last)
            if images.device.type != "cpu":  # which alone resizes bytes
                images = images.float()
            images = F.interpolate(images, shape, mode=mode, antialias=True)
        top, left = (round((side - size) / 2) for side in shape)
        images = images[:, :, top : top + size, left : left + size].float().round_().clamp_(0, 255)
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Features (n, num_features) of images (n, 3, H, W) in bytes."""
        return self.network(self.preprocess(images))


def shorter_side(height: int, width: int, length: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side is brought to a length, as torchvision rounds them."""
    if height < width:
        return length, int(length * width / height)
    return int(length * height / width), length


def _size_and_options(backbone: str, fetch: bool, image_size: int | None) -> tuple[int, dict[str, Any]]:
    """The side of the images, and what timm's constructor is told about weights."""
    import timm  # slow to import

    if ":" in backbone or timm.is_model(backbone):
        config = timm.get_pretrained_cfg(backbone) if ":" not in backbone else None
        return image_size or (config.input_size[-1] if config is not None else 224), {"pretrained": fetch}
    size = image_size or 32
    build_backbone(backbone, (3, size, size))  # an unknown name is an error before what follows
    if fetch:
        raise SuperCMError(
            f"backbone={backbone!r} is not a model of timm and has no published weights. Give checkpoint, a file of "
            "this backbone's weights, or pretrained=false for random ones."
        )
    if image_size is None:
        raise SuperCMError(f"image_size: {backbone!r} has no size of its own; give the size of its training images.")
    return size, {}


def _hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _fused(network: nn.Module, size: int) -> nn.Module:
    """The network with fewer layers, if it gives the same features."""
    network.eval()
    fused = copy.deepcopy(network)
    _fuse(fused)
    fused.to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected, found = network(images), fused(images)
    # Layers are matched by their order, which need not be that of the forward.
    same = (expected - found).abs().max() <= 1e-3 * expected.abs().max()
    return fused if same else network.to(memory_format=torch.channels_last)


def _fuse(module: nn.Module) -> None:
    """Joins each convolution and the batch norm next to it, at any depth."""
    from timm.layers import BatchNormAct2d

    before: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None and before[1].out_channels == child.num_features:
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            rest = (child.drop, child.act) if isinstance(child, BatchNormAct2d) else ()
            setattr(module, name, nn.Sequential(*cast(tuple[nn.Module, ...], rest)))
        elif not isinstance(child, nn.Identity):
            _fuse(child)
        if not isinstance(child, nn.Identity):
            before = (name, child) if isinstance(child, nn.Conv2d) else None
