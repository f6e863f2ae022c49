"""The shape of the package: directions of imports, sizes of modules, and what decides behavior."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "supercm_lightning"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module imports its own part and parts of a lower level. All may import contracts.py, which imports utils and nn.
LEVELS = {
    "utils": 0,
    **dict.fromkeys(("losses", "nn", "metrics"), 1),
    "data": 1.5,  # features of images are computed by a network
    **dict.fromkeys(("callbacks", "self_labeling", "baselines"), 2),
    "methods": 3,
    "estimators": 4,
    **dict.fromkeys(("public", "__init__"), 5),
    "cli": 6,
    **dict.fromkeys(("tools", "__main__"), 7),
}
PURE = ("losses", "nn", "self_labeling", "metrics", "baselines", "data/transforms")

# `getattr` and `hasattr` with a literal name, where no Protocol can stand in.
BY_NAME = {
    ("data/sources/registered.py", "targets"): "torchvision's data sets name their labels differently",
    ("data/sources/registered.py", "labels"): "torchvision's data sets name their labels differently",
    ("data/sources/worker_stores.py", "targets"): "data sets of users name their labels differently",
    ("data/sources/worker_stores.py", "labels"): "data sets of users name their labels differently",
    ("data/sources/worker_stores.py", "target_transform"): "data sets of users may change their labels when read",
    ("data/sources/torch_datasets.py", "classes"): "data sets of users may name their classes",
    (
        "data/sources/feature_store.py",
        "__getitem__",
    ): "whatever can be indexed is a data set of torch, which has no Protocol",
    (
        "data/sources/feature_store.py",
        "__len__",
    ): "whatever can be indexed is a data set of torch, which has no Protocol",
}


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def module_level(statements: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run when the module is imported."""
    for node in statements:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from module_level([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from module_level([*node.body, *node.orelse, *node.finalbody])


def imported(file: Path) -> Iterator[str]:
    """Full names of modules, or of names in modules, that a file imports."""
    for node in module_level(parsed(file).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            assert not node.level, f"{name_of(file)}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(file: Path) -> str:
    return Path(name_of(file)).parts[0].removesuffix(".py")


@pytest.mark.parametrize("part", [*LEVELS, "contracts"])
def test_imports_point_one_way(part: str) -> None:
    wrong = []
    for file in (file for file in MODULES if part_of(file) == part):
        for name in (name for name in imported(file) if name.startswith("supercm_lightning.")):
            target = name.split(".")[1]
            target = target if target in LEVELS or target == "contracts" else "__init__"  # a name of the package itself
            if part == "contracts":
                allowed = target in ("utils", "nn")
            else:
                allowed = target in (part, "contracts") or LEVELS[target] < LEVELS[part]
            if not allowed:
                wrong.append(f"{name_of(file)} imports {name}")
    assert wrong == []


def test_every_part_has_a_level() -> None:
    assert {part_of(file) for file in MODULES} <= {*LEVELS, "contracts"}


@pytest.mark.parametrize("part", PURE)
def test_pure_parts_import_no_lightning(part: str) -> None:
    files = (PACKAGE / part).rglob("*.py")
    found = [f"{name_of(file)} imports {name}" for file in files for name in imported(file)]
    assert [line for line in found if re.search(r" imports (lightning|pytorch_lightning)\b", line)] == []


def test_modules_are_short() -> None:
    lines = {name_of(file): len(file.read_text(encoding="utf-8").splitlines()) for file in MODULES}
    limits = {"methods/base.py": 200, "methods/asd.py": 100}
    assert {name: count for name, count in lines.items() if count > limits.get(name, 330)} == {}


def test_few_types_are_ignored() -> None:
    found = {name_of(file): file.read_text(encoding="utf-8").count("# type: ignore") for file in MODULES}
    assert sum(found.values()) < 15, {name: count for name, count in found.items() if count}


def test_no_attribute_decides_by_its_name() -> None:
    found = set()
    for file in MODULES:
        for node in ast.walk(parsed(file)):
            match node:
                case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[_, ast.Constant(value=name), *_]):
                    found.add((name_of(file), name))
    found -= {(file, "sched_getaffinity") for file in map(name_of, MODULES)}  # a function that not every system has
    assert found - BY_NAME.keys() == set(), "use isinstance with a Protocol of contracts.py"
    assert BY_NAME.keys() - found == set(), "no longer needed"
