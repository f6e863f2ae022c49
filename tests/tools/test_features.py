"""Features of a folder of images, from the files to a trained method."""

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from supercm_lightning import FeatureDataModule, Supervised
from supercm_lightning.cli import run
from supercm_lightning.data import extraction
from supercm_lightning.data.sources.images import read_image
from supercm_lightning.nn import build_backbone
from supercm_lightning.nn.extractor import FrozenExtractor
from supercm_lightning.tools.features import extract_features, main

COLOURS = {"blue": (30, 40, 220), "green": (30, 200, 40), "red": (220, 40, 30)}
QUICK = [
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1"),
]
SMALL = ["--backbone", "small_cnn", "--pretrained", "false", "--image_size", "16", "--num_workers", "0"]


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    """Images of one colour and some noise, wider than high."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(rng.normal(colour, 25, size=(40, 56, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(f"features/{name}.npz") as file:
        return dict(file)


def test_features_are_those_of_timm_and_its_preprocessing() -> None:
    write_images(Path("photos"), 3)
    Image.new("L", (30, 30), 90).save("photos/red/grey.png")
    reference = timm.create_model("resnet10t", num_classes=7).eval()
    torch.save({"state_dict": reference.state_dict()}, "weights.pth")
    options = {"backbone": "resnet10t", "checkpoint": Path("weights.pth"), "batch_size": 4, "dtype": "float32"}
    extract_features(Path("photos"), **options)
    written = read("train")
    assert written["features"].shape == (10, 512)
    assert written["features"].dtype == np.float32
    assert written["classes"].tolist() == ["blue", "green", "red"]
    assert written["labels"].tolist() == [0] * 3 + [1] * 3 + [2] * 4
    transform = create_transform(**resolve_model_data_config(reference))
    images = [transform(Image.open(Path("photos", name)).convert("RGB")) for name in written["files"]]
    with torch.inference_mode():
        expected = reference.forward_head(reference.forward_features(torch.stack(images)), pre_logits=True)
    # Bytes resized by torch and by Pillow differ by one level here and there.
    np.testing.assert_allclose(written["features"], expected.numpy(), atol=0.01 * float(expected.abs().max()))


def test_few_labels_from_the_command_to_the_predictions() -> None:
    write_images(Path("photos/labeled"), 2)
    write_images(Path("photos/test"), 8, seed=1)
    write_images(Path("photos/unlabeled"), 20, seed=2)
    main(["--root", "photos", *SMALL])
    assert {file.name for file in Path("features").iterdir()} == {"labeled.npz", "unlabeled.npz", "test.npz"}
    assert (read("unlabeled")["labels"] == -1).all()
    assert "classes" not in read("unlabeled")
    data = ["--data", "FeatureDataModule", "--data.root", "features", "--data.labeled", "labeled"]
    data += ["--data.unlabeled", "unlabeled", "--data.test", "test", "--data.standardize", "joint"]
    cli = run(
        ["fit", "--model", "SuperCM", "--model.backbone", "identity", "--model.lr", "0.01", *data, *QUICK,
         "--data.steps_per_epoch", "40", "--trainer.max_epochs", "1"]
    )  # fmt: skip
    assert float(cli.trainer.callback_metrics["test/acc"]) > 0.9


def test_domains_are_adapted() -> None:
    write_images(Path("cameras/front"), 8)
    write_images(Path("cameras/side"), 8, seed=1)
    Path("cameras/night").mkdir()
    for file in Path("cameras/side").rglob("*.png"):
        Image.open(file).point(lambda value: value // 2).save(Path("cameras/night", f"{file.parent.name}{file.name}"))
    main(["--root", "cameras", "--source", "[front, side]", "--target", "night", *SMALL])
    assert (read("night")["labels"] == -1).all()
    assert read("side")["files"][0] == "side/blue/0.png"
    cli = run(
        ["fit", "--model", "DANN", "--model.backbone", "identity", "--data", "FeatureDataModule", *QUICK,
         "--data.root", "features", "--data.source", "[front, side]", "--data.target", "night",
         "--data.steps_per_epoch", "20", "--trainer.max_epochs", "1", "--model.lr", "0.01"]
    )  # fmt: skip
    assert float(cli.trainer.callback_metrics["val/acc"]) > 0.5
    assert "val/score" in cli.trainer.callback_metrics


def test_images_without_labels_are_clustered() -> None:
    write_images(Path("photos"), 20)
    main(["--root", "photos", "--folders_are_classes", "false", *SMALL])
    assert (read("train")["labels"] == -1).all()
    cli = run(
        ["fit", "--model", "ASDFreeMatch", "--model.backbone", "identity", "--data", "ClusteringDataModule", *QUICK,
         "--data.dataset", "features", "--data.root", "features", "--data.num_classes", "3",
         "--data.unlabeled_batch_size", "20", "--data.steps_per_epoch", "5", "--trainer.max_epochs", "1"]
    )  # fmt: skip
    assert cli.trainer.global_step == 5
    assert cli.model.num_classes == 3


def test_views_are_stored_and_trained_on() -> None:
    write_images(Path("photos/train"), 8)
    write_images(Path("photos/test"), 2, seed=1)
    main(["--root", "photos", *SMALL, "--weak_views", "1", "--strong_views", "3", "--batch_size", "7"])
    written = read("train")
    assert {name: (written[name].shape, str(written[name].dtype)) for name in ("features", "weak", "strong")} == {
        "features": ((24, 128), "float16"), "weak": ((24, 1, 128), "float16"), "strong": ((24, 3, 128), "float16"),
    }  # fmt: skip
    vectors = np.concatenate([written["features"][:, None], written["weak"], written["strong"]], 1)
    assert len(np.unique(vectors.reshape(-1, 128), axis=0)) > 90
    assert "weak" not in read("test")
    cli = run(
        ["fit", "--model", "FreeMatch", "--model.backbone", "identity", "--data", "FeatureDataModule", *QUICK,
         "--data.root", "features", "--data.labeled", "train", "--data.test", "test", "--data.num_labeled", "6",
         "--data.steps_per_epoch", "2", "--trainer.max_epochs", "1"]
    )  # fmt: skip
    assert cli.trainer.global_step == 2


def extract(output: str, **options: Any) -> Path:
    """Features of the photos with two views, by weights that are the same every time."""
    if not Path("weights.pt").exists():
        torch.save(build_backbone("small_cnn", (3, 16, 16)).state_dict(), "weights.pt")
    given = {"backbone": "small_cnn", "checkpoint": Path("weights.pt"), "image_size": 16, "batch_size": 5}
    given |= {"weak_views": 1, "strong_views": 1, "accelerator": "cpu"}
    return extract_features(Path("photos"), Path(output), **given | options)["train"]


def test_workers_and_processes_give_the_same_features() -> None:
    write_images(Path("photos"), 4)
    one = extract("one").read_bytes()
    assert extract("two", num_workers=2).read_bytes() == one
    assert len(read_from("one")) == 12


def test_precision_changes_features_little_and_is_part_of_what_they_are() -> None:
    write_images(Path("photos"), 4)
    extract("features")
    full = read_from("features")
    extract("features", precision="bf16-mixed")
    half = read_from("features")
    assert 0 < np.abs(full - half).max() < 0.02 * np.abs(full).max()


def read_from(folder: str) -> np.ndarray:
    return np.asarray(np.load(f"{folder}/train.npz")["features"])


def test_an_interrupted_extraction_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(Path("photos"), 6)
    expected = extract("whole").read_bytes()
    predict, steps = extraction.FeatureFile.predict_step, []

    def killed(self: Any, batch: Any, batch_idx: int) -> None:
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(batch[0])
        predict(self, batch, batch_idx)

    monkeypatch.setattr(extraction.FeatureFile, "predict_step", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        extract("part")
    assert not Path("part/train.npz").exists()
    monkeypatch.setattr(extraction.FeatureFile, "predict_step", lambda *a: (steps.append(a[1][0]), predict(*a))[1])
    assert extract("part").read_bytes() == expected
    assert steps == [0, 5, 10, 15]
    assert [file.name for file in Path("part").iterdir()] == ["train.npz"]
    extract("part")
    assert len(steps) == 4  # what is there is not made again
    Path("photos/red/0.png").unlink()
    extract("part")
    assert len(steps) == 8
    extract("part", weak_views=2)
    assert len(steps) == 12


@pytest.mark.slow
def test_two_processes_write_what_one_writes() -> None:
    write_images(Path("photos"), 6)
    one = extract("one").read_bytes()
    given = ["--root", "photos", "--output", "two", "--backbone", "small_cnn", "--checkpoint", "weights.pt"]
    given += ["--image_size", "16", "--batch_size", "5", "--weak_views", "1", "--strong_views", "1"]
    code = "from supercm_lightning.tools.features import main; main()"
    Path("extract.py").write_text(code)
    command = [sys.executable, "extract.py", *given, "--accelerator", "cpu", "--devices", "2"]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    assert Path("two/train.npz").read_bytes() == one


def test_images_are_extracted_once_without_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(Path("photos/train"), 8)
    write_images(Path("photos/test"), 2, seed=1)
    torch.save(build_backbone("small_cnn", (3, 16, 16)).state_dict(), "weights.pt")
    options: dict[str, Any] = {"checkpoint": "weights.pt", "image_size": 16, "strong_views": 1}

    def module(**more: Any) -> FeatureDataModule:
        data = FeatureDataModule(
            images="photos", root="cache", backbone="small_cnn", extraction=options | more, num_labeled=6
        )
        data.setup("fit")
        return data

    data = module()
    assert (data.class_names, data.input_shape) == (("blue", "green", "red"), (128,))
    assert len(data.samples["unlabeled"]) == 18
    assert list(data.augmentations) == ["weak", "strong"]
    monkeypatch.setattr(extraction.FeatureFile, "predict_step", lambda *_: pytest.fail("extracted again"))
    module()
    with pytest.raises(BaseException, match="extracted again"):
        module(strong_views=2)
    with pytest.raises(ValueError, match="extraction: views"):
        module(views=2)


def test_domains_are_extracted_without_the_command() -> None:
    for name in ("front", "night"):
        write_images(Path("cameras", name), 3)
    options = {"pretrained": False, "image_size": 16}
    data = FeatureDataModule(
        images="cameras", root="cache", backbone="small_cnn", extraction=options, source="front", target="night"
    )
    data.setup("fit")
    assert len(data.samples["unlabeled"]) == 9


def test_large_images_are_brought_to_the_size_of_the_network_first() -> None:
    Path("photos/a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((800, 600))
    smooth.save("photos/a/0.jpg", quality=95)
    image = read_image("photos/a/0.jpg", 3, None, at_most=40)
    assert image.shape == (3, 40, 53)
    expected = np.asarray(smooth.resize((53, 40), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(image.numpy().astype(int) - expected).max() < 6


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", "mobilenetv3_small_050", "densenet121"])
def test_joined_layers_give_the_same_features(name: str) -> None:
    torch.manual_seed(0)
    extractor = FrozenExtractor(name, pretrained=False, image_size=64)
    torch.manual_seed(0)
    reference = build_backbone(name, (3, 64, 64)).eval()
    images = torch.randint(0, 256, (2, 3, 50, 60), dtype=torch.uint8)
    with torch.inference_mode():
        expected, found = reference(extractor.preprocess(images)), extractor(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_weights_of_a_trained_method_are_its_own() -> None:
    torch.manual_seed(1)  # weights of seed 0 are those of an extractor without any
    model = Supervised(num_classes=3, input_shape=(3, 32, 32), backbone="resnet18_32")
    torch.save({"state_dict": model.state_dict()}, "run.ckpt")
    extractor = FrozenExtractor("resnet18_32", checkpoint=Path("run.ckpt"), image_size=32)
    images = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    prepared = extractor.preprocess(images)
    torch.testing.assert_close(prepared[0, :, 0, 0], torch.tensor([1.0, -1.0, -0.6]))
    with torch.no_grad():
        torch.testing.assert_close(extractor(images), model.eval().features(prepared), rtol=1e-3, atol=1e-4)
    other = FrozenExtractor("resnet18_32", pretrained=False, image_size=32)
    assert other.weights != extractor.weights


def test_an_unreadable_image_is_named_or_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("photos"), 2)
    Path("photos/red/broken.png").write_bytes(b"no image")
    for workers in ("0", "1"):
        with pytest.raises(SystemExit, match="2"):
            main(["--root", "photos", *SMALL, "--num_workers", workers])
        assert re.search(r"^error: [^\n]*broken\.png: cannot be read[^\n]*\n\Z", capsys.readouterr().err, re.M)
        assert not Path("features/train.npz").exists()
    main(["--root", "photos", *SMALL, "--on_bad_image", "skip"])
    assert "train: 1 of 7 images are left out" in capsys.readouterr().out
    assert len(read("train")["features"]) == 6
    assert "red/broken.png" not in read("train")["files"]


def test_without_a_network_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise FileNotFoundError("cannot find the requested files in the local cache.\nSee the documentation.")

    write_images(Path("photos"), 1)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(SystemExit, match="2"):
        main(["--root", "photos", "--backbone", "resnet10t"])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"error: .*resnet10t: .*local cache.*pretrained=false.*checkpoint", line)


def test_random_weights_are_announced(capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("photos"), 1)
    main(["--root", "photos", *SMALL])
    assert "weights of small_cnn are random" in capsys.readouterr().err
    torch.save(build_backbone("small_cnn", (3, 16, 16)).state_dict(), "weights.pt")
    main(["--root", "photos", *SMALL, "--checkpoint", "weights.pt"])
    assert "random" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "resnet1000"], "resnet1000"),
        (["--backbone", "nonsense", "--pretrained", "false"], "neither one of"),
        ([*SMALL, "--image_size", "0"], "image_size=0"),
        ([*SMALL, "--output", "text.pth"], "output=text.pth: is a file"),
        ([*SMALL, "--strong_views", "-1"], "strong_views=-1"),
        (["--backbone", "small_cnn"], "pretrained=false"),
        (["--backbone", "small_cnn", "--pretrained", "false"], "image_size"),
        (["--backbone", "resnet10t", "--checkpoint", "none.pth"], "none.pth: no such file"),
        (["--backbone", "resnet10t", "--checkpoint", "text.pth"], "text.pth: cannot be read"),
        (["--backbone", "resnet10t", "--checkpoint", "mlp.pth"], "mlp.pth: the weights do not fit"),
        (["--target", "night"], "source and target"),
        (["--dataset", "office31"], "needs source and target"),
        (["--batch_size", "0"], "batch_size=0"),
    ],
)
def test_wrong_options_are_named(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("photos"), 1)
    Path("text.pth").write_text("weights")
    torch.save(build_backbone("mlp", (4,)).state_dict(), "mlp.pth")
    with pytest.raises(SystemExit, match="2"):
        main(["--root", "photos", *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
