"""A user's own image files."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from supercm_lightning.data import SemiSupervisedDataModule
from supercm_lightning.data.sources.files import Reading, file_stores
from supercm_lightning.data.sources.stores import ArrayStore


def folder(root: Path, read: bool = True, **kwargs) -> SemiSupervisedDataModule:
    data = SemiSupervisedDataModule(**({"dataset": "folder", "root": root, "num_workers": 0} | kwargs))
    if read:
        data.setup("fit")
    return data


def files(data: SemiSupervisedDataModule, part: str) -> list[str]:
    """Files of a part, relative to the root."""
    named = [data.describe_sample(part, index) for index in range(len(data.samples[part]))]
    return [str(Path(name).relative_to(data.hparams.root)) for name in named]


class TestLayouts:
    """Which files become which rows."""

    def test_labelled_and_unlabelled_folders(self, image_folder):
        root = image_folder({"labeled/cat": 2, "labeled/ant": 3, "unlabeled": 2, "unlabeled/a/b": 2, "test/cat": 1})
        data = folder(root)
        assert data.class_names == ("ant", "cat")
        assert (data.num_classes, data.input_shape) == (2, (3, 8, 8))
        assert files(data, "labeled") == [f"labeled/ant/{n}.png" for n in range(3)] + [
            "labeled/cat/0.png",
            "labeled/cat/1.png",
        ]
        assert data.samples["labeled"].labels.tolist() == [0, 0, 0, 1, 1]
        assert sorted(files(data, "unlabeled")) == [
            "unlabeled/0.png", "unlabeled/1.png", "unlabeled/a/b/0.png", "unlabeled/a/b/1.png",
        ]  # fmt: skip
        assert data.samples["unlabeled"].labels.tolist() == [-1] * 4
        assert files(data, "test") == ["test/cat/0.png"]
        assert data.samples["test"].labels.tolist() == [1]
        assert not len(data.samples["val"])

    def test_british_names_of_folders_are_read_likewise(self, image_folder):
        data = folder(image_folder({"labelled/cat": 2, "labelled/ant": 3, "unlabelled": 2}))
        assert data.class_names == ("ant", "cat")
        assert [len(data.samples[split]) for split in ("labeled", "unlabeled")] == [5, 2]

    def test_few_images_labelled_by_hand_are_not_held_out_unasked_but_on_request(self, image_folder):
        root = image_folder({"labeled/a": 10, "labeled/b": 10, "unlabeled": 5})
        data = folder(root, num_val=4)
        assert (len(data.samples["labeled"]), len(data.samples["val"])) == (16, 4)

    def test_training_folder_of_which_few_keep_their_label(self, image_folder):
        root = image_folder({"train/a": 20, "train/b": 20, "val/a": 1, "val/b": 2, "test/b": 3})
        data = folder(root, num_labeled=6)
        assert data.samples["labeled"].labels.tolist() == [0] * 3 + [1] * 3
        assert files(data, "val") == ["val/a/0.png", "val/b/0.png", "val/b/1.png"]
        assert len(data.samples["unlabeled"]) == 34
        assert all(name.startswith("train/") for part in ("labeled", "unlabeled") for name in files(data, part))

    def test_class_folders_at_the_root(self, image_folder):
        root = image_folder({"a": 30, "b": 10, "unlabeled/c": 3, "test/a": 2})
        data = folder(root, num_labeled=4)
        assert data.class_names == ("a", "b")
        assert data.samples["val"].labels.tolist() == [0, 0, 0, 1]  # a tenth of each class
        assert len(data.samples["unlabeled"]) == 40 - 4 - 4 + 3
        assert len(data.samples["test"]) == 2

    def test_test_rows_from_the_training_tree_are_the_same_for_every_seed(self, image_folder):
        root = image_folder({"a": 20, "b": 20})
        first, second = (folder(root, num_labeled=4, num_test=0.25, split_seed=seed) for seed in (0, 1))
        assert files(first, "test") == files(second, "test")
        assert len(files(first, "test")) == 10
        assert files(first, "labeled") != files(second, "labeled")

    def test_hidden_files_and_folders_are_left_out(self, image_folder):
        root = image_folder({"train/a": 3, "train/b": 3, "train/.cache": 1, "test/a": 1, "unlabeled/.thumbs": 2})
        (root / "train/a/._0.png").write_bytes(b"resource fork")
        (root / "train/a/notes.txt").write_text("no image")
        (root / "test/.ipynb_checkpoints").mkdir()
        data = folder(root, num_val=0)
        assert data.class_names == ("a", "b")
        assert len(data.samples["labeled"]) == 6
        assert not len(data.samples["unlabeled"])

    def test_the_order_of_the_file_system_is_no_matter(self, image_folder, monkeypatch):
        root = image_folder({"labeled/a/x": 2, "labeled/b/x": 2})
        for link in ("labeled/a/k", "labeled/a/z"):
            (root / link).symlink_to("x")

        class Entries:
            def __init__(self, path: Path, backwards: bool) -> None:
                self.entries = iter(sorted(scandir(path), key=lambda entry: entry.name, reverse=backwards))

            def __enter__(self):
                return self.entries

            def __exit__(self, *_):
                pass

            def __next__(self):
                return next(self.entries)

            def __iter__(self):
                return self.entries

        scandir, found = os.scandir, []
        for backwards in (False, True):
            monkeypatch.setattr(os, "scandir", partial(Entries, backwards=backwards))
            found.append(files(folder(root), "labeled"))
        assert found[0] == found[1]

    def test_linked_folders_are_followed(self, image_folder, tmp_path: Path):
        root = image_folder({"labeled/a": 1, "labeled/b": 1})
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        Image.new("RGB", (8, 8)).save(elsewhere / "x.png")
        (root / "unlabeled").mkdir()
        (root / "unlabeled/link").symlink_to(elsewhere)
        assert files(folder(root), "unlabeled") == ["unlabeled/link/x.png"]

    def test_empty_validation_and_test_folders_count_as_absent(self, image_folder):
        data = folder(image_folder({"train/a": 10, "train/b": 10, "val": 0, "test/a": 0}))
        assert len(data.samples["val"]) == 2
        with pytest.raises(ValueError, match=r"no test samples. Give a test set, or set num_test"):
            data.test_dataloader()

    def test_real_tree_of_50_000_files(self, data_root: Path):
        data = folder(data_root / "cifar10", num_labeled=600, read=False)
        assert data.num_classes == 10
        assert data.input_shape == (3, 32, 32)


class TestBadFolders:
    """Errors name what is wrong and what to do."""

    def test_no_such_folder(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match=r"root=.*nowhere is not a folder. Expected there: labeled/<class>"):
            folder(tmp_path / "nowhere")

    def test_no_class_folders(self, image_folder):
        with pytest.raises(FileNotFoundError, match=r"no class folders in .*images. Expected: labeled/<class>"):
            folder(image_folder({"unlabeled": 2, "test/a": 1}))

    def test_no_images(self, image_folder):
        with pytest.raises(FileNotFoundError, match=r"no images in the class folders of .*train"):
            folder(image_folder({"train/a": 0}))

    @pytest.mark.parametrize("part", ["val", "test"])
    def test_strange_class(self, image_folder, part):
        with pytest.raises(ValueError, match=rf"{part}: class 'dog' does not occur in .*train"):
            folder(image_folder({"train/a": 2, "train/b": 2, f"{part}/dog": 1}))

    def test_empty_class_folder(self, image_folder):
        with pytest.raises(ValueError, match=r"1 of 3 classes have no labeled sample \(dog\)"):
            folder(image_folder({"train/a": 4, "train/b": 4, "train/dog": 0}))

    def test_only_one_class(self, image_folder):
        with pytest.raises(ValueError, match="at least two are needed"):
            folder(image_folder({"train/a": 4}))

    def test_fewer_labels_than_classes(self, image_folder):
        with pytest.raises(ValueError, match="num_labeled=2: fewer labels than the 3 classes"):
            folder(image_folder({"a": 4, "b": 4, "c": 4}), num_labeled=2)

    def test_more_labels_than_images(self, image_folder):
        with pytest.raises(ValueError, match="num_labeled=9, num_val=0 and num_test=0 ask for more than the 8 samples"):
            folder(image_folder({"a": 4, "b": 4}), num_labeled=9, num_val=0)

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_no_image_at_all(self, image_folder, in_memory):
        root = image_folder({"train/a": 3, "train/b": 3})
        (root / "train/b/1.png").write_bytes(b"this is no image")
        with pytest.raises(ValueError, match=r"train/b/1\.png: cannot be read as an image .*Repair or remove"):
            folder(root, in_memory=in_memory)

    def test_truncated_image_read_into_memory(self, image_folder):
        root = image_folder({"train/a": 3, "train/b": 3}, size=(64, 64), suffix=".jpg")
        whole = (root / "train/b/1.jpg").read_bytes()
        (root / "train/b/1.jpg").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"train/b/1\.jpg: cannot be read as an image"):
            folder(root)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_truncated_image_read_by_workers(self, image_folder, gather, workers):
        root = image_folder({"train/a": 3, "train/b": 3}, size=(64, 64), suffix=".jpg")
        whole = (root / "train/b/1.jpg").read_bytes()
        (root / "train/b/1.jpg").write_bytes(whole[: len(whole) // 2])
        data = folder(root, in_memory=False, num_workers=workers, num_val=0)
        with pytest.raises(ValueError, match=r"train/b/1\.jpg: cannot be read as an image"):
            gather(data, "labeled")

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_wrong_size(self, image_folder, in_memory):
        root = image_folder({"train/a": 3, "train/b": 3})
        Image.new("RGB", (10, 12)).save(root / "train/b/2.png")
        with pytest.raises(
            ValueError, match=r"train/b/2\.png: shape \(3, 12, 10\) where \(3, 8, 8\) was expected. Set image_size"
        ):
            folder(root, in_memory=in_memory)
        assert folder(root, in_memory=in_memory, image_size=8).input_shape == (3, 8, 8)


class TestPixels:
    """What becomes of the files' pixels."""

    def pixels(self, data: SemiSupervisedDataModule) -> torch.Tensor:
        store = data.samples["labeled"].store
        assert isinstance(store, ArrayStore)
        return store.data

    def test_colours_stay_in_order(self, image_folder):
        data = folder(image_folder({"train/a": 1, "train/b": 1}, size=(9, 7)), num_val=0)
        for name, found in zip(files(data, "labeled"), self.pixels(data), strict=True):
            file = Path(data.hparams.root) / name
            assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))

    def test_grey_files_have_one_channel(self, image_folder):
        data = folder(image_folder({"train/a": 1, "train/b": 1}, mode="L", size=(9, 7)), num_val=0)
        assert data.input_shape == (1, 7, 9)
        for name, found in zip(files(data, "labeled"), self.pixels(data), strict=True):
            assert np.array_equal(found[0].numpy(), np.asarray(Image.open(Path(data.hparams.root) / name)))

    def test_one_grey_file_does_not_make_the_others_grey(self, image_folder):
        root = image_folder({"train/a": 2, "train/b": 2})
        Image.new("L", (8, 8), 100).save(root / "train/a/0.png")
        data = folder(root, num_val=0)
        assert data.input_shape == (3, 8, 8)
        assert self.pixels(data)[0].unique().tolist() == [100]
        assert np.array_equal(
            self.pixels(data)[1].permute(1, 2, 0).numpy(), np.asarray(Image.open(root / "train/a/1.png"))
        )

    @pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "CMYK", "1"])
    def test_other_modes_beside_colour(self, image_folder, mode):
        root = image_folder({"train/a": 2, "train/b": 2})
        suffix = ".jpg" if mode == "CMYK" else ".png"
        Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(root / f"train/b/white{suffix}")
        data = folder(root, num_val=0)
        assert self.pixels(data)[-1].unique().tolist() == [255]
        assert data.input_shape == (3, 8, 8)

    def test_palette_keeps_its_colours_with_transparency_too(self, image_folder):
        root = image_folder({"train/a": 2, "train/b": 1})
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 10, 200, 30])
        image.save(root / "train/b/1.png", transparency=bytes([0, 255]))
        assert self.pixels(folder(root, num_val=0))[-1, :, 0, 0].tolist() == [10, 200, 30]

    def test_sixteen_bits_keep_their_range(self, image_folder):
        root = image_folder({"train/a": 0, "train/b": 0})
        ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
        for name in ("a", "b"):
            Image.fromarray(ramp).save(root / "train" / name / "0.png")
        data = folder(root, num_val=0)
        assert np.array_equal(self.pixels(data)[0, 0].numpy(), ramp >> 8)

    def test_many_suffixes(self, image_folder):
        root = image_folder({"train/a": 1, "train/b": 1})
        suffixes = (".jpg", ".JPEG", ".bmp", ".webp", ".tif", ".TIFF", ".ppm")
        for suffix in suffixes:
            Image.new("RGB", (8, 8), (200, 200, 200)).save(root / "train/a" / f"grey{suffix}")
        data = folder(root, num_val=0)
        assert len(data.samples["labeled"]) == 2 + len(suffixes)
        assert (self.pixels(data)[1:-1].float() - 200).abs().max() <= 3

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    @pytest.mark.parametrize("size", [(120, 60), (60, 120)])
    def test_image_size_resizes_the_shorter_side_and_cuts_the_centre(self, image_folder, suffix, size):
        root = image_folder({"train/a": 0, "train/b": 0})
        image = Image.new("RGB", size)
        left, top = (size[0] - 60) // 2, (size[1] - 60) // 2
        image.paste((255, 255, 255), (left, top, left + 60, top + 60))  # the centre square is white, the rest black
        image.paste((255, 0, 0), (left, top, left + 30, top + 30))  # its first quarter is red
        for name in ("a", "b"):
            image.save(root / f"train/{name}/0{suffix}", quality=95)
        data = folder(root, image_size=10, num_val=0)
        found = self.pixels(data)[0].float()
        assert found.shape == (3, 10, 10)
        expected = torch.full((3, 10, 10), 255.0)
        expected[1:, :5, :5] = 0
        assert (found - expected)[:, 1:4, 1:4].abs().max() < 12
        assert (found - expected)[:, 6:9, 6:9].abs().max() < 12
        assert (found - expected).abs().mean() < 25  # borders blur

    def test_small_images_grow(self, image_folder):
        data = folder(image_folder({"train/a": 2, "train/b": 2}, size=(5, 8)), image_size=16, num_val=0)
        assert self.pixels(data).shape == (4, 3, 16, 16)


