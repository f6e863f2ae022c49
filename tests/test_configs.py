"""Configs parse, hang together and train, small data standing in for their own."""

import dataclasses
import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image

from supercm_lightning.cli import SuperCMCLI, run
from supercm_lightning.data import DATASETS, DOMAIN_SETS
from supercm_lightning.utils.configs import FOLDER, answer_configs, config_file, found_configs
from supercm_lightning.utils.options import SuperCMError

CONFIGS = Path(__file__).parents[1] / "configs"
FRAGMENTS = sorted(file for folder in ("_data", "_trainer") for file in (CONFIGS / folder).glob("*.yaml"))
# Fragments for a machine go behind any config, and say so by their command.
MACHINES = [file for file in FRAGMENTS if "\n#   supercm " in file.read_text(encoding="utf-8")]
BENCH = {*(CONFIGS / "bench").rglob("*.yaml"), *(CONFIGS / "_rows").rglob("*.yaml")}  # tests/tools/test_bench.py
FILES = sorted(set(CONFIGS.rglob("*.yaml")) - set(FRAGMENTS) - BENCH)
QUICKSTART = CONFIGS / "quickstart.yaml"


def name_of(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


@cache
def content_of(file: Path) -> dict[str, Any]:
    """A config as it stands."""
    return dict(yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def fragments_of(file: Path) -> set[Path]:
    """The files that a config names."""
    sections = [content_of(file).get(name) for name in ("model", "data", "trainer", "rows")]
    return {(file.parent / section).resolve() for section in sections if isinstance(section, str)}


def representatives() -> set[Path]:
    """Configs that name every fragment at least once, one that runs on a CPU where there is one."""
    seen: set[Path] = set()
    chosen = {QUICKSTART}
    for file in sorted(FILES, key=lambda file: (not file.stem.endswith("_cpu"), file)):
        if fragments_of(file) - seen:
            seen |= fragments_of(file)
            chosen.add(file)
    return chosen


REPRESENTATIVES = representatives()
RUNS = [
    pytest.param(file, id=name_of(file), marks=[] if file in REPRESENTATIVES else pytest.mark.slow) for file in FILES
]


class Found(Exception):
    """Raised when the parser is there, before it parses."""


@cache
def parser() -> LightningArgumentParser:
    """The parser of `supercm fit`."""
    found: list[LightningArgumentParser] = []

    def stop(cli: SuperCMCLI, *_: Any) -> None:
        found.append(cli._parser("fit"))
        raise Found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SuperCMCLI, "parse_arguments", stop)
        with pytest.raises(Found):
            run(["fit"])
    return found[0]


def plain(value: Any) -> Any:
    """A parsed configuration without the places of its files."""
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items() if name not in ("config", "__path__")}
    return value


def parse(*arguments: str) -> dict[str, Any]:
    """What `supercm fit` would run, defaults included."""
    return dict(plain(parser().parse_args(list(arguments))))


@cache
def parsed(file: Path) -> dict[str, Any]:
    """A config, resolved."""
    return dict(plain(parser().parse_path(str(file))))


def without_supercm(file: Path) -> Path:
    """The config of the same method without SuperCM; the file itself where it has none."""
    name = re.sub("^supercm(_cpu)?$", r"supervised\1", file.stem)
    name = name.replace("supercm_", "") if "tuned" not in name else name
    other = file.with_stem(name)
    return other if other.exists() else file


# ------------------------------------------------------------------------------------------------------------- all
def test_every_config_parses() -> None:
    for file in FILES:
        try:
            parsed(file)
        except SystemExit:
            pytest.fail(f"{name_of(file)} does not parse")


def test_configs_are_short() -> None:
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in CONFIGS.rglob("*.yaml")) <= 2600


def test_every_fragment_is_used() -> None:
    rows = set((CONFIGS / "_rows").glob("*.yaml"))
    used = set().union(*map(fragments_of, {*FILES, *BENCH} - rows))
    assert used == {*FRAGMENTS, *rows} - set(MACHINES)


def test_every_config_states_the_command_that_runs_it() -> None:
    commands = {file: f"#   supercm fit --config configs/{name_of(file)}" for file in FILES}
    for file in MACHINES:
        commands[file] = f"#   supercm fit --config configs/quickstart.yaml --trainer configs/{name_of(file)}"
    assert [name_of(file) for file, command in commands.items() if command not in file.read_text().splitlines()] == []


