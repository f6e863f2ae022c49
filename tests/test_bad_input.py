"""Input that is wrong or unusual, and what becomes of it; docs/reliability.md counts the cases.

`python tests/test_bad_input.py` writes the counts into the page.
"""

import csv
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from supercm_lightning import (
    EMA,
    ClusteringDataModule,
    DomainAdaptationDataModule,
    FeatureDataModule,
    FeatureProjection,
    SemiSupervisedDataModule,
    Supervised,
)
from supercm_lightning.cli import run
from supercm_lightning.self_labeling import read_clusters
from supercm_lightning.utils.options import SuperCMError

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"


@dataclass(frozen=True)
class Case:
    """One input that was tried.

    Attributes:
        area: What is wrong or unusual, the line of the page that counts it.
        tried: What was tried.
        result: Words of the error message, `…` for left-out parts; what happens, for input that is accepted.
        do: Makes the input and gives it to the library.
        error: The error, or None for input that is accepted; `do` then checks what became of it.
    """

    area: str
    tried: str
    result: str
    do: Callable[[pytest.MonkeyPatch], Any]
    error: type[BaseException] | None = None


CASES: list[Case] = []

# What is wrong or unusual
FILES = "Image files that cannot be read"
FORMATS = "Formats and sizes of images"
NAMES = "Names of classes and files"
FOLDERS = "Folders"
LISTS = "Lists of two domains"
CLUSTERS = "Given clusters"
NUMBERS = "Numbers of samples, and other values"
SPLITS = "Split files"
FEATURES = "Feature files"
CONFIG = "Configuration"
CHECKPOINTS = "Checkpoints and folders of runs"


def case(area: str, tried: str, result: str, error: type[BaseException] | None = None) -> Callable[..., Any]:
    """Adds the function to the list."""

    def add(do: Callable[[pytest.MonkeyPatch], Any]) -> Callable[[pytest.MonkeyPatch], Any]:
        CASES.append(Case(area, tried, result, do, error))
        return do

    return add


def said(text: str) -> str:
    """A pattern for a message with `…` for left-out parts."""
    return ".*".join(re.escape(part.strip()) for part in text.split("…"))


# ------------------------------------------------------------------------------------------------------ image files