class TestMemoryAndWorkers:
    """Both ways of reading give the same batches."""

    @pytest.mark.parametrize("workers", [0, 1])
    def test_same_batches(self, image_folder, fit, gather, workers):
        root = image_folder({"labeled/a": 3, "labeled/b": 3, "unlabeled/x": 7, "test/b": 2, "val/a": 3}, (11, 9))
        options = {"labeled_batch_size": 4, "unlabeled_batch_size": 5, "steps_per_epoch": 3, "noise": 0.1}
        memory = folder(root, image_size=8, in_memory=True, **options)
        reading = folder(root, image_size=8, in_memory=False, num_workers=workers, **options)
        assert isinstance(memory.samples["test"].store, ArrayStore)
        assert not isinstance(reading.samples["test"].store, ArrayStore)
        for ours, theirs in zip(fit(memory, max_epochs=2).batches, fit(reading, max_epochs=2).batches, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        for part in ("labeled", "unlabeled", "val", "test"):
            torch.testing.assert_close(gather(memory, part), gather(reading, part), rtol=0, atol=0)

    def test_size_decides_when_nothing_is_said(self, image_folder, monkeypatch):
        root = image_folder({"a": 4, "b": 4})
        assert isinstance(folder(root).samples["labeled"].store, ArrayStore)
        monkeypatch.setattr("supercm_lightning.data.sources.files.MEMORY", 8 * 3 * 8 * 8 - 1)
        assert not isinstance(folder(root).samples["labeled"].store, ArrayStore)

    @pytest.mark.slow
    def test_real_tree_is_read_whole(self, data_root: Path, gather):
        data = folder(data_root / "cifar10", num_labeled=600)
        assert {part: len(rows) for part, rows in data.samples.items()} == {
            "labeled": 600, "val": 5000, "test": len(list((data_root / "cifar10/test").rglob("*.jpg"))),
            "unlabeled": 44_400,
        }  # fmt: skip
        x, y, index = gather(data, "test")
        for row in (0, len(index) // 2, len(index) - 1):
            file = Path(data.describe_sample("test", int(index[row])))
            assert data.class_names[y[row]] == file.parent.name
            pixels = np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1)
            np.testing.assert_allclose(x[row].numpy(), pixels / 127.5 - 1, atol=1e-5)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_part_of_which_no_image_can_be_read_is_named(tmp_path: Path, in_memory: bool) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"val: none of its 1 images can be read, .*bad\.png"):
        file_stores({"val": [(bad, 0)]}, (3, 8, 8), Reading(None, in_memory, "skip"))
