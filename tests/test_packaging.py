"""What the package promises to installers agrees with what it is and with what the tests are run against."""

import re
import sys
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import supercm_lightning
from supercm_lightning.data import DATASETS, DOMAIN_SETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lower_bound(requirement):
    return next(Version(spec.version) for spec in requirement.specifier if spec.operator == ">=")


def test_minimum_pins_are_the_lower_bounds(project):
    bounds = {r.name: lower_bound(r) for r in map(Requirement, project["dependencies"])}
    extras = [
        Requirement(line)
        for name in ("dev", "bench", "export", "tune")
        for line in project["optional-dependencies"][name]
    ]
    tools = {r.name: lower_bound(r) for r in extras if r.name != project["name"]}
    lines = (ROOT / "requirements" / "minimum.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for requirement in (Requirement(line) for line in lines if line and not line.startswith("#")):
        (spec,) = requirement.specifier
        assert spec.operator == "=="
        pins[requirement.name] = Version(spec.version)
    assert {name: pin for name, pin in pins.items() if name not in tools} == bounds
    assert {name: pin for name, pin in pins.items() if name in tools}.items() <= tools.items()


def test_compromised_lightning_releases_are_refused(project):
    lightning = next(r for r in map(Requirement, project["dependencies"]) if r.name == "lightning")
    assert not {"2.6.2", "2.6.3"} & set(lightning.specifier.filter(["2.6.1", "2.6.2", "2.6.3", "2.6.4"]))


def test_every_imported_distribution_is_declared(project):
    # What a dependency happens to bring along can disappear with its next release.
    modules = {"scikit-learn": "sklearn", "pillow": "PIL", "umap-learn": "umap", "pyyaml": "yaml",
               "typing-extensions": "typing_extensions", "docstring-parser": "docstring_parser"}  # fmt: skip
    extras = [
        line for name in ("umap", "bench", "export", "hub", "tune") for line in project["optional-dependencies"][name]
    ]
    declared = {modules.get(r.name, r.name) for r in map(Requirement, project["dependencies"] + extras)}
    imported = set()
    for file in (ROOT / "supercm_lightning").rglob("*.py"):
        imported |= set(re.findall(r"^\s*(?:import|from)\s+([A-Za-z_]\w*)", file.read_text(encoding="utf-8"), re.M))
    assert imported - set(sys.stdlib_module_names) - {"supercm_lightning"} <= declared


def test_slow_imports_wait_for_their_use():
    # Each takes a good part of a second from every command, `supercm --help` included.
    slow = r"^(?:import|from)\s+(?:sklearn|matplotlib|timm|umap|tensorboard)\b"
    files = [
        file for file in (ROOT / "supercm_lightning").rglob("*.py") if not {"tools", "estimators"} & set(file.parts)
    ]
    assert [str(file) for file in files if re.search(slow, file.read_text(encoding="utf-8"), re.M)] == []
    estimators = (ROOT / "supercm_lightning" / "estimators" / "classifier.py").read_text(encoding="utf-8")
    assert re.search(slow, estimators, re.M)  # the pattern finds what it should, where scikit-learn is the point


def test_version_is_the_same_everywhere(project):
    stated = project["version"]
    assert version("supercm-lightning") == supercm_lightning.__version__ == stated
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.M).group(1).strip('"') == stated
    assert f"## [{stated}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_console_script_exits_with_success(tmp_path, monkeypatch):
    # The installed script does sys.exit(value), so that any value but None or 0 is a failure to the shell.
    (script,) = entry_points(group="console_scripts", name="supercm")
    monkeypatch.chdir(tmp_path)
    options = ["--data.num_labeled=20", "--trainer.fast_dev_run=1", "--trainer.accelerator=cpu"]
    arguments = ["fit", "--model=Supervised", "--data=SemiSupervisedDataModule", *options]
    monkeypatch.setattr(sys, "argv", ["supercm", *arguments])
    assert script.load()() in (None, 0)


def documented(heading: str) -> dict[str, list[str]]:
    """Cells of the first table below a heading of the page on data, by the name in the first column."""
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", page.split(f"## {heading}\n")[1], flags=re.M)[0]
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", section, re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def test_every_console_script_is_a_function(project):
    for target in project["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function))


def test_documented_data_sets_are_the_registered_ones():
    table = documented("Registered image sets")
    assert table.keys() == DATASETS.keys()
    for name, spec in DATASETS.items():
        classes, image, _, validation, augmentation = table[name]
        assert (classes, image) == (str(spec.num_classes), "×".join(map(str, spec.input_shape)))
        assert validation == f"{spec.num_val:,}"
        parts = ["flip"] * spec.flip + [f"shift {spec.shift}"] + [f"noise {spec.noise}"] * bool(spec.noise)
        assert augmentation == ", ".join(parts)


def test_documented_domains_are_the_registered_ones():
    table = documented("Two domains")
    assert table.keys() == {"digits", *DOMAIN_SETS, "folder"}
    for name, spec in DOMAIN_SETS.items():
        domains, classes, folder = table[name]
        assert classes == str(spec.num_classes)
        assert spec.folders[0] in folder
        for domain in spec.domains:
            assert f"`{domain.name}` ({domain.code}" in domains
            assert f"{domain.count:,}" in domains
