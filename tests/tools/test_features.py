"""Features of a folder of images, from the files to a trained method."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from supercm_lightning import Supervised
from supercm_lightning.cli import run
from supercm_lightning.nn import build_backbone
from supercm_lightning.tools.features import build_extractor, extract_features, main

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
    extract_features(Path("photos"), backbone="resnet10t", checkpoint=Path("weights.pth"), batch_size=4, num_workers=0)
    written = read("train")
    assert written["features"].shape == (10, 512)
    assert written["features"].dtype == np.float32
    assert written["classes"].tolist() == ["blue", "green", "red"]
    assert written["labels"].tolist() == [0] * 3 + [1] * 3 + [2] * 4
    transform = create_transform(**resolve_model_data_config(reference))
    images = [transform(Image.open(Path("photos", name)).convert("RGB")) for name in written["files"]]
    with torch.inference_mode():
        expected = reference.forward_head(reference.forward_features(torch.stack(images)), pre_logits=True)
    np.testing.assert_allclose(written["features"], expected.numpy(), rtol=1e-4, atol=1e-5)


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


def test_workers_give_the_same_features() -> None:
    write_images(Path("photos"), 4)
    torch.save({f"backbone.{k}": v for k, v in build_backbone("small_cnn", (3, 16, 16)).state_dict().items()}, "a.pth")
    options = {"backbone": "small_cnn", "checkpoint": Path("a.pth"), "image_size": 16, "batch_size": 5}
    one = extract_features(Path("photos"), Path("one"), num_workers=0, **options)
    two = extract_features(Path("photos"), Path("two"), num_workers=2, **options)
    np.testing.assert_array_equal(np.load(one["train"])["features"], np.load(two["train"])["features"])


def test_weights_of_a_trained_method_are_its_own() -> None:
    model = Supervised(num_classes=3, input_shape=(3, 32, 32), backbone="resnet18_32")
    torch.save({"state_dict": model.state_dict()}, "run.ckpt")
    network, transform = build_extractor("resnet18_32", True, Path("run.ckpt"), {}, 32)
    image = transform(Image.new("RGB", (32, 32), (255, 0, 51)))
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([1.0, -1.0, -0.6]))
    with torch.no_grad():
        assert torch.equal(network.eval()(image[None]), model.eval().features(image[None]))


def test_an_unreadable_image_is_named_or_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    write_images(Path("photos"), 2)
    Path("photos/red/broken.png").write_bytes(b"no image")
    for workers in ("0", "1"):
        with pytest.raises(SystemExit, match="2"):
            main(["--root", "photos", *SMALL, "--num_workers", workers])
        assert re.search(r"^error: [^\n]*broken\.png: cannot be read[^\n]*\n\Z", capsys.readouterr().err, re.M)
        assert not list(Path("features").iterdir())
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
