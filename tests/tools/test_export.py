"""A trained model as a file for other programs."""

import errno
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from supercm_lightning import FeatureDataModule, SuperCM
from supercm_lightning.cli import run
from supercm_lightning.data.transforms import weak
from supercm_lightning.methods.prediction import load_model
from supercm_lightning.tools import export
from supercm_lightning.tools.export import export_model, main
from supercm_lightning.utils.options import SuperCMError

QUICK = [
    *("--data.steps_per_epoch", "3", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--trainer.log_every_n_steps", "1"),
]
# torch and onnxscript warn of one another's releases.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def write_photographs() -> None:
    """Images of two classes in a folder."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"photos/{name}/{number}.png")


def write_checkpoint() -> Path:
    """A model of features, untrained."""
    model = SuperCM(num_classes=3, input_shape=(4,), backbone="identity")
    options = dict(model.hparams) | {"_class_path": "supercm_lightning.SuperCM",
                                     "_instantiator": "lightning.pytorch.cli.instantiate_module"}  # fmt: skip
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": options, "pytorch-lightning_version": "2.6.4"},
               "a.ckpt")  # fmt: skip
    return Path("a.ckpt")


def train_on_photographs() -> tuple[SuperCM, Path]:
    """A few steps on them."""
    write_photographs()
    cli = run(
        ["fit", "--model", "SuperCM", "--data", "SemiSupervisedDataModule", "--data.dataset", "folder", *QUICK,
         "--data.root", "photos", "--data.num_labeled", "4", "--data.mean", "[0.4]", "--trainer.callbacks", "EMA"]
    )  # fmt: skip
    (checkpoint,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    return cli.model.eval(), checkpoint


def test_onnx_file_gives_the_logits_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, checkpoint = train_on_photographs()
    weak._linear_map.cache_clear()  # nothing has been computed where the command starts
    main(["--ckpt_path", str(checkpoint), "--output", "exported/model.onnx"])
    assert "SuperCM, largest relative difference to torch" in capsys.readouterr().out
    session = onnxruntime.InferenceSession("exported/model.onnx", providers=["CPUExecutionProvider"])
    loaded = SuperCM.load_from_checkpoint(checkpoint, weights_only=True).eval()
    for rows in (1, 7):
        x = torch.randint(0, 256, (rows, 3, 16, 16), dtype=torch.uint8)
        (logits,) = session.run(["logits"], {"input": x.numpy()})
        with torch.no_grad():
            expected = loaded((x / 255 - 0.4) / 0.5)  # the preprocessing is in the file
            np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-5)
    metadata = {name: json.loads(v) for name, v in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["class_names"] == ["cat", "dog"]
    read = {"stored_shape": [3, 16, 16], "keep_aspect": True, "interpolation": "bilinear"}
    assert metadata["preprocessing"] == {"mean": [0.4], "std": [0.5], **read}
    assert (metadata["method"], metadata["input_shape"]) == ("SuperCM", [3, 16, 16])


def test_a_program_of_torch_export_gives_the_logits_of_the_model() -> None:
    _, checkpoint = train_on_photographs()
    weak._linear_map.cache_clear()
    main(["--ckpt_path", str(checkpoint), "--format", "torch_export"])
    extra = {"metadata.json": ""}
    program = torch.export.load(checkpoint.with_suffix(".pt2"), extra_files=extra).module()
    x = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        expected = SuperCM.load_from_checkpoint(checkpoint).eval()((x / 255 - 0.4) / 0.5)
    torch.testing.assert_close(program(x), expected, rtol=1e-4, atol=1e-5)
    assert json.loads(extra["metadata.json"])["class_names"] == ["cat", "dog"]


def test_a_card_beside_the_checkpoint_says_what_it_is() -> None:
    _, checkpoint = train_on_photographs()
    card = (checkpoint.parent / "card.md").read_text()
    assert card.startswith("## SuperCM on folder")
    assert "best checkpoint" not in card  # nothing chose it
    assert "| samples | 4 labeled, 2 val, 18 unlabeled |" in card
    for line in ("| beta | 1.0 |", "| split_seed | 0 |", "| val/acc | ", "| torch | "):
        assert line in card


def test_a_later_test_leaves_the_card_of_the_training_alone() -> None:
    _, checkpoint = train_on_photographs()
    card = checkpoint.parent / "card.md"
    before = card.read_text()
    for name in ("cat", "dog"):
        Path("photos/test", name).mkdir(parents=True)
        Image.fromarray(np.full((16, 16, 3), ord(name[0]), np.uint8)).save(f"photos/test/{name}/{name}.png")
    run(["test", "--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", str(checkpoint)])
    assert card.read_text() == before


def test_statistics_of_standardised_features_go_with_the_checkpoint() -> None:
    features = np.random.default_rng(0).normal(3, 2, size=(40, 4)).astype("f4")
    np.savez("a.npz", features=features, labels=np.arange(40) % 2)
    data = FeatureDataModule(labeled="a.npz", num_labeled=10, standardize="joint")
    data.setup("fit")
    known = data.state_dict()["preprocessing"]
    assert known["mean"] == pytest.approx(features.mean(0).tolist(), rel=1e-5)
    assert known["std"] == pytest.approx(features.std(0).tolist(), rel=1e-5)


def test_weights_that_the_checkpoint_holds_are_not_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    write_photographs()
    options = ["--model.backbone", "resnet10t", "--model.backbone_options", "{pretrained: false, drop_rate: 0.1}"]
    data = ["--data", "SemiSupervisedDataModule", "--data.dataset", "folder", "--data.root", "photos"]
    cli = run(["fit", "--model", "Supervised", *options, *data, "--data.num_labeled", "4", *QUICK])
    (path,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"]["backbone_options"]["pretrained"] = True
    torch.save(checkpoint, path)
    asked = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: asked.append(kwargs) or create(*args, **kwargs))
    method = load_model(path)
    assert [(kwargs["pretrained"], kwargs["drop_rate"]) for kwargs in asked] == [(False, 0.1)]
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(method(x), cli.model.eval()(x))
    asked.clear()
    run(["predict", "--model", "Supervised", *data, "--data.predict_on", "labeled", *QUICK, "--ckpt_path", str(path)])
    assert [(kwargs["pretrained"], kwargs["drop_rate"]) for kwargs in asked] == [(False, 0.1)]


def test_a_class_of_ones_own_is_imported_only_if_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path.cwd())  # as `supercm` does
    Path("own_methods.py").write_text("from supercm_lightning import SuperCM\n\nclass Own(SuperCM):\n    pass\n")
    data = ["--data", "SemiSupervisedDataModule", "--data.num_labeled", "20"]
    run(["fit", "--model", "own_methods.Own", *data, *QUICK, "--trainer.limit_test_batches", "0"])
    (checkpoint,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    arguments = ["--ckpt_path", str(checkpoint), "--format", "torch_export"]
    monkeypatch.delitem(sys.modules, "own_methods")
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "names the class own_methods.Own" in capsys.readouterr().err
    main([*arguments, "--model", "own_methods.Own"])
    assert checkpoint.with_suffix(".pt2").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ckpt_path", "none.ckpt"], "none.ckpt: no such file"),
        (["--ckpt_path", "plain.ckpt"], "--model"),
        (["--ckpt_path", "plain.ckpt", "--model", "SuperDM"], "model=SuperDM"),
        (["--ckpt_path", "plain.ckpt", "--model", "no_such_module.Mine"], "model=no_such_module.Mine"),
        (["--ckpt_path", "plain.ckpt", "--model", "pathlib.Path"], "not a method"),
    ],
)
def test_wrong_options_are_named(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}}, "plain.ckpt")
    with pytest.raises(SystemExit, match="2"):
        main([*options, "--format", "torch_export"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_file_that_answers_nan_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint()
    monkeypatch.setattr(export, "_run_program", lambda file, x: torch.full((len(x), 3), torch.nan))
    with pytest.raises(RuntimeError, match="differ from the model's by nan"):
        export_model(checkpoint, Path("m.pt2"), "torch_export")
    assert list(Path.cwd().iterdir()) == [checkpoint.absolute()]


def test_an_export_replaces_no_checkpoint_and_leaves_no_half_file(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_checkpoint()
    content = checkpoint.read_bytes()
    with pytest.raises(SuperCMError, match=r"output=.*: is the checkpoint itself"):
        export_model(checkpoint, checkpoint.absolute(), "torch_export")
    with pytest.raises(SuperCMError, match=r"output=\.: is a folder"):
        export_model(checkpoint, Path(), "torch_export")
    assert checkpoint.read_bytes() == content
    export_model(checkpoint, Path("m.pt2"), "torch_export")
    whole = Path("m.pt2").read_bytes()

    def full(self: Path, data: bytes) -> None:
        with self.open("wb") as stream:
            stream.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SuperCMError, match=r"output=m\.pt2: cannot be written \(No space left on device\)"):
        export_model(checkpoint, Path("m.pt2"), "torch_export")
    assert Path("m.pt2").read_bytes() == whole
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["a.ckpt", "m.pt2"]
