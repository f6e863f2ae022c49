"""Checkpoint files: written whole, found again, or named as what they are."""

import os
from pathlib import Path

import pytest
import torch

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
    torch.save({"state_dict": {}, "hyper_parameters": {"_class_path": "supercm_lightning.SuperCM"}}, "a.ckpt")
    check_method(Path("a.ckpt"), "SuperCM")
    with pytest.raises(SuperCMError, match=r"a checkpoint of supercm_lightning\.SuperCM, but the model is VAT"):
        check_method(Path("a.ckpt"), "VAT")
