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
from supercm_lightning.data import DATASETS, DOMAIN_SETS

CONFIGS = Path(__file__).parent.parent / "configs"
FRAGMENTS = sorted((CONFIGS / "trainer").glob("*.yaml"))
TABLES = set((CONFIGS / "bench").rglob("*.yaml"))  # tests/tools/test_bench.py
FILES = sorted(set(CONFIGS.rglob("*.yaml")) - set(FRAGMENTS) - TABLES)
NAMES = [str(file.relative_to(CONFIGS)) for file in FILES]
# Across data sets the configs of a method are alike: the small nets, one data set of the others with every method, and
# one method on every set of domains show the rest.
EVERY_METHOD = ("configs", "svhn", "office_caltech10_features")
QUICK = [f.stem.endswith("_cpu") or f.parent.name in EVERY_METHOD or f.stem == "supercm_dann" for f in FILES]
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


def small_semi_supervised(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Small data for a config of few labels, and the options that fit it."""
    overrides = ["--data.labeled_batch_size", "6", "--data.unlabeled_batch_size", "6"]
    if options["dataset"] == "folder":
        write_folder(Path("images"))
        overrides += ["--data.root", "images", "--data.num_labeled", "6"]
    elif options["dataset"] != "digits":
        stand_in(options["dataset"], monkeypatch)
        overrides += ["--data.num_labeled", str(2 * DATASETS[options["dataset"]].num_classes)]
    return overrides


def small_clusters(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Small data for a config of clustering, and the options that fit it."""
    overrides = ["--data.unlabeled_batch_size", "6"]
    if options["dataset"] == "folder":
        write_folder(Path("images"))
        return [*overrides, "--data.root", "images", "--data.image_size", "20"]
    if options["dataset"] != "digits":
        stand_in(options["dataset"], monkeypatch)
    return overrides


def small_domains(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Small data for a config of domain adaptation, and the options that fit it."""
    overrides = ["--data.source_batch_size", "6", "--data.target_batch_size", "6"]
    if options["dataset"] == "digits":
        for domain in (options["source"], options["target"]):
            stand_in(domain, monkeypatch)
        return overrides
    spec = DOMAIN_SETS[options["dataset"]]
    uncounted = tuple(dataclasses.replace(domain, count=None) for domain in spec.domains)
    monkeypatch.setitem(DOMAIN_SETS, options["dataset"], dataclasses.replace(spec, domains=uncounted))
    for domain in (options["source"], options["target"]):
        for number in range(spec.num_classes or 0):
            folder = Path("images", domain, f"class {number}")
            folder.mkdir(parents=True)
            for copy in range(5):
                Image.new("RGB", (20, 24), (number, copy, 100)).save(folder / f"{copy}.png")
    # ResNet-50 and its weights stay away.
    small = ["--model.backbone", "small_cnn", "--model.backbone_options", "{}", "--data.image_size", "16"]
    return [*overrides, "--data.root", "images", *small]


def small_features(options: dict[str, Any]) -> list[str]:
    """Small features of two domains, and the options that fit them."""
    stream = np.random.default_rng(0)
    for domain in (options["source"], options["target"]):
        np.savez(f"{domain}.npz", features=stream.normal(size=(60, 16)), labels=np.arange(60) % 10)
    return ["--data.root", ".", "--data.labeled_batch_size", "6", "--data.unlabeled_batch_size", "6"]


@pytest.mark.parametrize("file", RUNS)
def test_config_trains_for_one_step(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = yaml.safe_load(file.read_text())["data"]
    options = data["init_args"]
    if data["class_path"] == "FeatureDataModule":
        overrides = small_features(options)
    elif data["class_path"] == "DomainAdaptationDataModule":
        overrides = small_domains(options, monkeypatch)
    elif data["class_path"] == "ClusteringDataModule":
        overrides = small_clusters(options, monkeypatch)
    else:
        overrides = small_semi_supervised(options, monkeypatch)
    cli = run(
        ["fit", "--config", str(file), *overrides, "--data.steps_per_epoch", "1", "--trainer.max_epochs", "1",
         "--trainer.check_val_every_n_epoch", "1", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1",
         "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    )  # fmt: skip
    assert cli.trainer.global_step == 1
    (summary,) = Path.cwd().rglob("summary.json")
    metrics = json.loads(summary.read_text())["metrics"]
    clustering = data["class_path"] == "ClusteringDataModule"
    assert {"train/loss", "test/acc", "test/nmi" if clustering else "val/acc"} <= set(metrics)
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
