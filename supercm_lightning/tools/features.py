"""The command `supercm-features`: frozen features of a folder of images, by any model of timm or of this package."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from jsonargparse import auto_cli
from PIL import Image
from rich.progress import track
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from supercm_lightning.contracts import Backbone
from supercm_lightning.data.sources.domain_files import find_files, folder_set
from supercm_lightning.data.sources.domains import DOMAIN_SETS
from supercm_lightning.data.sources.folder import scan_clusters, scan_folder
from supercm_lightning.data.sources.images import BadImage, check_bad_image_policy
from supercm_lightning.data.sources.npz import save_npz
from supercm_lightning.data.sources.worker_stores import FileStore, default_num_workers
from supercm_lightning.nn import TimmBackbone, build_backbone, load_backbone_weights
from supercm_lightning.tools.arguments import errors_in_one_line
from supercm_lightning.utils.options import SuperCMError, check_range


def extract_features(
    root: Path,
    output: Path = Path("features"),
    backbone: str = "resnet50",
    pretrained: bool = True,
    checkpoint: Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    image_size: int | None = None,
    dataset: str = "folder",
    source: list[str] | None = None,
    target: str | None = None,
    folders_are_classes: bool = True,
    on_bad_image: BadImage = "error",
    batch_size: int = 64,
    num_workers: int | None = None,
    device: str | None = None,
) -> dict[str, Path]:
    """Writes frozen features of images into .npz files, from which every method trains in seconds without a GPU.

    One file for each set of the folder: `labeled`, `unlabeled`, `val` and `test`, or `train` where one tree carries all
    labels; with `source` and `target` one for each domain. It holds `features` (n, d) float32, `labels` (n,) int64, -1
    where unknown, `classes` (K,), the names, where there are such, `files` (n,), relative to `root`, and `backbone`.
    Features are written as they are computed, and read from the disk without being loaded.

    Args:
        root: Folder of the images, in any layout that the data modules read: `labeled/<class>` and `unlabeled`,
            `train/<class>`, or `<class>`; with `source` and `target`, `<domain>/<class>` or list files.
        output: Folder of the files to write; files of these names are replaced.
        backbone: Any model of timm, with or without a tag of its weights, or `small_cnn`, `wrn_28_2`, `wrn_28_8`,
            `resnet18_32`.
        pretrained: Use timm's weights, fetched unless cached. False without a checkpoint: random weights.
        checkpoint: Local file of weights in place of those: of timm's model (.safetensors, .pth, .bin), or a checkpoint
            of a run with this backbone.
        backbone_options: Arguments of the backbone's constructor, such as `img_size` of a transformer.
        image_size: Side of the images; None: the model's own, which only timm's models have.
        dataset: With `source` and `target`: `folder`, or the name of a registered set of domains, such as `office31`.
        source: Names of the source domains.
        target: Name of the target domain, with labels or without.
        folders_are_classes: False: take all images at any depth, without labels, as for clustering.
        on_bad_image: What to do about a file that cannot be read as an image: `error` or `skip`, which leaves it out.
        batch_size: Images per forward.
        num_workers: Processes that decode images; None: one for each core that this one may use, at most four.
        device: Such as `cpu` or `cuda:1`; None: an accelerator where there is one.

    Returns:
        The file of each set.

    Raises:
        MissingFileError: If images or weights are missing.
        SuperCMError: If an option contradicts the data or the model, an image cannot be read, or weights cannot be
            fetched.
    """
    check_bad_image_policy(on_bad_image)
    check_range(1, batch_size=batch_size)
    check_range(0, num_workers=num_workers)
    num_workers = default_num_workers() if num_workers is None else num_workers
    splits, class_names = _find(root.expanduser(), dataset, source, target, folders_are_classes)
    place = torch.device(device) if device else _default_device()
    network, transform = build_extractor(backbone, pretrained, checkpoint, backbone_options or {}, image_size)
    network.eval().to(place)
    width = cast(Backbone, network).num_features
    if checkpoint is None and not pretrained:
        print(f"The weights of {backbone} are random: pretrained=false and no checkpoint.", file=sys.stderr)
    output.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, files in splits.items():
        labels = torch.tensor([label for _, label in files], dtype=torch.int64)
        store = FileStore([file for file, _ in files], labels, channels=3, image_size=None)
        if on_bad_image == "skip":
            store, messages = store.readable()
            print("\n".join([*messages, f"{split}: {len(messages)} of {len(files)} images are left out."]))
        loader = DataLoader(_Images(store, transform), batch_size, num_workers=num_workers)
        arrays = {
            "labels": store.labels.numpy(),
            "files": np.array([os.path.relpath(name, root.expanduser()) for name in store.names]),
            "backbone": np.array(backbone),
        }
        if class_names is not None and bool((store.labels >= 0).any()):
            arrays["classes"] = np.array(class_names)
        written[split] = output / f"{split}.npz"
        blocks = _features(network, track(loader, f"{split}: {len(store):,} images"), place)
        save_npz(written[split], "features", (len(store), width), blocks, arrays)
        print(f"{len(store):,} samples of {width} features: {written[split]}")
    return written


Files = Sequence[tuple[Path, int]]


def _find(
    root: Path, dataset: str, source: list[str] | None, target: str | None, folders_are_classes: bool
) -> tuple[dict[str, Files], Sequence[str] | None]:
    """Files and labels of each set, and the names of the classes."""
    if (source is None) != (target is None):
        raise SuperCMError("source and target go together: give both for two domains, or neither.")
    if source is not None and target is not None:
        if dataset != "folder" and dataset not in DOMAIN_SETS:
            raise SuperCMError(f"dataset={dataset!r}: choose folder or one of {', '.join(DOMAIN_SETS)}.")
        spec = DOMAIN_SETS[dataset] if dataset in DOMAIN_SETS else folder_set(root)
        sources = [spec.find(dataset, "source", name) for name in source]
        domains = find_files(dataset, spec, root, sources, spec.find(dataset, "target", target))
        return dict(domains.files), domains.class_names
    if dataset != "folder":
        raise SuperCMError(f"dataset={dataset!r}: a set of domains needs source and target.")
    if not folders_are_classes:
        found, _ = scan_clusters(root, None, None)
        return {split: [(file, -1) for file, _ in files] for split, files in found.items()}, None
    layout = scan_folder(root)
    splits: dict[str, Files] = {
        layout.tree or "train": layout.labeled,
        "unlabeled": [(file, -1) for file in layout.unlabeled],
        "val": layout.val or [],
        "test": layout.test or [],
    }
    return {split: files for split, files in splits.items() if files}, layout.class_names


def build_extractor(
    backbone: str,
    pretrained: bool,
    checkpoint: Path | None,
    options: dict[str, Any],
    image_size: int | None,
) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """Builds a backbone with its weights, and the preprocessing that they were trained with.

    Args:
        backbone: As in `extract_features`, like all others.
        pretrained: Whether to fetch timm's weights where there is no checkpoint.
        checkpoint: Local weights, or None.
        options: Arguments of the constructor.
        image_size: Side of the images, or None for the model's own.

    Returns:
        A module from images (n, 3, H, W) to features (n, num_features), and the transform of a file's image.

    Raises:
        MissingFileError: If the checkpoint is missing.
        SuperCMError: If it is not of this backbone, an option is missing, or weights cannot be fetched.
    """
    of_timm = timm.is_model(backbone) or ":" in backbone
    fetch = pretrained and checkpoint is None
    if of_timm:
        config = timm.get_pretrained_cfg(backbone) if ":" not in backbone else None
        image_size = image_size or (config.input_size[-1] if config is not None else 224)
        options = options | {"pretrained": fetch}
    elif fetch:
        raise SuperCMError(
            f"backbone={backbone!r} is not a model of timm and has no published weights. Give checkpoint, a file of "
            "this backbone's weights, or pretrained=false for random ones."
        )
    elif image_size is None:
        raise SuperCMError(f"image_size: {backbone!r} has no size of its own; give the size of its training images.")
    network = build_backbone(backbone, (3, image_size, image_size), **options)
    if checkpoint is not None:
        load_backbone_weights(network, checkpoint)
    if isinstance(network, TimmBackbone):
        settings = resolve_model_data_config(network.model) | {"input_size": (3, image_size, image_size)}
    else:  # as the data modules do
        settings = {"input_size": (3, image_size, image_size), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    return network, create_transform(**settings)


class _Images(Dataset[Tensor]):
    """Images of a store, preprocessed."""

    def __init__(self, store: FileStore, transform: Callable[[Image.Image], Tensor]) -> None:
        self.store = store
        self.transform = transform

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.store[index].permute(1, 2, 0).numpy()))


@torch.inference_mode()
def _features(network: nn.Module, batches: Any, device: torch.device) -> Iterator[np.ndarray]:
    for images in batches:
        yield network(images.to(device)).float().cpu().numpy()


def _default_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


@errors_in_one_line()
def main(args: list[str] | None = None) -> None:
    """The console script.

    Args:
        args: Arguments without the program's name; None: those of the process.
    """
    auto_cli(extract_features, args=args, as_positional=False)