def images() -> Path:
    """A folder `images` with two classes of four RGB images, 8 by 8."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        Path("images/train", name).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(f"images/train/{name}/{number}.png")
    return Path("images")


def read(**options: Any) -> SemiSupervisedDataModule:
    """Reads the folder `images`."""
    data = SemiSupervisedDataModule("folder", "images", **({"num_val": 0, "num_workers": 0} | options))
    data.setup("fit")
    return data


def truncated(suffix: str = ".jpg") -> None:
    images()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save("whole" + suffix)
    whole = Path("whole" + suffix).read_bytes()
    Path("images/train/cat/bad" + suffix).write_bytes(whole[: len(whole) // 2])


@case(
    FILES,
    "truncated JPEG",
    "images/train/cat/bad.jpg: cannot be read as an image … or leave such files out with on_bad_image: skip",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    truncated(".jpg")
    read(image_size=8)


@case(
    FILES,
    "truncated PNG",
    "images/train/cat/bad.png: cannot be read as an image … or leave such files out with on_bad_image: skip",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    truncated(".png")
    read(image_size=8)


@case(FILES, "text with the name of an image", "bad.png: cannot be read as an image", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images().joinpath("train/cat/bad.png").write_text("this is no image")
    read()


@case(FILES, "zero bytes", "bad.png: cannot be read as an image", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images().joinpath("train/cat/bad.png").touch()
    read()


@case(FILES, "the same, images not held in memory", "bad.png: cannot be read as an image", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images().joinpath("train/cat/bad.png").touch()
    read(in_memory=False)


@case(FILES, "a link that leads nowhere", "bad.png: cannot be read as an image … No such file", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images().joinpath("train/cat/bad.png").symlink_to("nowhere.png")
    read()


@contextmanager
def plain_user() -> Iterator[None]:
    """Takes away what root may do: read any file."""
    root = os.geteuid() == 0
    if root:
        Path().chmod(0o755)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@case(FILES, "a file without permission to read", "0.png: cannot be read as an image … Permission denied", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    (images() / "train/cat/0.png").chmod(0)
    with plain_user():
        read()


@case(
    FILES,
    "three bad files with `on_bad_image: skip` (a warning)",
    "a warning with their number, names and reasons; they are in no set, and the split knows nothing of them",
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    truncated()
    Path("images/train/cat/empty.png").touch()
    Path("images/train/dog/text.png").write_text("this is no image")
    for in_memory in (True, False):
        with pytest.warns(
            UserWarning, match=r"(?s)3 of 11 images are left out:.*bad\.jpg.*empty\.png.*text\.png"
        ) as warned:
            data = read(on_bad_image="skip", in_memory=in_memory, image_size=8)
        assert not any("Repair" in str(warning.message) for warning in warned)
        names = [data.describe_sample("labeled", row) for row in range(len(data.samples["labeled"]))]
        assert names == [f"images/train/{kind}/{n}.png" for kind in ("cat", "dog") for n in range(4)]
        assert data.samples["labeled"].labels.tolist() == [0] * 4 + [1] * 4
        assert data.split is not None
        assert data.split.num_rows == 8


@case(
    FILES,
    "every file of a class bad, with `on_bad_image: skip`",
    "training set: 1 of 2 classes have no labeled sample (cat)",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in images().glob("train/cat/*.png"):
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="4 of 8 images are left out"):
        read(on_bad_image="skip")


@case(
    FILES,
    "every file bad, with `on_bad_image: skip`",
    "none of the 8 images that were tried can be read, images/train/cat/0.png among them",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in images().glob("train/*/*.png"):
        file.write_bytes(b"")
    read(on_bad_image="skip")


@case(
    FILES,
    "bad files among those to be clustered",
    "images/train/cat/bad.jpg: cannot be read as an image … or leave such files out with on_bad_image: skip",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    truncated()
    ClusteringDataModule("folder", "images", image_size=8, num_workers=0).setup("fit")


@case(
    FILES,
    "the same among those to be clustered",
    "a warning with their number, names and reasons; they are neither clustered nor tested",
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    truncated()
    Path("images/train/cat/0.png").write_bytes(b"")  # the first file, from which shapes are learnt
    for in_memory in (True, False):
        options: dict[str, Any] = {"in_memory": in_memory, "on_bad_image": "skip", "num_workers": 0}
        data = ClusteringDataModule("folder", "images", image_size=8, **options)
        with pytest.warns(UserWarning, match=r"(?s)2 of 9 images are left out:.*0\.png.*bad\.jpg"):
            data.setup("fit")
        names = [data.describe_sample("unlabeled", row) for row in range(data.num_unlabeled)]
        assert names == [f"images/train/{kind}/{n}.png" for kind in ("cat", "dog") for n in range(4)][1:]
        assert data.samples["test"].labels.tolist() == [0] * 3 + [1] * 4


@case(FILES, "`on_bad_image: ignore`", "on_bad_image='ignore': choose one of error, skip", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images()
    read(on_bad_image="ignore")


@case(
    FORMATS,
    "gray, gray with alpha, RGBA, palette, CMYK, 1-bit and 16-bit files beside RGB ones",
    "read as RGB; 16 bits are scaled to 8, transparent pixels are white",
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    root = images()
    for mode in ("L", "LA", "RGBA", "P", "CMYK", "1"):
        white = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
        white.save(root / f"train/dog/z_{mode}{'.jpg' if mode == 'CMYK' else '.png'}")
    Image.fromarray(np.full((8, 8), 65535, dtype=np.uint16)).save(root / "train/dog/z_16.png")
    data = read()
    assert data.input_shape == (3, 8, 8)
    assert data.samples["labeled"].store.data[8:].unique().tolist() == [255]


@case(FORMATS, "gray files alone", "read with one channel")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in images().glob("train/*/*.png"):
        Image.open(file).convert("L").save(file)
    assert read().input_shape == (1, 8, 8)


@case(
    FORMATS,
    "an image of another size",
    "images/train/dog/0.png: shape (3, 5, 9) where (3, 8, 8) was expected. Set image_size",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (9, 5)).save(images() / "train/dog/0.png")
    read()


@case(FORMATS, "1×1 and 10,000×1 images, `image_size: 8`", "resized and cut like any other")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    root = images()
    for number, size in enumerate(((1, 1), (10_000, 1), (1, 10_000))):
        Image.new("RGB", size, (200, 200, 200)).save(root / f"train/dog/z{number}.png")
    data = read(image_size=8)
    assert data.samples["labeled"].store.data[8:].unique().tolist() == [200]


@case(FORMATS, "nothing but 1×1 images", "read and trained on; they are not shifted")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in images().glob("train/*/*.png"):
        Image.new("RGB", (1, 1)).save(file)
    data = ["--data", "SemiSupervisedDataModule", "--data.dataset", "folder", "--data.root", "images"]
    sizes = ["--data.num_labeled", "4", "--data.num_val", "0", "--data.steps_per_epoch", "2"]
    cli = run(["fit", "--model", "SuperCM", *data, *sizes, *QUIET])
    assert (cli.datamodule.input_shape, cli.datamodule.shift) == ((3, 1, 1), 0)
    assert cli.trainer.global_step == 2


@case(FORMATS, "nothing but 10,000×1 images", "read; they are not shifted")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in images().glob("train/*/*.png"):
        Image.new("RGB", (10_000, 1)).save(file)
    data = read()
    assert (data.input_shape, data.shift) == ((3, 1, 10_000), 0)


@case(NAMES, "unicode in names of classes and files, and names of 250 bytes", "read, and reported by name")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    root = images()
    (root / "train/猫 ñ").mkdir()
    names = ["🐈 é.png", "x" * 246 + ".png"]
    for name in names:
        shutil.copy(root / "train/cat/0.png", root / "train/猫 ñ" / name)
    data = read()
    assert data.class_names == ("cat", "dog", "猫 ñ")
    found = [Path(data.describe_sample("labeled", row)).name for row in range(8, 10)]
    assert sorted(found) == sorted(names)


# ---------------------------------------------------------------------------------------------------------- folders


@case(FOLDERS, "no such folder", "root=images is not a folder. Expected there: labeled/<class>", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    read()


@case(FOLDERS, "a file in place of the folder", "root=images is not a folder", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("images").touch()
    read()


@case(FOLDERS, "an empty folder", "no class folders in images. Expected", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("images").mkdir()
    read()


@case(FOLDERS, "empty class folders", "no images in the class folders of images/train", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in images().glob("train/*/*.png"):
        file.unlink()
    read()


@case(FOLDERS, "one empty class folder", "1 of 3 classes have no labeled sample (owl)", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    (images() / "train/owl").mkdir()
    read()


@case(FOLDERS, "one class", "dataset: 1 class, where at least two are needed", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(images() / "train/dog")
    read()


@case(
    FOLDERS,
    "a class in `test` that the labeled tree lacks",
    "class 'owl' does not occur in images/train",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    (images() / "test/owl").mkdir(parents=True)
    read()


@case(FOLDERS, "links in a circle", "every folder is entered once, every image read once")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    root = images()
    (root / "unlabeled/deep").mkdir(parents=True)
    shutil.copy(root / "train/cat/0.png", root / "unlabeled/deep/0.png")
    (root / "unlabeled/deep/circle").symlink_to("..")
    (root / "train/cat/self").symlink_to(".")
    data = read()
    assert {part: len(rows) for part, rows in data.samples.items() if len(rows)} == {"labeled": 8, "unlabeled": 1}


@case(FOLDERS, "a folder without permission to read", "Permission denied: 'images/train/cat'", PermissionError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    (images() / "train/cat").chmod(0)
    with plain_user():
        read()


@case(
    FOLDERS,
    "the data of a registered set missing",
    "mnist: not found under root=nowhere (expected MNIST/raw",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    SemiSupervisedDataModule("mnist", "nowhere").setup("fit")


# ------------------------------------------------------------------------------------------------------ label files


def domains(old: str = "", new: str | bytes = "") -> DomainAdaptationDataModule:
    """Reads two domains by list files, the first one changed."""
    rng = np.random.default_rng(0)
    Path("two/list").mkdir(parents=True)
    Path("two/flat").mkdir()
    text = ""
    for number in range(6):
        name = f"flat/{number}.png"
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(Path("two", name))
        text += f"{name} {number % 3}\n"
    Path("two/list/one.txt").write_bytes(text.replace(old, new).encode() if isinstance(new, str) else new)
    Path("two/list/other.txt").write_text(text)
    data = DomainAdaptationDataModule(
        dataset="folder", root="two", source="one", target="other", image_size=8, num_val=0, num_workers=0
    )
    data.setup("fit")
    return data


@case(LISTS, "a class that one domain lacks", "the classes of one and other differ: 2 only in other", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    domains(" 2\n", " 0\n")


@case(LISTS, "a class that both domains lack", "1 of 4 classes have no labeled sample (2)", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, text: write(path, text.replace(" 2\n", " 3\n")))
    domains(" 2\n", " 3\n")


@case(LISTS, "a label above those of the other domain", "differ: 999999999 only in one; 2 only in other", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    domains(" 2\n", " 999999999\n")


@case(LISTS, "a label below −1", "one.txt, line 2: 'flat/1.png -3' is not a path, a space and a label", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    domains("1.png 1", "1.png -3")


@case(LISTS, "a source image without a label", "images of the source domain one have no label", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    domains("1.png 1", "1.png -1")


@case(LISTS, "an image twice", "one.txt, line 2: flat/0.png is already listed in line 1. Remove one", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    domains("flat/1.png", "flat/0.png")


@case(LISTS, "a header", "one.txt, line 1: 'path label' is not a path, a space and a label", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    domains("flat/0.png 0", "path label\nflat/0.png 0")


@case(LISTS, "an image that is not there", "flat/9.png: cannot be read as an image … No such file", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    domains("flat/1.png", "flat/9.png")


@case(LISTS, "a list that is not text", "one.txt: not a list of images in UTF-8", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    domains(new=b"\xff\xfe\x00")


@case(LISTS, "an empty list", "one.txt: the list is empty", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    domains(new=b"")


@case(
    CLUSTERS, "given clusters under another header", "c.csv: not a clustering … with a column `cluster`", SuperCMError
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.csv").write_text("file,label\na.png,1\n")
    read_clusters(Path("c.csv"), 1, 2)


@case(
    CLUSTERS, "given clusters that are words or fractions", "not a clustering … numbers of type float64", SuperCMError
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.csv").write_text("file,class\na.png,cat\n")
    with pytest.raises(ValueError, match="not a clustering"):
        read_clusters(Path("c.csv"), 1, 2)
    np.save("c.npy", np.array([0.5]))
    read_clusters(Path("c.npy"), 1, 2)


@case(
    CLUSTERS,
    "given clusters for other samples, or none",
    "clusters of shape (0,); expected one for each of 2",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("c.npy", np.array([0, 1, 1]))
    with pytest.raises(ValueError, match=r"clusters of shape \(3,\)"):
        read_clusters(Path("c.npy"), 2, 2)
    Path("c.csv").write_text("file,class\n")
    read_clusters(Path("c.csv"), 2, 2)


@case(CLUSTERS, "a given cluster out of range", "clusters from 0 to 2; expected 0 to 1, or -1", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("c.npy", np.array([0, 2]))
    read_clusters(Path("c.npy"), 2, 2)


@case(CLUSTERS, "truncated or empty files of given clusters", "c.npy: not a clustering", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("c.npy", np.arange(50) % 2)
    whole = Path("c.npy").read_bytes()
    Path("c.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a clustering"):
        read_clusters(Path("c.npy"), 50, 2)
    Path("c.npy").write_bytes(b"")
    read_clusters(Path("c.npy"), 50, 2)


@case(CLUSTERS, "given clusters in another order of the files, or in other folders", "matched by file")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.csv").write_text("file,cluster\nphotos/b.png,1\nphotos/a.png,0\n")
    assert read_clusters(Path("c.csv"), 2, 2, ["a.png", "b.png"]).tolist() == [0, 1]
    Path("c.csv").write_text("index,cluster\n1,1\n0,0\n")
    assert read_clusters(Path("c.csv"), 2, 2).tolist() == [0, 1]


@case(CLUSTERS, "given clusters of other files", "c.csv: line 3 (c.png) is none of the samples", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.csv").write_text("file,cluster\na.png,1\nc.png,0\n")
    read_clusters(Path("c.csv"), 2, 2, ["a.png", "b.png"])


@case(CLUSTERS, "given clusters in an .npz or a folder", "not a clustering", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez("c.npz", clusters=np.array([0, 1]))
    with pytest.raises(SuperCMError, match=r"c\.npz: not a clustering"):
        read_clusters(Path("c.npz"), 2, 2)
    Path("d.npy").mkdir()
    read_clusters(Path("d.npy"), 2, 2)


# ----------------------------------------------------------------------------------------------------------- splits


def digits(**options: Any) -> SemiSupervisedDataModule:
    data = SemiSupervisedDataModule(**options)
    data.setup("fit")
    return data


def split_file(**changes: Any) -> SemiSupervisedDataModule:
    """Reads digits with a split file of which some entries are changed."""
    digits(num_labeled=20, split_file="split.json")
    split = json.loads(Path("split.json").read_text())
    Path("split.json").write_text(json.dumps(split | changes))
    return digits(num_labeled=None, split_file="split.json")


@case(NUMBERS, "fewer labels than classes", "num_labeled=5: fewer labels than the 10 classes", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    digits(num_labeled=5)


@case(
    NUMBERS,
    "more labels than samples",
    "num_labeled=1700, num_val=150 and num_test=450 ask for more than",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    digits(num_labeled=1700)


@case(
    NUMBERS, "every sample labeled, with a method that needs unlabeled ones", "The unlabeled set is empty", SuperCMError
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    run(["fit", "--model", "SuperCM", "--data", "SemiSupervisedDataModule", *QUIET])


@case(NUMBERS, "one label per class, fewer labels than the batch", "trained on; rows come again within a batch")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--data.num_labeled", "10", "--data.labeled_batch_size", "64", "--data.steps_per_epoch", "2"]
    cli = run(["fit", "--model", "SuperCM", "--data", "SemiSupervisedDataModule", *options, *QUIET])
    assert cli.model.head.updates.tolist() == [2] * 10


@case(NUMBERS, "a batch of no samples", "labeled_batch_size=0: must be at least 1", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    digits(num_labeled=20, labeled_batch_size=0)


@case(
    SPLITS, "a split file that is no JSON", "split_file=split.json: not a split written by this library", SuperCMError
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("split.json").write_bytes(b"\xff\xfe{")
    digits(num_labeled=20, split_file="split.json")


@case(
    SPLITS,
    "a split file with other names (a wrong header)",
    "split.json: not a split … unexpected keyword",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    split_file(labelled=[1])


@case(
    SPLITS,
    "a split file with words or fractions for samples",
    "split.json: not a split … sample numbers must be integers",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must be integers"):
        split_file(val=[1.5])
    split_file(val=["one"])


@case(
    SPLITS,
    "a split file with a sample twice",
    "split.json: sample 3 occurs twice in labeled, val and test",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    split_file(val=[3, 3])


@case(
    SPLITS,
    "a split file with a sample outside the data",
    "split.json: sample 1797 is not one of the 1797 samples",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    split_file(val=[1797])


@case(SPLITS, "a split file that lacks a class", "labeled set: 9 of 10 classes have no labeled sample", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    split_file(labeled=[0], val=[], test=[])


@case(SPLITS, "a split file of other data", "made for 1,797 samples of mnist, but the data is digits", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    split_file(dataset="mnist")


@case(
    NUMBERS, "a fraction of 1.5, of 1.0 or of nan for validation", "num_val=nan: must be a whole number", SuperCMError
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    for amount in (1.5, 1.0, float("inf")):
        with pytest.raises(SuperCMError, match=r"num_val=.*: must be a whole number, or a fraction"):
            digits(num_val=amount)
    digits(num_val=float("nan"))


@case(NUMBERS, "a deviation, a mean or noise of nan", "std=(nan,): must be finite numbers", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SuperCMError, match="noise=nan"):
        digits(noise=float("nan"))
    with pytest.raises(SuperCMError, match=r"mean=.*finite"):
        digits(mean=(float("inf"),))
    digits(std=(float("nan"),))


@case(NUMBERS, "an empty name of what to predict", "predict_on='': choose one of", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    digits(predict_on="")


@case(FORMATS, "an image size of 0 or less", "image_size=-3: must be at least 1", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images()
    with pytest.raises(SuperCMError, match="image_size=0: must be at least 1"):
        read(image_size=0)
    read(image_size=-3)


@case(
    FORMATS,
    "GIF, AVIF, HEIC and other kinds (left out with a warning)",
    "left out, with a warning that counts and names them",
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images()
    for name in ("a.gif", "b.HEIC", "c.avif"):
        Path("images/train/cat", name).touch()
    with pytest.warns(UserWarning, match=r"3 images of kinds that are not read \(\.avif, \.gif, \.heic\).*a\.gif"):
        data = read()
    assert len(data.samples["labeled"]) == 8


@case(FORMATS, "a TIFF of floats in [0, 1]", "read on the scale of its values")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images()
    for file in Path("images").rglob("*.png"):
        file.unlink()
        Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(file.with_suffix(".tif"))
    with pytest.warns(UserWarning, match="also in"):  # all are the same image
        data = read(num_val=4)
    assert int(data.samples["labeled"].store.fetch(torch.tensor([0]), torch.device("cpu")).unique()) == 128


@case(FORMATS, "a TIFF of floats beyond 1", "floats outside [0, 1] have no known scale", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images()
    Image.fromarray(np.full((8, 8), 200, np.float32)).save("images/train/cat/bad.tif")
    read()


def png_of_16_bits(values: Any) -> bytes:
    """A file in color of 16 bits, which Pillow does not write, from values (H, W, 3)."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = part(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], len(values), 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


