"""Seeded, stratified splits of a training set into labeled, unlabeled and held-out samples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supercm_lightning.data.sources.images import is_rank_zero
from supercm_lightning.data.sources.stores import Samples, Store
from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.random import generator


@dataclass(frozen=True)
class Split:
    """Sample numbers of one training set; the unlabeled samples are all that are neither labeled nor held out.

    Examples:
        >>> split = Split("letters", num_rows=6, seed=0, labeled=[0, 3], val=[1], test=[])
        >>> split.indices()["unlabeled"]
        tensor([2, 4, 5])

    Attributes:
        dataset: Name of the data set.
        num_rows: Number of samples of the training set.
        seed: Seed of the split.
        labeled: Samples whose labels may be used, sorted.
        val: Samples held out for validation, sorted.
        test: Samples held out for the test, sorted; empty where the data has its own test set.
    """

    dataset: str
    num_rows: int
    seed: int
    labeled: list[int]
    val: list[int]
    test: list[int]

    def indices(self, labeled_in_unlabeled: bool = False) -> dict[str, Tensor]:
        """Sample numbers (n,) int64 of `labeled`, `unlabeled`, `val` and `test`, each sorted.

        Args:
            labeled_in_unlabeled: Whether the labeled samples are among the unlabeled ones too.
        """
        taken = self.val + self.test + ([] if labeled_in_unlabeled else self.labeled)
        keep = torch.ones(self.num_rows, dtype=torch.bool)
        keep[taken] = False
        listed = {"labeled": self.labeled, "val": self.val, "test": self.test}
        indices = {split: torch.tensor(numbers, dtype=torch.int64) for split, numbers in listed.items()}
        return indices | {"unlabeled": keep.nonzero().flatten()}

    def samples(self, train: Store, labeled_in_unlabeled: bool = False) -> dict[str, Samples]:
        """The samples of each split of a training set; the argument is that of `indices`."""
        return {split: Samples(train, index) for split, index in self.indices(labeled_in_unlabeled).items()}

    def save(self, path: Path) -> None:
        """Writes the split as JSON, in one piece: a reader never sees half a file."""
        write_atomically(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Reads a split written by `save`.

        Raises:
            SuperCMError: If the file is no such split, or has a sample twice or outside the data.
        """
        try:
            split = cls(**json.loads(path.read_text()))
            numbers = split.labeled + split.val + split.test
            if not all(type(number) is int for number in (split.num_rows, *numbers)):
                raise TypeError("sample numbers must be integers")
        except (ValueError, TypeError) as error:
            raise SuperCMError(f"split_file={path}: not a split written by this library ({error}).") from error
        outside = [number for number in numbers if not 0 <= number < split.num_rows]
        if outside:
            raise SuperCMError(f"split_file={path}: sample {outside[0]} is not one of the {split.num_rows} samples.")
        if len(set(numbers)) < len(numbers):
            twice = next(number for number in numbers if numbers.count(number) > 1)
            raise SuperCMError(f"split_file={path}: sample {twice} occurs twice in labeled, val and test.")
        return split


def stratified_draw(labels: Tensor, candidates: Tensor, count: int, stream: torch.Generator, balanced: bool) -> Tensor:
    """Draws `count` of the candidates, spread over the classes.

    Args:
        labels: Labels of the whole set, (N,); samples with negative labels are never drawn.
        candidates: Sample numbers, (R,) int64.
        count: Number of samples to draw, at most the number of labeled candidates.
        stream: Source of randomness.
        balanced: Equal numbers per class as far as each class reaches (the convention for labeled sets), instead of
            numbers in proportion to the classes.

    Returns:
        The drawn sample numbers, (count,) int64, sorted.
    """
    candidates = candidates[labels[candidates] >= 0]
    candidates = candidates[torch.randperm(len(candidates), generator=stream)]
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


def make_split(labels: Tensor, dataset: str, num_labeled: int | None, num_val: int, num_test: int, seed: int) -> Split:
    """Splits one training set.

    The test samples depend on the data alone, never on `seed`, so that runs with different labels share a test set.

    Args:
        labels: Labels, (N,) int64, negative where unknown.
        dataset: Name of the data set, recorded in the split.
        num_labeled: Number of labeled samples, balanced over the classes; None: every remaining one that has a label.
        num_val: Number of validation samples, in proportion to the classes.
        num_test: Number of test samples, likewise.
        seed: Seed of the split.

    Returns:
        The split.

    Raises:
        SuperCMError: If there are too few samples with labels, or fewer labeled samples than classes.
    """
    known = labels[labels >= 0]
    num_classes = len(known.unique())
    if num_labeled is not None and num_labeled < num_classes:
        raise SuperCMError(
            f"num_labeled={num_labeled}: fewer labels than the {num_classes} classes; every class needs one."
        )
    if num_val < 0 or num_test < 0:
        raise SuperCMError(f"num_val={num_val} and num_test={num_test}: must not be negative.")
    if num_val + num_test + (num_labeled or num_classes) > len(known):
        raise SuperCMError(
            f"num_labeled={num_labeled}, num_val={num_val} and num_test={num_test} ask for more than the "
            f"{len(known):,} samples that have labels. Lower one of them."
        )
    rest = torch.arange(len(labels))

    def draw(count: int | None, stream: torch.Generator, balanced: bool) -> list[int]:
        nonlocal rest
        candidates = rest[labels[rest] >= 0]
        drawn = candidates if count is None else stratified_draw(labels, candidates, count, stream, balanced)
        keep = torch.ones(len(labels), dtype=torch.bool)
        keep[drawn] = False
        rest = rest[keep[rest]]
        return drawn.tolist()

    test = draw(num_test, generator(0, "test split"), balanced=False)
    stream = generator(seed, "split")
    val = draw(num_val, stream, balanced=False)
    labeled = draw(num_labeled, stream, balanced=True)
    return Split(dataset, len(labels), seed, labeled, val, test)


