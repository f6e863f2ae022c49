"""Samples keep the split that they had, whatever becomes of the files."""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from PIL import Image
from torch.utils.data import TensorDataset

from supercm_lightning import (
    ASDFreeMatch,
    ClusteringDataModule,
    DomainAdaptationDataModule,
    FeatureDataModule,
    FlexMatch,
    SemiSupervisedDataModule,
    Supervised,
)
from supercm_lightning.data.manifest import Manifest
from supercm_lightning.data.sources.names import keys_of
from supercm_lightning.data.splits import make_split
from supercm_lightning.utils.options import SuperCMError

QUIET: dict[str, Any] = {
    "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
}  # fmt: skip


def write(path: Path, seed: int) -> None:
    """An image that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def photographs(count: int = 20, tree: str = "train") -> Path:
    """A folder `photographs` of two classes."""
    for k, name in enumerate(("cat", "dog")):
        for number in range(count):
            write(Path("photographs", tree, name, f"{number:02}.png"), 1000 * k + number)
    return Path("photographs")


def read(**options: Any) -> SemiSupervisedDataModule:
    asked = {"num_labeled": 6, "num_val": 8, "num_test": 10, "num_workers": 0, "shift": 0} | options
    data = SemiSupervisedDataModule("folder", "photographs", **asked)
    data.setup("fit")
    return data


def files(data: Any, split: str) -> set[str]:
    part = data.samples[split]
    return {part.store.ids[number] for number in part.index.tolist()}


def fitted(data: Any, method: Any = Supervised, steps: int = 2, ckpt_path: str | None = None, **options: Any) -> str:
    model = method(num_classes=data.num_classes, input_shape=data.input_shape, **options)
    trainer = Trainer(max_steps=steps, limit_val_batches=0, enable_checkpointing=False, **QUIET)
    trainer.fit(model, data, ckpt_path=ckpt_path)
    trainer.save_checkpoint("run.ckpt")
    return "run.ckpt"


def score(data: Any, **options: Any) -> dict[str, float]:
    model = Supervised(num_classes=data.num_classes, input_shape=data.input_shape, **options)
    return dict(Trainer(**QUIET).test(model, data, ckpt_path="run.ckpt", verbose=False)[0])


def data_of(**options: Any) -> SemiSupervisedDataModule:
    asked = {"num_labeled": 6, "num_val": 8, "num_test": 10, "num_workers": 0, "shift": 0} | options
    return SemiSupervisedDataModule("folder", "photographs", **asked)


# -------------------------------------------------------------------------------------------------------- new splits
@pytest.mark.parametrize("seed", range(5))
def test_one_file_more_or_less_moves_at_most_those_that_make_room_for_it(seed: int):
    labels = torch.arange(400) % 4
    keys = keys_of(f"{number}.png" for number in range(400))
    whole = make_split(labels, 40, 60, 80, seed, keys)
    keep = torch.arange(400) != 17 * seed
    fewer = make_split(labels[keep], 40, 60, 80, seed, keys[keep.numpy()])
    number = torch.arange(400)[keep]
    moved = sum(
        len(set(getattr(whole, s)) ^ set(number[getattr(fewer, s)].tolist())) for s in ("labeled", "val", "test")
    )
    assert moved <= 8  # by number it is some 300


def test_order_of_the_files_is_no_matter():
    labels = torch.arange(100) % 2
    keys = keys_of(f"{number}.png" for number in range(100))
    order = np.random.default_rng(0).permutation(100)
    one, other = make_split(labels, 10, 20, 20, 3, keys), make_split(labels[order], 10, 20, 20, 3, keys[order])
    assert all(set(getattr(one, s)) == set(order[getattr(other, s)].tolist()) for s in ("labeled", "val", "test"))


@pytest.mark.parametrize(
    ("seed", "labeled", "val"), [(0, [189, 200, 232], [0, 10, 39]), (3, [120, 211, 295], [2, 6, 25])]
)
def test_published_sets_are_split_as_before(seed: int, labeled: list[int], val: list[int]):
    data = SemiSupervisedDataModule("digits", num_labeled=20, split_seed=seed)
    data.setup("fit")
    assert data.split is not None
    assert (data.split.labeled[:3], data.split.val[:3]) == (labeled, val)


# --------------------------------------------------------------------------------------------- a checkpoint's split
def add(data: Any) -> None:
    write(Path("photographs/train/cat/00a.png"), 77)


def remove(data: Any) -> None:
    Path("photographs/train/cat/00.png").unlink()


def rename(data: Any) -> None:
    for split in ("labeled", "val", "test", "unlabeled"):
        old = Path("photographs", min(files(data, split)))
        old.rename(old.with_name("z" + old.name))


def relabel(data: Any) -> None:
    old = Path("photographs", min(name for name in files(data, "test") if "cat" in name))
    old.rename(Path("photographs/train/dog/from_cat.png"))


@pytest.mark.parametrize("change", [add, remove, rename, relabel])
def test_what_was_trained_on_is_not_tested_on(change: Any):
    photographs()
    before = read()
    fitted(before)
    change(before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a renamed file is no news
        score(after := data_of())
    marks = {s: set(Manifest.of(before.samples)[s].marks.tolist()) for s in before.samples}
    now = {s: set(Manifest.of(after.samples)[s].marks.tolist()) for s in before.samples}
    for split in ("labeled", "val", "test"):
        assert now[split] <= marks[split]


def test_a_corrected_label_is_named_and_used():
    photographs()
    before = read()
    fitted(before)
    relabel(before)
    with pytest.warns(UserWarning, match=r"1 of test have another label \(.*from_cat\.png"):
        score(after := data_of())
    assert "train/dog/from_cat.png" in files(after, "test")


def test_test_images_that_were_trained_on_are_an_error():
    photographs()
    for k, name in enumerate(("cat", "dog")):
        for number in range(4):
            write(Path("photographs/test", name, f"{number}.png"), 5000 + 10 * k + number)
    fitted(read(num_test=None))
    Path("photographs/train/cat/03.png").rename("photographs/test/cat/moved.png")
    with pytest.raises(SuperCMError, match=r"1 of the 9 test samples were in what.*moved\.png"):
        score(data_of(num_test=None))


def test_another_seed_is_refused_and_the_default_takes_the_checkpoints_split():
    photographs()
    before = read(split_seed=3)
    fitted(before)
    score(same := data_of())
    assert files(same, "test") == files(before, "test")
    assert files(same, "labeled") == files(before, "labeled")
    with pytest.raises(SuperCMError, match="made with split_seed=3, but split_seed=5"):
        score(data_of(split_seed=5))
    with pytest.raises(SuperCMError, match="num_labeled=8"):
        score(data_of(num_labeled=8))
    for options in ({"split_seed": 5}, {"num_labeled": 8}):
        with pytest.raises(SuperCMError, match=f"{next(iter(options))}="):
            fitted(data_of(**options), steps=3, ckpt_path="run.ckpt")


def test_digits_take_the_split_of_the_checkpoint():
    before = SemiSupervisedDataModule("digits", num_labeled=20, split_seed=4)
    before.setup("fit")
    fitted(before)
    after = SemiSupervisedDataModule("digits")
    score(after)
    assert after.split == before.split


def test_arrays_that_have_changed_cannot_be_told_apart():
    x, y = torch.rand(90, 4), torch.arange(90) % 3
    before = FeatureDataModule((x, y), num_labeled=9, num_test=30)
    before.setup("fit")
    fitted(before, backbone="identity")
    score(FeatureDataModule((x, y), num_labeled=9, num_test=30), backbone="identity")
    with pytest.raises(SuperCMError, match="none of the data's samples"):
        score(FeatureDataModule((x[1:], y[1:]), num_labeled=9, num_test=30), backbone="identity")


def test_a_set_of_its_own_may_be_tested_on():
    x, y = torch.rand(90, 4), torch.arange(90) % 3
    before = FeatureDataModule((x, y), num_labeled=9)
    before.setup("fit")
    fitted(before, backbone="identity")
    with pytest.warns(UserWarning, match="30 samples are new"):
        score(FeatureDataModule((torch.rand(30, 4), y[:30]), test=(torch.rand(30, 4), y[:30])), backbone="identity")
    with pytest.raises(SuperCMError, match="90 of the 90 test samples"):
        score(FeatureDataModule((torch.rand(30, 4), y[:30]), test=(x, y), num_labeled=9), backbone="identity")


@pytest.mark.parametrize("method", [FlexMatch, ASDFreeMatch])
def test_state_of_a_sample_follows_it(method: Any):
    photographs()
    clusters = method is ASDFreeMatch
    buffer = "labeler.samples.last_label" if clusters else "selected_label"

    def data(**options: Any) -> Any:
        if clusters:
            return ClusteringDataModule("folder", "photographs/train", num_workers=0, unlabeled_batch_size=8, **options)
        return data_of(labeled_batch_size=6, unlabeled_batch_size=8, steps_per_epoch=4, **options)

    def run(steps: int, ckpt: str | None = None) -> Any:
        module = data()
        model = method(num_classes=2, input_shape=(3, 8, 8), **({"asd_samples": 8, "asd_hold": 1} if clusters else {}))
        keep = LambdaCallback(on_train_epoch_start=lambda *_: found.append(model.get_buffer(buffer).tolist()))
        options = {"limit_val_batches": 0, "enable_checkpointing": False, "callbacks": [keep]} | QUIET
        trainer = Trainer(max_steps=steps, **options)
        trainer.fit(model, module, ckpt_path=ckpt)
        trainer.save_checkpoint("run.ckpt")
        return module

    found: list[Any] = []
    before = run(6)
    numbers = torch.arange(before.num_unlabeled)
    checkpoint = torch.load("run.ckpt", weights_only=True)
    checkpoint["state_dict"][buffer] = numbers % 3 - 1
    torch.save(checkpoint, "run.ckpt")
    names = [before.samples["unlabeled"].store.ids[n] for n in before.samples["unlabeled"].index.tolist()]
    label = dict(zip(names, (numbers % 3 - 1).tolist(), strict=True))
    root = Path(before.hparams.root)
    gone = names[3]
    root.joinpath(gone).unlink()
    write(root.joinpath(gone).with_name("00new.png"), 99)
    with pytest.warns(UserWarning, match=r"1 samples are new .*00new.*; 1 are gone"):
        after = run(7, "run.ckpt")
    now = [after.samples["unlabeled"].store.ids[n] for n in after.samples["unlabeled"].index.tolist()]
    assert [label.get(name, -1) for name in now] == found[-1]


# ------------------------------------------------------------------------------------------------------- split files
@pytest.mark.parametrize("change", [rename, relabel])
def test_a_split_file_means_files_not_numbers(change: Any):
    photographs()
    before = read(split_file="split.json")
    change(before)
    Path("photographs", min(files(before, "unlabeled") - {"train/cat/00.png"})).unlink(missing_ok=True)
    add(before)
    with pytest.warns(UserWarning, match="split_file=split.json: the samples differ"):
        after = read(split_file="split.json")
    was, now = Manifest.of(before.samples), Manifest.of(after.samples)
    for split in ("labeled", "val", "test"):
        assert set(now[split].marks) <= set(was[split].marks)
    assert "train/cat/00a.png" in files(after, "unlabeled")


def test_a_split_file_of_another_python_data_set_is_refused():
    one, other = (TensorDataset(torch.rand(30, 1, 8, 8), torch.arange(30) % 3) for _ in range(2))
    SemiSupervisedDataModule(one, num_labeled=3, split_file="split.json").setup("fit")
    SemiSupervisedDataModule(one, num_labeled=3, split_file="split.json").setup("fit")
    with pytest.raises(SuperCMError, match=r"split\.json: made for 30 samples .* they are others"):
        SemiSupervisedDataModule(other, num_labeled=3, split_file="split.json").setup("fit")


# ------------------------------------------------------------------------------------------------------------ copies
def test_one_image_in_labeled_and_test_is_an_error():
    photographs()
    photographs(3, "test")
    with pytest.raises(SuperCMError, match=r"6 images of test are also in labeled: .*cat/00\.png = .*cat/00"):
        read(num_labeled=None, num_val=0, num_test=None)


def test_one_image_in_two_other_splits_is_a_warning():
    photographs(6, "labeled")
    photographs(6, "val")
    with pytest.warns(UserWarning, match=r"12 images of val are also in labeled"):
        read(num_labeled=None, num_val=None, num_test=None)


def test_target_that_is_a_link_to_the_source_is_an_error():
    photographs()
    Path("domains").mkdir()
    shutil.move("photographs/train", "domains/photo")
    Path("domains/sketch").symlink_to("photo")
    data = DomainAdaptationDataModule("photo", "sketch", "folder", "domains", image_size=8, num_workers=0)
    with pytest.raises(SuperCMError, match="images of test are also in labeled"):
        data.setup("fit")


# --------------------------------------------------------------------------------------------------- any such change
ACTION = st.tuples(st.sampled_from(("add", "remove", "rename", "relabel", "swap", "copy")), st.integers(0, 10**6))


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTION, min_size=1, max_size=12))
def test_no_sequence_of_changes_moves_a_sample_to_another_side(actions: list[tuple[str, int]]):
    shutil.rmtree("photographs", ignore_errors=True)
    photographs(16)
    before = read()
    saved = Manifest.of(before.samples, dataset="folder", known=32, counts={"labeled": 6, "val": 8, "test": 10})
    for name, number in actions:
        found = sorted(Path("photographs/train").glob("*/*.png"))
        file, other = found[number % len(found)], found[number // 7 % len(found)]
        new = file.with_name(f"{number}-{file.name}")
        if name == "add":
            write(new, number + 10**7)
        elif name == "remove" and len(found) > 8:
            file.unlink()
        elif name == "copy":
            shutil.copy(file, new)
        elif name == "rename":
            file.rename(new)
        elif name == "relabel":
            file.rename(new.parent.with_name("dog" if file.parent.name == "cat" else "cat") / new.name)
        elif name == "swap":
            os.rename(file, "aside")
            os.rename(other, file) if other != file else None
            os.rename("aside", other)
    after = data_of()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            after.keep_sides(Manifest.from_state(saved.state()))
            after.setup("fit")
    except SuperCMError as error:  # no labeled sample of a class is left
        assert "no labeled sample" in str(error)  # noqa: PT017
        return
    side = {mark: split for split in ("unlabeled", "labeled", "val", "test") for mark in saved[split].marks.tolist()}
    now = Manifest.of(after.samples)
    for split in after.samples:
        for mark in now[split].marks.tolist():
            assert side.get(mark, "unlabeled") == split
