"""Every file under configs/ parses and trains for one step, small data standing in for its own."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from supercm_lightning.cli import run
from supercm_lightning.data import DATASETS

CONFIGS = Path(__file__).parent.parent / "configs"
FRAGMENTS = sorted((CONFIGS / "trainer").glob("*.yaml"))
FILES = sorted(set(CONFIGS.rglob("*.yaml")) - set(FRAGMENTS))
NAMES = [str(file.relative_to(CONFIGS)) for file in FILES]
# Across data sets the configs of a method are alike: the small nets and one data set of the others show the rest.
QUICK = [file.stem.endswith("_cpu") or file.parent.name in ("configs", "svhn") for file in FILES]
RUNS = [
    pytest.param(file, id=name, marks=[] if quick else pytest.mark.slow)
    for file, name, quick in zip(FILES, NAMES, QUICK, strict=True)
]


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a few random images, small ones, in place of a registered data set."""
    spec = DATASETS[name]
    channels, height, width = spec.input_shape
    shape = (channels, min(height, 8), min(width, 8))

    def load(root: Path, part: str, download: bool) -> Any:
        labels = torch.arange(spec.num_classes).repeat(6)
        pixels = torch.randint(0, 256, (len(labels), *shape), generator=torch.Generator().manual_seed(0))
        return pixels.to(torch.uint8), labels

    small = dataclasses.replace(spec, load=load, input_shape=shape, num_val=spec.num_classes)
    monkeypatch.setitem(DATASETS, name, small)


def write_folder(root: Path) -> None:
    """A few images of three classes."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog", "owl"):
            (root / part / name).mkdir(parents=True)
            for number in range(20):
                pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")


@pytest.mark.parametrize("file", RUNS)
def test_config_trains_for_one_step(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load(file.read_text())
    options = content["data"]["init_args"]
    overrides = ["--data.labeled_batch_size", "6", "--data.unlabeled_batch_size", "6"]
    if options["dataset"] == "folder":
        write_folder(Path("images"))
        overrides += ["--data.root", "images", "--data.num_labeled", "6"]
    elif options["dataset"] != "digits":
        stand_in(options["dataset"], monkeypatch)
        overrides += ["--data.num_labeled", str(2 * DATASETS[options["dataset"]].num_classes)]
    cli = run(
        ["fit", "--config", str(file), *overrides, "--data.steps_per_epoch", "1", "--trainer.max_epochs", "1",
         "--trainer.check_val_every_n_epoch", "1", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1",
         "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    )  # fmt: skip
    assert cli.trainer.global_step == 1
    (summary,) = Path.cwd().rglob("summary.json")
    metrics = json.loads(summary.read_text())["metrics"]
    assert {"train/loss", "val/acc", "test/acc"} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("file", FRAGMENTS, ids=[file.name for file in FRAGMENTS])
def test_a_fragment_changes_the_trainer_of_any_config(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fragment = yaml.safe_load(file.read_text())
    assert list(fragment) == ["trainer"]
    with pytest.raises(SystemExit):
        run(["fit", "--config", str(CONFIGS / "quickstart.yaml"), "--config", str(file), "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)
    quickstart = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    assert found["trainer"].items() >= fragment["trainer"].items()
    assert found["trainer"]["max_epochs"] == quickstart["trainer"]["max_epochs"]
    assert found["data"]["init_args"].items() >= quickstart["data"]["init_args"].items()


@pytest.mark.parametrize("name", ["cpu", "debug"])
def test_a_fragment_for_this_machine_trains(name: str) -> None:
    files = ["--config", str(CONFIGS / "quickstart.yaml"), "--config", str(CONFIGS / "trainer" / f"{name}.yaml")]
    short = ["--trainer.max_epochs", "1", "--data.steps_per_epoch", "1", "--trainer.callbacks", "null"]
    cli = run(["fit", *files, *short, "--trainer.enable_progress_bar", "false"])
    assert cli.trainer.global_step == 1


@pytest.mark.parametrize("file", FILES + FRAGMENTS, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_every_value_of_a_config_is_explained(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    values = [line for line in lines if not line.rstrip().endswith(":") and "class_path:" not in line]
    unexplained = [line for line in values if "  # " not in line]
    assert not unexplained


@pytest.mark.parametrize("file", FILES + FRAGMENTS, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_a_config_states_the_command_that_runs_it(file: Path) -> None:
    before = "--config configs/quickstart.yaml " if file in FRAGMENTS else ""
    command = f"#   supercm fit {before}--config configs/{file.relative_to(CONFIGS)}"
    assert command in file.read_text().splitlines()
