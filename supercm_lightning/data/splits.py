"""Seeded, stratified splits of a training set into labeled, unlabeled and held-out samples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from supercm_lightning.data.manifest import SIDES, Manifest, Members
from supercm_lightning.data.sources.names import Keys, order_of
from supercm_lightning.data.sources.stores import Samples, Store
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.random import generator, seed_of


@dataclass(frozen=True)
class Split:
    """Sample numbers of one training set, sorted; the unlabeled samples are all that are neither labeled nor held out.

    Attributes:
        num_rows: Number of samples of the training set.
        seed: Seed of the split.
        labeled: Samples whose labels may be used.
        val: Samples held out for validation.
        test: Samples held out for the test; empty where the data has its own test set.
    """

    num_rows: int
    seed: int
    labeled: list[int]
    val: list[int]
    test: list[int]

    def indices(self, labeled_in_unlabeled: bool = False) -> dict[str, Tensor]:
        """Sample numbers (n,) int64 of each split, sorted; the labeled ones may be among the unlabeled ones too."""
        taken = self.val + self.test + ([] if labeled_in_unlabeled else self.labeled)
        keep = torch.ones(self.num_rows, dtype=torch.bool)
        keep[taken] = False
        listed = {"labeled": self.labeled, "val": self.val, "test": self.test}
        indices = {split: torch.tensor(numbers, dtype=torch.int64) for split, numbers in listed.items()}
        return indices | {"unlabeled": keep.nonzero().flatten()}

    def samples(self, train: Store, labeled_in_unlabeled: bool = False) -> dict[str, Samples]:
        """The samples of each split of a training set; the argument is that of `indices`."""
        return {split: Samples(train, index) for split, index in self.indices(labeled_in_unlabeled).items()}


def stratified_draw(
    labels: Tensor,
    candidates: Tensor,
    count: int,
    stream: torch.Generator,
    balanced: bool,
    keys: Keys | None = None,
    seed: int = 0,
) -> Tensor:
    """Draws `count` of the candidates (R,) that have a label, spread over the classes: their numbers (count,), sorted.

    `balanced` draws equal numbers per class as far as each class reaches, instead of in proportion to the classes. With
    `keys` (N,), by which each sample of the whole set is known, `seed` gives an order that does not depend on numbers.
    """
    candidates = candidates[labels[candidates] >= 0]
    if keys is None:
        candidates = candidates[torch.randperm(len(candidates), generator=stream)]
    else:
        candidates = candidates[torch.from_numpy(order_of(keys[candidates.numpy()], seed))]
    of = labels[candidates]
    size = torch.bincount(of, minlength=1)
    # Rank of each sample within its class, in the random order.
    by_class = of.argsort(stable=True)
    rank = torch.empty_like(of)
    rank[by_class] = torch.arange(len(of)) - (size.cumsum(0) - size)[of[by_class]]
    if balanced:
        # One sample of every class in turn; which classes get the last ones is random and independent of their size.
        key = rank + torch.rand(len(size), generator=stream, dtype=torch.float64)[of]
    else:
        key = (rank.double() + 0.5) / size[of]
    return candidates[key.argsort(stable=True)[:count]].sort().values


def make_split(
    labels: Tensor, num_labeled: int | None, num_val: int, num_test: int, seed: int, keys: Keys | None = None
) -> Split:
    """Splits one training set with labels (N,) int64, negative where unknown.

    The test samples depend on the data alone, never on `seed`, so that runs with different labels share a test set.
    With `keys` (N,), by which each sample is known, one that comes or goes moves no others but those that make room for
    it or fill its place. Labeled samples are balanced over the classes, None for all that are left; validation and test
    samples are drawn in proportion to the classes.
    """
    known = labels[labels >= 0]
    num_classes = len(known.unique())
    if num_labeled is not None and num_labeled < num_classes:
        raise SuperCMError(f"num_labeled={num_labeled}: fewer labels than the {num_classes} classes.")
    if num_val < 0 or num_test < 0:
        raise SuperCMError(f"num_val={num_val} and num_test={num_test}: must not be negative.")
    if num_val + num_test + (num_labeled or num_classes) > len(known):
        raise SuperCMError(
            f"num_labeled={num_labeled}, num_val={num_val} and num_test={num_test} ask for more than the "
            f"{len(known):,} samples with labels."
        )
    rest = (labels >= 0).nonzero().flatten()

    def draw(count: int | None, stream: torch.Generator, balanced: bool, order: int) -> list[int]:
        nonlocal rest
        drawn = rest if count is None else stratified_draw(labels, rest, count, stream, balanced, keys, order)
        rest = rest[~torch.isin(rest, drawn)]
        return drawn.tolist()

    test = draw(num_test, generator(0, "test split"), False, seed_of(0, "test"))
    stream = generator(seed, "split")
    val = draw(num_val, stream, False, seed_of(seed, "val"))
    labeled = draw(num_labeled, stream, True, seed_of(seed, "labeled"))
    return Split(len(labels), seed, labeled, val, test)


def split_of(
    train: Store,
    strata: Tensor,
    options: Mapping[str, Any],
    held_out: Mapping[str, int | float],
    by_name: bool,
    saved: Manifest | None,
) -> Split:
    """The saved split where there is one and the data has samples of it, else a new one.

    Samples keep the side that they had; those that the saved split does not have are unlabeled. A saved split that
    contradicts the `options` that the user gave, and held-out samples that have lost their labels, are errors. A draw
    spreads over the `strata` (N,), negative where the label is unknown, and goes `by_name` or by the samples' numbers.
    `held_out` has the number, or fraction of the samples with labels, to cut from `train` for `val` and `test`.
    """
    seed = int(options.get("split_seed") or 0)
    if saved is not None:
        sides = torch.from_numpy(saved.sides(Members.of(Samples.all_of(train))))
        if bool((sides >= 0).any()):
            _check_options(saved, seed, options, held_out)
            of = {split: (sides == SIDES.index(split)).nonzero().flatten() for split in ("labeled", "val", "test")}
            for split in held_out:
                if len(lost := of[split][train.labels[of[split]] < 0]):
                    raise SuperCMError(
                        f"{saved.origin}: {len(lost)} {split} samples have no label any more, "
                        f"{train.describe(int(lost[0]))} among them. Give them back their labels, or remove them."
                    )
            of["labeled"] = of["labeled"][train.labels[of["labeled"]] >= 0]
            return Split(len(train), saved.seed, **{split: numbers.tolist() for split, numbers in of.items()})
    known = int((train.labels >= 0).sum())
    counts = {split: num_held_out(split, amount, known) for split, amount in held_out.items()}
    keys = train.keys if by_name else None
    return make_split(strata, options.get("num_labeled"), counts.get("val", 0), counts.get("test", 0), seed, keys)


def _check_options(saved: Manifest, seed: int, options: Mapping[str, Any], held_out: Mapping[str, int | float]) -> None:
    """Compares a saved split with the options that the user gave."""
    remedy = "Leave the option out, or name another file to make a new split."
    if saved.origin == "ckpt_path":
        remedy = "Leave the option out: the split is that of the checkpoint."
    for name in ("labeled", *held_out):
        option, count = options.get(f"num_{name}"), saved.counts.get(name, 0)
        expected = num_held_out(name, held_out[name], saved.known) if name in held_out else option
        if option is not None and count != expected:
            of = f" ({expected:,} samples)" if expected != option else ""
            message = f"{saved.origin}: has {count:,} samples in {name}, but num_{name}={option}{of}."
            raise SuperCMError(f"{message} {remedy}")
    if seed not in (0, saved.seed):
        raise SuperCMError(f"{saved.origin}: made with split_seed={saved.seed}, but split_seed={seed}. {remedy}")


def domain_strata(labels: Tensor, sizes: Sequence[int], num_classes: int) -> Tensor:
    """Numbers the pairs of domain and class, (N,), so that a stratified draw takes the same fraction of every domain.

    `labels` are (N,), negative where unknown, as is the result there; domains of these `sizes` follow one another.
    """
    if len(sizes) < 2:
        return labels
    domain = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return torch.where(labels >= 0, labels + num_classes * domain, labels)


def num_held_out(split: str, amount: int | float, of: int) -> int:
    """Number of samples to hold out for a split: `amount` itself, or that fraction of `of` samples if it is below 1."""
    if amount < 0:
        raise SuperCMError(f"num_{split}={amount}: must not be negative.")
    if not amount < math.inf or (amount > 1 and amount != int(amount)) or (type(amount) is float and amount == 1):
        raise SuperCMError(f"num_{split}={amount}: must be a whole number, or a fraction of the samples below 1.")
    return round(amount * of) if 0 < amount < 1 else int(amount)


def check_label_range(labels: Tensor, num_classes: int, what: str) -> None:
    """Checks that labels (n,) lie in [0, num_classes); the error names `what` they belong to."""
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise SuperCMError(
            f"{what}: labels run from {int(labels.min())} to {int(labels.max())}, but {num_classes=} allows "
            f"0 to {num_classes - 1}."
        )


def check_labels(labels: Tensor, num_classes: int, class_names: Sequence[str] | None, what: str) -> None:
    """Checks that labels (n,) lie in [0, num_classes) and every class has a sample; the error names the classes."""
    check_label_range(labels, num_classes, what)
    present = set(labels.tolist())
    if count := num_classes - len(present):
        missing = islice((k for k in range(num_classes) if k not in present), 10)
        names = ", ".join(str(class_names[k]) if class_names else str(k) for k in missing)
        found = f"{count} of {num_classes} classes have no labeled sample ({names})"
        raise SuperCMError(f"{what}: {found}. Raise num_labeled or add labels.")
