"""Seeded, stratified splits of a training set into labelled, unlabelled and validation rows."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.random import generator


@dataclass(frozen=True)
class Split:
    """Row numbers of one training set; unlabelled rows are all that are neither labelled nor held out.

    Attributes:
        dataset: Name of the data set.
        num_rows: Number of rows of the training set.
        seed: Seed that drew the split.
        labeled: Rows whose labels may be used, sorted.
        val: Rows held out for validation, sorted.
        test: Rows held out for the test, sorted; empty where the data has its own test set.
    """

    dataset: str
    num_rows: int
    seed: int
    labeled: list[int]
    val: list[int]
    test: list[int]

    def rows(self, labeled_in_unlabeled: bool) -> dict[str, Tensor]:
        """Row numbers (n,) int64 of `labeled`, `unlabeled`, `val` and `test`, each sorted.

        Args:
            labeled_in_unlabeled: Whether the labelled rows are among the unlabelled ones too.
        """
        taken = self.val + self.test + ([] if labeled_in_unlabeled else self.labeled)
        keep = torch.ones(self.num_rows, dtype=torch.bool)
        keep[taken] = False
        given = {"labeled": self.labeled, "val": self.val, "test": self.test}
        numbers = {part: torch.tensor(rows, dtype=torch.int64) for part, rows in given.items()}
        return numbers | {"unlabeled": keep.nonzero().flatten()}

    def save(self, path: Path) -> None:
        """Writes the split as JSON, in one piece: a reader never sees half a file."""
        write_atomically(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Reads a split written by `save`.

        Raises:
            ValueError: If the file is not such a split, or has a row twice or outside the data.
        """
        try:
            split = cls(**json.loads(path.read_text()))
            rows = split.labeled + split.val + split.test
            if not all(type(number) is int for number in (split.num_rows, *rows)):
                raise TypeError("rows are whole numbers")
        except (ValueError, TypeError) as error:
            raise SuperCMError(f"split_file={path}: not a split written by this library ({error}).") from error
        strange = [row for row in rows if not 0 <= row < split.num_rows]
        if strange:
            raise SuperCMError(f"split_file={path}: row {strange[0]} is not one of the {split.num_rows} rows.")
        if len(set(rows)) < len(rows):
            twice = next(row for row in rows if rows.count(row) > 1)
            raise SuperCMError(f"split_file={path}: row {twice} stands twice among labeled, val and test.")
        return split


def stratified_draw(labels: Tensor, rows: Tensor, count: int, stream: torch.Generator, balanced: bool) -> Tensor:
    """Draws `count` of `rows`, spread over the classes.

    Args:
        labels: Labels of the whole set, (N,); rows with negative labels are never drawn.
        rows: Candidates, (R,) int64.
        count: Number of rows to draw, at most the number of labelled candidates.
        stream: Source of randomness.
        balanced: Equal numbers per class as far as each class reaches (the convention for labelled sets), instead of
            numbers in proportion to the classes.

    Returns:
        The drawn rows, (count,) int64, sorted.
    """
    rows = rows[labels[rows] >= 0]
    rows = rows[torch.randperm(len(rows), generator=stream)]
    of = labels[rows]
    size = torch.bincount(of, minlength=1)
    # Rank of each row within its class, in the random order.
    by_class = of.argsort(stable=True)
    rank = torch.empty_like(of)
    rank[by_class] = torch.arange(len(of)) - (size.cumsum(0) - size)[of[by_class]]
    if balanced:
        # One row of every class in turn; which classes get the last rows is a matter of chance, not of their size.
        key = rank + torch.rand(len(size), generator=stream, dtype=torch.float64)[of]
    else:
        key = (rank.double() + 0.5) / size[of]
    return rows[key.argsort(stable=True)[:count]].sort().values


def make_split(labels: Tensor, dataset: str, num_labeled: int | None, num_val: int, num_test: int, seed: int) -> Split:
    """Splits one training set.

    The test rows depend on the data alone, never on `seed`, so that runs with different label draws share a test set.

    Args:
        labels: Labels, (N,) int64, negative where unknown.
        dataset: Name of the data set, recorded in the split.
        num_labeled: Number of labelled rows, balanced over the classes; None: every remaining row that has a label.
        num_val: Number of validation rows, in proportion to the classes.
        num_test: Number of test rows, likewise.
        seed: Seed of the draw.

    Returns:
        The split.

    Raises:
        ValueError: If there are fewer rows with labels than asked for, or fewer labelled rows than classes.
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
            f"{len(known):,} rows that have labels. Lower one of them."
        )
    rest = torch.arange(len(labels))

    def draw(count: int | None, stream: torch.Generator, balanced: bool) -> list[int]:
        nonlocal rest
        every = rest[labels[rest] >= 0]
        drawn = every if count is None else stratified_draw(labels, every, count, stream, balanced)
        keep = torch.ones(len(labels), dtype=torch.bool)
        keep[drawn] = False
        rest = rest[keep[rest]]
        return drawn.tolist()

    test = draw(num_test, generator(0, "test split"), balanced=False)
    stream = generator(seed, "split")
    val = draw(num_val, stream, balanced=False)
    labeled = draw(num_labeled, stream, balanced=True)
    return Split(dataset, len(labels), seed, labeled, val, test)


def domain_strata(labels: Tensor, domain: Tensor, num_classes: int) -> Tensor:
    """Numbers the pairs of domain and class, so that a stratified draw takes its share of every domain.

    Args:
        labels: Labels, (N,) int64, negative where unknown.
        domain: Number of each row's domain, (N,) int64.
        num_classes: Number of classes.

    Returns:
        The strata, (N,) int64, negative where the label is.
    """
    return torch.where(labels >= 0, labels + num_classes * domain, labels)


def count_rows(part: str, amount: int | float, of: int) -> int:
    """Number of rows of a part to hold out: `amount` itself, or that share of `of` rows if it is below 1.

    Raises:
        ValueError: If `amount` is negative; the message names the option `num_<part>`.
    """
    if amount < 0:
        raise SuperCMError(f"num_{part}={amount}: must not be negative.")
    return round(amount * of) if 0 < amount < 1 else int(amount)


def check_label_range(labels: Tensor, num_classes: int, what: str) -> None:
    """Checks that labels (n,) lie in [0, num_classes).

    Raises:
        ValueError: If not; the message names `what` they belong to.
    """
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise SuperCMError(
            f"{what}: labels run from {int(labels.min())} to {int(labels.max())}, but num_classes={num_classes} allows "
            f"0 to {num_classes - 1}."
        )


def check_labels(labels: Tensor, num_classes: int, class_names: Sequence[str] | None, what: str) -> None:
    """Checks the labels of a labelled set.

    Args:
        labels: Labels of the labelled rows, (B,).
        num_classes: Number of classes K.
        class_names: Names for the message, or None.
        what: What the labels belong to, for the message.

    Raises:
        ValueError: If a label lies outside [0, K), or a class has no row.
    """
    check_label_range(labels, num_classes, what)
    missing = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if missing:
        names = ", ".join(str(class_names[k]) if class_names else str(k) for k in missing[:10])
        raise SuperCMError(
            f"{what}: {len(missing)} of {num_classes} classes have no labelled row ({names}"
            f"{', …' if len(missing) > 10 else ''}). Every class needs at least one: raise num_labeled or add labels."
        )