def test_every_value_of_a_fragment_is_explained() -> None:
    unexplained = []
    for file in [QUICKSTART, *FRAGMENTS]:
        above = ""
        for line in file.read_text(encoding="utf-8").splitlines():
            explained = "  # " in line or ("class_path" in above and "  # " in above)
            if not explained and not re.search(r"^\s*#|:$|class_path: \w+$|^$", line):
                unexplained.append(f"{name_of(file)}: {line.strip()}")
            above = line
    assert unexplained == []


def test_a_method_with_supercm_differs_from_the_one_without_in_the_clustering_loss_alone() -> None:
    pairs = [(file, without_supercm(file)) for file in FILES if without_supercm(file) != file]
    assert len(pairs) > 70
    differing = []
    for pair in pairs:
        one, other = map(parsed, pair)
        options = [config["model"]["init_args"] for config in (one, other)]
        common = options[0].keys() & options[1].keys()
        same = all(options[0][name] == options[1][name] for name in common)
        same = same and all(one[name] == other[name] for name in ("data", "trainer", "seed_everything"))
        differing += [] if same else [name_of(pair[0])]
    assert differing == []


def test_methods_of_a_table_start_from_one_initialization_of_the_head() -> None:
    # Published settings have Xavier's for every method.
    wrong = []
    for file in FILES:
        published = file.parent.parent.name == "ssl" and not file.stem.endswith(("_cpu", "_recommended"))
        if parsed(file)["model"]["init_args"]["head_init"] != ("xavier" if published else "default"):
            wrong.append(name_of(file))
    assert wrong == []


def test_wide_resnets_have_the_batch_norm_of_their_recipe() -> None:
    # 0.001 as FixMatch and its relatives; the published SuperCM trained with PyTorch's defaults.
    fixmatch = {"batch_norm_momentum": 0.001, "batch_norm_eps": 0.001}
    for file in FILES:
        options = parsed(file)["model"]["init_args"]
        if options["backbone"].startswith("wrn"):
            expected = fixmatch if options["optimizer"] == "sgd" else {}
            assert (options["backbone_options"] or {}) == expected, name_of(file)


# -------------------------------------------------------------------------------------------------------- overrides
def test_the_command_line_overrides_a_fragment() -> None:
    file = CONFIGS / "ssl" / "mnist" / "supercm_vat.yaml"
    before = parsed(file)
    found = parse(
        "--config", str(file), "--data.num_labeled", "50", "--trainer.max_epochs", "3", "--model.beta", "2"
    )  # fmt: skip
    assert found["data"]["init_args"] == before["data"]["init_args"] | {"num_labeled": 50}
    assert found["model"]["init_args"] == before["model"]["init_args"] | {"beta": 2.0}
    assert found["trainer"] == before["trainer"] | {"max_epochs": 3}


def test_the_method_and_the_data_of_a_config_can_be_exchanged() -> None:
    file = CONFIGS / "ssl" / "mnist" / "supervised.yaml"
    found = parse("--config", str(file), "--model", "FixMatch", "--data", str(CONFIGS / "_data" / "ssl_svhn.yaml"))
    assert found["model"]["class_path"].endswith("FixMatch")
    assert found["model"]["init_args"]["lr"] == parsed(file)["model"]["init_args"]["lr"]
    assert found["data"] == parsed(CONFIGS / "ssl" / "svhn" / "supervised.yaml")["data"]


@pytest.mark.parametrize("file", MACHINES, ids=name_of)
def test_a_fragment_for_a_machine_changes_the_trainer_of_any_config(file: Path) -> None:
    fragment = content_of(file)
    for config in (QUICKSTART, CONFIGS / "ssl" / "mnist" / "supercm_cpu.yaml"):
        before, after = parsed(config), parse("--config", str(config), "--trainer", str(file))
        assert after == before | {"trainer": before["trainer"] | fragment}


@pytest.mark.parametrize("name", ["cpu", "debug"])
def test_a_fragment_for_this_machine_trains(name: str) -> None:
    files = ["--config", str(QUICKSTART), "--trainer", str(CONFIGS / "_trainer" / f"{name}.yaml")]
    short = ["--trainer.max_epochs", "1", "--data.steps_per_epoch", "1", "--trainer.callbacks", "null"]
    cli = run(["fit", *files, *short, "--trainer.enable_progress_bar", "false"])
    assert cli.trainer.global_step == 1


