"""A model predicts by itself: from its checkpoint, without the data of the training."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from supercm_lightning import SuperCM, Supervised
from supercm_lightning.cli import main, run
from supercm_lightning.data.preparation import Preparation
from supercm_lightning.tools.export import export_model
from supercm_lightning.utils.options import SuperCMError

QUICK = [
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1", "--data.steps_per_epoch", "4"),
]
DOCS = Path(__file__).resolve().parents[2] / "docs/export.md"


def photographs(root: Path, count: int = 8) -> list[Path]:
    """JPEGs of several sizes, gray and color, some of which lie on their side."""
    stream = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for number in range(count):
            height, width = stream.integers(30, 400, 2).tolist()
            small = stream.integers(0, 256, (9, 7, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            image = image.convert("L") if number == 3 else image
            exif = Image.Exif()
            exif[0x0112] = (1, 6, 3, 8)[number % 4]
            image.save(root / label / f"{number}.jpg", exif=exif)
    return sorted(root.rglob("*.jpg"))


def train(*options: str) -> Path:
    run(["fit", "--model", "SuperCM", "--data", "SemiSupervisedDataModule", "--data.dataset", "folder",
         "--data.root", "photos", "--data.num_labeled", "6", "--data.num_test", "6", *options, *QUICK])  # fmt: skip
    return Path("lightning_logs/version_0")


def table(file: Path) -> dict[str, dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return {Path(row["file"]).as_posix()[-9:]: row for row in csv.DictReader(stream)}


@pytest.mark.parametrize("options", [["--data.mean", "[0.3]"], ["--data.whitening", "true"]], ids=["mean", "whitening"])
def test_photographs_are_predicted_from_anywhere(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs(Path("photos"))
    folder = train("--data.image_size", "24", *options).resolve()
    tested = table(folder / "test_predictions.csv")
    shutil.move("photos", "elsewhere")
    shutil.move(folder, "moved")
    Path("here").mkdir()
    monkeypatch.chdir("here")
    main(["predict", "--run", "../moved", "../elsewhere", "--top_k", "2", "--probabilities", "true"])
    assert "16 predictions: predictions.csv" in capsys.readouterr().out
    found = table(Path("predictions.csv"))
    assert len(found) == 16
    for name, row in tested.items():
        assert found[name]["class"] == row["class"]
        assert float(found[name]["confidence"]) == pytest.approx(float(row["confidence"]), abs=2e-6)
        assert float(found[name]["p_cat"]) + float(found[name]["p_dog"]) == pytest.approx(1, abs=2e-6)
        assert {found[name]["class"], found[name]["class_2"]} == {"cat", "dog"}
    photo = next(Path("../elsewhere").rglob("1.jpg"))
    model = SuperCM.load("../moved")
    (by_file,), (by_image,) = model.predict_images([photo], top_k=2), model.predict_images([Image.open(photo)])
    assert by_file.classes[0] == by_image.classes[0] == found[photo.as_posix()[-9:]]["class"]
    assert by_file.confidences[0] == pytest.approx(by_image.confidences[0], abs=0.02)  # decoded at its full size
    assert not model.training
    with pytest.raises(SuperCMError, match=r"a checkpoint of SuperCM\. Load it by SuperCM\.load"):
        Supervised.load(next(Path("../moved/checkpoints").glob("*.ckpt")))
    Path("../elsewhere/bad.jpg").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"left out: .*bad\.jpg"):
        main(["predict", "--run", "../moved", "../elsewhere", "--on_bad_image", "skip"])
    assert table(Path("predictions.csv")).keys() == found.keys()
    for arguments, message in [
        (["--run", "../moved", "nothing.jpg"], "nothing.jpg: no such file or folder"),
        (["--run", "../moved", "../elsewhere"], "on_bad_image: skip"),
        (["--run", ".", "../elsewhere"], "no checkpoints in this folder"),
        (["--run", "../moved", "../elsewhere/cat", "--top_k", "3"], "top_k=3"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            main(["predict", *arguments])
        assert message in capsys.readouterr().err


def test_clusters_are_predicted_and_named_by_a_few_examples(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    photos = photographs(Path("photos"))
    run(["fit", "--model", "ASD", "--data", "ClusteringDataModule", "--data.dataset", "folder", "--data.root", "photos",
         "--data.num_classes", "2", "--data.image_size", "16", "--data.unlabeled_batch_size", "8", *QUICK])  # fmt: skip
    folder = Path("lightning_logs/version_0")
    assert (folder / "gallery.png").exists()
    assert f"supercm predict --run {folder.resolve()}" in caplog.text
    main(["predict", "--run", str(folder), "photos"])
    of_files = table(Path("predictions.csv"))
    main(["predict", "--run", str(folder), "--output", "own.csv"])
    assert capsys.readouterr().out.count("16 predictions") == 2
    own = table(Path("own.csv"))
    assert {name: row["cluster"] for name, row in own.items()} == {n: row["cluster"] for n, row in of_files.items()}
    assert list(next(iter(own.values()))) == ["file", "cluster", "confidence"]
    first = photos[0].as_posix()
    Path("labels.csv").write_text(f"file,class\n{first},owl\n")
    for more in (["photos"], []):
        main(["predict", "--run", str(folder), *more, "--names", "labels.csv"])
        rows = table(Path("predictions.csv"))
        of = rows[first[-9:]]["cluster"]
        assert {(row["class"], row["cluster"] == of) for row in rows.values()} <= {("owl", True), ("", False)}
        assert f"1 of 2 clusters have a name; without: {1 - int(of)}" in capsys.readouterr().out


def test_clusters_have_no_names_also_where_classes_have() -> None:
    photos = photographs(Path("photos"))
    run(["fit", "--model", "ASD", "--data", "SemiSupervisedDataModule", "--data.dataset", "folder", "--data.root",
         "photos", "--data.num_labeled", "4", "--data.image_size", "16", "--data.unlabeled_batch_size", "8",
         "--data.num_test", "4", "--model.asd_samples", "4", *QUICK])  # fmt: skip
    main(["predict", "--run", "lightning_logs/version_0", *map(str, photos[:4])])
    assert {row["cluster"] for row in table(Path("predictions.csv")).values()} <= {"0", "1"}
    with Path("lightning_logs/version_0/test_predictions.csv").open() as stream:
        assert {row["cluster"] for row in csv.DictReader(stream)} <= {"0", "1"}


def test_features_are_predicted_as_they_are_in_their_file(capsys: pytest.CaptureFixture[str]) -> None:
    stream = np.random.default_rng(0)
    for name in ("train", "new"):
        labels = np.arange(40) % 2
        features = (stream.normal(size=(40, 4)) * 5 + 9 * labels[:, None] + 100).astype("f4")
        np.savez(f"{name}.npz", features=features, labels=labels, classes=["cat", "dog"], backbone="resnet10t",
                 weights="0123456789abcdef", image_size="32")  # fmt: skip
    run(["fit", "--model", "SuperCM", "--model.backbone", "identity", "--data", "FeatureDataModule", "--data.labeled",
         "train.npz", "--data.num_labeled", "10", "--data.standardize", "joint", *QUICK])  # fmt: skip
    (file,) = Path().rglob("*.ckpt")
    run(["predict", "--model", "SuperCM", "--data", "FeatureDataModule", "--data.labeled", "train.npz",
         "--data.num_labeled", "10", "--data.predict_on", "new.npz", "--ckpt_path", str(file),
         *QUICK[2:8]])  # fmt: skip
    with Path("lightning_logs/version_1/predictions.csv").open() as stream_of:
        expected = [row["confidence"] for row in csv.DictReader(stream_of)]
    Path("train.npz").unlink()
    main(["predict", "--run", str(file), "new.npz"])
    with Path("predictions.csv").open() as stream_of:
        rows = list(csv.DictReader(stream_of))
    assert [row["confidence"] for row in rows] == expected
    assert {row["class"] for row in rows} <= {"cat", "dog"}
    Image.new("RGB", (8, 8)).save("photo.png")
    with pytest.raises(SystemExit):
        main(["predict", "--run", str(file), "photo.png"])
    said = capsys.readouterr().err
    assert "reads features of a network (backbone resnet10t, weights 0123456789abcdef" in said
    assert "supercm-features" in said


def test_a_photograph_is_predicted_by_features_of_its_network() -> None:
    import timm

    from supercm_lightning.nn.extractor import FrozenExtractor

    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), "net.pth")
    network = FrozenExtractor("resnet10t", False, Path("net.pth"), image_size=32)
    model = SuperCM(num_classes=2, input_shape=(network.num_features,), backbone="identity")
    about = {"backbone": "resnet10t", "weights": network.weights, "image_size": "32"}
    vars(model)["preparation"] = Preparation({"preprocessing": {"extractor": about}}, model.input_shape)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save("photo.png")
    (found,) = model.predict_images(["photo.png"], weights="net.pth")
    (expected,) = model.predict_features(
        network(torch.from_numpy(np.array(Image.open("photo.png"))).permute(2, 0, 1)[None])
    )
    assert torch.allclose(found.probabilities, expected.probabilities, atol=1e-5)
    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), "other.pth")
    with pytest.raises(SuperCMError, match=f"the model was trained on {network.weights}"):
        model.predict_images(["photo.png"], weights="other.pth")


def agreement(model: Any, file: Path, photos: list[Path]) -> int:
    """Number of photographs for which the snippet of the documentation and the library give one class."""
    (snippet,) = re.findall(r"```python\n(import json.*?)```", DOCS.read_text(), flags=re.DOTALL)
    begin, each = snippet.split('image = Image.open("photo.jpg")')
    state: dict[str, Any] = {}
    exec(begin.replace("model.onnx", str(file)), state)
    same = 0
    for photo, known in zip(photos, model.predict_images(photos), strict=True):
        exec(f"image = Image.open({str(photo)!r})" + each.replace("print(", "found = ("), state)
        logits = torch.from_numpy(state["logits"])
        torch.testing.assert_close(logits.softmax(1)[0], known.probabilities, atol=1e-4, rtol=0)
        same += state["found"] == known.classes[0]
    return same


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "options",
    [pytest.param([], marks=pytest.mark.slow), ["--data.whitening", "true"]],
    ids=["plain", "whitening"],
)
def test_the_documented_snippet_agrees_with_the_library(options: list[str]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    photos = photographs(Path("photos"))
    folder = train("--data.image_size", "24", *options)
    file = export_model(folder, Path("model.onnx"))
    assert agreement(SuperCM.load(folder), file, photos) == len(photos)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* images of test are also in unlabeled")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_documented_snippet_agrees_on_real_photographs(data_root: Path) -> None:
    pytest.importorskip("onnxscript")
    run(["fit", "--model", "SuperCM", "--data", "SemiSupervisedDataModule", "--data.dataset", "folder", "--data.root",
         str(data_root / "office_caltech10/caltech10"), "--data.image_size", "32", "--data.num_labeled", "100",
         "--data.num_test", "350", *QUICK])  # fmt: skip
    folder = Path("lightning_logs/version_0")
    with (folder / "test_predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    photos = [Path(row["file"]) for row in rows]
    model = SuperCM.load(folder)
    assert [one.classes[0] for one in model.predict_images(photos)] == [row["class"] for row in rows]
    assert agreement(model, export_model(folder, Path("model.onnx")), photos) == 350
    assert json.loads((folder / "summary.json").read_text())["metrics"]["test/acc"] > 0
