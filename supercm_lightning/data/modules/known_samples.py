"""Samples stay in the split that they had, whatever becomes of the data."""

import filecmp
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from supercm_lightning.data.manifest import SIDES, Manifest, last_place
from supercm_lightning.data.modules.pipeline import ViewPipeline
from supercm_lightning.data.sources.base import Source
from supercm_lightning.data.sources.stores import Samples, Store
from supercm_lightning.data.splits import Split, domain_strata, split_of
from supercm_lightning.utils.options import SuperCMError
from supercm_lightning.utils.trainer import is_rank_zero


class KnownSamples(ViewPipeline):
    """The part of a data module that knows its samples by name and compares them with those of a checkpoint.

    Attributes:
        former_unlabeled: Position of each unlabeled sample among those of the checkpoint, (n,) int64, -1 for a new one;
            None: all are where they were.
    """

    num_classes: int
    class_names: tuple[str, ...] | None = None
    source: Source | None = None

    def __init__(self) -> None:
        super().__init__()
        self.former_unlabeled: Tensor | None = None
        self._stores: Mapping[str, Store] | None = None
        self._saved: Manifest | None = None
        self._drawn: dict[str, Any] = {}
        self._state: dict[str, Any] | None = None

    def stores(self) -> dict[str, Store]:
        """The stores of the source, which is read once."""
        assert self.source is not None
        self._stores = self._stores or self.source.read()
        return dict(self._stores)

    def draw_split(self, train: Store, held_out: Mapping[str, int | float], file: Path | None = None) -> Split:
        """The split of the checkpoint or of a file, if there is one, else a new one by the options.

        The same fraction of every domain of the training set is drawn. `held_out` is that of `split_of`; a `file` that
        does not exist is written.
        """
        assert self.source is not None
        read = Manifest.read(file, train, self.source.name) if file is not None and file.exists() else None
        if read is not None and self._saved is not None:
            splits = (set(read[split].keys) <= set(self._saved[split].keys) for split in ("labeled", *held_out))
            if not all(splits):
                raise SuperCMError(f"{read.origin}: another split than that of the checkpoint. Leave the option out.")
        saved, by_name = self._saved or read, train.is_named and not self.source.is_fixed
        strata = domain_strata(train.labels, self.source.train_sizes, self.num_classes)
        split = split_of(train, strata, self.hparams, held_out, by_name, saved)
        samples = split.samples(train)
        if read is None:
            counts = {s: len(getattr(split, s)) for s in ("labeled", *held_out)}
            self._drawn = {"seed": split.seed, "known": int((train.labels >= 0).sum()), "counts": counts}
            if file is not None and is_rank_zero():
                self._manifest(samples).write(file, train)
        else:
            self._drawn = {"seed": read.seed, "known": read.known, "counts": read.counts}
            if train.is_named:
                self._report(read, Manifest.of(samples), samples)
        return split

    def _manifest(self, samples: Mapping[str, Samples]) -> Manifest:
        name = self.source.name if self.source is not None else type(self).__name__
        return Manifest.of(samples, class_names=self.class_names, dataset=name, **self._drawn)

    def manifest_state(self) -> dict[str, Any]:
        """What a checkpoint stores of the samples, made once a run."""
        if self._state is None:
            present = self._manifest(self.samples)
            self._state = (present if self._saved is None else present.carrying(self._saved)).state()
        return self._state

    def keep_sides(self, saved: Manifest) -> None:
        """Gives every sample that a checkpoint knows the split that it had, and tells what has changed.

        Test samples that were trained or selected on are an error, and so is to resume with none of the samples.
        """
        self._saved, self._state = saved, None
        if not any(split in self.samples for split in SIDES):
            return
        present = Manifest.of(self.samples)
        if present.same_as(saved):
            return
        for split in SIDES:
            self.samples.pop(split, None)
        self._read_splits()
        present = Manifest.of(self.samples)
        self._check_known(saved, present)
        self._check_overlap(saved, present)
        self._report(saved, present, self.samples)
        self.former_unlabeled = torch.from_numpy(saved["unlabeled"].find(present["unlabeled"]))

    @abstractmethod
    def _read_splits(self) -> None: ...

    @property
    def _stage(self) -> TrainerFn | None:
        return self.trainer.state.fn if self.trainer is not None else None

    def _check_known(self, saved: Manifest, present: Manifest) -> None:
        everybody, training = saved.joined(*SIDES), present.joined("labeled", "unlabeled", "val")
        if (everybody.find(training) >= 0).any():
            return
        stores = [self.samples[split].store for split in ("test", "labeled") if split in self.samples]
        if self._stage == TrainerFn.FITTING or (len(stores) == 2 and stores[0] is stores[1]):
            raise SuperCMError(
                f"ckpt_path: none of the data's samples are those of the checkpoint ({saved.dataset}). Use its data; "
                "to test on other data, give that as a test set of its own; to train on other data, train anew."
            )

    def _check_overlap(self, saved: Manifest, present: Manifest) -> None:
        """Compares the test samples with those that the checkpoint was trained or selected on."""
        tested = present["test"]
        transductive = np.isin(tested.keys, present["unlabeled"].keys).any()
        trained = [SIDES.index(split) for split in ("labeled", "val", *([] if transductive else ["unlabeled"]))]
        overlap = np.isin(saved.sides(tested), trained).nonzero()[0]
        if not len(overlap):
            return
        message = (
            f"ckpt_path: {len(overlap):,} of the {len(tested.keys):,} test samples were in what the checkpoint was "
            f"trained or selected on: {self._names('test', overlap)}. Remove them from the test set."
        )
        predicted = self._stage == TrainerFn.PREDICTING and self.hparams.get("predict_on") == "test"
        if self._stage == TrainerFn.TESTING or predicted:
            raise SuperCMError(message)
        rank_zero_warn(message)

    def _report(self, saved: Manifest, present: Manifest, samples: Mapping[str, Samples]) -> None:
        """Warns of samples that are new or gone, and of labels that have changed, in the splits that are here."""
        notes = []
        former, here = saved.joined(*SIDES), present.joined(*SIDES)
        train = samples["unlabeled"].store if "unlabeled" in samples else None
        ours = {s: part for s, part in present.splits.items() if s != "test" or samples[s].store is train}
        new = {s: (former.find(part) < 0).nonzero()[0] for s, part in ours.items()}
        if count := len(np.unique(np.concatenate([present[split].keys[places] for split, places in new.items()]))):
            split = next(split for split, places in new.items() if len(places))
            notes.append(f"{count:,} samples are new ({self._names(split, new[split], samples)})")
        if gone := len(np.unique(former.keys[here.find(former) < 0])):
            notes.append(f"{gone:,} are gone")
        for split in ("labeled", "val", "test"):
            place = saved[split].find(present[split])
            before = np.where(place >= 0, saved[split].labels[place] if len(saved[split].labels) else -1, -1)
            changed = ((before >= 0) & (before != present[split].labels)).nonzero()[0]
            if len(changed):
                notes.append(f"{len(changed):,} of {split} have another label ({self._names(split, changed, samples)})")
        if notes:
            rank_zero_warn(f"{saved.origin}: the samples differ from those of the split: {'; '.join(notes)}.")

    def _names(self, split: str, places: Any, samples: Mapping[str, Samples] | None = None) -> str:
        part = (samples or self.samples)[split]
        shown = [part.store.describe(int(part.index[place])) for place in places[:5]]
        return ", ".join(shown) + (", …" if len(places) > 5 else "")

    def check_copies(self) -> None:
        """Looks for one image in two splits: exact copies, links to one file, and the same file listed twice.

        Test images that are also labeled ones are an error; in a published set, and among other splits, it warns.
        """
        if not any(part.store.marks is not None for part in self.samples.values()):
            return
        members = Manifest.of(self.samples)
        for split, others in (("test", ("labeled", "val", "unlabeled")), ("val", ("labeled", "unlabeled"))):
            for other in others:
                if copies := self._copies(members, split, other):
                    message = f"{len(copies):,} images of {split} are also in {other}: {', '.join(copies[:3])}"
                    message += f"{', …' if len(copies) > 3 else ''}. Remove one of each."
                    if (split, other) == ("test", "labeled") and not (self.source is not None and self.source.is_fixed):
                        raise SuperCMError(message)
                    rank_zero_warn(message)

    def _copies(self, members: Manifest, split: str, other: str) -> list[str]:
        ours, theirs = members[split], members[other]
        twins = last_place(theirs.marks, ours.marks)
        places = ((twins >= 0) & ~np.isin(ours.keys, theirs.keys)).nonzero()[0]
        pairs = [(self._names(split, [place]), self._names(other, [twins[place]])) for place in places]
        return [f"{one} = {two}" for one, two in pairs if filecmp.cmp(one, two, shallow=False)]