# ---------------------------------------------------------------------------------------------------- supercm configs
def test_configs_are_listed_by_the_words_of_their_line() -> None:
    assert "ssl/mnist " in answer_configs([])
    lines = answer_configs(["mnist", "vat"]).splitlines()
    assert any(line.split()[0] == "ssl/mnist/supercm_vat" for line in lines)
    assert all({"mnist", "vat"} <= set(re.findall("mnist|vat", line.lower())) for line in lines)
    with pytest.raises(SuperCMError, match="none with nothing_such"):
        answer_configs(["nothing_such"])


@pytest.mark.parametrize("name", ["quickstart", "ssl/mnist/supercm_vat.yaml", "configs/uda/office31/supercm.yaml"])
def test_a_copy_is_complete_in_one_file(name: str) -> None:
    printed = answer_configs(["copy", name, "mine/"])
    (file,) = Path("mine").iterdir()
    assert f"--config {file}" in printed
    assert plain(parser().parse_args(["--config", str(file)])) == parsed(
        CONFIGS / config_file(name).relative_to(FOLDER)
    )
    assert "../" not in file.read_text(encoding="utf-8")
    with pytest.raises(SuperCMError, match="exists"):
        answer_configs(["copy", name, str(file)])


def test_a_config_of_the_package_is_found_from_any_folder() -> None:
    given = ["fit", "--config", "quickstart", "--trainer=configs/_trainer/cpu.yaml", "--data.root", "quickstart"]
    found = found_configs(given)
    assert found[2] == str(FOLDER / "quickstart.yaml")
    assert found[3] == f"--trainer={FOLDER / '_trainer' / 'cpu.yaml'}"
    assert found[4:] == given[4:]
    Path("quickstart").write_text("mine")
    assert found_configs(given)[2] == "quickstart"


# ---------------------------------------------------------------------------------------------------------- training
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
    for shade, domain in ((100, options["source"]), (200, options["target"])):  # copies would be named
        for number in range(spec.num_classes or 0):
            folder = Path("images", domain, f"class {number}")
            folder.mkdir(parents=True)
            for copy in range(5):
                Image.new("RGB", (20, 24), (number, copy, shade)).save(folder / f"{copy}.png")
    # ResNet-50 and its weights stay away.
    small = ["--model.backbone", "small_cnn", "--model.backbone_options", "{}", "--data.image_size", "16"]
    return [*overrides, "--data.root", "images", *small]


def small_features(options: dict[str, Any]) -> list[str]:
    """Small features with views, of two domains or of one, and the options that fit them."""
    stream = np.random.default_rng(0)
    for name in filter(None, (options[split] for split in ("source", "target", "labeled", "test"))):
        views = {"weak": stream.normal(size=(60, 2, 16)), "strong": stream.normal(size=(60, 2, 16))}
        np.savez(f"{name}.npz", features=stream.normal(size=(60, 16)), labels=np.arange(60) % 10, **views)
    few = ["--data.num_labeled", "20"] if options["labeled"] else []
    return [*few, "--data.root", ".", "--data.labeled_batch_size", "6", "--data.unlabeled_batch_size", "6"]


@pytest.mark.parametrize("file", RUNS)
def test_config_trains_for_one_step(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = parsed(file)["data"]
    kind, options = data["class_path"].rpartition(".")[2], data["init_args"]
    if kind == "FeatureDataModule":
        overrides = small_features(options)
    elif kind == "DomainAdaptationDataModule":
        overrides = small_domains(options, monkeypatch)
    elif kind == "ClusteringDataModule":
        overrides = small_clusters(options, monkeypatch)
    else:
        overrides = small_semi_supervised(options, monkeypatch)
    if file in REPRESENTATIVES and kind != "FeatureDataModule":
        overrides += ["--model.backbone", "small_cnn", "--model.backbone_options", "{}"]  # the others train theirs
    cli = run(
        ["fit", "--config", str(file), *overrides, "--data.steps_per_epoch", "1", "--trainer.max_epochs", "1",
         "--trainer.check_val_every_n_epoch", "1", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1",
         "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    )  # fmt: skip
    assert cli.trainer.global_step == 1
    (summary,) = Path.cwd().rglob("summary.json")
    metrics = json.loads(summary.read_text())["metrics"]
    clustering = kind == "ClusteringDataModule"
    validated = {"val/acc"} if len(cli.datamodule.samples.get("val", ())) else set()
    assert {"train/loss", "test/acc"} | ({"test/nmi"} if clustering else validated) <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
