"""Frozen features, labeled and unlabeled."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from supercm_lightning.data.image_features import cached_features
from supercm_lightning.data.manifest import SIDES
from supercm_lightning.data.modules.base import ViewDataModule
from supercm_lightning.data.sources.feature_store import (
    FeatureSet,
    Labels,
    are_arrays,
    located,
    standardize,
    statistics,
)
from supercm_lightning.data.sources.features import FeatureSource
from supercm_lightning.data.sources.stores import Samples
from supercm_lightning.data.splits import check_labels
from supercm_lightning.data.transforms.features import VIEW_REMEDY, CleanFeatures, feature_views
from supercm_lightning.utils.options import SuperCMError, check_choice


class FeatureDataModule(ViewDataModule):
    """Feature vectors from files: a labeled, an unlabeled and a test set, or a source and a target domain.

    A file is `.npz` or `.pt` with `features` (n, d) and, where known, `labels` (n,) int64, `classes` (K,) names,
    `files` (n,), the name of each sample in predictions, `weak` (n, v, d) and `strong` (n, s, d), features of augmented
    views, of which each step takes one at random. Labels of the unlabeled file are never read. Files written by
    `np.savez` or `supercm-features` are mapped from the disk: a sample is read, and checked, when it is used.

    With `source` and `target` samples are those of two domains: the target is trained on without its labels and tested
    on with them; validation reads the target training samples in a second loader, with labels of -1, and testing the
    source validation samples.

    Args:
        labeled: Labeled features: a file or, from Python, a torch data set of (features, label) or a tuple of arrays
            (n, d) and (n,).
        unlabeled: Unlabeled features; None: the samples of `labeled` left by `num_labeled`.
        test: Test features with labels; None: `num_test` samples of `labeled`, or the labeled samples of `target`.
        val: Validation features with labels; None: `num_val` of the labeled samples.
        root: Folder from which relative names of files count; a name without suffix is that of an `.npz` or `.pt` file.
        source: Features of the source domain, or of several, in place of `labeled`.
        target: Features of the target domain, in place of `unlabeled`.
        num_labeled: Number of samples that keep their label, balanced over the classes; None: all.
        num_val: Number of validation samples taken from the labeled ones when `val` is not given, or their fraction
            below 1; None: a tenth of the source, none of `labeled`.
        num_test: Number of test samples taken from `labeled` when `test` is not given, the same for every `split_seed`.
        labeled_batch_size: Labeled (source) samples per step and device.
        unlabeled_batch_size: Unlabeled (target) samples per step and device.
        eval_batch_size: Samples per step of validation, test and prediction.
        steps_per_epoch: Steps per epoch; None: one pass over the unlabeled samples.
        split_seed: Seed of the split.
        balanced_batches: Sample every class equally often into the labeled batches, whatever its number of samples.
        standardize: Subtract the mean and divide by the standard deviation, per feature: those of all training samples,
            labeled and unlabeled (`joint`), or of the training samples of each domain by itself (`domain`).
        noise: Standard deviation of the noise in the weak view, the clean vector or a stored weak one.
        strong_noise: Noise in the strong view, a stored strong one, or where there are none the weak one.
        strong_dropout: Probability that a feature of the strong view is set to zero.
        strong_mixup: Largest weight of another sample in the strong view, at most 0.5.
        images: Folder of images in place of files; their features are written into a folder below `root`, once.
            `source` and `target` are then names of domains.
        backbone: For `images`, the network.
        extraction: For `images`, further options of `extract_features`, such as `checkpoint` and `strong_views`.
        predict_on: Samples that `predict` reads: `test`, `val`, `unlabeled`, `labeled`, or a file of new features.
        oracle_labels: Give validation the labels of the target, for scores under `oracle/`; training never sees them.

    Raises:
        MissingFileError: If a file is missing.
        SuperCMError: If a file lacks features or labels, or the sets contradict each other.

    Examples:
        >>> x, y = torch.randn(60, 5), torch.arange(60) % 3
        >>> data = FeatureDataModule((x, y), num_labeled=6, num_test=30, standardize="joint")
        >>> data.setup("fit")
        >>> {split: len(samples) for split, samples in data.samples.items()}
        {'labeled': 6, 'val': 0, 'test': 30, 'unlabeled': 24}
    """

    def __init__(
        self,
        labeled: FeatureSet | None = None,
        unlabeled: FeatureSet | None = None,
        test: FeatureSet | None = None,
        val: FeatureSet | None = None,
        root: str | Path = ".",
        source: FeatureSet | list[str] | None = None,
        target: FeatureSet | None = None,
        num_labeled: int | None = None,
        num_val: int | float | None = None,
        num_test: int = 0,
        labeled_batch_size: int = 50,
        unlabeled_batch_size: int = 50,
        eval_batch_size: int = 2000,
        steps_per_epoch: int | None = None,
        split_seed: int = 0,
        balanced_batches: bool = False,
        standardize: Literal["joint", "domain"] | None = None,
        noise: float = 0.0,
        strong_noise: float = 0.0,
        strong_dropout: float = 0.0,
        strong_mixup: float = 0.0,
        predict_on: str = "test",
        oracle_labels: bool = False,
        images: str | Path | None = None,
        backbone: str = "resnet50",
        extraction: dict[str, Any] | None = None,
    ) -> None:
        new = located(predict_on, Path(root))
        predict_on = str(new) if isinstance(new, Path) and new.exists() and predict_on not in SIDES else predict_on
        super().__init__(eval_batch_size, steps_per_epoch, predict_on, 0)
        self.labeled_batch_size, self.unlabeled_batch_size = labeled_batch_size, unlabeled_batch_size
        feature_views((0, 0), noise, strong_noise, strong_dropout, strong_mixup)  # checks them
        check_choice(standardize=(standardize, ("joint", "domain", None)))
        if images is not None:
            domains = {"source": [source] if isinstance(source, str) else source, "target": target}
            options = (extraction or {}) | (domains if source is not None else {})
            root, files = cached_features(Path(images), Path(root), backbone, options)
            if source is None:
                labeled, unlabeled = files.get("labeled", files.get("train")), files.get("unlabeled")
                val, test = files.get("val"), files.get("test")
        if (labeled is None) == (source is None) or (source is None) != (target is None):
            raise SuperCMError("Give either labeled, with or without unlabeled, or both source and target.")
        if unlabeled is not None and target is not None:
            raise SuperCMError("unlabeled: the samples of target are the unlabeled ones; leave it out.")
        self.is_domain_adaptation = target is not None
        if standardize == "domain" and not self.is_domain_adaptation:
            raise SuperCMError("standardize='domain' needs two domains: give source and target, or use 'joint'.")
        if oracle_labels and not self.is_domain_adaptation:
            raise SuperCMError("oracle_labels: only a target has labels that are kept from the run.")
        train: Any = labeled if source is None else source
        several = isinstance(train, list | tuple) and not are_arrays(train)
        others = {"unlabeled": unlabeled if target is None else target, "val": val, "test": test}
        splits = {"train": list(train) if several else [train]} | {s: [f] for s, f in others.items() if f is not None}
        policy: dict[str, Labels] = {"unlabeled": "if known" if self.is_domain_adaptation else "never"}
        names = ("source", "target") if self.is_domain_adaptation else ("labeled", "unlabeled")
        called = dict(zip(("train", "unlabeled"), names, strict=True))
        self._use(FeatureSource(splits, policy, called, Path(root)), names[0])
        self.normalization, self.view_remedy = CleanFeatures(), VIEW_REMEDY
        self.preprocessing = {} if standardize is None else {"standardize": standardize}

    def read(self) -> dict[str, Samples]:
        """Opens the files, splits the labeled samples and computes what standardizes all."""
        assert isinstance(self.source, FeatureSource)
        stores, options = self.stores(), self.hparams
        train, target = stores.pop("train"), self.is_domain_adaptation
        known = train.labels[train.labels >= 0]
        check_labels(known, self.num_classes, self.class_names, self.source.options["train"])
        num_val = (0.1 if target else 0) if options.num_val is None else options.num_val
        held_out = {} if "val" in stores else {"val": num_val}
        held_out |= {} if "test" in stores or target else {"test": options.num_test}
        samples = self.draw_split(train, held_out).samples(train) | {
            name: Samples.all_of(store) for name, store in stores.items()
        }
        if target:
            samples["unlabeled"].hide_labels = not options.oracle_labels
            if "test" not in stores:
                samples["test"] = Samples.labeled_of(stores["unlabeled"])
        self._standardize(samples)
        return samples

    def _standardize(self, samples: dict[str, Samples]) -> None:
        if (kind := self.hparams.standardize) is None:
            return
        parts = {split: part.store.parts(part.index) for split, part in samples.items()}
        if not self.measured and kind == "joint":
            self.measured = {"features": torch.stack(statistics([*parts["labeled"], *parts["unlabeled"]]))}
        elif not self.measured:
            pairs = [statistics(parts["labeled"]), *(statistics([part]) for part in parts["labeled"])]
            self.measured = {"features": torch.stack(statistics(parts["unlabeled"]))}  # new samples are of the target
            self.measured["sources"] = torch.stack([torch.stack(pair) for pair in pairs])
        mean, std = self.measured["features"]
        self.preprocessing = {"standardize": kind, "mean": mean.tolist(), "std": self.scale(std).tolist()}
        pooled, *single = self.measured.get("sources", [(mean, std)])
        for split, part in samples.items():
            center, deviation = pooled if split in ("labeled", "val") else (mean, std)
            standardize(part.store, center, self.scale(deviation))
        for (store, _), (center, deviation) in zip(parts["labeled"], single or [], strict=bool(single)):
            standardize(store, center, self.scale(deviation))

    def scale(self, std: Tensor) -> Tensor:
        """Numbers (d,) by which features of these deviations are divided."""
        return std

    def configure_augmentations(self) -> dict[str, Any]:
        """The weak and, where there is one, the strong view: a stored one, and what is random on top."""
        assert isinstance(self.source, FeatureSource)
        given = [self.hparams[name] for name in ("noise", "strong_noise", "strong_dropout", "strong_mixup")]
        return dict(feature_views(self.source.views, *given))
