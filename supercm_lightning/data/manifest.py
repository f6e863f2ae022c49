"""Which samples the splits of a run have: what a checkpoint and a split file hold, and data is compared with."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from supercm_lightning.data.sources.names import Keys, keys_of
from supercm_lightning.data.sources.stores import Samples, Store
from supercm_lightning.utils.files import write_atomically
from supercm_lightning.utils.options import SuperCMError

SIDES = ("unlabeled", "labeled", "val", "test")
"""Splits; a sample that is in several of them, itself or as a copy, belongs to the last."""


class Members(NamedTuple):
    """The samples of one split, each (n,) int64.

    Attributes:
        keys: What each is known by: its name, or its number among samples without names.
        labels: Its label, -1 where unknown or not to be used.
        marks: A number for the contents of its file, 0 where there is none.
    """

    keys: Keys
    labels: Keys
    marks: Keys

    @classmethod
    def of(cls, samples: Samples, hide_labels: bool = False) -> "Members":
        """Those of some samples of a store."""
        index, store = samples.index.cpu().numpy(), samples.store
        labels = np.full(len(index), -1) if hide_labels or samples.hide_labels else store.labels.cpu().numpy()[index]
        marks = np.zeros(len(index), np.int64) if store.marks is None else store.marks[index]
        return cls(store.keys[index], labels, marks)

    def find(self, others: "Members") -> Keys:
        """Place of each of some samples here, the last if it has several, (m,); -1: it is not here.

        It is the sample of its name and contents; else of its contents, which was renamed; else of its name, whose
        contents were changed.
        """
        by_name, by_contents = last_place(self.keys, others.keys), last_place(self.marks, others.marks)
        kept = (by_name >= 0) & (np.append(self.marks, 0)[by_name] == others.marks)
        return np.where(kept | (by_contents < 0), by_name, by_contents)


def last_place(ours: Keys, theirs: Keys) -> Keys:
    """Last place of each number among ours, -1 where it is 0 or not there."""
    if not len(ours):
        return np.full(len(theirs), -1)
    order = ours.argsort(kind="stable")
    place = order[(np.searchsorted(ours, theirs, side="right", sorter=order) - 1).clip(min=0)]
    return np.where((ours[place] == theirs) & (theirs != 0), place, -1)


@dataclass(frozen=True)
class Manifest:
    """The samples of every split of a run.

    Attributes:
        splits: The samples of each split.
        class_names: Names of the classes in the order of the labels, or None.
        dataset: Name of the data set.
        seed: Seed of the split.
        known: Number of training samples that had a label.
        counts: Number of samples that were drawn for `labeled`, `val` and `test`.
        origin: Option that gave it, for messages.
    """

    splits: Mapping[str, Members]
    class_names: tuple[str, ...] | None = None
    dataset: str = ""
    seed: int = 0
    known: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    origin: str = field(default="ckpt_path", compare=False)

    @classmethod
    def of(cls, samples: Mapping[str, Samples], **about: Any) -> "Manifest":
        """That of the samples of each split; labels of the unlabeled ones are not read."""
        parts = {split: part for split, part in samples.items() if split in SIDES}
        return cls({split: Members.of(part, split == "unlabeled") for split, part in parts.items()}, **about)

    def carrying(self, former: "Manifest") -> "Manifest":
        """With the samples of a former one that are gone, last in their splits, so that they stay known."""
        here = self.joined(*SIDES)
        gone = {s: Members(*np.stack(part)[:, ~np.isin(part.keys, here.keys)]) for s, part in former.splits.items()}
        splits = {split: Members(*np.concatenate([self[split], part], axis=1)) for split, part in gone.items()}
        return replace(former, splits={**self.splits, **splits}, origin="ckpt_path")

    def __getitem__(self, split: str) -> Members:
        return self.splits.get(split, Members(*np.empty((3, 0), np.int64)))

    def joined(self, *splits: str) -> Members:
        """The samples of several splits."""
        return Members(*np.concatenate([self[split] for split in splits], axis=1))

    def same_as(self, other: "Manifest") -> bool:
        """Whether all splits have the same samples with the same labels and contents."""
        return all(np.array_equal(self[split], other[split]) for split in SIDES)

    def sides(self, members: Members) -> Keys:
        """To which split each of some samples belongs, (n,), as its place in `SIDES`; -1: to none, it is new."""
        side = np.concatenate([np.full(len(self[split].keys), place) for place, split in enumerate(SIDES)])
        found = self.joined(*SIDES).find(members)
        return np.where(found >= 0, np.append(side, -1)[found], -1)

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, compressed: numbers of samples without names take next to no space."""
        about = {name: value for name, value in vars(self).items() if name not in ("splits", "origin")}
        names = ("keys", "labels", "marks")
        splits = {s: dict(zip(names, map(_pack, part), strict=True)) for s, part in self.splits.items()}
        return about | {"splits": splits}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Manifest":
        """That of a checkpoint."""
        splits = {s: Members(**{name: _unpack(array) for name, array in p.items()}) for s, p in state["splits"].items()}
        names = state["class_names"]
        return cls(**{**state, "splits": splits, "class_names": None if names is None else tuple(names)})

    def write(self, path: Path, store: Store) -> None:
        """Writes the splits of one store as JSON, in one piece: a reader never sees half a file."""
        names = store.ids if store.ids is not None else store.names
        content: dict[str, Any] = {"dataset": self.dataset, "num_rows": len(store), "seed": self.seed}
        content |= {
            "known": self.known,
            "content": _hex(store.content()) if names is None else None,
            "classes": self.class_names,
        }
        order = store.keys.argsort()
        for split in ("labeled", "val", "test") if names is None else SIDES:
            part = self[split]
            numbers = order[np.searchsorted(store.keys, part.keys, sorter=order)].tolist()
            if names is None:
                content[split] = numbers
            else:
                classes = [
                    None if k < 0 else self.class_names[k] if self.class_names else k for k in part.labels.tolist()
                ]
                rows = zip(numbers, classes, part.marks.tolist(), strict=True)
                content[split] = {names[n]: [label, _hex(mark)] for n, label, mark in rows}
        write_atomically(path, json.dumps(content, ensure_ascii=False))

    @classmethod
    def read(cls, path: Path, store: Store, dataset: str) -> "Manifest":
        """Reads a file of `write`, for the samples of a store; another file, or one of other data, is an error."""
        origin = f"split_file={path}"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if unexpected := set(content) - {*_ABOUT, *SIDES}:
                raise TypeError(f"unexpected keyword {min(unexpected)!r}")
            name, count, seed, known, number = (content[key] for key in _ABOUT if key != "classes")
            if not all(type(value) is int for value in (count, seed, known)):
                raise TypeError("numbers of samples must be integers")
            classes = content["classes"] and tuple(map(str, content["classes"]))
            rows: dict[str, Any] = {split: content[split] for split in SIDES if split in content or number is None}
            if number is None:
                splits = {split: _named(part, classes) for split, part in rows.items()}
            else:
                if wrong := [value for part in rows.values() for value in part if type(value) is not int]:
                    raise TypeError(f"sample numbers must be integers, not {wrong[0]!r}")
                splits = {split: _numbered(part, int(number, 16), store) for split, part in rows.items()}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise SuperCMError(f"{origin}: not a split written by this library ({error!r}).") from error
        fits = (
            store.is_named
            if number is None
            else not store.is_named and (count, number) == (len(store), _hex(store.content()))
        )
        if not fits or name != dataset:
            raise SuperCMError(
                f"{origin}: made for {count:,} samples of {name}, but the data is {dataset} with {len(store):,} "
                f"samples{'' if name != dataset or count != len(store) else ', and they are others'}. Name another "
                "file to make a new split."
            )
        listed = [value for split, part in rows.items() if split != "unlabeled" for value in part]
        if number is not None and (outside := [value for value in listed if not 0 <= value < count]):
            raise SuperCMError(f"{origin}: sample {outside[0]} is not one of the {count} samples.")
        if len(set(listed)) < len(listed):
            twice = next(value for value in listed if listed.count(value) > 1)
            raise SuperCMError(f"{origin}: sample {twice} occurs twice in labeled, val and test.")
        counts = {split: len(part) for split, part in rows.items()}
        return cls(splits, classes, name, seed, known, counts, origin)


