"""Weights of a backbone from files good and bad."""

from pathlib import Path

import pytest
import torch
from torch import nn

from supercm_lightning.utils.checkpoints import load_backbone


@pytest.mark.parametrize("form", ["state dict", "checkpoint", "method"])
def test_weights_of_a_backbone_are_found_in_any_file_that_holds_them(form: str) -> None:
    source, backbone = nn.Linear(2, 3), nn.Linear(2, 3)
    weights = source.state_dict()
    method = {"head.bias": torch.ones(1)} | {f"backbone.{name}": value for name, value in weights.items()}
    torch.save(
        {"state dict": weights, "checkpoint": {"state_dict": weights}, "method": {"state_dict": method}}[form], "w"
    )
    load_backbone(backbone, Path("w"))
    assert torch.equal(backbone.weight, source.weight)
    assert torch.equal(backbone.bias, source.bias)


def test_a_file_that_holds_no_weights_is_named() -> None:
    Path("junk.pt").write_bytes(bytes(range(256)) * 4)
    Path("text.pt").write_text("no weights at all")
    torch.save(torch.ones(3), "tensor.pt")
    torch.save({"weight": torch.ones(3, 2)}, "half.pt")
    for name, message in (
        ("junk.pt", "cannot be read"),
        ("text.pt", "cannot be read"),
        ("tensor.pt", "no weights by name"),
        ("half.pt", "do not fit the backbone"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
            load_backbone(nn.Linear(2, 3), Path(name))
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file"):
        load_backbone(nn.Linear(2, 3), Path("none.pt"))
