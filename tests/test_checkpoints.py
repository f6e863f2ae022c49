"""Checkpoint files: written whole, found again, or named as what they are."""

import os
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pickle import UnpicklingError
from threading import Thread

import pytest
import torch
from lightning.pytorch import Trainer

from supercm_lightning import SemiSupervisedDataModule, SuperCM
from supercm_lightning.cli import run
from supercm_lightning.methods.prediction import load_model
from supercm_lightning.nn import build_backbone, load_backbone_weights
from supercm_lightning.utils.checkpoints import AtomicCheckpointIO, check_method, newest_checkpoint, read_checkpoint
from supercm_lightning.utils.options import SuperCMError


def test_a_save_that_breaks_off_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    writer, file = AtomicCheckpointIO(), Path("folder/a.ckpt")
    writer.save_checkpoint({"state_dict": {"w": torch.ones(3)}}, file)

    def break_off(checkpoint: object, stream: object) -> None:
        stream.write(b"half a file")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr("supercm_lightning.utils.checkpoints.torch.save", break_off)
    with pytest.raises(KeyboardInterrupt):
        writer.save_checkpoint({"state_dict": {"w": torch.zeros(3)}}, file)
    assert torch.equal(read_checkpoint(file)["state_dict"]["w"], torch.ones(3))
    assert list(Path("folder").glob("*.ckpt")) == [file]


def test_the_newest_whole_one_is_found() -> None:
    for age, name in enumerate(("new", "weights", "old")):
        content = {"state_dict": {}, **({} if name == "weights" else {"loops": {}}), "name": name}
        file = Path("run/checkpoints", f"{name}.ckpt")
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, file)
        os.utime(file, (1000 - age, 1000 - age))
    broken = Path("run/checkpoints/broken.ckpt")
    broken.write_bytes(Path("run/checkpoints/new.ckpt").read_bytes()[:300])
    with pytest.warns(UserWarning, match=r"broken\.ckpt: cannot be read .* The one before it is taken"):
        path, checkpoint = newest_checkpoint(Path("run")) or pytest.fail("none found")
    assert (path.name, checkpoint["name"]) == ("new.ckpt", "new")
    broken.unlink()
    Path("run/checkpoints/new.ckpt").unlink()
    assert (newest_checkpoint(Path("run")) or pytest.fail("none found"))[0].name == "old.ckpt"
    assert newest_checkpoint(Path("nowhere")) is None


def test_in_a_folder_that_runs_share_each_finds_its_own() -> None:
    Path("shared").mkdir()
    for age, name in enumerate(("two", "one")):
        run = {"folder": str(Path(name).resolve()), "steps": 1}
        torch.save({"state_dict": {}, "loops": {}, "run": run}, f"shared/{name}.ckpt")
        os.utime(f"shared/{name}.ckpt", (1000 - age, 1000 - age))
    path, _ = newest_checkpoint(Path("one"), [Path("shared")]) or pytest.fail("none found")
    assert path.name == "one.ckpt"
    assert newest_checkpoint(Path("three"), [Path("shared")]) is None


def test_what_is_no_checkpoint_of_this_method_is_named() -> None:
    with pytest.raises(SuperCMError, match=r"ckpt_path=none\.ckpt: no such file"):
        read_checkpoint(Path("none.ckpt"))
    with pytest.raises(FileNotFoundError):
        read_checkpoint(Path("none.ckpt"))
    torch.save({"weight": torch.ones(1)}, "weights.pt")
    with pytest.raises(SuperCMError, match="no state_dict"):
        read_checkpoint(Path("weights.pt"))
    check_method("a.ckpt", {"_class_path": "supercm_lightning.SuperCM"}, "SuperCM")
    with pytest.raises(SuperCMError, match=r"a checkpoint of supercm_lightning\.SuperCM, but the model is VAT"):
        check_method("a.ckpt", {"_class_path": "supercm_lightning.SuperCM"}, "VAT")


