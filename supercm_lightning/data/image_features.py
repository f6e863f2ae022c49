"""Frozen features of a folder of images, in any layout that the data modules read."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment

from supercm_lightning.data.extraction import FeatureFile, Views, feature_trainer
from supercm_lightning.data.sources.domain_files import find_files, folder_set
from supercm_lightning.data.sources.domains import DOMAIN_SETS
from supercm_lightning.data.sources.folder import Files, scan_clusters, scan_folder
from supercm_lightning.data.sources.images import BadImage
from supercm_lightning.data.sources.worker_stores import FileStore
from supercm_lightning.nn.extractor import FrozenExtractor
from supercm_lightning.utils.options import SuperCMError, check_choice, check_range
from supercm_lightning.utils.trainer import is_rank_zero


def extract_features(
    root: Path,
    output: Path = Path("features"),
    weak_views: int = 0,
    strong_views: int = 0,
    backbone: str = "resnet50",
    pretrained: bool = True,
    checkpoint: Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    flip: bool = True,
    dtype: Literal["float16", "float32"] = "float16",
    dataset: str = "folder",
    source: list[str] | None = None,
    target: str | None = None,
    folders_are_classes: bool = True,
    on_bad_image: BadImage = "error",
    batch_size: int = 64,
    num_workers: int | None = None,
    accelerator: str = "auto",
    devices: int | str = "auto",
    num_nodes: int = 1,
    precision: str = "32-true",
    trainer: Trainer | None = None,
) -> dict[str, Path]:
    """Writes frozen features of images into .npz files, from which every method trains in seconds without a GPU.

    One file for each set of the folder: `labeled`, `unlabeled`, `val` and `test`, or `train` where one tree carries all
    labels; with `source` and `target` one for each domain. It holds `features` (n, d) of the images as they are; for
    training sets `weak` (n, v, d) and `strong` (n, s, d) of augmented views; `labels` (n,) int64, -1 where unknown;
    `classes` (K,), the names, where there are such; `files` (n,), relative to `root`; `backbone`, and `weights`, their
    hash. Views are made at the image's own resolution, or at the network's where that is lower, before resizing.

    Processes and devices share the work. Features are written chunk by chunk and read from the disk without being
    loaded; after an interruption the same call goes on where it was, and a file that is there is not made again.

    Args:
        root: Folder of the images, in any layout that the data modules read: `labeled/<class>` and `unlabeled`,
            `train/<class>`, or `<class>`; with `source` and `target`, `<domain>/<class>` or list files.
        output: Folder of the files to write; files of these names are replaced.
        weak_views: Weak views of each image: flip, and shift by up to an eighth of the shorter side.
        strong_views: Strong views of each image: these, RandAugment and Cutout.
        backbone: Any model of timm, or `small_cnn`, `fast_cnn`, `wrn_28_2`, `wrn_28_8`, `resnet18_32`.
        pretrained: Use timm's weights, fetched unless cached. False without a checkpoint: random weights.
        checkpoint: Local file of weights in place of those: of timm's model (.safetensors, .pth, .bin), or a checkpoint
            of a run with this backbone.
        backbone_options: Arguments of the backbone's constructor, such as `img_size` of a transformer.
        image_size: Side of the images; None: the model's own, which only timm's models have.
        crop_pct: Fraction of the shorter side that the central square shows; None: the model's own, 1 for ours.
        flip: Whether views may be mirrored left-right.
        dtype: Type of the features.
        dataset: With `source` and `target`: `folder`, or the name of a registered set of domains, such as `office31`.
        source: Names of the source domains.
        target: Name of the target domain, with labels or without.
        folders_are_classes: False: take all images at any depth, without labels, as for clustering.
        on_bad_image: What to do about a file that cannot be read as an image: `error` or `skip`, which leaves it out.
        batch_size: Images per chunk.
        num_workers: Processes that decode images; None: none on a CPU, where threads decode between the forwards, else
            one for each core that this one may use, at most four.
        accelerator: As in Lightning's Trainer: `auto`, `cpu`, `gpu`, …
        devices: How many devices, or which; with `cpu` the number of processes.
        num_nodes: Number of machines.
        precision: As in Lightning's Trainer. `bf16-mixed` is faster on processors that multiply bfloat16; features
            differ slightly, so that all files of a training need the same.
        trainer: From Python, one of `feature_trainer` in place of these four.

    Returns:
        The file of each set.

    Raises:
        MissingFileError: If images or weights are missing.
        SuperCMError: If an option contradicts the data or the model, or an image or weights cannot be had.
    """
    check_choice(on_bad_image=(on_bad_image, get_args(BadImage)))
    check_range(1, batch_size=batch_size, num_nodes=num_nodes)
    check_range(0, num_workers=num_workers)
    check_choice(dtype=(dtype, ("float16", "float32")))
    views, none = Views(weak_views, strong_views, flip, dtype), Views(dtype=dtype)
    root = root.expanduser()
    output = output.expanduser()
    if output.exists() and not output.is_dir():
        raise SuperCMError(f"output={output}: is a file; give the name of a folder.")
    splits, class_names = _find(root, dataset, source, target, folders_are_classes)
    extractor = FrozenExtractor(backbone, pretrained, checkpoint, backbone_options, image_size, crop_pct)
    if checkpoint is None and not pretrained:
        print(f"The weights of {backbone} are random: pretrained=false and no checkpoint.", file=sys.stderr)
    if trainer is None:
        trainer = feature_trainer(accelerator=accelerator, devices=devices, num_nodes=num_nodes, precision=precision)
    written = {}
    for split, files in splits.items():
        store = FileStore(files, channels=3, image_size=None)
        if on_bad_image == "skip":
            store, messages = store.readable()
            _announce("\n".join([*messages, f"{split}: {len(messages)} of {len(files)} images are left out."]))
        written[split] = output / f"{split}.npz"
        wanted = none if split in ("val", "test") else views
        about = (root, class_names, extractor, backbone)
        file = FeatureFile(written[split], store, *about, wanted, batch_size, num_workers, trainer.precision)
        new = file.write(trainer)
        kinds = "" if wanted == none else f", {weak_views} weak and {strong_views} strong views"
        what = f"{len(store):,} samples of {extractor.num_features} features{kinds}: {written[split]}"
        _announce(what if new else f"{what} (found, nothing to do)")
    return written


def _announce(message: str) -> None:
    if is_rank_zero():
        print(message)


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
        return domains.files, domains.class_names
    if dataset != "folder":
        raise SuperCMError(f"dataset={dataset!r}: a set of domains needs source and target.")
    if not folders_are_classes:
        found, _ = scan_clusters(root, None)
        return {split: [(file, -1) for file, _ in files] for split, files in found.items()}, None
    return scan_folder(root)


def cached_features(root: Path, cache: Path, backbone: str, options: Mapping[str, Any]) -> tuple[Path, dict[str, Path]]:
    """Features of the images below `root`, extracted once, by one process of those that ask for them at a time.

    Those of each network and `options` of `extract_features` are kept in a folder of their own below `cache`.

    Returns:
        The folder, and the file of each set.
    """
    known = set(signature(extract_features).parameters) - {"root", "output", "backbone", "trainer"}
    if unknown := options.keys() - known:
        raise SuperCMError(f"extraction: {', '.join(sorted(unknown))}: choose from {', '.join(sorted(known))}.")
    given: dict[str, Any] = {k: Path(v) if k == "checkpoint" and v else v for k, v in options.items()}
    said = json.dumps([str(root.expanduser().resolve()), sorted(given.items())], default=str)
    name = re.sub(r"[^\w.-]", "_", backbone)
    folder = cache.expanduser().resolve() / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        # Not the processes of the run that asks: each of them comes here.
        trainer = feature_trainer(
            devices=1, plugins=LightningEnvironment(), precision=given.get("precision", "32-true")
        )
        return folder, extract_features(root, folder, backbone=backbone, trainer=trainer, **given)
