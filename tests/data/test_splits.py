"""The split into labelled, unlabelled, validation and test rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from supercm_lightning.data import SemiSupervisedDataModule
from supercm_lightning.data.manifest import Manifest
from supercm_lightning.data.sources.stores import ArrayStore
from supercm_lightning.data.splits import check_labels, make_split

# 60 of class 0, 30 of class 1, 10 of class 2, in mixed order.
LABELS = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]


def counts(labels: torch.Tensor, rows: list[int]) -> list[int]:
    return torch.bincount(labels[rows], minlength=3).tolist()


def test_labelled_draw_is_balanced_whatever_the_class_sizes():
    assert counts(LABELS, make_split(LABELS, 12, 0, 0, seed=0).labeled) == [4, 4, 4]


def test_labelled_draw_that_does_not_divide_differs_by_one_at_most_and_by_seed_in_the_class():
    drawn = {tuple(counts(LABELS, make_split(LABELS, 13, 0, 0, seed).labeled)) for seed in range(30)}
    assert drawn == {(5, 4, 4), (4, 5, 4), (4, 4, 5)}


def test_labelled_draw_takes_all_of_a_class_that_is_too_small_and_the_rest_from_the_others():
    assert counts(LABELS, make_split(LABELS, 50, 0, 0, seed=0).labeled) == [20, 20, 10]
    assert counts(LABELS, make_split(LABELS, 90, 0, 0, seed=0).labeled) == [50, 30, 10]


def test_validation_and_test_rows_are_in_proportion_to_the_classes():
    split = make_split(LABELS, 6, 20, 30, seed=3)
    assert counts(LABELS, split.val) == [12, 6, 2]
    assert counts(LABELS, split.test) == [18, 9, 3]


def test_parts_are_disjoint_and_complete():
    rows = make_split(LABELS, 13, 21, 17, seed=5).indices(labeled_in_unlabeled=False)
    assert {part: len(numbers) for part, numbers in rows.items()} == {
        "labeled": 13, "val": 21, "test": 17, "unlabeled": 49,
    }  # fmt: skip
    assert torch.cat(list(rows.values())).sort().values.tolist() == list(range(100))


def test_labelled_rows_join_the_unlabelled_ones_only_when_asked():
    split = make_split(LABELS, 13, 21, 17, seed=5)
    assert not set(split.labeled) & set(split.indices(False)["unlabeled"].tolist())
    with_them = set(split.indices(True)["unlabeled"].tolist())
    assert set(split.labeled) < with_them
    assert not with_them & set(split.val + split.test)


def test_test_rows_do_not_depend_on_the_seed_and_the_others_do():
    first, second = (make_split(LABELS, 12, 20, 20, seed) for seed in (0, 1))
    assert first.test == second.test
    assert first.labeled != second.labeled
    assert first.val != second.val


def test_same_seed_same_split_whatever_the_global_random_state():
    torch.manual_seed(1)
    first = make_split(LABELS, 12, 20, 20, seed=4)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert make_split(LABELS, 12, 20, 20, seed=4) == first
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_labeled", [12, None])
def test_rows_without_label_are_only_ever_unlabelled(num_labeled):
    labels = LABELS.clone()
    labels[::2] = -1
    split = make_split(labels, num_labeled, 10, 10, seed=0)
    assert all(labels[row] >= 0 for row in split.labeled + split.val + split.test)
    assert set(range(0, 100, 2)) <= set(split.indices(False)["unlabeled"].tolist())


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((2, 0, 0), "num_labeled=2: fewer labels than the 3 classes"),
        ((101, 0, 0), "num_labeled=101, num_val=0 and num_test=0 ask for more than the 100 samples"),
        ((50, 30, 30), "num_labeled=50, num_val=30 and num_test=30 ask for more"),
        ((None, 60, 38), "num_labeled=None, num_val=60 and num_test=38 ask for more"),
        ((12, -1, 0), "num_val=-1"),
    ],
)
def test_impossible_numbers_are_named(numbers, message):
    with pytest.raises(ValueError, match=message):
        make_split(LABELS, *numbers, seed=0)


def test_class_without_labelled_row_is_named():
    with pytest.raises(ValueError, match=r"1 of 3 classes have no labeled sample \(bird\)"):
        check_labels(torch.tensor([0, 1, 1]), 3, ("ape", "cow", "bird"), "labelled set")


def test_label_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"labels run from 0 to 3, but num_classes=3 allows 0 to 2"):
        check_labels(torch.tensor([0, 1, 2, 3]), 3, None, "labelled set")


STORE = ArrayStore(torch.rand(100, 2, generator=torch.Generator().manual_seed(0)), LABELS)
NAMED = ArrayStore(STORE.data, LABELS, [f"{number}.png" for number in range(100)])


def manifest_of(store: ArrayStore) -> Manifest:
    samples = make_split(LABELS, 13, 21, 17, seed=5).samples(store)
    counts = {"labeled": 13, "val": 21, "test": 17}
    return Manifest.of(samples, class_names=("ape", "cow", "bird"), dataset="d", seed=5, known=100, counts=counts)


@pytest.mark.parametrize("store", [STORE, NAMED])
def test_file_gives_back_the_split_and_leaves_no_partial_file(tmp_path: Path, store: ArrayStore):
    written, file = manifest_of(store), tmp_path / "deep" / "split.json"
    written.write(file, store)
    written.write(file, store)
    read = Manifest.read(file, store, "d")
    assert all(np.array_equal(read[split], written[split]) for split in ("labeled", "val", "test"))
    assert (read.seed, read.known, read.class_names) == (5, 100, ("ape", "cow", "bird"))
    assert {split: read.counts[split] for split in written.counts} == written.counts
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("store", [STORE, NAMED])
def test_checkpoint_gives_back_the_split(store: ArrayStore):
    written = manifest_of(store)
    read = Manifest.from_state(written.state())
    assert read.same_as(written)
    assert (read.seed, read.counts, read.class_names) == (written.seed, written.counts, written.class_names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "not a split written by this library"),
        ({"strange": 1}, "not a split written by this library"),
        ({"val": [100]}, "sample 100 is not one of the 100 samples"),
        ({"labeled": [1, 2], "val": [2], "test": []}, "sample 2 occurs twice"),
        ({"content": "0" * 16}, "and they are others"),
    ],
)
def test_broken_file_is_refused(tmp_path: Path, change, message):
    file = tmp_path / "split.json"
    manifest_of(STORE).write(file, STORE)
    content = json.loads(file.read_text())
    file.write_text("no json" if change is None else json.dumps(content | change))
    with pytest.raises(ValueError, match=message):
        Manifest.read(file, STORE, "d")


class TestFileOfADataModule:
    """What `split_file` does."""

    def data(self, **kwargs) -> SemiSupervisedDataModule:
        data = SemiSupervisedDataModule(**({"num_labeled": 20, "split_file": "splits/digits.json"} | kwargs))
        data.setup("fit")
        return data

    def test_written_when_missing_and_read_when_there(self):
        written = self.data(split_seed=3)
        assert self.data().split == self.data(split_seed=3).split == written.split
        # What stands in the file is what is used.
        content = json.loads(Path("splits/digits.json").read_text())
        content["val"] = content["val"][:7]
        Path("splits/digits.json").write_text(json.dumps(content))
        read = self.data()
        assert read.samples["val"].index.tolist() == content["val"]
        assert len(read.samples["unlabeled"]) == 1797 - 20 - 7 - 450

    def test_refused_for_other_data(self, image_folder):
        self.data()
        with pytest.raises(ValueError, match=r"digits\.json: made for 1,797 samples of digits, but the data is folder"):
            self.data(dataset="folder", root=image_folder({"a": 10, "b": 20}))

    def test_refused_for_another_number_of_labels(self):
        self.data()
        with pytest.raises(ValueError, match=r"digits\.json: has 20 samples in labeled, but num_labeled=40"):
            self.data(num_labeled=40)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_val": 300}, r"has 150 samples in val, but num_val=300\. Leave the option out, or name"),
            ({"num_val": 0}, r"has 150 samples in val, but num_val=0\. "),
            ({"num_val": 0.5}, r"has 150 samples in val, but num_val=0\.5 \(898 samples\)\. "),
            ({"num_test": 10}, r"has 450 samples in test, but num_test=10\. "),
            ({"split_seed": 7}, r"made with split_seed=3, but split_seed=7\. Leave the option out"),
        ],
    )
    def test_refused_for_other_numbers(self, options, message):
        written = self.data(split_seed=3).split
        with pytest.raises(ValueError, match=r"split_file=splits/digits\.json: " + message):
            self.data(**options)
        assert self.data(num_val=150, num_test=450, split_seed=3).split == written

    def test_only_rank_zero_writes(self, monkeypatch):
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        self.data()
        assert not Path("splits").exists()