@case(FORMATS, "values of 12 bits in 16, gray or in color", "bad.png: cannot be read … no known scale", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images()
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3))
    file = Path("images/train/cat/bad.png")
    file.write_bytes(png_of_16_bits(values))
    assert read().samples["labeled"].store.data.shape == (9, 3, 8, 8)
    file.write_bytes(png_of_16_bits(values >> 4))
    with pytest.raises(SuperCMError, match="of which 12 are used have no known scale"):
        read()
    Image.fromarray((values[..., 0] >> 4).astype(np.uint16)).save(file)
    read()


@case(FORMATS, "JFIF", "read like any JPEG")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8), (9, 9, 9)).save(images() / "train/dog/z.jfif", "JPEG")
    assert read().samples["labeled"].store.data[8].unique().tolist() == [9]


@case(NAMES, "escape sequences of a terminal in a file's name", "cannot be read … escaped in the message", None)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images().joinpath("train/cat/\x1b[31mbad.png").touch()
    with pytest.raises(SuperCMError, match=r"\\x1b\[31mbad\.png: cannot be read"):
        read()


@case(NAMES, "two class folders of one name in different Unicode forms", "two folders are called", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images()
    for name in ("caf\u00e9", "cafe\u0301"):
        shutil.copytree("images/train/cat", f"images/train/{name}")
    read()


@case(NAMES, "a class of `test` in another Unicode form than that of `train`", "matched with it")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images()
    Path("images/train/cat").rename("images/train/caf\u00e9")
    Path("images/test/cafe\u0301").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("images/test/cafe\u0301/0.png")
    assert read().samples["test"].labels.tolist() == [0]


def lists(photo: str, sketch: str) -> DomainAdaptationDataModule:
    """Two domains of two classes, by lists."""
    rng = np.random.default_rng(0)
    for domain, text in (("photo", photo), ("sketch", sketch)):
        for name in ("cat", "dog"):
            Path("both", domain, name).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"both/{domain}/{name}/0.png")
        Path("both/image_list").mkdir(exist_ok=True)
        Path(f"both/image_list/{domain}.txt").write_text(text)
    data = DomainAdaptationDataModule("photo", "sketch", "folder", "both", image_size=8, num_val=0, num_workers=0)
    data.setup("fit")
    return data


