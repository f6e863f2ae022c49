"""Weights of a backbone: loading them from a file, and freezing a number of its stages."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal
from zipfile import BadZipFile, is_zipfile

from torch import Tensor, nn

from supercm_lightning.nn.backbones import TimmBackbone
from supercm_lightning.utils.files import check_sums
from supercm_lightning.utils.options import MissingFileError, SuperCMError

_PREFIX = "backbone."
_GROUPS = ("blocks", "stages", "layers")


def load_backbone_weights(backbone: nn.Module, path: Path) -> None:
    """Loads the weights of a backbone from a file; nothing but tensors and plain values is unpickled.

    The file is a checkpoint of a method of this library, a state dict of the backbone, or a file of timm's model
    (`.pth`, `.bin`, `.safetensors`), of which a classifier is dropped. One that cannot be read or does not fit is an
    error.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from supercm_lightning.nn import build_backbone
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     torch.save(build_backbone("mlp", (4,)).state_dict(), file.name)
        ...     load_backbone_weights(build_backbone("mlp", (4,)), Path(file.name))
    """
    path = path.expanduser()
    state = _read(path)
    module: nn.Module = backbone
    dropped: tuple[str, ...] = ()
    if not backbone.state_dict().keys() <= state.keys():
        if any(name.startswith(_PREFIX) for name in state):
            state = {name.removeprefix(_PREFIX): v for name, v in state.items() if name.startswith(_PREFIX)}
        elif isinstance(backbone, TimmBackbone):
            module = backbone.model
            classifier = vars(module)["pretrained_cfg"].get("classifier") or ()
            dropped = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    try:
        missing, others = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # parameters of another shape, one a line after the first
        _, *differences = str(error).splitlines()
        raise _misfit(
            path, f"{len(differences)} of another shape ({'; '.join(map(str.strip, differences[:2]))})"
        ) from error
    unexpected = [name for name in others if not name.startswith(dropped)] if dropped else others
    if missing or unexpected:
        names = {"missing": missing, "unexpected": unexpected}
        raise _misfit(path, "; ".join(f"{len(n)} {kind} ({', '.join(n[:3])})" for kind, n in names.items() if n))


def check_weights(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Checks that the network's weights in a checkpoint are finite, and of the shapes of a model's `own`."""
    for name in (name for name in {**own, **state} if name.startswith((_PREFIX, "bottleneck.", "head."))):
        saved, ours = (tuple(at[name].shape) if name in at else None for at in (state, own))
        if saved != ours:
            raise SuperCMError(
                f"The checkpoint does not fit the model: {name} has the shape {saved} there and {ours} here. Give the "
                "backbone and the other options of its training; a backbone that was a module as backbone=..."
            )
        if not state[name].isfinite().all():
            raise SuperCMError(
                f"The checkpoint's {name} is NaN or infinite; the training diverged. Give an earlier one."
            )


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors by name, out of a checkpoint's entry for the weights where there is one."""
    from safetensors import SafetensorError
    from timm.models import load_state_dict

    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; give a checkpoint, a state dict or a .safetensors file.")
    try:
        if is_zipfile(path):
            check_sums(path)
        state: Any = load_state_dict(str(path), weights_only=True)
    except (UnpicklingError, BadZipFile, SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise SuperCMError(
            f"{path}: cannot be read as weights; the file is damaged, of another kind, or holds more than tensors and "
            "plain values. Give a checkpoint, a state dict or a .safetensors file."
        ) from error
    except AttributeError:  # timm looks for names in whatever the file holds
        state = {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise SuperCMError(f"{path}: holds no weights by name. Give a checkpoint, a state dict or a .safetensors file.")
    if broken := next((name for name, value in state.items() if not value.isfinite().all()), None):
        raise SuperCMError(f"{path}: {broken} is NaN or infinite. Give the weights of a training that did not diverge.")
    return state


def _misfit(path: Path, differences: str) -> SuperCMError:
    return SuperCMError(
        f"{path}: the weights do not fit the backbone: {differences}. Give the file of a training with this backbone, "
        "these backbone_options and this input shape."
    )


def freeze_stages(backbone: nn.Module, freeze: Literal["none", "all"] | int) -> list[nn.Module]:
    """Freezes a backbone, or all but its last stages: their parameters no longer require gradients.

    The stages are the children that have parameters; where there is a single one, its children in its place. Those of a
    group called `blocks`, `stages` or `layers` count one by one. A normalization belongs to the stage before it.
    A ResNet has five stages, the stem and four groups; a vision transformer has the patch embedding and its blocks.

    Args:
        backbone: The backbone.
        freeze: `none`, `all`, or the number N of stages at the end that stay trainable.

    Returns:
        The frozen modules. Batch norm in them still follows the data in training mode; keep them in evaluation mode.

    Examples:
        >>> from supercm_lightning.nn import build_backbone
        >>> backbone = build_backbone("small_cnn", (1, 28, 28))
        >>> frozen = freeze_stages(backbone, 1)
        >>> [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
        ['layers.12.weight', 'layers.13.weight', 'layers.13.bias']
    """
    if freeze == "none":
        return []
    if freeze == "all":
        backbone.requires_grad_(False)
        return [backbone]
    stages = _stages(backbone)
    if not isinstance(freeze, int) or not 0 <= freeze <= len(stages):
        raise SuperCMError(
            f"freeze={freeze!r}: choose none, all, or how many of the {len(stages)} stages of the backbone to train."
        )
    if freeze == len(stages):
        return []
    trained = {parameter for stage in stages[len(stages) - freeze :] for m in stage for parameter in m.parameters()}
    for parameter in backbone.parameters():  # those of no stage too, such as the class token of a transformer
        if parameter not in trained:
            parameter.requires_grad_(False)
    return [module for stage in stages[: len(stages) - freeze] for module in stage]


def _stages(module: nn.Module) -> list[list[nn.Module]]:
    """The stages from the input on, each a list of modules."""
    parts = _parts(module)
    while len(parts) == 1 and _parts(parts[0][1]):
        parts = _parts(parts[0][1])
    stages: list[list[nn.Module]] = []
    for name, part in parts:
        grouped = name in _GROUPS and isinstance(part, nn.Sequential | nn.ModuleList)
        for _, stage in _parts(part) if grouped else [(name, part)]:
            if stages and all(parameter.ndim < 2 for parameter in stage.parameters()):
                stages[-1].append(stage)
            else:
                stages.append([stage])
    return stages


def _parts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