_ABOUT = ("dataset", "num_rows", "seed", "known", "content", "classes")


def _hex(number: int) -> str:
    return f"{number & (2**64 - 1):016x}"


def _named(rows: Mapping[str, Sequence[Any]], classes: tuple[str, ...] | None) -> Members:
    number = {name: place for place, name in enumerate(classes or ())}
    labels = [-1 if label is None else number.get(label, label) for label, _ in rows.values()]
    marks = np.array([int(mark, 16) for _, mark in rows.values()], np.uint64).astype(np.int64)
    return Members(keys_of(rows), np.array(labels, np.int64), marks)


def _numbered(numbers: Sequence[int], content: int, store: Store) -> Members:
    index = np.array(numbers, np.int64)
    inside = index[(index >= 0) & (index < len(store))]
    base = np.array([content], np.uint64).astype(np.int64)
    return Members(base + index, store.labels.cpu().numpy()[inside], np.zeros(len(index), np.int64))


def _pack(array: Keys) -> Tensor:
    steps = np.diff(array, prepend=np.int64(0)).astype("<i8")
    return torch.frombuffer(bytearray(zlib.compress(steps.tobytes(), 1)), dtype=torch.uint8)


def _unpack(packed: Tensor) -> Keys:
    steps = np.frombuffer(zlib.decompress(packed.cpu().numpy().tobytes()), "<i8")
    return np.cumsum(steps, dtype=np.int64)
