"""Backbones: their size, their architecture restated, and building by name."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from supercm_lightning.nn import SmallCNN, WideResNet, build_backbone, evaluating
from supercm_lightning.utils.options import SuperCMError


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def test_wrn_28_2_has_the_published_size() -> None:
    backbone = build_backbone("wrn_28_2", (3, 32, 32))
    assert backbone.num_features == 128
    assert parameters(nn.Sequential(backbone, nn.Linear(128, 10))) == 1_467_610


def test_wrn_28_8_has_the_published_size() -> None:
    with torch.device("meta"):
        backbone = build_backbone("wrn_28_8", (3, 32, 32))
        total = parameters(nn.Sequential(backbone, nn.Linear(512, 100)))
    assert backbone.num_features == 512
    assert round(total / 1e6, 2) == 23.40


def test_batch_norm_of_a_wide_resnet_is_that_of_pytorch_or_as_asked() -> None:
    for options, expected in (
        ({}, (0.1, 1e-5)),
        ({"batch_norm_momentum": 0.001, "batch_norm_eps": 1e-3}, (1e-3, 1e-3)),
    ):
        net = build_backbone("wrn_28_2", (1, 8, 8), **options)
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        assert {(norm.momentum, norm.eps) for norm in norms} == {expected}


def restated_wrn(net: WideResNet, x: Tensor, blocks: int) -> Tensor:
    """A wide residual network in functional form, its weights taken in the order of the published architecture."""
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    next_norm = iter(norms)
    threes = iter([c for c in convolutions if c.kernel_size == (3, 3)])
    ones = iter([c for c in convolutions if c.kernel_size == (1, 1)])

    def act(value: Tensor) -> Tensor:
        norm = next(next_norm)
        mean, variance = (norm.get_buffer(name).view(1, -1, 1, 1) for name in ("running_mean", "running_var"))
        scale, shift = (t.view(1, -1, 1, 1) for t in (norm.weight, norm.bias))
        value = (value - mean) / (variance + norm.eps).sqrt() * scale + shift
        return torch.where(value > 0, value, 0.1 * value)

    x = F.conv2d(x, next(threes).weight, padding=1)
    for group in range(3):
        for block in range(blocks):
            stride = 2 if group > 0 and block == 0 else 1
            shortcut = x
            y = act(x)
            if group == 0 and block == 0:
                shortcut = y
            y = F.conv2d(y, next(threes).weight, stride=stride, padding=1)
            y = F.conv2d(act(y), next(threes).weight, padding=1)
            if block == 0:
                shortcut = F.conv2d(shortcut, next(ones).weight, stride=stride)
            x = shortcut + y
    features = act(x).mean(dim=(2, 3))
    assert all(next(rest, None) is None for rest in (next_norm, threes, ones))
    return features


def test_wide_resnet_equals_its_functional_restatement() -> None:
    torch.manual_seed(0)
    net = WideResNet(depth=16, width=2, in_channels=3)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1, 0.2)
            nn.init.normal_(norm.bias, 0, 0.2)
            nn.init.normal_(norm.get_buffer("running_mean"), 0, 0.2)
            nn.init.uniform_(norm.get_buffer("running_var"), 0.5, 2)
    net = net.double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), restated_wrn(net, x, blocks=2), rtol=1e-10, atol=1e-12)


def test_wide_resnet_is_initialised_by_fan_out() -> None:
    torch.manual_seed(0)
    net = WideResNet()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    convolution = next(m for m in convolutions if (m.in_channels, m.out_channels) == (64, 128))
    assert convolution.weight.std().item() == pytest.approx((2 / (9 * convolution.out_channels)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("depth", [4, 27, 30])
def test_wide_resnet_refuses_an_impossible_depth(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth={depth}"):
        WideResNet(depth=depth)


@pytest.mark.parametrize("name", ["small_cnn", "resnet10t"])
def test_options_that_a_backbone_does_not_have_are_named(name: str) -> None:
    with pytest.raises(SuperCMError, match=rf"backbone_options={{'foo': 1}}: {name} refuses them"):
        build_backbone(name, (3, 32, 32), foo=1)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wrn_28_2", (1, 28, 28)),
        ("small_cnn", (1, 8, 8)),
        ("small_cnn", (1, 16, 16)),
        ("small_cnn", (1, 28, 28)),
        ("small_cnn", (3, 32, 32)),
        ("small_cnn", (2, 9, 20)),
        ("small_cnn", (1, 1, 3)),
        ("fast_cnn", (3, 32, 32)),
        ("fast_cnn", (1, 28, 28)),
        ("fast_cnn", (4, 9, 20)),
        ("resnet18_32", (1, 28, 28)),
        ("mlp", (20,)),
        ("identity", (20,)),
        ("resnet18", (1, 32, 32)),
        ("mobilenetv3_small_100", (3, 32, 32)),
    ],
)
def test_rows_are_mapped_one_by_one_to_num_features(name: str, shape: tuple[int, ...]) -> None:
    backbone = build_backbone(name, shape)
    x = torch.randn(3, *shape)
    with evaluating(backbone), torch.no_grad():
        together = backbone(x)
        alone = torch.cat([backbone(row[None]) for row in x])
    assert together.shape == (3, backbone.num_features)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_resnet18_32_keeps_the_resolution_of_small_images() -> None:
    backbone = build_backbone("resnet18_32", (3, 32, 32))
    sizes: list[int] = []
    backbone.get_submodule("layer1").register_forward_hook(lambda *call: sizes.append(call[-1].shape[-1]))
    backbone.get_submodule("layer4").register_forward_hook(lambda *call: sizes.append(call[-1].shape[-1]))
    backbone(torch.randn(2, 3, 32, 32))
    assert sizes == [32, 4]


def test_fast_cnn_whitens_patches_of_photographs_and_does_not_learn_to() -> None:
    photograph = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[None].float()
    small = F.interpolate(photograph, size=(64, 96), mode="area")
    standardized = (small - small.mean((2, 3), keepdim=True)) / small.std((2, 3), keepdim=True)
    backbone = build_backbone("fast_cnn", (3, 32, 32))
    whitening = backbone.get_submodule("layers.0")
    outputs = whitening(standardized)[0].flatten(1)
    assert torch.equal(outputs[:12], -outputs[12:])
    # Without the scales the deviations of the twelve patterns differ by a factor of more than 100.
    deviations = outputs[:12].pow(2).mean(dim=1).sqrt()
    assert deviations.min() > 0.2
    assert deviations.max() < 5
    assert not any(parameter.requires_grad for parameter in whitening.parameters())
    assert parameters(backbone) < 1.5e6


def test_small_cnn_keeps_where_things_are() -> None:
    # With global average pooling a pattern moved by whole strides would give the same features.
    torch.manual_seed(0)
    net = SmallCNN((1, 32, 32)).eval()
    x = torch.zeros(2, 1, 32, 32)
    x[0, 0, 8:12, 8:12] = 1
    x[1, 0, 16:20, 16:20] = 1
    with torch.no_grad():
        features = net(x)
    assert (features[0] - features[1]).abs().max() > 0.1 * features.abs().max()


# num_features of timm itself: 512, 576 (a layer of 1024 follows), 192.
@pytest.mark.parametrize(
    ("name", "shape", "width"),
    [
        ("resnet18", (3, 32, 32), 512),
        ("mobilenetv3_small_100", (1, 32, 32), 1024),
        ("vit_tiny_patch16_224", (3, 224, 224), 192),
    ],
)
def test_timm_backbones_give_their_true_width(name: str, shape: tuple[int, ...], width: int) -> None:
    backbone = build_backbone(name, shape)
    assert backbone.num_features == width
    assert all(part.training for part in backbone.modules())


def test_timm_options_are_passed_on() -> None:
    backbone = build_backbone("vit_tiny_patch16_224", (3, 32, 32), img_size=32, patch_size=8)
    assert backbone.get_parameter("model.pos_embed").shape[1] == 4 * 4 + 1


def test_timm_models_that_do_not_fit_the_images_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"vit_tiny_patch16_224 does not take images of shape \(3, 32, 32\).*img_size=32"
    ):
        build_backbone("vit_tiny_patch16_224", (3, 32, 32))
    with pytest.raises(ValueError, match="pool it to a vector"):
        build_backbone("resnet18", (3, 32, 32), global_pool="")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("small_cn", "small_cnn"), ("wrn28_2", "wrn_28_2"), ("mobilnetv3_small_100", "mobilenetv3_small_100")],
)
def test_unknown_names_get_a_suggestion(name: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*Did you mean.*\b{suggestion}\b"):
        build_backbone(name, (3, 32, 32))


@pytest.mark.parametrize(("name", "shape"), [("mlp", (3, 8, 8)), ("identity", (1, 8, 8))])
def test_backbones_for_vectors_refuse_images(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{name}.*vectors.*small_cnn"):
        build_backbone(name, shape)


@pytest.mark.parametrize("name", ["small_cnn", "fast_cnn", "wrn_28_2", "resnet18_32", "resnet18"])
def test_backbones_for_images_refuse_vectors(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*images.*mlp"):
        build_backbone(name, (512,))