CATS, DOGS = "photo/cat/0.png 0\nphoto/dog/0.png 1\n", "sketch/cat/0.png 1\nsketch/dog/0.png 0\n"


@case(LISTS, "lists that number the classes differently", "matched by the folders' names")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    data = lists(CATS, DOGS)
    assert data.class_names == ("cat", "dog")
    for split in ("labeled", "test"):
        part = data.samples[split]
        names = [part.store.describe(number) for number in part.index.tolist()]
        assert [Path(name).parent.name for name in names] == [data.class_names[k] for k in part.labels.tolist()]


@case(LISTS, "a list as it should be", "read; images in one folder have their classes from the list")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    assert domains().samples["labeled"].labels.tolist() == [0, 1, 2, 0, 1, 2]


@case(
    LISTS,
    "folders that tell the classes in one list and not in the other",
    "the folders of the first tell the classes",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("both/sketch").mkdir(parents=True)
    for name in ("a", "b"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(f"both/sketch/{name}.png")
    lists(CATS, "sketch/a.png 0\nsketch/b.png 1\n")


@case(LISTS, "a line that leads out of the folder", "leads out of", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("out.png")
    lists(CATS + "../out.png 1\n", DOGS)


@case(LISTS, "an absolute path elsewhere", "its first image … does not exist", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("out.png")
    lists(f"{Path('out.png').resolve()} 0\n" + CATS, DOGS)


@case(LISTS, "one image in two spellings", "is listed twice, in two spellings", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    lists(CATS + "photo/dog/../cat/0.png 1\n", DOGS)


# --------------------------------------------------------------------------------------------------------- features
X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
Y = np.arange(60) % 3


def features(*, name: str = "a.npz", data: dict[str, Any] | None = None, **arrays: Any) -> FeatureDataModule:
    """Reads a file of features, labels and what else is given; None leaves one out."""
    content = {key: value for key, value in ({"features": X, "labels": Y} | arrays).items() if value is not None}
    if name.endswith(".npz"):
        np.savez(name, **content)
    else:
        torch.save(content, name)
    module = FeatureDataModule(name, **(data or {}))
    module.setup("fit")
    return module


def with_value(value: float) -> Any:
    bad = X.copy()
    bad[17, 3] = value
    return bad


@case(FEATURES, "a feature that is NaN", "labeled: sample 17 has a feature that is NaN or infinite", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(features=with_value(np.nan)).arrays("labeled")


@case(FEATURES, "a feature that is infinite", "labeled: sample 17 has a feature that is NaN or infinite", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(features=with_value(np.inf)).arrays("labeled")


@case(
    FEATURES,
    "a header that claims four terabytes",
    "labeled=a.npz: cannot be read; the file is truncated",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("features.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
            member.write(X.tobytes())
        with archive.open("labels.npy", "w") as member:
            np.lib.format.write_array(member, Y)
    FeatureDataModule("a.npz")


@case(FEATURES, "one file twice among the sources", "source: a file is named twice", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez("a.npz", features=X, labels=Y)
    np.savez("b.npz", features=X + 1, labels=Y)
    FeatureDataModule(source=["a.npz", "./a"], target="b.npz")


@case(FEATURES, "a truncated `.npz`", "labeled=a.npz: cannot be read; the file is truncated or damaged", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features()
    Path("a.npz").write_bytes(Path("a.npz").read_bytes()[:500])
    FeatureDataModule("a.npz")


@case(FEATURES, "a truncated `.pt`", "labeled=a.pt: cannot be read; the file is truncated or damaged", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(name="a.pt", features=torch.from_numpy(X), labels=torch.from_numpy(Y))
    Path("a.pt").write_bytes(Path("a.pt").read_bytes()[:500])
    FeatureDataModule("a.pt")


@case(FEATURES, "zero bytes", "labeled=a.npz: cannot be read; the file is truncated or damaged", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.npz").touch()
    FeatureDataModule("a.npz")


@case(
    FEATURES,
    "objects, which could run code when read",
    "labeled=a.npz: holds more than tensors, numbers, strings",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(features=np.array([object()] * 60))


@case(FEATURES, "a `.pt` that carries code", "labeled=a.pt: holds more than tensors, numbers, strings", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(name="a.pt", features=Code())


@case(FEATURES, "words for features", "labeled=a.npz: features and labels must be arrays of numbers", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(features=np.array(["one"] * 60))


@case(
    FEATURES, "other names of the arrays (a wrong header)", "a.npz: has x, y, lacks features and labels", SuperCMError
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(features=None, labels=None, x=X, y=Y)


@case(FEATURES, "more labels than samples", "features of shape (60, 5) with 61 labels", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(labels=np.append(Y, 0))


@case(
    FEATURES,
    "labels that are fractions, or below −1",
    "labeled: labels must be whole numbers from 0, or -1",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        features(labels=Y + 0.5)
    features(labels=Y - 2)


@case(FEATURES, "a class without a sample", "labeled: 1 of 4 classes have no labeled sample (2)", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(labels=np.where(Y == 2, 3, Y))


@case(
    FEATURES,
    "a label outside the named classes",
    "labels run from 0 to 2, but num_classes=2 allows 0 to 1",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(classes=np.array(["ape", "bee"]))


@case(FEATURES, "one class", "labeled: 1 class, where at least two are needed", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(labels=np.zeros(60, dtype=int))


@case(FEATURES, "one sample", "labeled: 1 class, where at least two are needed", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(features=X[:1], labels=Y[:1])


@case(FEATURES, "no samples", "features of shape (0, 5) with 0 labels", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    features(features=X[:0], labels=Y[:0])


@case(FEATURES, "files of different widths", "test: features of shape (4,), but labeled has (5,)", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez("b.npz", features=X[:, :4], labels=Y)
    features(data={"test": "b.npz"})


# ---------------------------------------------------------------------------------------- configuration, checkpoints
QUIET = [
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false"),
]
DIGITS = ["--data", "SemiSupervisedDataModule", "--data.num_labeled", "20", "--data.steps_per_epoch", "1"]


class Code:
    """What an attacker puts into a file: reading it without care makes the file `owned`."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


def config(text: str, *options: str) -> None:
    Path("mine.yaml").write_text(text)
    run(["fit", "--config", "mine.yaml", *DIGITS, *QUIET, *options])


@case(CONFIG, "a key that does not exist", "betaa", SystemExit)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    config("model: {class_path: SuperCM, init_args: {betaa: 1}}")


@case(CONFIG, "a word where a number belongs", "beta", SystemExit)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    config("model: {class_path: SuperCM, init_args: {beta: much}}")


@case(CONFIG, "a method that does not exist", "SuperDM", SystemExit)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    config("model: {class_path: SuperDM}")


@case(CONFIG, "a section that does not exist", "modell", SystemExit)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    config("modell: {class_path: SuperCM}", "--model", "SuperCM")


@case(CONFIG, "a file that is no YAML", "line 2, column 1", SystemExit)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    config("model: [unclosed")


@case(CONFIG, "a value out of range", "lr=-1.0: must be positive", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    config("model: {class_path: SuperCM, init_args: {lr: -1.0}}")


@case(
    CONFIG,
    "a model made for another number of classes",
    "num_classes: the model was built for 7, the data has 10",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch import Trainer

    data = SemiSupervisedDataModule(num_labeled=20)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(accelerator="cpu", max_epochs=1, **quiet).fit(Supervised(num_classes=7, input_shape=(1, 8, 8)), data)


@case(
    CONFIG,
    "another number of clusters than the data has",
    "num_classes=7: the data has 10 classes; leave",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    ClusteringDataModule(num_classes=7)


def checkpoint(model: str = "SuperCM") -> Path:
    """A checkpoint of a short run."""
    run(["fit", "--model", model, *DIGITS, *QUIET])
    return next(Path().rglob("*.ckpt"))


def resume(path: Path | str, command: str = "fit") -> None:
    run([command, "--model", "SuperCM", *DIGITS, *QUIET, "--ckpt_path", str(path)])


@case(
    CHECKPOINTS,
    "a checkpoint of another method",
    "a checkpoint of … Supervised, but the model is … SuperCM",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    resume(checkpoint("Supervised"))


@case(
    CHECKPOINTS,
    "a truncated checkpoint",
    "cannot be read as a checkpoint; the file is truncated or damaged",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint()
    path.write_bytes(path.read_bytes()[:-2000])
    resume(path)


@case(
    CHECKPOINTS, "an empty checkpoint", "cannot be read as a checkpoint; the file is truncated or damaged", SuperCMError
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.ckpt").touch()
    resume("a.ckpt")


@case(
    CHECKPOINTS, "a checkpoint that carries code", "a.ckpt: refused, because it holds more than tensors", SuperCMError
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": {}, "loops": Code()}, "a.ckpt")
    try:
        resume("a.ckpt", "test")
    finally:
        assert not Path("owned").exists()


@case(
    CHECKPOINTS,
    "a file that is no checkpoint of Lightning",
    "holds no state_dict; it is no checkpoint of Lightning",
    SuperCMError,
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weights": torch.ones(3)}, "a.ckpt")
    resume("a.ckpt")


@case(CHECKPOINTS, "a checkpoint that does not exist", "ckpt_path=nowhere.ckpt: no such file", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    resume("nowhere.ckpt")


@case(CHECKPOINTS, "a checkpoint that is a folder", "is a folder; give a file", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SuperCMError, match="is a folder"):
        resume("")
    Path("run").mkdir()
    resume("run")


@case(CHECKPOINTS, "a file in place of the folder of all runs", "default_root_dir=here: … cannot be made", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("here").touch()
    run(["fit", "--model", "SuperCM", *DIGITS, *QUIET, "--trainer.default_root_dir", "here"])


@case(CHECKPOINTS, "a file in place of `lightning_logs`", "lightning_logs cannot be made", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("lightning_logs").touch()
    run(["fit", "--model", "SuperCM", *DIGITS, *QUIET])


@case(CHECKPOINTS, "runs on another machine", "default_root_dir=s3://bucket: runs are written into local", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    run(["fit", "--model", "SuperCM", *DIGITS, *QUIET, "--trainer.default_root_dir", "s3://bucket"])


@case(CONFIG, "random bytes", "config: a file is no text in UTF-8", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.yaml").write_bytes(b"\x93\xff\x00\xce")
    run(["fit", "--config", "mine.yaml", *DIGITS, *QUIET])


@case(CONFIG, "a seed below 0", "seed_everything=-1: must be from 0", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    config("model: {class_path: SuperCM}", "--seed_everything", "-1")


@case(CONFIG, "a seed of 33 bits", "seed_everything=4294967296: must be from 0", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    config("model: {class_path: SuperCM}", "--seed_everything", str(2**32))


@case(CONFIG, "no seed", "seed_everything=False: … true for one drawn at random", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    config("model: {class_path: SuperCM}", "--seed_everything", "false")


@case(CONFIG, "predictions without a name", "filename='': no name of a file", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--trainer.callbacks+=PredictionWriter", "--trainer.callbacks.filename="]
    config("model: {class_path: SuperCM}", *options)


@case(CONFIG, "the averages of Lightning and of this package at once", "more than one weight averaging", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    both = Trainer(accelerator="cpu", max_epochs=1, callbacks=[EMA(), StochasticWeightAveraging(0.1)], **quiet)
    both.fit(Supervised(num_classes=10, input_shape=(1, 8, 8)), SemiSupervisedDataModule(num_labeled=20))


@case(CONFIG, "`trainer.barebones`", "the run writes nothing")
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.barebones", "true"]
    with pytest.warns(UserWarning, match="barebones"):
        run(["fit", "--model", "SuperCM", *DIGITS, *options])
    assert not list(Path().iterdir())


ODD = ("=1+1", "$\\foo$", "_hidden", "b\udce9te", "\x1b[31mred")


def odd_images() -> list[str]:
    """Options for images of a class of each of these names."""
    for shade, name in enumerate(ODD):
        for number in range(6):
            file = Path("images", os.fsdecode(name.encode(errors="surrogateescape")), f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * shade, 9 * number, 0)).save(file)
    folder = ["--data", "SemiSupervisedDataModule", "--data.dataset", "folder", "--data.root", "images"]
    return [*folder, "--data.num_labeled", "10", "--data.num_val", "5", "--data.num_test", "5"]


@case(
    NAMES,
    "a formula, mathematics, an underscore in front, bytes that are no text, escapes of a terminal",
    "predictions.csv quotes formulas and escapes the others; a picture's legend shows each as it is",
)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--trainer.callbacks+=FeatureProjection", "--trainer.callbacks.method", "pca"]
    run(["fit", "--model", "SuperCM", *odd_images(), *QUIET, *options])
    (table,) = Path("lightning_logs").rglob("test_predictions.csv")
    with table.open(newline="", encoding="utf-8") as stream:
        found = {row["label"] for row in csv.DictReader(stream)}
    assert found == {"'=1+1", "$\\foo$", "_hidden", "b\\udce9te", "\\x1b[31mred"}
    assert len(list(Path("lightning_logs").rglob("features.png"))) == 1
    names = ("$\\foo$", "_hidden", "\x1b[31mred")
    figure = FeatureProjection(method="pca").draw(torch.rand(6, 3), torch.arange(6) % 3, class_names=names)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*names[:2], "\\x1b[31mred"]


@case(NAMES, "escapes of a terminal in the name of a bad image", r"\x1b[31m.png: cannot be read", SuperCMError)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    images().joinpath("train/cat/\x1b[31m.png").touch()
    read()


# ------------------------------------------------------------------------------------------------------------ tests
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("each", CASES, ids=[f"{c.area}-{c.tried}".replace(" ", "_") for c in CASES])
def test_input_has_the_outcome_of_the_table(
    each: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if each.error is None:
        each.do(monkeypatch)
    elif each.error is SystemExit:  # the parser prints what is wrong with the command line, and leaves
        with pytest.raises(SystemExit) as stop:
            each.do(monkeypatch)
        assert stop.value.code == 2
        assert re.search(said(each.result), capsys.readouterr().err, re.DOTALL)
    else:
        with pytest.raises(each.error, match=f"(?s){said(each.result)}"):
            each.do(monkeypatch)


def lines() -> str:
    """The cases as a table in Markdown: how many there are of each kind."""
    found = ["| what is wrong or unusual | refused | accepted |", "|---|---|---|"]
    for area in dict.fromkeys(c.area for c in CASES):
        cases = [c for c in CASES if c.area == area]
        refused = [c for c in cases if c.error]
        found.append(f"| {area} | {len(refused)} | {len(cases) - len(refused)} |")
    return "\n".join(found)


def written(block: str, text: str) -> str:
    """The page with a text between the two comments of a block."""
    before, start, rest = PAGE.read_text(encoding="utf-8").partition(f"<!-- {block} -->\n")
    _, end, after = rest.partition(f"<!-- end of {block} -->")
    assert end, f"{PAGE}: no place for the {block}"
    return f"{before}{start}\n{text}\n{end}{after}"


def test_the_page_has_these_cases() -> None:
    assert written("cases", lines()) == PAGE.read_text(encoding="utf-8"), (
        "run python tests/test_bad_input.py, which writes the page"
    )


if __name__ == "__main__":
    PAGE.write_text(written("cases", lines()), encoding="utf-8")
