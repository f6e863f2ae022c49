"""Models as folders of plain files, and the Hugging Face Hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from supercm_lightning import FeatureDataModule, FreeMatch, RunSummary, SuperCM
from supercm_lightning.methods.predict_files import predict_files
from supercm_lightning.tools.export import export_model
from supercm_lightning.utils.options import SuperCMError


@pytest.fixture
def pretrained() -> Path:
    """A trained model as a folder, and its checkpoint in `run`."""
    x, y = torch.randn(60, 4) * 3 + 5, torch.arange(60) % 3
    np.savez("features.npz", features=x, labels=y, classes=["cat", "dog", "owl"])
    data = FeatureDataModule("features.npz", num_labeled=12, num_test=9, standardize="joint", steps_per_epoch=2)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, default_root_dir="run", callbacks=[RunSummary()],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = SuperCM(num_classes=3, input_shape=(4,), backbone="mlp")
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    return SuperCM.load("run").save_pretrained("mine/model")


def test_a_folder_predicts_as_its_checkpoint(pretrained: Path) -> None:
    tables = [predict_files(run, ["features.npz"], f"{n}.csv", probabilities=True, model="SuperCM").read_text()
              for n, run in enumerate(("run", pretrained))]  # fmt: skip
    assert tables[0] == tables[1]
    assert ",dog," in tables[0]
    model = SuperCM.from_pretrained(pretrained)
    assert model.preparation is not None
    assert model.preparation.class_names == ("cat", "dog", "owl")
    assert export_model(pretrained, format="torch_export") == Path("model.pt2")


def test_the_folder_holds_plain_files_and_a_card(pretrained: Path) -> None:
    assert sorted(file.name for file in pretrained.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert any(name.startswith("head.") for name in load_file(pretrained / "model.safetensors"))
    card = (pretrained / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: supercm-lightning")
    assert "SuperCM on FeatureDataModule" in card
    assert "test accuracy" in card


def rewritten(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Changes the configuration of a folder."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (rewritten("config.json", lambda content: content.update(class_path="antigravity.Model")), "antigravity"),
        (rewritten("config.json", lambda content: content["options"].update(_class_path="os.system")), "SuperCM"),
        (rewritten("config.json", lambda content: content.pop("options")), "options"),
        (lambda folder: torch.save({"state_dict": {}}, folder / "model.safetensors"), "damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "damaged"),
    ],
)
def test_foreign_and_damaged_folders_run_no_code(pretrained: Path, damage: Callable[[Path], None], named: str) -> None:
    damage(pretrained)
    if named == "SuperCM":  # the class that the folder names counts
        assert isinstance(SuperCM.from_pretrained(pretrained), SuperCM)
        return
    with pytest.raises(SuperCMError, match=named):
        SuperCM.from_pretrained(pretrained)


def test_the_hub_takes_and_gives_such_folders(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    class Api:
        def create_repo(self, name: str, **options: Any) -> None:
            uploaded["created"] = (name, options)

        def upload_folder(self, **options: Any) -> str:
            uploaded["files"] = sorted(file.name for file in Path(options["folder_path"]).iterdir())
            return "address"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: {"me/cats": pretrained}[name])
    assert SuperCM.load("run").push_to_hub("me/cats", private=True) == "address"
    assert uploaded["created"] == ("me/cats", {"private": True, "exist_ok": True})
    assert uploaded["files"] == ["README.md", "config.json", "model.safetensors"]
    assert predict_files("hf://me/cats", ["features.npz"]).is_file()
    with pytest.raises(SuperCMError, match=r"FreeMatch|SuperCM\.load"):
        FreeMatch.from_pretrained("hf://me/cats")


def test_the_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **options: Any) -> str:
        raise OSError("no network\nand so on")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(SuperCMError, match=r"hf://me/cats.*no network.*network") as raised:
        SuperCM.from_pretrained("hf://me/cats")
    assert "\n" not in str(raised.value)


def test_a_model_without_a_checkpoint_cannot_be_saved() -> None:
    with pytest.raises(SuperCMError, match="load"):
        SuperCM(num_classes=3, input_shape=(4,), backbone="mlp").save_pretrained("mine")