def split_of(
    labels: Tensor,
    dataset: str,
    options: Mapping[str, Any],
    counts: dict[str, int],
    file: Path | None,
) -> Split:
    """The split in a file if there is one, else a new one, which is then written there.

    Args:
        labels: Labels, (N,) int64, negative where unknown.
        dataset: Name of the data set.
        options: `num_labeled`, `num_val`, `num_test` and `split_seed` as the user gave them, None where not; a file
            that contradicts them is an error.
        counts: Number of samples to hold out for `val` and `test`.
        file: The file, or None.
    """
    seed = int(options["split_seed"] or 0)
    if file is None or not file.exists():
        split = make_split(labels, dataset, options["num_labeled"], counts["val"], counts["test"], seed)
        if file is not None and is_rank_zero():
            split.save(file)
        return split
    split = Split.load(file)
    remedy = "Leave the option out, or name another file to make a new split."
    if (split.dataset, split.num_rows) != (dataset, len(labels)):
        raise SuperCMError(
            f"split_file={file}: made for {split.num_rows:,} samples of {split.dataset}, but the data is {dataset} "
            f"with {len(labels):,} samples. Name another file to make a new split."
        )
    expected = {"labeled": options["num_labeled"]} | counts
    for name, numbers in (("labeled", split.labeled), ("val", split.val), ("test", split.test)):
        option = options[f"num_{name}"]
        if option is not None and len(numbers) != expected[name]:
            of = f" ({expected[name]:,} samples)" if expected[name] != option else ""
            raise SuperCMError(
                f"split_file={file}: has {len(numbers):,} samples in {name}, but num_{name}={option}{of}. {remedy}"
            )
    if seed not in (0, split.seed):
        raise SuperCMError(f"split_file={file}: made with split_seed={split.seed}, but split_seed={seed}. {remedy}")
    return split


def domain_strata(labels: Tensor, sizes: Sequence[int], num_classes: int) -> Tensor:
    """Numbers the pairs of domain and class, so that a stratified draw takes the same fraction of every domain.

    Args:
        labels: Labels, (N,) int64, negative where unknown.
        sizes: Number of samples of each domain, which follow one another.
        num_classes: Number of classes.

    Returns:
        The strata, (N,) int64, negative where the label is.
    """
    if len(sizes) < 2:
        return labels
    domain = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return torch.where(labels >= 0, labels + num_classes * domain, labels)


def num_held_out(split: str, amount: int | float, of: int) -> int:
    """Number of samples to hold out for a split: `amount` itself, or that fraction of `of` samples if it is below 1.

    Raises:
        SuperCMError: If `amount` is negative; the message names the option `num_<split>`.

    """
    if amount < 0:
        raise SuperCMError(f"num_{split}={amount}: must not be negative.")
    return round(amount * of) if 0 < amount < 1 else int(amount)


def check_label_range(labels: Tensor, num_classes: int, what: str) -> None:
    """Checks that labels (n,) lie in [0, num_classes).

    Raises:
        SuperCMError: If not; the message names `what` they belong to.
    """
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise SuperCMError(
            f"{what}: labels run from {int(labels.min())} to {int(labels.max())}, but num_classes={num_classes} allows "
            f"0 to {num_classes - 1}."
        )


def check_labels(labels: Tensor, num_classes: int, class_names: Sequence[str] | None, what: str) -> None:
    """Checks that the labels (n,) of a labeled set lie in [0, num_classes) and every class has a sample.

    Raises:
        SuperCMError: If not; the message names `what` they belong to, and the classes.
    """
    check_label_range(labels, num_classes, what)
    missing = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if missing:
        names = ", ".join(str(class_names[k]) if class_names else str(k) for k in missing[:10])
        raise SuperCMError(
            f"{what}: {len(missing)} of {num_classes} classes have no labeled sample ({names}"
            f"{', …' if len(missing) > 10 else ''}). Every class needs at least one: raise num_labeled or add labels."
        )
