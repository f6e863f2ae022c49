"""Weights of a backbone from files good and bad, and its frozen stages."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from supercm_lightning import Supervised
from supercm_lightning.nn import WideResNet, build_backbone, freeze_stages, load_backbone_weights
from supercm_lightning.utils.options import SuperCMError


@pytest.mark.parametrize("form", ["state dict", "state_dict", "method", "safetensors", "data parallel"])
def test_weights_of_a_backbone_are_found_in_any_file_that_holds_them(form: str) -> None:
    source, backbone = nn.Linear(2, 3), nn.Linear(2, 3)
    weights = source.state_dict()
    method = {"head.bias": torch.ones(1)} | {f"backbone.{name}": value for name, value in weights.items()}
    forms: dict[str, Any] = {
        "state dict": weights,
        "state_dict": {"state_dict": weights},
        "method": {"state_dict": method, "epoch": 3},
        "data parallel": {f"module.{name}": value for name, value in weights.items()},
    }
    if form == "safetensors":
        save_file(weights, "w.safetensors")
    else:
        torch.save(forms[form], "w")
    load_backbone_weights(backbone, Path("w.safetensors" if form == "safetensors" else "w"))
    assert torch.equal(backbone.weight, source.weight)
    assert torch.equal(backbone.bias, source.bias)


@pytest.mark.parametrize("name", ["small_cnn", "wrn_28_2", "resnet18"])
def test_the_backbone_of_a_trained_method_comes_from_its_checkpoint(name: str) -> None:
    model = Supervised(num_classes=3, input_shape=(3, 32, 32), backbone=name)
    torch.save({"state_dict": model.state_dict()}, "run.ckpt")
    torch.save(model.backbone.state_dict(), "backbone.pt")
    for file in ("run.ckpt", "backbone.pt"):
        backbone = build_backbone(name, (3, 32, 32))
        load_backbone_weights(backbone, Path(file))
        for key, value in model.backbone.state_dict().items():
            assert torch.equal(backbone.state_dict()[key], value)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto"])
def test_the_classifier_of_a_file_of_timm_is_dropped(name: str) -> None:
    whole = timm.create_model(name, num_classes=7)
    torch.save(whole.state_dict(), "timm.pth")
    backbone = build_backbone(name, (3, 224, 224))
    load_backbone_weights(backbone, Path("timm.pth"))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = whole.eval().forward_head(whole.forward_features(x), pre_logits=True)
        torch.testing.assert_close(backbone.eval()(x), expected)


def test_a_published_file(data_root: Path) -> None:
    backbone = build_backbone("tf_efficientnet_lite0", (3, 96, 96)).eval()
    load_backbone_weights(backbone, data_root / "weights" / "tf_efficientnet_lite0.safetensors")
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(load_file(data_root / "weights" / "tf_efficientnet_lite0.safetensors"))
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), whole.forward_head(whole.forward_features(x), pre_logits=True))
    with pytest.raises(SuperCMError, match=r"tf_efficientnet_lite0\.safetensors: the weights do not fit"):
        load_backbone_weights(
            build_backbone("resnet10t", (3, 32, 32)), data_root / "weights" / "tf_efficientnet_lite0.safetensors"
        )


class Call:
    """An object whose unpickling calls a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("called"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(range(256)) * 4, "cannot be read"),
        (b"no weights at all", "cannot be read"),
        (Call(), "cannot be read"),
        (torch.ones(3), "no weights by name"),
        ([torch.ones(3)], "no weights by name"),
        ({}, "no weights by name"),
        ({"options": {"a": 1}}, "no weights by name"),
        ({"weight": torch.ones(3, 2)}, "1 missing .bias."),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(3), "gain": torch.ones(3)}, "1 unexpected .gain."),
        ({"weight": torch.ones(3, 5), "bias": torch.ones(3)}, "1 of another shape .*weight.* this input shape"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_that_holds_no_weights_of_the_backbone_is_named(content: Any, message: str, suffix: str) -> None:
    file = Path(f"file.{suffix}")
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif suffix == "pt":
        torch.save(content, file)
    elif isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values()):
        save_file(content, file)
    else:
        pytest.skip("safetensors cannot hold it")
    with pytest.raises(SuperCMError, match=f"^{file}: .*{message}"):
        load_backbone_weights(nn.Linear(2, 3), file)
    assert not Path("called").exists()


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_backbone_weights(nn.Linear(2, 3), Path("none.pt"))


def trained(backbone: nn.Module) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("backbone", "last", "two"),
    [
        (build_backbone("small_cnn", (1, 8, 8)), {"layers.12", "layers.13"}, {"layers.7", "layers.9"}),
        (WideResNet(10, 1, 1), {"layers.3", "layers.4"}, {"layers.2"}),
        (build_backbone("resnet18", (3, 32, 32)), {"model.layer4"}, {"model.layer3"}),
        (build_backbone("resnet18_32", (3, 32, 32)), {"layer4"}, {"layer3"}),
        (
            build_backbone("tf_efficientnet_lite0", (3, 32, 32)),
            {"model.conv_head", "model.bn2"},
            {"model.blocks.6"},
        ),
        (
            build_backbone("vit_tiny_patch16_224", (3, 32, 32), img_size=32),
            {"model.blocks.11", "model.norm"},
            {"model.blocks.10"},
        ),
        (build_backbone("mlp", (4,)), {"layers.3", "layers.4"}, {"layers.0", "layers.1"}),
    ],
    ids=["small_cnn", "wrn", "resnet18", "resnet18_32", "efficientnet", "vit", "mlp"],
)
def test_all_but_the_last_stages_are_frozen(backbone: nn.Module, last: set[str], two: set[str]) -> None:
    everything = trained(backbone)

    def under(parts: set[str]) -> set[str]:
        return {name for name in everything if name.startswith(tuple(f"{part}." for part in parts))}

    frozen = freeze_stages(backbone, 1)
    assert trained(backbone) == under(last)
    inside = {parameter for module in frozen for parameter in module.parameters()}
    assert not any(parameter.requires_grad for parameter in inside)
    backbone.requires_grad_(True)
    freeze_stages(backbone, 2)
    assert trained(backbone) == under(last | two)
    backbone.requires_grad_(True)
    assert freeze_stages(backbone, "none") == []
    assert trained(backbone) == everything
    assert freeze_stages(backbone, "all") == [backbone]
    assert trained(backbone) == set()


def test_a_number_of_stages_that_the_backbone_does_not_have_is_refused() -> None:
    backbone = build_backbone("resnet18", (3, 32, 32))
    assert freeze_stages(backbone, 5) == []
    for freeze in (6, -1):
        with pytest.raises(SuperCMError, match=rf"freeze={freeze}.* 5 stages"):
            freeze_stages(backbone, freeze)
    assert len(trained(backbone)) == len(list(backbone.parameters()))
    freeze_stages(backbone, 0)
    assert trained(backbone) == set()