class Code:
    """Leaves a file when it is unpickled."""

    def __reduce__(self) -> object:
        return Path.touch, (Path("it_ran"),)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.ckpt", "file:///nowhere/a.ckpt", "s3://bucket/a.ckpt"])
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_url_is_refused(url: str, command: str) -> None:
    with pytest.raises(SuperCMError, match=r"a\.ckpt: checkpoints are read from files alone\. Download it"):
        run([command, "--model", "SuperCM", "--data", "SemiSupervisedDataModule", "--ckpt_path", url])


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_code_behind_a_url_does_not_run(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning unpickles without restriction what it fetches."""
    monkeypatch.setenv("TORCH_HOME", "fetched")
    torch.save({"state_dict": {}, "code": Code()}, "a.ckpt")
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}" if scheme == "http" else f"file://{Path.cwd()}"
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        model = SuperCM(num_classes=10, input_shape=(1, 8, 8))
        with pytest.raises(UnpicklingError):
            trainer.test(model, datamodule=SemiSupervisedDataModule(), ckpt_path=f"{place}/a.ckpt")
        with pytest.raises(SuperCMError, match="Download it"):
            SuperCM.load_from_checkpoint(f"{place}/a.ckpt")
        server.shutdown()
    assert not Path("it_ran").exists()


def test_a_changed_bit_is_found() -> None:
    torch.save({"state_dict": {"w": torch.ones(100_000)}}, "a.ckpt")
    content = bytearray(Path("a.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    Path("a.ckpt").write_bytes(content)
    assert torch.load("a.ckpt", weights_only=True)["state_dict"]["w"].ne(1).any()  # torch does not notice
    for read in (read_checkpoint, AtomicCheckpointIO().load_checkpoint, SuperCM.load_from_checkpoint):
        with pytest.raises(SuperCMError, match="truncated or damaged"):
            read("a.ckpt")
    with pytest.raises(SuperCMError, match="cannot be read as weights"):
        load_backbone_weights(build_backbone("mlp", (4,)), Path("a.ckpt"))


@pytest.mark.parametrize("value", [["beta", 1], "beta", {1: 2}])
def test_options_that_are_none_are_named(value: object) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": value}, "a.ckpt")
    with pytest.raises(SuperCMError, match=r"a\.ckpt: its hyper_parameters are no options by name"):
        read_checkpoint("a.ckpt")


def test_a_checkpoint_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class of the method or of a part of it would be imported from the current folder."""
    monkeypatch.syspath_prepend(Path.cwd())
    Path("evil.py").write_text("raise RuntimeError('this code runs')")
    part = {"class_path": "evil.Net", "init_args": {}}
    for options in ({"_class_path": "evil.SuperCM"}, {"backbone": part}, {"backbone_options": {"layers": [part]}}):
        own = {"num_classes": 10, "input_shape": [1, 8, 8], "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        torch.save({"state_dict": {}, "hyper_parameters": own | {"_class_path": "supercm_lightning.SuperCM"} | options},
                   "a.ckpt")  # fmt: skip
        for stage in ("test", "fit"):
            with pytest.raises(SuperCMError, match=r"names the class evil\.\w+, which is not of this package"):
                run([stage, "--model", "SuperCM", "--data", "SemiSupervisedDataModule", "--ckpt_path", "a.ckpt"])
        with pytest.raises(SuperCMError, match=r"names the class evil\."):
            SuperCM.load_from_checkpoint("a.ckpt")
        with pytest.raises(SuperCMError, match=r"names the class evil\."):
            load_model(Path("a.ckpt"))


def test_weights_that_are_no_numbers_or_of_another_network_are_named() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=0, enable_checkpointing=False)
    model = SuperCM(num_classes=10, input_shape=(1, 8, 8))
    trainer.strategy.connect(model)
    for value in (torch.nan, torch.inf):
        with torch.no_grad():
            model.head.linear.bias[0] = value
        trainer.save_checkpoint("a.ckpt")
        with pytest.raises(SuperCMError, match=r"head\.linear\.bias is NaN or infinite"):
            SuperCM.load_from_checkpoint("a.ckpt")
    with pytest.raises(SuperCMError, match=r"backbone\.layers\.0\.weight has the shape .* there and .* here"):
        SuperCM.load_from_checkpoint("a.ckpt", backbone="wrn_28_2")
